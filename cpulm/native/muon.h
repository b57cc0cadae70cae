// Muon with int8 products: momentum, Newton-Schulz iteration and weight update while a matrix is in the cache.
// Included by int8.cpp, because a separate translation unit took half a second longer to compile.
#pragma once
#include "int8_product.h"
#include "part_range.h"
#include <cmath>
#include <type_traits>

namespace {

struct MuonUpdate {
    float momentum, decay, step_size; // weight = weight (1 - decay) - step_size direction
    int iterations;
    float a, b, c; // x' = a x + (b G + c G G) x, G = x xT
};

struct MuonWorkspace { // for one matrix [rows, cols] with rows <= cols, in memory that the caller allocates
    float *x, *gram, *square, *diagonal, *row_factor, *x_scale, *scale, *ones;
    double *squares; // of each LANES rows of a weight
    int8_t *by_row;
    uint8_t *packed, *transposed;
    int64_t bytes = 0;
    // Without memory it only counts the bytes.
    MuonWorkspace(int64_t rows, int64_t cols, char *memory) {
        auto take = [&](auto *&part, int64_t numbers) {
            if (memory) part = (std::remove_reference_t<decltype(part)>)(memory + bytes);
            bytes += (numbers * (int64_t)sizeof(*part) + 63) / 64 * 64; // whole cache lines
        };
        take(squares, cols / LANES); // the weight may be the transpose
        take(x, rows * cols);
        take(gram, rows * rows);
        take(square, rows * rows);
        take(diagonal, rows);
        take(row_factor, rows);
        take(x_scale, rows);
        take(scale, rows);
        take(ones, cols);
        take(by_row, rows * cols);
        take(packed, rows * cols);
        take(transposed, rows * cols);
        for (int64_t j = 0; memory && j < cols; j++) ones[j] = 1.0f;
    }
};

// One part per matrix if there are enough matrices, else all parts on each.
struct MuonParts {
    int across, within;
    MuonParts(int64_t matrices, int parts) {
        across = matrices >= parts ? parts : 1;
        within = matrices >= parts ? 1 : parts;
    }
};

// Updates the moving average and returns Nesterov's direction.
inline Floats nesterov_direction(const float *gradient, float *average, float momentum) {
    Floats g = load(gradient), m = load(average);
    m += (g - m) * (1.0f - momentum);
    store(average, m);
    return m - (m - g) * (1.0f - momentum);
}

// Writes the directions of LANES rows of a matrix [.., cols], from row i on, to x; to its transpose
// [cols, transposed_rows] if that is not 0. Returns the sum of their squares.
double write_directions(const float *gradient, float *average, int64_t i, int64_t cols, float momentum, float *x,
                        int64_t transposed_rows) {
    Floats squares = {};
    for (int64_t j = 0; j < cols; j += transposed_rows ? LANES : cols) {
        alignas(64) float block[LANES * LANES];
        for (int64_t n = 0; n < LANES; n++) {
            int64_t from = (i + n) * cols + j, some = transposed_rows ? LANES : cols;
            for (int64_t k = 0; k < some; k += LANES) {
                Floats v = nesterov_direction(gradient + from + k, average + from + k, momentum);
                squares += v * v;
                store(transposed_rows ? block + n * LANES : x + from + k, v);
            }
        }
        if (transposed_rows)
            transpose_block((const Word *)block, LANES, (Word *)(x + j * transposed_rows + i), transposed_rows, 0);
    }
    return horizontal_sum(squares);
}

// Applies the update x, laid out as by write_directions, to rows begin..end of the weights.
void apply_update(float *weight, int64_t begin, int64_t end, int64_t cols, const MuonUpdate &update, const float *x,
                  int64_t transposed_rows) {
    for (int64_t i = begin; i < end; i += LANES)
        for (int64_t j = 0; j < cols; j += transposed_rows ? LANES : cols) {
            alignas(64) float block[LANES * LANES];
            if (transposed_rows)
                transpose_block((const Word *)(x + j * transposed_rows + i), transposed_rows, (Word *)block, LANES, 0);
            for (int64_t n = 0; n < LANES; n++) {
                int64_t to = (i + n) * cols + j, some = transposed_rows ? LANES : cols;
                for (int64_t k = 0; k < some; k += LANES) {
                    Floats v = load(transposed_rows ? block + n * LANES : x + to + k);
                    store(weight + to + k, load(weight + to + k) * (1.0f - update.decay) - v * update.step_size);
                }
            }
        }
}

void quantize_rows(const float *x, int64_t rows, int64_t cols, float factor, int8_t *by_row, float *scale,
                   int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++) {
            quantize_row(x + i * cols, cols, row_max_abs(x + i * cols, cols, nullptr), by_row + i * cols, scale + i);
            scale[i] *= factor;
        }
    });
}

// The diagonals of G and of the polynomial are far larger than the rest. In int8 they would leave the rest few of the
// 8 bits, so they are kept separately in float32.
// Splits G = D + R into the diagonal D [rows] and R, which replaces G and is also quantized by row.
void split_gram(MuonWorkspace &work, int64_t rows, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++) {
            float *row = work.gram + i * rows;
            work.diagonal[i] = row[i];
            row[i] = 0;
            quantize_row(row, rows, row_max_abs(row, rows, nullptr), work.by_row + i * rows, work.scale + i);
        }
    });
}

