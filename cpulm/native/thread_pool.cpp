// The pool's threads come from Python, which calls cpulm_pool_work on each.
#include "thread_pool.h"
#include "abi.h"

#if defined(__linux__)
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Turns of a wait for the next region, or for the last part of one, before a thread sleeps: some microseconds on x86. A
// longer wait takes the processor from the thread that is waited for.
constexpr int TURNS = 200;

// A region's number, how many parts it has and how many are taken, in one word: who takes a part by comparing and
// exchanging takes one of the region that it has seen, or none.
struct Progress {
    uint64_t word;
    static Progress begun(uint32_t region, int parts) { return {(uint64_t)region << 32 | (uint64_t)parts << 16}; }
    uint32_t region() const { return word >> 32; }
    uint32_t parts() const { return word >> 16 & 0xffff; }
    uint32_t taken() const { return word & 0xffff; }
    bool is_left() const { return taken() < parts(); }
};
constexpr int MOST_PARTS = 0xffff;

// On cache lines of their own, because threads watch them that others write.
alignas(64) uint64_t progress;
alignas(64) uint32_t done;                          // parts of the region
alignas(64) uint32_t news;                          // changes with each region, and when the pool is closed
alignas(64) int32_t threads_asleep, caller_asleep; // until there are news, and until the last part is done
bool is_open, is_running;
RunPart *run_part; // of the region
void *part_data;

template <class T> T load(const T &from) { return __atomic_load_n(&from, __ATOMIC_SEQ_CST); }
template <class T> void store(T &to, T value) { __atomic_store_n(&to, value, __ATOMIC_SEQ_CST); }

#if defined(__linux__)
constexpr int HAS_POOL = 1;
// Wait without a lock, which a thread that loses its processor would keep from all others.
void sleep_while(uint32_t &at, uint32_t value) { syscall(SYS_futex, &at, FUTEX_WAIT_PRIVATE, value, nullptr); }
void wake_all(uint32_t &at) { syscall(SYS_futex, &at, FUTEX_WAKE_PRIVATE, INT_MAX); }
#else // no pool is opened there
constexpr int HAS_POOL = 0;
void sleep_while(uint32_t &, uint32_t) {}
void wake_all(uint32_t &) {}
#endif

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Runs parts of the newest region until none is left.
void run_parts() {
    Progress seen = {load(progress)};
    while (seen.is_left()) {
        if (!__atomic_compare_exchange_n(&progress, &seen.word, seen.word + 1, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        run_part(part_data, seen.taken()); // the region cannot end before this part has
        if (__atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST) == seen.parts() && load(caller_asleep)) wake_all(done);
        seen.word = load(progress);
    }
}

void tell_news() {
    __atomic_add_fetch(&news, 1, __ATOMIC_SEQ_CST);
    if (load(threads_asleep)) wake_all(news);
}

template <class Ended> bool ended_soon(Ended ended) {
    for (int turn = 0; turn < TURNS; turn++) {
        if (ended()) return true;
        pause();
    }
    return false;
}

} // namespace

bool run_in_pool(RunPart *run, void *data, int parts) {
    if (!load(is_open) || parts > MOST_PARTS) return false;
    if (__atomic_exchange_n(&is_running, true, __ATOMIC_SEQ_CST)) { // by another thread, or around this region
        for (int number = 0; number < parts; number++) run(data, number);
        return true;
    }
    run_part = run;
    part_data = data;
    store(done, 0u);
    store(progress, Progress::begun(Progress{load(progress)}.region() + 1, parts).word);
    tell_news();
    run_parts();
    if (!ended_soon([=] { return load(done) == (uint32_t)parts; })) {
        store(caller_asleep, 1);
        for (uint32_t now = load(done); now != (uint32_t)parts; now = load(done)) sleep_while(done, now);
        store(caller_asleep, 0);
    }
    store(is_running, false);
    return true;
}

extern "C" {

// Whether this system has pools.
int cpulm_has_pool() { return HAS_POOL; }

// Lets regions run on the threads that call cpulm_pool_work.
void cpulm_pool_open() { store(is_open, true); }

// Runs parts of regions until the pool is closed.
void cpulm_pool_work() {
    while (load(is_open)) {
        uint32_t known = load(news);
        run_parts();
        if (!load(is_open) || ended_soon([=] { return load(news) != known; })) continue;
        __atomic_add_fetch(&threads_asleep, 1, __ATOMIC_SEQ_CST);
        sleep_while(news, known);
        __atomic_add_fetch(&threads_asleep, -1, __ATOMIC_SEQ_CST);
    }
}

// Ends cpulm_pool_work on all threads, after the region that runs.
void cpulm_pool_close() {
    store(is_open, false);
    tell_news();
}

} // extern "C"

SIGNATURE_OF(cpulm_has_pool)
SIGNATURE_OF(cpulm_pool_open)
SIGNATURE_OF(cpulm_pool_work)
SIGNATURE_OF(cpulm_pool_close)
