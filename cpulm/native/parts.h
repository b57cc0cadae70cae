// What each thread of a parallel region has to do.
#pragma once
extern "C" int omp_get_thread_num(void); // declared here: Apple's compiler comes without omp.h

struct Part { // of `rows` for one thread
    long begin, end;
    Part(long rows, int threads) {
        long each = (rows + threads - 1) / threads;
        begin = each * omp_get_thread_num();
        end = begin + each < rows ? begin + each : rows;
    }
};
