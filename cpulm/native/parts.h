// What each thread of a parallel region has to do.
#pragma once
extern "C" int omp_get_thread_num(void), omp_get_num_threads(void); // here: Apple's compiler comes without omp.h

struct Part { // of `rows` for one thread
    long begin, end;
    explicit Part(long rows) {
        long threads = omp_get_num_threads(); // fewer than asked for with OMP_DYNAMIC or OMP_THREAD_LIMIT
        long each = (rows + threads - 1) / threads;
        begin = each * omp_get_thread_num();
        end = begin + each < rows ? begin + each : rows;
    }
};
