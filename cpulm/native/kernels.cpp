// What training on a CPU does besides large matrix products, in as few passes over memory as it takes.
// Compiled on the machine that uses it, by the compiler found there; cpulm/native/__init__.py calls it.
// All matrices are contiguous float32 unless said; widths are multiples of LANES; `threads` is torch's number.
#include "attention.h"
extern "C" int omp_get_thread_num(void); // declared here: Apple's compiler comes without omp.h

struct Part { // of `rows` for one thread
    long begin, end;
    Part(long rows, int threads) {
        long each = (rows + threads - 1) / threads;
        begin = each * omp_get_thread_num();
        end = begin + each < rows ? begin + each : rows;
    }
};

static inline Bytes as_bytes(Floats v) { return __builtin_convertvector(nearest(v), Bytes); }

static inline Floats as_floats(const int32_t *at) { return __builtin_convertvector(*(const IntsAnywhere *)at, Floats); }

static inline void quantized_row(const float *x, long width, float most, int8_t *out, float *scale) {
    *scale = most / 127.0f;
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (long j = 0; j < width; j += LANES) *(BytesAnywhere *)(out + j) = as_bytes(load(x + j) * inverse);
}

// NaN must not vanish in a maximum: it is found by a sum of the same numbers.
static inline float row_most(const float *x, long width, float *columns) {
    Floats most = {}, all_of_it = {};
    for (long j = 0; j < width; j += LANES) {
        Floats v = magnitude(load(x + j));
        most = larger(v, most);
        all_of_it += v;
        if (columns) store(columns + j, larger(v, load(columns + j)));
    }
    float total = sum(all_of_it);
    return total - total == 0.0f ? largest(most) : total;
}

extern "C" {

int cpulm_lanes() { return LANES; }

// x [rows, width] to int8 with a scale a row, and, where `by_column` is given, with a scale a column as well.
// Works on a copy of x's maxima a thread: `room` [threads, width].
void cpulm_quantize(const float *x, int64_t rows, int64_t width, int8_t *by_row, float *row_scale, int8_t *by_column,
                    float *column_scale, float *room, int threads) {
    if (by_column) memset(room, 0, (long)threads * width * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        float *columns = by_column ? room + (long)omp_get_thread_num() * width : nullptr;
        for (long i = part.begin; i < part.end; i++) {
            float most = row_most(x + i * width, width, columns);
            quantized_row(x + i * width, width, most, by_row + i * width, row_scale + i);
        }
        if (by_column) {
#pragma omp barrier
#pragma omp single
            for (long j = 0; j < width; j++) {
                float most = 0;
                for (int n = 0; n < threads; n++) most = room[n * width + j] > most ? room[n * width + j] : most;
                column_scale[j] = most / 127.0f;
                room[j] = most > 0 ? 127.0f / most : 0.0f;
            }
            for (long i = part.begin; i < part.end; i++)
                for (long j = 0; j < width; j += LANES)
                    *(BytesAnywhere *)(by_column + i * width + j) = as_bytes(load(x + i * width + j) * load(room + j));
        }
    }
}

// The int32 sums [rows, width] become float32 in their own place: times a row's and a column's scale, plus a bias.
void cpulm_rescale(int32_t *sums, int64_t rows, int64_t width, const float *row_scale, const float *column_scale,
                   const float *bias, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                int32_t *at = sums + i * width + j;
                Floats v = as_floats(at) * row_scale[i] * load(column_scale + j);
                store((float *)at, bias ? v + load(bias + j) : v);
            }
    }
}

// x, but where a hash of the place and the seed is below `below` 0, and elsewhere times `scale`.
void cpulm_dropout(const float *x, int64_t count, uint32_t seed, uint32_t below, float scale, float *y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(count / LANES, threads);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        uint32_t start = mixed(seed);
        for (long i = part.begin * LANES; i < part.end * LANES; i += LANES) {
            Words hash = mixed((lanes + (uint32_t)i) * 0x9e3779b9u + start);
            store(y + i, hash < below ? all(0.0f) : load(x + i) * scale);
        }
    }
}

