// Training in int8: what turns matrices into factors of products and back, and what stands between products.
// cpulm/native/int8.py calls it. Conventions as in kernels.cpp; the layouts are explained in dots.h.
#include "dots.h"
#include "parts.h"
#include <cmath>

constexpr long STREAM_FROM = 1 << 22; // bytes: what is larger would drive the factors out of the cache

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

// Where in panels [depth, width] the quad `q` of the columns from `j` on stands, and how far apart columns are cut.
struct Panels {
    int64_t quads, width;
    long columns(long j) const {
        long left = width - j / PANEL * PANEL;
        return left < PANEL ? left : PANEL;
    }
    long at(long q, long j) const { return (j / PANEL * PANEL * quads + q * columns(j) + j % PANEL) * 4; }
};

static inline Words four_bytes(Words a, Words b, Words c, Words d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
}

// Quads that are written to one panel before the next one: the same quad of all panels lies far apart in memory, at
// distances that are often a power of two, for which the caches have few places.
constexpr long QUADS_AT_ONCE = 16;

// The quads from `begin` to `end` of x, times a factor for each column, to panels; zeros for missing rows.
static void panel_quads(const float *x, long rows, const float *factors, const Panels &panels, long begin, long end,
                        uint8_t *out, uint32_t flip) {
    long width = panels.width;
    for (long first = 0; first < width; first += PANEL) {
        long columns = panels.columns(first);
        for (long q = begin; q < end; q++) {
            const float *row[4];
            float there[4];
            for (int n = 0; n < 4; n++) {
                there[n] = q * 4 + n < rows;
                row[n] = x + (q * 4 + (there[n] ? n : 0)) * width;
            }
            uint8_t *at = out + panels.at(q, first);
            for (long j = first; j < first + columns; j += LANES) {
                Floats factor = load(factors + j);
                Words four = four_bytes(rounded(load(row[0] + j) * factor), rounded(load(row[1] + j) * factor * there[1]),
                                        rounded(load(row[2] + j) * factor * there[2]),
                                        rounded(load(row[3] + j) * factor * there[3]));
                *(WordsAnywhere *)(at + (j - first) * 4) = four ^ flip;
            }
        }
    }
}

