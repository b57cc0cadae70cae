// Int8 matrix products with int32 sums, for CPUs with instructions that multiply and add four pairs of bytes.
//
// Both factors are signed. x86 multiplies signed bytes by unsigned ones only: there 128 is added to each byte of the
// right factor when it is packed, which dot_offsets subtracts again. Four bytes of the left factor are broadcast to all
// lanes. The depth, which a product sums over, is cut into quads of four. "Panels" hold a matrix [depth, width] in the
// order in which a product reads it: for each PANEL columns all quads, for each quad the four bytes of each column. The
// last panel may be narrower.
#pragma once
#include "dot4.h"

namespace {

constexpr int PANEL = TILE_VECTORS * LANES, ROW_BLOCK = 16 * TILE_ROWS, DEPTH_BLOCK = 128;

struct LeftFactor { // [rows, depth], row-major, or the panels of its transpose
    const int8_t *at;
    int64_t rows, depth;
    bool packed;
    int64_t panel_rows(int64_t row) const {
        int64_t left = rows - row / PANEL * PANEL;
        return left < PANEL ? left : PANEL;
    }
    const int8_t *row(int64_t i) const {
        return packed ? at + i / PANEL * PANEL * depth + i % PANEL * 4 : at + i * depth;
    }
    int64_t row_step() const { return packed ? 4 : depth; }
    int64_t quad_step(int64_t i) const { return packed ? panel_rows(i) * 4 : 4; }
    int64_t block() const { return packed ? PANEL : ROW_BLOCK; }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Products of the pairs of quads, two rows by two columns at a time. ROW_MAJOR: a_quad is 4. Returns the quads done.
template <int ROWS, int VECTORS, bool ROW_MAJOR>
inline int64_t dot_squares(int64_t quads, const int8_t *a, int64_t a_row, int64_t a_quad, const uint8_t *b,
                           Ints (&sums)[ROWS][VECTORS]) {
    int32x4_t squares[ROWS / 2][VECTORS][2] = {};
    int64_t q = 0;
    for (; q + 2 <= quads; q += 2) {
        int8x16_t rows[ROWS / 2];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS / 2; i++) { // the eight bytes of one row, then those of the next
            const int8_t *at = a + 2 * i * a_row + q * a_quad;
            int32x2_t first = vreinterpret_s32_s8(vld1_s8(at)); // in panels: of both rows the bytes of one quad
            int32x2_t second = vreinterpret_s32_s8(vld1_s8(at + (ROW_MAJOR ? a_row : a_quad)));
            int32x4_t both = ROW_MAJOR ? vcombine_s32(first, second)
                                       : vcombine_s32(vzip1_s32(first, second), vzip2_s32(first, second));
            rows[i] = vreinterpretq_s8_s32(both);
        }
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) {
            int32x4_t first = (int32x4_t)load_words(b + (q * VECTORS + j) * LANES * 4);
            int32x4_t second = (int32x4_t)load_words(b + ((q + 1) * VECTORS + j) * LANES * 4);
            int8x16_t columns[] = {vreinterpretq_s8_s32(vzip1q_s32(first, second)),
                                   vreinterpretq_s8_s32(vzip2q_s32(first, second))};
#pragma GCC unroll 8
            for (int i = 0; i < ROWS / 2; i++)
#pragma GCC unroll 2
                for (int n = 0; n < 2; n++) squares[i][j][n] = vmmlaq_s32(squares[i][j][n], rows[i], columns[n]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS / 2; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) {
            int64x2_t left = vreinterpretq_s64_s32(squares[i][j][0]), right = vreinterpretq_s64_s32(squares[i][j][1]);
            sums[2 * i][j] += (Ints)vzip1q_s64(left, right);
            sums[2 * i + 1][j] += (Ints)vzip2q_s64(left, right);
        }
    return q;
}
#endif

template <int ROWS, int VECTORS>
inline void dot_tile(int64_t quads, const int8_t *a, int64_t a_row, int64_t a_quad, const uint8_t *b, int32_t *c,
                     const int32_t *offsets) {
    Ints sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            sums[i][j] = offsets ? Ints{} + offsets[i] : *(const UnalignedInts *)(c + i * PANEL + j * LANES);
    int64_t q = 0;
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (ROWS > 1)
        q = a_quad == 4 ? dot_squares<ROWS, VECTORS, true>(quads, a, a_row, a_quad, b, sums)
                        : dot_squares<ROWS, VECTORS, false>(quads, a, a_row, a_quad, b, sums);
#endif
    for (; q < quads; q++) {
        Words values[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) values[j] = load_words(b + (q * VECTORS + j) * LANES * 4);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            Words factor = Words{} + *(const Word *)(a + i * a_row + q * a_quad);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) sums[i][j] = dot4(sums[i][j], values[j], factor);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) *(UnalignedInts *)(c + i * PANEL + j * LANES) = sums[i][j];
}

// Products of `rows` rows from `row` on with one panel of VECTORS vectors, into c [rows, PANEL].
template <int VECTORS>
void dot_strip(const LeftFactor &left, int64_t row, int64_t rows, const uint8_t *b, int32_t *c,
               const int32_t *offsets) {
    int64_t a_row = left.row_step(), a_quad = left.quad_step(row), all_quads = left.depth / 4;
    for (int64_t q = 0; q < all_quads; q += DEPTH_BLOCK) {
        int64_t quads = all_quads - q < DEPTH_BLOCK ? all_quads - q : DEPTH_BLOCK;
        const int8_t *a = left.row(row) + q * a_quad;
        const uint8_t *panel = b + q * VECTORS * LANES * 4;
        for (int64_t i = 0; i < rows;) {
            const int32_t *first = q ? nullptr : offsets + i;
            if (i + TILE_ROWS <= rows) {
                dot_tile<TILE_ROWS, VECTORS>(quads, a + i * a_row, a_row, a_quad, panel, c + i * PANEL, first);
                i += TILE_ROWS;
            } else if (i + 4 <= rows) {
                dot_tile<4, VECTORS>(quads, a + i * a_row, a_row, a_quad, panel, c + i * PANEL, first);
                i += 4;
            } else
                dot_tile<1, VECTORS>(quads, a + i * a_row, a_row, a_quad, panel, c + i * PANEL, first), i++;
        }
    }
}

// Initial values of the sums: 0, or -128 times the sum of each row's bytes.
void dot_offsets(const LeftFactor &left, int64_t row, int64_t rows, int32_t *offsets) {
    if (!UNSIGNED_RIGHT) {
        memset(offsets, 0, rows * sizeof(int32_t));
        return;
    }
    Words ones = Words{} + 0x01010101u;
    if (left.packed) {
        int64_t width = left.panel_rows(row);
        for (int64_t j = 0; j < width; j += LANES) {
            Ints sums = {};
            for (int64_t q = 0; q < left.depth / 4; q++)
                sums = dot4(sums, ones, load_words(left.row(row) + (q * width + j) * 4));
            *(UnalignedInts *)(offsets + j) = sums * -128;
        }
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        const int8_t *at = left.row(row + i);
        int32_t total = 0;
        for (int64_t p = 0; p < left.depth; p++) total += at[p];
        offsets[i] = total * -128;
    }
}

// Products of `rows` rows from `row` on with the panel b of `width` columns, into c [rows, PANEL].
void dot_block(const LeftFactor &left, int64_t row, int64_t rows, const uint8_t *b, int64_t width, int32_t *c,
               const int32_t *offsets) {
    switch (width / LANES) {
    case 1: return dot_strip<1>(left, row, rows, b, c, offsets);
    case 2: return dot_strip<2>(left, row, rows, b, c, offsets);
    case 3: return dot_strip<3>(left, row, rows, b, c, offsets);
    default: return dot_strip<TILE_VECTORS>(left, row, rows, b, c, offsets);
    }
}

} // namespace
