// Training in int8: quantizes and packs matrices, multiplies them, and computes softmax and Muon between products.
// cpulm/native/int8.py calls it. Conventions as in kernels.cpp; int8_product.h explains the layouts.
#include "abi.h"
#include "int8_product.h"
#include "part_range.h"
#include <cmath>

namespace {

constexpr int64_t STREAM_FROM = 1 << 22; // bytes; larger outputs would evict the factors from the cache

inline void quantize_row(const float *x, int64_t width, float most, int8_t *out, float *scale) {
    *scale = most / 127.0f;
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (int64_t j = 0; j < width; j += LANES) store_bytes(out + j, round_to_low_bytes(load(x + j) * inverse));
}

// The largest magnitude of a row; also updates that of each column so far. NaN if any number is NaN.
inline float row_max_abs(const float *x, int64_t width, float *columns) {
    Ints most = {};
    for (int64_t j = 0; j < width; j += LANES) {
        Ints v = magnitude(load(x + j));
        most = max(v, most);
        if (columns) store(columns + j, (Floats)max(v, (Ints)load(columns + j)));
    }
    return horizontal_max_magnitude(most);
}

// Addresses in panels [depth, width]: at(q, j) is the offset of quad q of column j, columns(j) the width of j's panel.
struct Panels {
    int64_t quads, width;
    int64_t columns(int64_t j) const {
        int64_t left = width - j / PANEL * PANEL;
        return left < PANEL ? left : PANEL;
    }
    int64_t at(int64_t q, int64_t j) const { return (j / PANEL * PANEL * quads + q * columns(j) + j % PANEL) * 4; }
};

inline Words four_bytes(Words a, Words b, Words c, Words d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
}

// Quads written to one panel before the next panel. The same quad of all panels lies far apart in memory, often at a
// power of two, for which the caches have few sets.
constexpr int64_t QUADS_AT_ONCE = 16;

// Packs quads begin..end of x [rows, width], times a factor for each column, into panels; missing rows become zeros.
void pack_quads(const float *x, int64_t rows, const float *factors, const Panels &panels, int64_t begin, int64_t end,
                uint8_t *out, uint32_t flip) {
    int64_t width = panels.width;
    for (int64_t first = 0; first < width; first += PANEL) {
        int64_t columns = panels.columns(first);
        for (int64_t q = begin; q < end; q++) {
            const float *row[4];
            float there[4];
            for (int n = 0; n < 4; n++) {
                there[n] = q * 4 + n < rows;
                row[n] = x + (q * 4 + (there[n] ? n : 0)) * width;
            }
            uint8_t *at = out + panels.at(q, first);
            for (int64_t j = first; j < first + columns; j += LANES) {
                Floats factor = load(factors + j);
                Words four = four_bytes(round_to_low_bytes(load(row[0] + j) * factor),
                                        round_to_low_bytes(load(row[1] + j) * factor * there[1]),
                                        round_to_low_bytes(load(row[2] + j) * factor * there[2]),
                                        round_to_low_bytes(load(row[3] + j) * factor * there[3]));
                *(UnalignedWords *)(at + (j - first) * 4) = four ^ flip;
            }
        }
    }
}

} // namespace

