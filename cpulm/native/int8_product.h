// Int8 matrix products with int32 sums, for CPUs with instructions that multiply and add four pairs of bytes.
//
// The left factor is signed; four of its bytes are broadcast to all lanes. The right factor is unsigned: 128 is added
// to each of its bytes, which dot_offsets subtracts again. The depth, which a product sums over, is cut into quads of
// four. "Panels" hold a matrix [depth, width] in the order in which a product reads it: for each PANEL columns all
// quads, for each quad the four bytes of each column. The last panel may be narrower.
#pragma once
#include "vector.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

namespace {

constexpr int PANEL = TILE_VECTORS * LANES, ROW_BLOCK = 16 * TILE_ROWS, DEPTH_BLOCK = 128;

#if defined(__AVX512VNNI__)
constexpr bool FAST_DOTS = true;
inline Ints dot4(Ints sums, Words positive, Words any) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)positive, (__m512i)any);
}
#elif defined(__AVXVNNI__) && defined(__AVX__)
constexpr bool FAST_DOTS = true;
inline Ints dot4(Ints sums, Words positive, Words any) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)positive, (__m256i)any);
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool FAST_DOTS = true;
inline Ints dot4(Ints sums, Words positive, Words any) {
    return (Ints)vusdotq_s32((int32x4_t)sums, (uint8x16_t)positive, (int8x16_t)any);
}
#else
constexpr bool FAST_DOTS = false;
inline Ints dot4(Ints sums, Words positive, Words any) {
    for (int byte = 0; byte < 32; byte += 8)
        sums += (Ints)(positive << (24 - byte) >> 24) * ((Ints)(any << (24 - byte)) >> 24);
    return sums;
}
#endif

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

template <int ROWS, int VECTORS>
inline void dot_tile(int64_t quads, const int8_t *a, int64_t a_row, int64_t a_quad, const uint8_t *b, int32_t *c,
                     const int32_t *offsets) {
    Ints sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            sums[i][j] = offsets ? Ints{} + offsets[i] : *(const UnalignedInts *)(c + i * PANEL + j * LANES);
    for (int64_t q = 0; q < quads; q++) {
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

// Initial values of the sums: -128 times the sum of each row's bytes.
void dot_offsets(const LeftFactor &left, int64_t row, int64_t rows, int32_t *offsets) {
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
