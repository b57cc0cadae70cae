// What int8.cpp and muon.cpp share: rows rounded to int8, and the products of factors in the kernels' order.
#pragma once
#include "parts.h"
#include "vector.h"

static inline void quantized_row(const float *x, long width, float most, int8_t *out, float *scale) {
    *scale = most / 127.0f;
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (long j = 0; j < width; j += LANES) store_bytes(out + j, rounded(load(x + j) * inverse));
}

// The largest magnitude of a row, and of `columns` so far: NaN where there is one.
static inline float row_most(const float *x, long width, float *columns) {
    Ints most = {};
    for (long j = 0; j < width; j += LANES) {
        Ints v = magnitude(load(x + j));
        most = larger(v, most);
        if (columns) store(columns + j, (Floats)larger(v, (Ints)load(columns + j)));
    }
    return largest_magnitude(most);
}

extern "C" {
void cpulm_turn_rows(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int threads);
void cpulm_turn_columns(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int64_t quads, int64_t first,
                        uint32_t flip, int threads);
void cpulm_int8_product(const int8_t *left_at, int turned, const uint8_t *right, int64_t rows, int64_t cols,
                        int64_t depth, const float *row_scale, const float *column_scale, const float *bias, float *out,
                        int add, const float *kept, int symmetric, int threads);
}