// Logits, as int32 sums [rows, width] with their scales, to the loss of each row and to exp(logit - largest) as
// int8, whose `scale` makes probabilities of them. Rounded up or down by chance, which keeps the mean of the many
// that are smaller than a step; the chance is drawn from the row's largest logit, so that it comes out the same
// again. The sums are overwritten. A row without a target (negative) has loss and scale 0.
void cpulm_softmax(int32_t *sums, int64_t rows, int64_t width, const float *row_scale, const float *column_scale,
                   const int64_t *targets, float *loss, int8_t *by_row, float *scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        for (long i = part.begin; i < part.end; i++) {
            float *row = (float *)(sums + i * width);
            Floats most = all(-3.4e38f);
            for (long j = 0; j < width; j += LANES) {
                Floats v = as_floats(sums + i * width + j) * row_scale[i] * load(column_scale + j);
                most = larger(v, most);
                store(row + j, v);
            }
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
                Ints rounded = __builtin_convertvector(e * 127.0f + up, Ints);
                *(BytesAnywhere *)(by_row + i * width + j) = __builtin_convertvector(rounded, Bytes);
            }
            float all_of_it = sum(total);
            loss[i] = targets[i] < 0 ? 0 : logf(all_of_it) + top - wanted;
            scale[i] = targets[i] < 0 ? 0 : 1.0f / (127.0f * all_of_it);
        }
    }
}

// Between the products of Muon's iteration x' = a x + (b G + c G G) x, G = x xT [rows, rows]. The diagonals of G
// and of the polynomial are far larger than the rest, which they would leave few of the 8 bits: they stay apart.
// Int32 sums of G = D + R to the diagonal D [rows] and R, as float32 in the same place and as int8 by row.
void cpulm_muon_gram(int32_t *sums, int64_t rows, const float *row_scale, float *diagonal, int8_t *by_row,
                     float *by_row_scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++) {
            float *row = (float *)(sums + i * rows);
            for (long j = 0; j < rows; j += LANES)
                store(row + j, as_floats(sums + i * rows + j) * row_scale[i] * load(row_scale + j));
            diagonal[i] = row[i];
            row[i] = 0;
            quantized_row(row, rows, row_most(row, rows, nullptr), by_row + i * rows, by_row_scale + i);
        }
    }
}

// b G + c G G by row, from D, R and the int32 sums of R R (which are overwritten); the diagonal, plus a, apart.
void cpulm_muon_polynomial(int32_t *sums, int64_t rows, const float *row_scale, const float *rest,
                           const float *diagonal, float a, float b, float c, float *new_diagonal, int8_t *by_row,
                           float *by_row_scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++) {
            float *row = (float *)(sums + i * rows), d = diagonal[i];
            for (long j = 0; j < rows; j += LANES) {
                Floats square = as_floats(sums + i * rows + j) * row_scale[i] * load(row_scale + j);
                store(row + j, load(rest + i * rows + j) * (b + c * (load(diagonal + j) + d)) + square * c);
            }
            new_diagonal[i] = row[i] + d * (b + c * d) + a;
            row[i] = 0;
            quantized_row(row, rows, row_most(row, rows, nullptr), by_row + i * rows, by_row_scale + i);
        }
    }
}

// The int32 sums [rows, width] become float32 in their own place: times both scales, plus x times the diagonal.
void cpulm_muon_apply(int32_t *sums, int64_t rows, int64_t width, const float *row_scale, const float *column_scale,
                      const float *diagonal, const float *x, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                int32_t *at = sums + i * width + j;
                store((float *)at, as_floats(at) * row_scale[i] * load(column_scale + j) +
                                       load(x + i * width + j) * diagonal[i]);
            }
    }
}

void cpulm_rms_norm_forward(const float *x, const float *weight, float eps, int64_t rows, int64_t width, float *y,
                            float *rstd, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++) {
            Floats squares = {};
            for (long j = 0; j < width; j += LANES) squares += load(x + i * width + j) * load(x + i * width + j);
            rstd[i] = 1.0f / sqrtf(sum(squares) / width + eps);
            for (long j = 0; j < width; j += LANES)
                store(y + i * width + j, load(x + i * width + j) * rstd[i] * load(weight + j));
        }
    }
}

