// A library of kernels, as Python uses it: functions by name, with their argument types confirmed, and threads.
#pragma once
#include "abi.h"
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

[[noreturn]] void fail(const std::string &why) {
    printf("%s\n", why.c_str());
    exit(1);
}

void *loaded;

void *find(const std::string &name) {
#if defined(_WIN32)
    void *found = (void *)GetProcAddress((HMODULE)loaded, name.c_str());
#else
    void *found = dlsym(loaded, name.c_str());
#endif
    return found ? found : (fail("the library has no " + name), nullptr);
}

void open_library(const char *path) {
#if defined(_WIN32)
    loaded = (void *)LoadLibraryA(path);
#else
    loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL);
#endif
    if (!loaded) fail(std::string("cannot load ") + path);
}

// Calls a function of the library, which has to confirm the types of these arguments.
template <class Result = void, class... Arguments> Result call(const std::string &name, Arguments... arguments) {
    typedef Result Function(Arguments...);
    std::string takes = ((const char *(*)())find(name + "_signature"))(), passed = signature((Function *)nullptr);
    if (takes != passed) fail(name + " takes " + takes + ", not " + passed);
    return ((Function *)find(name))(arguments...);
}

// The names that a function of the library gives, separated by spaces.
std::vector<std::string> names(const std::string &function) {
    std::vector<std::string> all;
    std::string text = ((const char *(*)())find(function))();
    for (size_t at = 0, end; (end = text.find(' ', at)) != std::string::npos; at = end + 1)
        all.push_back(text.substr(at, end - at));
    return all;
}

struct Barrier {
    std::mutex mutex;
    std::condition_variable all_here;
    int members = 1, waiting = 0, round = 0;
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        int mine = round;
        if (++waiting == members) {
            waiting = 0, round++;
            all_here.notify_all();
        } else
            all_here.wait(lock, [&] { return round != mine; });
    }
};

// Stands for torch's OpenMP library: the functions that cpulm/native/team.h names, on threads that live for one region.
Barrier barrier;
int requested = 1;
thread_local int number = 0;

template <class Task> void region(int threads, Task task) {
    std::vector<std::thread> others;
    barrier.members = threads;
    for (int n = 1; n < threads; n++)
        others.emplace_back([=] {
            number = n;
            task();
        });
    task();
    for (std::thread &other : others) other.join();
    barrier.members = 1;
}

typedef void KmpcTask(int32_t *, int32_t *, void *, void *);

void gomp_parallel(void (*task)(void *), void *data, unsigned threads, unsigned) {
    region(threads, [=] { task(data); });
}
void gomp_barrier() { barrier.wait(); }
int get_thread_num() { return number; }
int get_num_threads() { return barrier.members; }
void kmpc_push_num_threads(void *, int32_t, int32_t threads) { requested = threads; }
void kmpc_fork_call(void *, int32_t count, KmpcTask *task, ...) {
    va_list list;
    va_start(list, task);
    void *first = va_arg(list, void *), *second = va_arg(list, void *);
    va_end(list);
    if (count != 2) fail("__kmpc_fork_call got another number of arguments than two");
    region(requested, [=] { task(nullptr, nullptr, first, second); });
}
void kmpc_barrier(void *, int32_t) { barrier.wait(); }
int32_t kmpc_global_thread_num(void *) { return number; }

// Gives the library the functions of libgomp, or of LLVM's library.
void use_threads_of(bool llvm) {
    const struct {
        const char *name;
        void *function;
        bool in_llvm, in_gomp;
    } all[] = {{"GOMP_parallel", (void *)gomp_parallel, false, true},
               {"GOMP_barrier", (void *)gomp_barrier, false, true},
               {"omp_get_thread_num", (void *)get_thread_num, true, true},
               {"omp_get_num_threads", (void *)get_num_threads, true, true},
               {"__kmpc_fork_call", (void *)kmpc_fork_call, true, false},
               {"__kmpc_push_num_threads", (void *)kmpc_push_num_threads, true, false},
               {"__kmpc_barrier", (void *)kmpc_barrier, true, false},
               {"__kmpc_global_thread_num", (void *)kmpc_global_thread_num, true, false}};
    std::vector<void *> given;
    for (const std::string &name : names("cpulm_openmp_functions")) {
        given.push_back(nullptr);
        for (auto &one : all)
            if (name == one.name && (llvm ? one.in_llvm : one.in_gomp)) given.back() = one.function;
    }
    if (!call<int>("cpulm_use_openmp", given.data())) fail("the library does not take these threads");
}

// Has the library's pool open, with so many threads beside the calling one, where the system has pools.
struct Pool {
    std::vector<std::thread> threads;
    explicit Pool(int others) {
        if (!call<int>("cpulm_has_pool")) return;
        call("cpulm_pool_open");
        for (int n = 0; n < others; n++) threads.emplace_back([] { call("cpulm_pool_work"); });
    }
    ~Pool() {
        call("cpulm_pool_close");
        for (std::thread &thread : threads) thread.join();
    }
};

} // namespace
