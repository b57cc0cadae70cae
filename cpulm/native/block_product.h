// Products with matrices that were quantized once, to write text: int8 in blocks of 32 inputs with a scale for each
// block of each output, as llama.cpp's q8_0. The other factor, few rows of numbers, is quantized for each product in the
// same way. The whole sums of a block are exact, and the blocks are added up in order: a row's result depends neither on
// the other rows nor on the threads.
//
// A matrix lies in memory in the order in which a product reads it: for each STRIP outputs all blocks, for each block
// its eight quads as in int8_product.h and then the outputs' scales in float16. Outputs are rounded up to whole vectors.
#pragma once
#include "abi.h"
#include "dot4.h"
#include "part_range.h"

namespace {

constexpr int64_t BLOCK_INPUTS = 32, BLOCK_BYTES = BLOCK_INPUTS + 2; // of one output
constexpr int STRIP_VECTORS = LANES == 4 ? 4 : 2, STRIP = STRIP_VECTORS * LANES;
constexpr int STRIP_ROWS = LANES == 16 ? 8 : 4; // of the other factor at once: as many sums as there are registers

inline int64_t whole_vectors(int64_t outputs) { return (outputs + LANES - 1) / LANES * LANES; }
inline int64_t block_matrix_bytes(int64_t outputs, int64_t inputs) {
    return whole_vectors(outputs) * (inputs / BLOCK_INPUTS) * BLOCK_BYTES;
}

// From a block of weights to whole numbers; returns their scale in float16, NaN if a weight is not finite.
inline uint16_t quantize_block(const float *x, int8_t *whole) {
    float most = 0;
    for (int64_t j = 0; j < BLOCK_INPUTS; j++) {
        float size = x[j] < 0 ? -x[j] : x[j];
        most = size > most || size != size ? size : most;
    }
    if (!(most < 8e6f)) return 0x7e00;
    uint16_t half[LANES] = {to_half(most / 127.0f)};
    float inverse = half[0] ? 1.0f / load_halves(half)[0] : 0.0f;
    for (int64_t j = 0; j < BLOCK_INPUTS; j++) {
        float v = x[j] * inverse;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v; // of the tiniest scales, which float16 rounds
        whole[j] = (int8_t)(v < 0 ? v - 0.5f : v + 0.5f);
    }
    return half[0];
}

struct BlockRows { // the other factor [rows, inputs]
    int64_t inputs;
    int8_t *values;
    float *scales;    // of each block
    int32_t *offsets; // of the sums of each block: what RIGHT_FLIP has added
    int64_t blocks() const { return inputs / BLOCK_INPUTS; }
    BlockRows(int64_t rows, int64_t inputs, uint8_t *memory) : inputs(inputs) {
        scales = (float *)memory;
        offsets = (int32_t *)(scales + rows * blocks());
        values = (int8_t *)(offsets + rows * blocks());
    }
    static int64_t bytes(int64_t rows, int64_t inputs) { return rows * inputs / BLOCK_INPUTS * (BLOCK_INPUTS + 8); }

    // Row i from x [inputs].
    void quantize(int64_t i, const float *x) const {
        for (int64_t k = 0; k < blocks(); k++, x += BLOCK_INPUTS) {
            Ints most = {};
            for (int64_t j = 0; j < BLOCK_INPUTS; j += LANES) most = max(magnitude(load(x + j)), most);
            float largest = horizontal_max_magnitude(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
            int8_t *to = values + i * inputs + k * BLOCK_INPUTS;
            for (int64_t j = 0; j < BLOCK_INPUTS; j += LANES)
                store_bytes(to + j, round_to_low_bytes(load(x + j) * inverse));
            int32_t total = 0;
            for (int64_t j = 0; j < BLOCK_INPUTS && UNSIGNED_RIGHT; j++) total += to[j];
            scales[i * blocks() + k] = largest / 127.0f;
            offsets[i * blocks() + k] = total * -128;
        }
    }
};

// Products of rows `row`.. with one strip.
template <int ROWS, int VECTORS>
inline void block_tile(const BlockRows &x, int64_t row, const uint8_t *strip, Floats (&sums)[ROWS][VECTORS]) {
    constexpr int WIDTH = VECTORS * LANES;
    int64_t blocks = x.blocks();
    const int8_t *values = x.values + row * x.inputs;
    const float *scales = x.scales + row * blocks;
    const int32_t *offsets = x.offsets + row * blocks;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) sums[i][j] = Floats{};
    for (int64_t k = 0; k < blocks; k++, strip += WIDTH * BLOCK_BYTES, values += BLOCK_INPUTS) {
        Ints whole[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) whole[i][j] = UNSIGNED_RIGHT ? Ints{} + offsets[i * blocks + k] : Ints{};
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++) {
            Words four[VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) four[j] = load_words(strip + (q * VECTORS + j) * LANES * 4);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                Words factor = Words{} + *(const Word *)(values + i * x.inputs + q * 4);
#pragma GCC unroll 4
                for (int j = 0; j < VECTORS; j++) whole[i][j] = dot4_symmetric(whole[i][j], four[j], factor);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            Floats scale = load_halves(strip + WIDTH * BLOCK_INPUTS + j * LANES * 2);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++)
                sums[i][j] += __builtin_convertvector(whole[i][j], Floats) * (scale * scales[i * blocks + k]);
        }
    }
}