// `room` [threads, width]; weight_grad [width].
void cpulm_rms_norm_backward(const float *dy, const float *x, const float *weight, const float *rstd, int64_t rows, int64_t width, float *dx, float *weight_grad, float *room, int threads) {
    memset(room, 0, (long)threads * width * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        float *own = room + (long)omp_get_thread_num() * width;
        for (long i = part.begin; i < part.end; i++) {
            const float *g = dy + i * width, *v = x + i * width;
            Floats along = {};
            for (long j = 0; j < width; j += LANES) along += load(g + j) * load(v + j) * load(weight + j);
            float r = rstd[i], back = sum(along) * r * r / width;
            for (long j = 0; j < width; j += LANES) {
                Floats gradient = load(g + j), value = load(v + j);
                store(own + j, load(own + j) + gradient * value * r);
                store(dx + i * width + j, (gradient * load(weight + j) - value * back) * r);
            }
        }
    }
    for (long j = 0; j < width; j++) {
        weight_grad[j] = room[j];
        for (int n = 1; n < threads; n++) weight_grad[j] += room[n * width + j];
    }
}

// gate_up [rows, 2 width] to silu(gate) * up [rows, width].
void cpulm_swiglu_forward(const float *gate_up, int64_t rows, int64_t width, float *y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                Floats gate = load(gate_up + i * 2 * width + j), up = load(gate_up + i * 2 * width + width + j);
                store(y + i * width + j, gate / (1.0f + exponential(-gate)) * up);
            }
    }
}

void cpulm_swiglu_backward(const float *dy, const float *gate_up, int64_t rows, int64_t width, float *grad, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows, threads);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                const float *at = gate_up + i * 2 * width + j;
                Floats gate = load(at), up = load(at + width), g = load(dy + i * width + j);
                Floats sigmoid = 1.0f / (1.0f + exponential(-gate));
                Floats silu = gate * sigmoid;
                store(grad + i * 2 * width + j, g * up * (sigmoid + silu * (1.0f - sigmoid)));
                store(grad + i * 2 * width + width + j, g * silu);
            }
    }
}

// qkv [batch, tokens, (heads + 2 kv_heads) width] to y [batch, tokens, heads width] and lse [batch, heads, tokens].
void cpulm_attention_forward(const float *qkv, const int *shape, const float *q_weight, const float *k_weight,
                             const float *cos, const float *sin, float eps, const int32_t *first, uint32_t seed,
                             uint32_t below, float kept, float *y, float *lse, int threads) {
    Shape s = {shape[0], shape[1], shape[2], shape[3], shape[4]};
    Turn q_turn = {q_weight, cos, sin, eps}, k_turn = {k_weight, cos, sin, eps};
    Rules rules = {first, seed, below, kept};
#pragma omp parallel num_threads(threads)
    {
        Room room(s);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < s.batch * s.kv_heads; task++)
            attend_forward(qkv, s, q_turn, k_turn, rules, task / s.kv_heads, task % s.kv_heads, room, y, lse);
    }
}

// weight_grads [batch * kv_heads, 2, width]: of the norms of queries and keys, to be added up.
void cpulm_attention_backward(const float *dy, const float *qkv, const float *y, const float *lse, const int *shape,
                              const float *q_weight, const float *k_weight, const float *cos, const float *sin,
                              float eps, const int32_t *first, uint32_t seed, uint32_t below, float kept, float *dqkv,
                              float *weight_grads, int threads) {
    Shape s = {shape[0], shape[1], shape[2], shape[3], shape[4]};
    Turn q_turn = {q_weight, cos, sin, eps}, k_turn = {k_weight, cos, sin, eps};
    Rules rules = {first, seed, below, kept};
#pragma omp parallel num_threads(threads)
    {
        Room room(s);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < s.batch * s.kv_heads; task++) {
            float *grads = weight_grads + (long)task * 2 * s.width;
            memset(grads, 0, 2 * s.width * sizeof(float));
            attend_backward(dy, qkv, y, lse, s, q_turn, k_turn, rules, task / s.kv_heads, task % s.kv_heads, room, dqkv,
                            grads, grads + s.width);
        }
    }
}
}