extern "C" {

// Whether products of int8 are faster than those of float32 here.
int cpulm_fast_int8() { return FAST_DOTS; }

// x [rows, width] to int8 with a scale a row, and to panels with a scale a column; either may be left out.
// `flip` is 0x80 in each byte of a word for panels of a right factor, 0 for those of a left one. Missing rows of the
// last quad count as zeros. `room` [threads, width].
void cpulm_quantize(const float *x, int64_t rows, int64_t width, int8_t *by_row, float *row_scale, uint8_t *by_column,
                    float *column_scale, uint32_t flip, float *room, int threads) {
    if (by_column) memset(room, 0, (long)threads * width * sizeof(float));
    Panels panels = {(rows + 3) / 4, width};
#pragma omp parallel num_threads(threads)
    {
        Part part(panels.quads);
        long end = part.end * 4 < rows ? part.end * 4 : rows;
        float *columns = by_column ? room + (long)omp_get_thread_num() * width : nullptr;
        for (long i = part.begin * 4; i < end; i++) {
            float most = row_most(x + i * width, width, columns);
            if (by_row) quantized_row(x + i * width, width, most, by_row + i * width, row_scale + i);
        }
        if (by_column) {
#pragma omp barrier
#pragma omp single
            for (long j = 0; j < width; j++) {
                float most = room[j];
                for (int n = 1; n < threads; n++) {
                    float other = room[n * width + j];
                    most = most >= other || most != most ? most : other;
                }
                column_scale[j] = most / 127.0f;
                room[j] = most > 0 ? 127.0f / most : 0.0f;
            }
            for (long q = part.begin; q < part.end; q += QUADS_AT_ONCE)
                panel_quads(x, rows, room, panels, q, q + QUADS_AT_ONCE < part.end ? q + QUADS_AT_ONCE : part.end,
                            by_column, flip);
        }
    }
}

// x [rows, width] of int8 to the panels of its transpose, as a right factor.
void cpulm_turn_rows(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int threads) {
    Panels panels = {width / 4, rows};
#pragma omp parallel num_threads(threads)
    {
        Part part((rows + LANES - 1) / LANES);
        for (long i = part.begin * LANES; i < part.end * LANES; i += LANES) {
            long q = 0;
            for (; q + LANES <= panels.quads; q += LANES)
                transposed_block((const Word *)(x + i * width) + q, panels.quads, (Word *)(out + panels.at(q, i)),
                                 panels.columns(i), 0x80808080u);
            for (; q < panels.quads; q++)
                for (long n = 0; n < LANES; n++)
                    ((Word *)(out + panels.at(q, i)))[n] = *(const Word *)(x + (i + n) * width + q * 4) ^ 0x80808080u;
        }
    }
}

// x [rows, width] of int8 to panels of `quads`, from quad `first` on; `flip` as above. The last quad's missing rows
// are zeros.
void cpulm_turn_columns(const int8_t *x, int64_t rows, int64_t width, uint8_t *out, int64_t quads, int64_t first,
                        uint32_t flip, int threads) {
    Panels panels = {quads, width};
#pragma omp parallel num_threads(threads)
    {
        Part part((rows + 3) / 4);
        for (long start = part.begin; start < part.end; start += QUADS_AT_ONCE) {
            long end = start + QUADS_AT_ONCE < part.end ? start + QUADS_AT_ONCE : part.end;
            for (long panel = 0; panel < width; panel += PANEL)
                for (long q = start; q < end; q++) {
                    uint8_t *at = out + panels.at(first + q, panel);
                    for (long j = panel; j < panel + panels.columns(panel); j += LANES) {
                        Words four[4] = {};
                        for (int n = 0; n < 4 && q * 4 + n < rows; n++)
                            four[n] = load_bytes(x + (q * 4 + n) * width + j);
                        *(WordsAnywhere *)(at + (j - panel) * 4) = four_bytes(four[0], four[1], four[2], four[3]) ^ flip;
                    }
                }
        }
    }
}

// left [rows, depth] times right [depth, cols], panels, with the scales of rows and columns, plus a bias, to out
// [rows, cols]; `add`: to what stands there, times a factor for each row where `kept` has them. `turned`: left is
// panels of its transpose. The depth is in whole quads.
// `symmetric`: right is the transpose of left, so that half of the sums will do; without a bias.
void cpulm_int8_product(const int8_t *left_at, int turned, const uint8_t *right, int64_t rows, int64_t cols,
                        int64_t depth, const float *row_scale, const float *column_scale, const float *bias, float *out,
                        int add, const float *kept, int symmetric, int threads) {
    Left left = {left_at, rows, depth, turned != 0};
    long block = left.block(), strips = (cols + PANEL - 1) / PANEL, all_items = 0;
    bool large = !add && !symmetric && rows * cols * (long)sizeof(float) >= STREAM_FROM && (uintptr_t)out % sizeof(Floats) == 0;
    // How many panels of the block of rows from `row` on are computed.
    auto wanted = [&](long row) {
        long reached = (row + block + PANEL - 1) / PANEL;
        return symmetric && reached < strips ? reached : strips;
    };
    for (long row = 0; row < rows; row += block) all_items += wanted(row);
#pragma omp parallel num_threads(threads)
    {
        Part part(all_items);
        alignas(64) int32_t sums[ROW_BLOCK * PANEL], start[ROW_BLOCK];
        long item = 0;
        for (long row = 0; row < rows && item < part.end; row += block) {
            long some = rows - row < block ? rows - row : block, panels = wanted(row);
            bool started = false;
            for (long panel = 0; panel < panels; panel++, item++) {
                if (item < part.begin || item >= part.end) continue;
                if (!started) dot_starts(left, row, some, start);
                started = true;
                long column = panel * PANEL, width = cols - column < PANEL ? cols - column : PANEL;
                dot_block(left, row, some, right + column * depth, width, sums, start);
                for (long i = 0; i < some; i++) {
                    float factor = kept ? kept[row + i] : 1.0f;
                    for (long j = 0; j < width; j += LANES) {
                        float *at = out + (row + i) * cols + column + j;
                        Floats v = __builtin_convertvector(*(const IntsAnywhere *)(sums + i * PANEL + j), Floats);
                        v *= row_scale[row + i] * load(column_scale + column + j);
                        if (bias) v += load(bias + column + j);
                        if (large) stream(at, v);
                        else store(at, add ? v + factor * load(at) : v);
                    }
                }
            }
        }
        if (large) streamed();
        if (symmetric) {
#pragma omp barrier
            Part mirrored(rows / LANES);
            for (long i = mirrored.begin * LANES; i < mirrored.end * LANES; i += LANES)
                for (long j = wanted(i / block * block) * PANEL; j < cols; j += LANES)
                    transposed_block((const Word *)out + j * cols + i, cols, (Word *)out + i * cols + j, cols, 0);
        }
    }
}

// Logits [rows, width] to the loss of each row and to exp(logit - largest) as int8, whose `scale` makes
// probabilities of them. Rounded up or down by chance, which keeps the mean of the many that are smaller than a
// step; the chance is drawn from the row's largest logit, so that it comes out the same again. A row without a
// target (negative) has loss and scale 0.
void cpulm_softmax(const float *logits, int64_t rows, int64_t width, const int64_t *targets, float *loss,
                   int8_t *by_row, float *scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        for (long i = part.begin; i < part.end; i++) {
            const float *row = logits + i * width;
            Floats most = all(-3.4e38f);
            for (long j = 0; j < width; j += LANES) most = larger(load(row + j), most);
            float top = largest(most), wanted = targets[i] < 0 ? 0 : targets[i] < width ? row[targets[i]] : __builtin_nanf("");
            uint32_t bits;
            memcpy(&bits, &top, sizeof bits);
            Words seed = lanes + mixed(bits ^ mixed((uint32_t)i));
            Floats total = {};
            for (long j = 0; j < width; j += LANES) {
                Floats e = exponential(load(row + j) - top);
                total += e;
                Ints chance = (Ints)(mixed(seed + (uint32_t)j) >> 8);
                Floats up = __builtin_convertvector(chance, Floats) * 0x1p-24f;
                // A little less than 127: with the largest chance 127 would be rounded to 128, which is -128 as a byte.
                Ints whole = __builtin_convertvector(e * 126.99999f + up, Ints);
                store_bytes(by_row + i * width + j, (Words)whole);
            }
            float all_of_it = sum(total);
            loss[i] = targets[i] < 0 ? 0 : logf(all_of_it) + top - wanted;
            scale[i] = targets[i] < 0 ? 0 : 1.0f / (127.0f * all_of_it);
        }
    }
}
}

#include "muon.h"