extern "C" {

// Whether int8 products are faster than float32 products on this CPU.
int cpulm_fast_int8() { return FAST_DOTS; }

// Quantizes x [rows, width] with one scale per row, and into panels with one scale per column; either may be null.
// `right`: the panels are a right factor, else the transpose of a left one. Missing rows of the last quad count as
// zeros. `scratch` [parts, width].
void cpulm_quantize(const float *x, int64_t rows, int64_t width, int8_t *by_row, float *row_scale, uint8_t *by_column,
                    float *column_scale, int right, float *scratch, int parts) {
    if (by_column) memset(scratch, 0, (int64_t)parts * width * sizeof(float));
    Panels panels = {(rows + 3) / 4, width};
    parallel(parts, [=](const Part &part) {
        PartRange range(part, panels.quads);
        int64_t end = range.end * 4 < rows ? range.end * 4 : rows;
        float *columns = by_column ? scratch + (int64_t)part.number * width : nullptr;
        for (int64_t i = range.begin * 4; i < end; i++) {
            float most = row_max_abs(x + i * width, width, columns);
            if (by_row) quantize_row(x + i * width, width, most, by_row + i * width, row_scale + i);
        }
    });
    if (!by_column) return;
    for (int64_t j = 0; j < width; j++) {
        float most = scratch[j];
        for (int n = 1; n < parts; n++) {
            float other = scratch[n * width + j];
            most = most >= other || most != most ? most : other;
        }
        column_scale[j] = most / 127.0f;
        scratch[j] = most > 0 ? 127.0f / most : 0.0f;
    }
    parallel(parts, [=](const Part &part) {
        PartRange range(part, panels.quads);
        for (int64_t q = range.begin; q < range.end; q += QUADS_AT_ONCE)
            pack_quads(x, rows, scratch, panels, q, q + QUADS_AT_ONCE < range.end ? q + QUADS_AT_ONCE : range.end,
                       by_column, right ? RIGHT_FLIP : 0);
    });
}

// Packs the transpose of x [rows, width] as a right factor.
void cpulm_pack_transposed(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int parts) {
    Panels panels = {width / 4, rows};
    parallel(parts, [=](const Part &part) {
        PartRange range(part, (rows + LANES - 1) / LANES);
        for (int64_t i = range.begin * LANES; i < range.end * LANES; i += LANES) {
            int64_t q = 0;
            for (; q + LANES <= panels.quads; q += LANES)
                transpose_block((const Word *)(x + i * width) + q, panels.quads, (Word *)(out + panels.at(q, i)),
                                panels.columns(i), RIGHT_FLIP);
            for (; q < panels.quads; q++)
                for (int64_t n = 0; n < LANES; n++)
                    ((Word *)(out + panels.at(q, i)))[n] = *(const Word *)(x + (i + n) * width + q * 4) ^ RIGHT_FLIP;
        }
    });
}

// Packs x [rows, width] into panels of `quads`, from quad `first` on; `right` as above. Missing rows of the last quad
// become zeros.
void cpulm_pack_rows(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int64_t quads, int64_t first,
                     int right, int parts) {
    uint32_t flip = right ? RIGHT_FLIP : 0;
    Panels panels = {quads, width};
    parallel(parts, [=](const Part &part) {
        PartRange range(part, (rows + 3) / 4);
        for (int64_t start = range.begin; start < range.end; start += QUADS_AT_ONCE) {
            int64_t end = start + QUADS_AT_ONCE < range.end ? start + QUADS_AT_ONCE : range.end;
            for (int64_t panel = 0; panel < width; panel += PANEL)
                for (int64_t q = start; q < end; q++) {
                    uint8_t *at = out + panels.at(first + q, panel);
                    for (int64_t j = panel; j < panel + panels.columns(panel); j += LANES) {
                        Words four[4] = {};
                        for (int n = 0; n < 4 && q * 4 + n < rows; n++)
                            four[n] = load_bytes(x + (q * 4 + n) * width + j);
                        *(UnalignedWords *)(at + (j - panel) * 4) =
                            four_bytes(four[0], four[1], four[2], four[3]) ^ flip;
                    }
                }
        }
    });
}

// out [rows, cols] = left [rows, depth] right [depth, cols] * row_scale * column_scale + bias, with right packed.
// `add`: adds to out, after multiplying each of its rows by `kept` if that is not null. `packed`: left is panels of its
// transpose. depth is a multiple of 4. `symmetric`: right is the transpose of left, so half of the sums suffice; it
// excludes a bias.
void cpulm_int8_product(const int8_t *left_values, int packed, const uint8_t *right, int64_t rows, int64_t cols,
                        int64_t depth, const float *row_scale, const float *column_scale, const float *bias, float *out,
                        int add, const float *kept, int symmetric, int parts) {
    LeftFactor left = {left_values, rows, depth, packed != 0};
    int64_t block = left.block(), strips = (cols + PANEL - 1) / PANEL, all_items = 0;
    bool large = !add && !symmetric && rows * cols * (int64_t)sizeof(float) >= STREAM_FROM &&
                 (uintptr_t)out % sizeof(Floats) == 0;
    // The number of panels to compute for the block of rows from `row` on.
    auto panels_of = [=](int64_t row) {
        int64_t reached = (row + block + PANEL - 1) / PANEL;
        return symmetric && reached < strips ? reached : strips;
    };
    for (int64_t row = 0; row < rows; row += block) all_items += panels_of(row);
    parallel(parts, [=](const Part &part) {
        PartRange range(part, all_items);
        alignas(64) int32_t sums[ROW_BLOCK * PANEL], offsets[ROW_BLOCK];
        int64_t item = 0;
        for (int64_t row = 0; row < rows && item < range.end; row += block) {
            int64_t some = rows - row < block ? rows - row : block, panels = panels_of(row);
            bool started = false;
            for (int64_t panel = 0; panel < panels; panel++, item++) {
                if (item < range.begin || item >= range.end) continue;
                if (!started) dot_offsets(left, row, some, offsets);
                started = true;
                int64_t column = panel * PANEL, width = cols - column < PANEL ? cols - column : PANEL;
                dot_block(left, row, some, right + column * depth, width, sums, offsets);
                for (int64_t i = 0; i < some; i++) {
                    float factor = kept ? kept[row + i] : 1.0f;
                    for (int64_t j = 0; j < width; j += LANES) {
                        float *at = out + (row + i) * cols + column + j;
                        Floats v = __builtin_convertvector(*(const UnalignedInts *)(sums + i * PANEL + j), Floats);
                        v *= row_scale[row + i] * load(column_scale + column + j);
                        if (bias) v += load(bias + column + j);
                        if (large)
                            stream(at, v);
                        else
                            store(at, add ? v + factor * load(at) : v);
                    }
                }
            }
        }
        if (large) stream_fence();
    });
    if (!symmetric) return;
    parallel(parts, [=](const Part &part) {
        PartRange mirrored(part, rows / LANES);
        for (int64_t i = mirrored.begin * LANES; i < mirrored.end * LANES; i += LANES)
            for (int64_t j = panels_of(i / block * block) * PANEL; j < cols; j += LANES)
                transpose_block((const Word *)out + j * cols + i, cols, (Word *)out + i * cols + j, cols, 0);
    });
}

// From logits [rows, width] to each row's loss and exp(logit - max) in int8; times `scale` these are probabilities.
// Stochastic rounding keeps the mean of the many probabilities below one step; the random bits come from the row's
// largest logit, so that they are reproducible. A row without a target (negative) has loss and scale 0.
void cpulm_softmax(const float *logits, int64_t rows, int64_t width, const int64_t *targets, float *loss,
                   int8_t *by_row, float *scale, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        for (int64_t i = range.begin; i < range.end; i++) {
            const float *row = logits + i * width;
            Floats most = splat(-3.4e38f);
            for (int64_t j = 0; j < width; j += LANES) most = max(load(row + j), most);
            float top = horizontal_max(most), target = targets[i] < 0       ? 0
                                                       : targets[i] < width ? row[targets[i]]
                                                                            : __builtin_nanf("");
            uint32_t bits;
            memcpy(&bits, &top, sizeof bits);
            Words seed = lanes + hash32(bits ^ hash32((uint32_t)i));
            Floats total = {};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats e = exponential(load(row + j) - top);
                total += e;
                Ints random = (Ints)(hash32(seed + (uint32_t)j) >> 8);
                Floats up = __builtin_convertvector(random, Floats) * 0x1p-24f;
                // Below 127, which the largest random number would round to 128, and that is -128 as a byte.
                Ints whole = __builtin_convertvector(e * 126.99999f + up, Ints);
                store_bytes(by_row + i * width + j, (Words)whole);
            }
            float divisor = horizontal_sum(total);
            loss[i] = targets[i] < 0 ? 0 : logf(divisor) + top - target;
            scale[i] = targets[i] < 0 ? 0 : 1.0f / (127.0f * divisor);
        }
    });
}