struct BlockOutput { // y[b, n], for outputs n of one matrix; `add`: to what is there
    float *y;
    int64_t row, outputs;
    const float *bias;
    bool add;
    void put(int64_t b, int64_t n, Floats v) const {
        float *at = y + b * row + n;
        if (n + LANES <= outputs) {
            if (bias) v += load(bias + n);
            store(at, add ? v + load(at) : v);
            return;
        }
        for (int i = 0; n + i < outputs && i < LANES; i++) put_one(b, n + i, v[i]);
    }
    void put_one(int64_t b, int64_t n, float v) const {
        float *at = y + b * row + n;
        *at = v + (bias ? bias[n] : 0.0f) + (add ? *at : 0.0f);
    }
};

template <int ROWS, int VECTORS>
inline void block_strip(const BlockRows &x, int64_t row, const uint8_t *strip, int64_t n, const BlockOutput &out) {
    Floats sums[ROWS][VECTORS];
    block_tile<ROWS, VECTORS>(x, row, strip, sums);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) out.put(row + i, n + j * LANES, sums[i][j]);
}

template <int VECTORS>
void block_strip_rows(const BlockRows &x, int64_t rows, const uint8_t *strip, int64_t n, const BlockOutput &out) {
    int64_t row = 0;
    for (; row + STRIP_ROWS <= rows; row += STRIP_ROWS) block_strip<STRIP_ROWS, VECTORS>(x, row, strip, n, out);
    for (; row + 2 <= rows; row += 2) block_strip<2, VECTORS>(x, row, strip, n, out);
    for (; row < rows; row++) block_strip<1, VECTORS>(x, row, strip, n, out);
}

// All rows times the strips begin..end of a matrix.
void block_matmul(const BlockRows &x, int64_t rows, const uint8_t *matrix, int64_t begin, int64_t end,
                  const BlockOutput &out) {
    int64_t outputs = whole_vectors(out.outputs);
    for (int64_t n = begin * STRIP; n < end * STRIP && n < outputs; n += STRIP) {
        const uint8_t *strip = matrix + n * x.blocks() * BLOCK_BYTES;
        switch ((outputs - n) / LANES) {
        case 1: block_strip_rows<1>(x, rows, strip, n, out); break;
        case 2: block_strip_rows<2>(x, rows, strip, n, out); break;
        case 3: block_strip_rows<STRIP_VECTORS == 4 ? 3 : 2>(x, rows, strip, n, out); break;
        default: block_strip_rows<STRIP_VECTORS>(x, rows, strip, n, out);
        }
    }
}

} // namespace

extern "C" {

// Bytes of a matrix in blocks.
int64_t cpulm_block_matrix_bytes(int64_t outputs, int64_t inputs) { return block_matrix_bytes(outputs, inputs); }

// Packs x [outputs, inputs], inputs a multiple of 32.
void cpulm_pack_blocks(const float *x, int64_t outputs, int64_t inputs, uint8_t *out, int parts) {
    int64_t padded = whole_vectors(outputs), blocks = inputs / BLOCK_INPUTS;
    parallel(parts, [=](const Part &part) {
        PartRange strips(part, (padded + STRIP - 1) / STRIP);
        for (int64_t n = strips.begin * STRIP; n < strips.end * STRIP && n < padded; n++) {
            int64_t first = n / STRIP * STRIP, width = padded - first < STRIP ? padded - first : STRIP;
            uint8_t *block = out + first * blocks * BLOCK_BYTES;
            for (int64_t k = 0; k < blocks; k++, block += width * BLOCK_BYTES) {
                const float *from = x + n * inputs + k * BLOCK_INPUTS;
                uint8_t *to = block + (n - first) * 4;
                uint16_t scale = 0;
                int8_t whole[BLOCK_INPUTS] = {};
                if (n < outputs) scale = quantize_block(from, whole);
                for (int64_t j = 0; j < BLOCK_INPUTS; j++)
                    to[j / 4 * width * 4 + j % 4] = (uint8_t)whole[j] ^ (UNSIGNED_RIGHT ? 128 : 0);
                memcpy(block + width * BLOCK_INPUTS + (n - first) * 2, &scale, sizeof scale);
            }
        }
    });
}

// Bytes of working memory of cpulm_block_product.
int64_t cpulm_block_workspace(int64_t rows, int64_t inputs) { return BlockRows::bytes(rows, inputs); }

// y [rows, outputs] = x [rows, inputs] times the transpose of a matrix in blocks, plus bias, which may be null.
void cpulm_block_product(const float *x, int64_t rows, int64_t inputs, const uint8_t *matrix, int64_t outputs,
                         const float *bias, float *y, uint8_t *memory, int threads) {
    parallel_together(threads, [=](const Team &team) {
        BlockRows quantized(rows, inputs, memory);
        PartRange own(team, rows), strips(team, (outputs + STRIP - 1) / STRIP);
        for (int64_t i = own.begin; i < own.end; i++) quantized.quantize(i, x + i * inputs);
        team.barrier();
        block_matmul(quantized, rows, matrix, strips.begin, strips.end, {y, outputs, outputs, bias, false});
    });
}

} // extern "C"

SIGNATURE_OF(cpulm_block_matrix_bytes)
SIGNATURE_OF(cpulm_pack_blocks)
SIGNATURE_OF(cpulm_block_workspace)
SIGNATURE_OF(cpulm_block_product)
