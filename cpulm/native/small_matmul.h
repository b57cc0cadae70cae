// Small matrix products from the L1 cache: C (+)= A B, with B and C row-major and A with any two strides.
#pragma once
#include "vector.h"

namespace {

template <int ROWS, int VECTORS>
inline void matmul_tile(int inner, const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                        float *c, int64_t c_row, bool add) {
    Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sums[i][j] = add ? load(c + i * c_row + j * LANES) : Floats{};
    for (int p = 0; p < inner; p++) {
        Floats values[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) values[j] = load(b + p * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            Floats factor = splat(a[i * a_row + p * a_col]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) sums[i][j] += factor * values[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

template <int VECTORS>
void matmul_strip(int rows, int inner, const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                  float *c, int64_t c_row, bool add) {
    int i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        matmul_tile<TILE_ROWS, VECTORS>(inner, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, add);
    for (; i + 2 <= rows; i += 2)
        matmul_tile<2, VECTORS>(inner, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, add);
    for (; i < rows; i++)
        matmul_tile<1, VECTORS>(inner, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, add);
}

// C [rows, cols] with sums over `inner`; cols is a multiple of LANES.
void small_matmul(int rows, int cols, int inner, const float *a, int64_t a_row, int64_t a_col, const float *b,
                  int64_t b_row, float *c, int64_t c_row, bool add) {
    int j = 0;
    for (; j + TILE_VECTORS * LANES <= cols; j += TILE_VECTORS * LANES)
        matmul_strip<TILE_VECTORS>(rows, inner, a, a_row, a_col, b + j, b_row, c + j, c_row, add);
    for (; TILE_VECTORS > 2 && j + 2 * LANES <= cols; j += 2 * LANES)
        matmul_strip<2>(rows, inner, a, a_row, a_col, b + j, b_row, c + j, c_row, add);
    for (; j < cols; j += LANES) matmul_strip<1>(rows, inner, a, a_row, a_col, b + j, b_row, c + j, c_row, add);
}

} // namespace