// From a student's and a teacher's logits [rows, width] to each row's losses [2, rows], cross-entropy and
// KL(q_T || p_T) at the temperature T, and to (1 - w) p + w T (p_T - q_T) in int8 times `scale`: the gradient of
// (1 - w) CE + w T^2 KL without the ones at the targets. Rounded stochastically, with the bits of cpulm_softmax.
// Both logits are overwritten. A row without a target (negative) has losses and scale 0.
void cpulm_distill(float *logits, float *taught, int64_t rows, int64_t width, const int64_t *targets, float weight,
                   float temperature, float *losses, int8_t *by_row, float *scale, int parts) {
    const float cooler = 1.0f / temperature;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        for (int64_t i = range.begin; i < range.end; i++) {
            float *row = logits + i * width, *other = taught + i * width;
            Floats most = splat(-3.4e38f), most_taught = most;
            for (int64_t j = 0; j < width; j += LANES) {
                most = max(load(row + j), most);
                most_taught = max(load(other + j), most_taught);
            }
            float top = horizontal_max(most), top_taught = horizontal_max(most_taught),
                  target = targets[i] < 0       ? 0
                           : targets[i] < width ? row[targets[i]]
                                                : __builtin_nanf("");
            uint32_t bits;
            memcpy(&bits, &top, sizeof bits);
            Words seed = lanes + hash32(bits ^ hash32((uint32_t)i));
            Floats all = {}, all_soft = {}, all_taught = {}, apart = {};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats student = load(row + j) - top, teacher = load(other + j) - top_taught;
                Floats soft = exponential(student * cooler), q = exponential(teacher * cooler);
                all += temperature == 1.0f ? soft : exponential(student);
                all_soft += soft;
                all_taught += q;
                apart += q * (teacher - student);
                store(other + j, q);
            }
            float total = horizontal_sum(all), soft_total = horizontal_sum(all_soft),
                  taught_total = horizontal_sum(all_taught);
            losses[i] = targets[i] < 0 ? 0 : logf(total) + top - target;
            losses[rows + i] =
                targets[i] < 0 ? 0 : horizontal_sum(apart) * cooler / taught_total + logf(soft_total / taught_total);
            float of_p = (1.0f - weight) / total, of_soft = weight * temperature / soft_total,
                  of_taught = weight * temperature / taught_total;
            Ints largest = {};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats student = load(row + j) - top, soft = exponential(student * cooler);
                Floats p = temperature == 1.0f ? soft : exponential(student);
                Floats v = p * of_p + soft * of_soft - load(other + j) * of_taught;
                largest = max(magnitude(v), largest);
                store(row + j, v);
            }
            // Below 127, which the largest random number would round to 128, and that is -128 as a byte.
            float step = horizontal_max_magnitude(largest) / 126.9999f, inverse = step > 0 ? 1.0f / step : 0.0f;
            for (int64_t j = 0; j < width; j += LANES) {
                Ints random = (Ints)(hash32(seed + (uint32_t)j) >> 8);
                Floats up = __builtin_convertvector(random, Floats) * 0x1p-24f;
                Ints whole = __builtin_convertvector(load(row + j) * inverse + (up + 128.0f), Ints); // above 0
                store_bytes(by_row + i * width + j, (Words)(whole - 128));
            }
            scale[i] = targets[i] < 0 ? 0 : step;
        }
    });
}
} // extern "C"

#include "muon.h"

SIGNATURE_OF(cpulm_fast_int8)
SIGNATURE_OF(cpulm_quantize)
SIGNATURE_OF(cpulm_pack_transposed)
SIGNATURE_OF(cpulm_pack_rows)
SIGNATURE_OF(cpulm_int8_product)
SIGNATURE_OF(cpulm_softmax)
SIGNATURE_OF(cpulm_distill)
SIGNATURE_OF(cpulm_muon_workspace)
SIGNATURE_OF(cpulm_muon)
