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

// A sum over rows is taken over blocks of rows and then over the blocks in order. The rows alone decide the blocks, so
// that the sum has the same bits for any number of threads.
constexpr long SUM_BLOCKS = 64;

struct SumBlocks {
    long rows, each, count;
    explicit SumBlocks(long all) : rows(all) {
        each = (rows + SUM_BLOCKS - 1) / SUM_BLOCKS;
        if (each < 16) each = 16; // a block's sums cost about as much as a row
        count = (rows + each - 1) / each;
    }
    long begin(long block) const { return block * each; }
    long end(long block) const { return (block + 1) * each < rows ? (block + 1) * each : rows; }
};

} // namespace
