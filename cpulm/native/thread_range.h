// The rows that each thread of a parallel region works on.
#pragma once
extern "C" int omp_get_thread_num(void),
    omp_get_num_threads(void); // Declared here because Apple's compiler comes without omp.h.

namespace {

struct ThreadRange { // of `rows`, for the calling thread
    long begin, end;
    explicit ThreadRange(long rows) {
        long threads = omp_get_num_threads(); // OMP_DYNAMIC and OMP_THREAD_LIMIT may give fewer than requested
        long each = (rows + threads - 1) / threads;
        begin = each * omp_get_thread_num();
        end = begin + each < rows ? begin + each : rows;
    }
};

} // namespace