// Quantizes b G + c G G by row, computed from D, R and R R (which is overwritten). Its columns are multiplied by the
// scales of the rows of x that they meet in the next product. The diagonal plus a goes to row_factor, times `factor`.
void quantize_polynomial(MuonWorkspace &work, int64_t rows, const MuonUpdate &update, float factor, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++) {
            float *row = work.square + i * rows, *rest = work.gram + i * rows, d = work.diagonal[i];
            work.row_factor[i] = (row[i] * update.c + d * (update.b + update.c * d) + update.a) * factor;
            for (int64_t j = 0; j < rows; j += LANES) {
                Floats combined = load(rest + j) * (update.b + update.c * (load(work.diagonal + j) + d));
                store(row + j, (combined + load(row + j) * update.c) * load(work.x_scale + j));
            }
            row[i] = 0;
            quantize_row(row, rows, row_max_abs(row, rows, nullptr), work.by_row + i * rows, work.scale + i);
        }
    });
}

// Newton-Schulz iteration of factor * x [rows, cols], in place.
void newton_schulz(int64_t rows, int64_t cols, float factor, const MuonUpdate &update, int parts,
                   MuonWorkspace &work) {
    for (int n = 0; n < update.iterations; n++, factor = 1.0f) {
        quantize_rows(work.x, rows, cols, factor, work.by_row, work.x_scale, parts);
        cpulm_pack_transposed(work.by_row, rows, cols, work.transposed, parts);
        cpulm_pack_rows(work.by_row, rows, cols, work.packed, rows / 4, 0, 1, parts);
        cpulm_int8_product(work.by_row, 0, work.transposed, rows, rows, cols, work.x_scale, work.x_scale, nullptr,
                           work.gram, 0, nullptr, 1, parts);
        split_gram(work, rows, parts);
        cpulm_pack_transposed(work.by_row, rows, rows, work.transposed, parts);
        cpulm_int8_product(work.by_row, 0, work.transposed, rows, rows, rows, work.scale, work.scale, nullptr,
                           work.square, 0, nullptr, 1, parts);
        quantize_polynomial(work, rows, update, factor, parts);
        cpulm_int8_product(work.by_row, 0, work.packed, rows, cols, rows, work.scale, work.ones, nullptr, work.x, 1,
                           work.row_factor, 0, parts);
    }
}

void update_matrix(float *weight, const float *gradient, float *average, int64_t rows, int64_t cols,
                   const MuonUpdate &update, int parts, MuonWorkspace &work) {
    int64_t transposed_rows = rows > cols ? rows : 0; // so that x xT is [smaller side, smaller side]
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows / LANES);
        for (int64_t n = range.begin; n < range.end; n++)
            work.squares[n] =
                write_directions(gradient, average, n * LANES, cols, update.momentum, work.x, transposed_rows);
    });
    double total = 0;
    for (int64_t n = 0; n < rows / LANES; n++) total += work.squares[n];
    float norm = sqrt(total);
    newton_schulz(transposed_rows ? cols : rows, transposed_rows ? rows : cols, 1.0f / (norm < 1e-7f ? 1e-7f : norm),
                  update, parts, work);
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows / LANES);
        apply_update(weight, range.begin * LANES, range.end * LANES, cols, update, work.x, transposed_rows);
    });
}

} // namespace

extern "C" {

// Bytes of the workspace of all parts for `matrices` of [rows, cols].
int64_t cpulm_muon_workspace(int64_t matrices, int64_t rows, int64_t cols, int parts) {
    MuonParts split(matrices, parts);
    int64_t small = rows < cols ? rows : cols, large = rows < cols ? cols : rows;
    return split.across * MuonWorkspace(small, large, nullptr).bytes;
}

// One update of `count` weights, each of `blocks` stacked matrices [rows, cols]; rows and cols are multiples of LANES.
void cpulm_muon(float *const *weights, const float *const *gradients, float *const *averages, int64_t count,
                int64_t blocks, int64_t rows, int64_t cols, float momentum, float decay, float step_size,
                int iterations, float a, float b, float c, void *memory, int parts) {
    MuonUpdate update = {momentum, decay, step_size, iterations, a, b, c};
    MuonParts split(count * blocks, parts);
    int64_t small = rows < cols ? rows : cols, large = rows < cols ? cols : rows;
    int64_t bytes = MuonWorkspace(small, large, nullptr).bytes;
    parallel(split.across, [=](const Part &part) {
        MuonWorkspace work(small, large, (char *)memory + part.number * bytes);
        for (int64_t n = part.take(); n < count * blocks; n = part.take()) {
            int64_t first = n % blocks * rows * cols;
            update_matrix(weights[n / blocks] + first, gradients[n / blocks] + first, averages[n / blocks] + first,
                          rows, cols, update, split.within, work);
        }
    });
}

} // extern "C"
