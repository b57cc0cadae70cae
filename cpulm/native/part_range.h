// The rows that each part of a parallel region works on.
#pragma once
#include "team.h"

namespace {

struct PartRange { // of `rows`
    int64_t begin, end;
    PartRange(const Part &part, int64_t rows) {
        int64_t each = (rows + part.count - 1) / part.count;
        begin = each * part.number;
        end = begin + each < rows ? begin + each : rows;
    }
};

// A sum over rows is taken over blocks of rows and then over the blocks in order. The rows alone decide the blocks, so
// that the sum has the same bits for any number of parts.
constexpr int64_t SUM_BLOCKS = 64;

struct SumBlocks {
    int64_t rows, each, count;
    explicit SumBlocks(int64_t all) : rows(all) {
        each = (rows + SUM_BLOCKS - 1) / SUM_BLOCKS;
        if (each < 16) each = 16; // a block's sums cost about as much as a row
        count = (rows + each - 1) / each;
    }
    int64_t begin(int64_t block) const { return block * each; }
    int64_t end(int64_t block) const { return (block + 1) * each < rows ? (block + 1) * each : rows; }
};

} // namespace
