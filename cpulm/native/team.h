// Parallel regions on the threads of the OpenMP library that torch has loaded. A second set of threads would compete
// with torch's, and a library compiled with -fopenmp would need the OpenMP of one system and compiler.
#pragma once
#include <cstdint>

// Python looks these functions up by name and passes null for those that the library does not have. libgomp has the
// first two, as LLVM's and Intel's library does outside Windows; that library also has those named __kmpc.
#define OPENMP_FUNCTIONS(X)                                                                                            \
    X(GOMP_parallel, void, (void (*)(void *), void *, unsigned, unsigned))                                             \
    X(GOMP_barrier, void, ())                                                                                          \
    X(omp_get_thread_num, int, ())                                                                                     \
    X(omp_get_num_threads, int, ())                                                                                    \
    X(__kmpc_fork_call, void, (void *, int32_t, void (*)(int32_t *, int32_t *, void (*)(void *), void *), ...))        \
    X(__kmpc_push_num_threads, void, (void *, int32_t, int32_t))                                                       \
    X(__kmpc_barrier, void, (void *, int32_t))                                                                         \
    X(__kmpc_global_thread_num, int32_t, (void *))

struct OpenMP {
#define FUNCTION(name, result, arguments) result(*name) arguments;
    OPENMP_FUNCTIONS(FUNCTION)
#undef FUNCTION
};

// One for all translation units. Null: every region runs on the calling thread alone.
__attribute__((visibility("hidden"))) extern const OpenMP *cpulm_openmp;

namespace {

// What LLVM's library wants to know of the place in the code: that its functions are called as Clang calls them.
struct Location {
    int32_t reserved, flags, others[2];
    const char *source;
};
inline void *kmpc_location() {
    static Location location = {0, 2, {0, 0}, ";unknown;unknown;0;0;;"};
    return &location;
}

// The calling thread's part in a region.
struct Team {
    int thread, threads; // there may be fewer threads than requested, by OMP_DYNAMIC, OMP_THREAD_LIMIT or the system
    int64_t *taken; // tasks of the region's loop, by all threads together

    void barrier() const {
        if (threads == 1) return;
        if (cpulm_openmp->GOMP_barrier)
            cpulm_openmp->GOMP_barrier();
        else
            cpulm_openmp->__kmpc_barrier(kmpc_location(), cpulm_openmp->__kmpc_global_thread_num(kmpc_location()));
    }

    // The next number of 0, 1, 2 ... that no thread of the region has taken.
    int64_t take() const { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }
};

inline void run_on_threads(void (*task)(void *), void *data, int threads) {
    const OpenMP &openmp = *cpulm_openmp;
    if (openmp.GOMP_parallel) return openmp.GOMP_parallel(task, data, threads, 0);
    void *location = kmpc_location();
    openmp.__kmpc_push_num_threads(location, openmp.__kmpc_global_thread_num(location), threads);
    openmp.__kmpc_fork_call(
        location, 2, [](int32_t *, int32_t *, void (*inner)(void *), void *its_data) { inner(its_data); }, task, data);
}

// Calls `body` with its Team on each thread. It should capture by value: each thread then works on a copy in registers,
// whereas values behind references are read again after every vector store, which may have changed them.
template <class Body> void parallel(int threads, const Body &body) {
    struct Region {
        const Body *body;
        bool alone;
        int64_t taken;
    } region = {&body, threads <= 1 || !cpulm_openmp, 0};
    auto task = [](void *data) {
        Region *of = (Region *)data;
        const Body own = *of->body;
        own(Team{of->alone ? 0 : cpulm_openmp->omp_get_thread_num(),
                 of->alone ? 1 : cpulm_openmp->omp_get_num_threads(), &of->taken});
    };
    if (region.alone)
        task(&region);
    else
        run_on_threads(task, &region, threads);
}

} // namespace
