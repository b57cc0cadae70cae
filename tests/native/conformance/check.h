// Runs one kernel on several numbers of threads, and compares what it wrote with what it should have written.
#pragma once
#include "library.h"
#include "reference.h"
#include <algorithm>
#include <functional>
#include <map>
#include <memory>

namespace {

typedef std::vector<float> Floats;
typedef std::vector<int8_t> Bytes;

float *const NO_FLOATS = nullptr;
constexpr double TOLERANCE = 2e-5; // relative to the root mean square of all numbers that a kernel writes
int most_threads = 3;
const int POOL_PARTS = 7;

struct Result {
    int comparisons = 0;
    double error = 0;
    std::string problem;
};
std::map<std::string, Result> results;
std::string kernel; // that is being checked

void report(double error, const char *problem) {
    Result &result = results[kernel];
    result.comparisons++;
    if (!(error <= result.error)) result.error = error; // also if it is NaN
    if (!(error <= 1) && result.problem.empty()) result.problem = problem;
}

uint32_t random_state = 1;
uint32_t random_word() { return hash(random_state += 0x9e3779b9u); }
double random_number() { return random_word() / 2147483648.0 - 1; } // from -1 to 1

Floats floats(int64_t count, double centre = 0) {
    Floats made(count);
    for (float &x : made) x = centre + random_number();
    return made;
}

Bytes bytes(int64_t count) {
    Bytes made(count);
    for (int8_t &x : made) x = random_word() >> 24;
    return made;
}

Floats joined(std::initializer_list<Floats> parts) {
    Floats all;
    for (const Floats &part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
}

Doubles doubles(const Floats &x) { return Doubles(x.begin(), x.end()); }

// What one call of a kernel writes to: arrays that begin on a cache line, between bytes that nothing may change.
class Memory {
    static constexpr int64_t GUARD = 64;
    static constexpr char UNTOUCHED = 0x5b;
    struct Array {
        std::vector<char> all;
        char *begin;
        int64_t bytes;
    };
    std::vector<std::unique_ptr<Array>> arrays;

  public:
    template <class T> T *take(int64_t count) {
        int64_t bytes = count * sizeof(T);
        arrays.emplace_back(new Array{std::vector<char>(bytes + 3 * GUARD, UNTOUCHED), nullptr, bytes});
        Array &made = *arrays.back();
        made.begin = (char *)(((uintptr_t)made.all.data() + 2 * GUARD - 1) / GUARD * GUARD);
        return (T *)made.begin;
    }
    template <class T> T *copy(const std::vector<T> &from) {
        T *made = take<T>(from.size());
        memcpy(made, from.data(), from.size() * sizeof(T));
        return made;
    }
    float *take(int64_t count) { return take<float>(count); }
    // Of the n-th array.
    template <class T> std::vector<T> get(int n) const {
        T *begin = (T *)arrays[n]->begin;
        return std::vector<T>(begin, begin + arrays[n]->bytes / sizeof(T));
    }
    Floats floats(int n) const { return get<float>(n); }
    bool guarded() const {
        for (auto &array : arrays)
            for (char *at = array->all.data(); at < array->all.data() + array->all.size(); at++)
                if ((at < array->begin || at >= array->begin + array->bytes) && *at != UNTOUCHED) return false;
        return true;
    }
    // Of the first `count` arrays.
    bool same(const Memory &other, int count) const {
        for (int n = 0; n < count; n++)
            if (memcmp(arrays[n]->begin, other.arrays[n]->begin, arrays[n]->bytes)) return false;
        return true;
    }
};

// Calls a kernel on several numbers of threads, of both OpenMP libraries and of the library's own pool. Its first
// `outputs` arrays are its results, the others are working memory. Gives the results on one thread.
Memory run(const char *name, int outputs, const std::function<void(Memory &, int threads)> &call_kernel) {
    kernel = name;
    auto results_of = [&](int threads) {
        Memory memory;
        call_kernel(memory, threads);
        report(memory.guarded() ? 0 : INFINITY, "writes beyond the end of an array");
        return memory;
    };
    use_threads_of(true);
    Memory alone = results_of(1);
    for (int threads = 2; threads <= most_threads; threads++) {
        use_threads_of(threads % 2);
        report(results_of(threads).same(alone, outputs) ? 0 : INFINITY, "depends on the number of threads");
    }
    Pool pool(most_threads);
    report(results_of(POOL_PARTS).same(alone, outputs) ? 0 : INFINITY, "depends on the pool");
    return alone;
}

void compare(const Floats &found, const Doubles &wanted, const char *what, double tolerance = TOLERANCE) {
    double squares = 0, error = found.size() == wanted.size() ? 0 : INFINITY;
    for (double x : wanted) squares += x * x / wanted.size();
    for (size_t i = 0; i < wanted.size() && error < INFINITY; i++) {
        double difference = std::fabs(found[i] - wanted[i]);
        if (!(difference <= error)) error = difference;
    }
    report(error == 0 ? 0 : error / (tolerance * std::sqrt(squares)), what);
}

template <class T> void compare_exactly(const std::vector<T> &found, const std::vector<T> &wanted, const char *what) {
    report(found == wanted ? 0 : INFINITY, what);
}

// Compares the gradient of the sum of dy f(x) with differences of it, along some axes and some other directions.
void compare_gradient(const Floats &found, const Floats &x, const Floats &dy,
                      const std::function<Doubles(const Doubles &)> &f) {
    const int AXES = 60, DIRECTIONS = 3;
    const double STEP = 1e-4;
    auto change = [&](const Doubles &direction) {
        double sum = 0;
        Doubles up = doubles(x), down = up;
        for (size_t i = 0; i < x.size(); i++) up[i] += STEP * direction[i], down[i] -= STEP * direction[i];
        up = f(up), down = f(down);
        for (size_t i = 0; i < dy.size(); i++) sum += dy[i] * (up[i] - down[i]);
        return sum / (2 * STEP);
    };
    Floats some, along;
    Doubles some_wanted, along_wanted;
    size_t every = x.size() / AXES + 1;
    for (size_t i = random_word() % every; i < x.size(); i += every) {
        Doubles direction(x.size());
        direction[i] = 1;
        some.push_back(found[i]);
        some_wanted.push_back(change(direction));
    }
    for (int n = 0; n < DIRECTIONS; n++) {
        Doubles direction = doubles(floats(x.size()));
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++) sum += found[i] * direction[i];
        along.push_back(sum);
        along_wanted.push_back(change(direction));
    }
    compare(some, some_wanted, "a gradient is wrong");
    compare(along, along_wanted, "a gradient is wrong");
}

const struct Shape {
    int64_t rows, width;
} SHAPES[] = {{1, 16}, {7, 48}, {130, 80}, {1100, 16}};
constexpr int64_t PAST_THE_CACHES = 1 << 22; // numbers
constexpr float EPS = 1e-6f;

} // namespace
