// Parallel regions on the threads of the OpenMP library that torch has loaded, or of the pool while it is open. On a calm
// machine a second set of threads would compete with torch's, and a library compiled with -fopenmp would need the OpenMP
// of one system and compiler.
#pragma once
#include "thread_pool.h"
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

// A part of a region's work; a region has a part for each thread, or several for each thread of the pool.
struct Part {
    int number, count; // of all parts
    int64_t *taken; // tasks of the region's loop, by all parts together

    // The next number of 0, 1, 2 ... that no part of the region has taken.
    int64_t take() const { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }
};

// A part of a region whose parts run at the same time, each on a thread of OpenMP, so that they can meet.
struct Team : Part {
    void barrier() const {
        if (count == 1) return;
        if (cpulm_openmp->GOMP_barrier)
            cpulm_openmp->GOMP_barrier();
        else
            cpulm_openmp->__kmpc_barrier(kmpc_location(), cpulm_openmp->__kmpc_global_thread_num(kmpc_location()));
    }
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
template <class Body> void parallel_together(int threads, const Body &body) {
    struct Region {
        const Body *body;
        int64_t taken;
    } region = {&body, 0};
    if (threads <= 1 || !cpulm_openmp) {
        const Body own = body;
        return own(Team{{0, 1, &region.taken}});
    }
    run_on_threads(
        [](void *data) { // there may be fewer threads than requested, by OMP_DYNAMIC, OMP_THREAD_LIMIT or the system
            Region *of = (Region *)data;
            const Body own = *of->body;
            own(Team{{cpulm_openmp->omp_get_thread_num(), cpulm_openmp->omp_get_num_threads(), &of->taken}});
        },
        &region, threads);
}

// Calls `body` with each Part, on the threads of the pool if it is open, else one on each thread of OpenMP. As above,
// it should capture by value.
template <class Body> void parallel(int parts, const Body &body) {
    struct Region {
        const Body *body;
        int parts;
        int64_t taken;
    } region = {&body, parts, 0};
    auto run_part = [](void *data, int number) {
        Region *of = (Region *)data;
        const Body own = *of->body;
        own(Part{number, of->parts, &of->taken});
    };
    if (parts > 1 && run_in_pool(run_part, &region, parts)) return;
    parallel_together(parts, body);
}

} // namespace
