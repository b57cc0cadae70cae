// What training on a CPU does besides large matrix products, in as few passes over memory as it takes.
// Compiled on the machine that uses it, by the compiler found there; cpulm/native/kernels.py calls it.
// All matrices are contiguous float32 unless said; widths are multiples of LANES; `threads` is torch's number.
#include "attention.h"
#include "decode.h"
#include "parts.h"

extern "C" {

int cpulm_lanes() { return LANES; }

// x, but where a hash of the place and the seed is below `below` 0, and elsewhere times `scale`.
void cpulm_dropout(const float *x, int64_t count, uint32_t seed, uint32_t below, float scale, float *y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(count / LANES);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        uint32_t start = mixed(seed);
        for (long i = part.begin * LANES; i < part.end * LANES; i += LANES) {
            Words hash = mixed((lanes + (uint32_t)i) * 0x9e3779b9u + start);
            store(y + i, hash < below ? all(0.0f) : load(x + i) * scale);
        }
    }
}

void cpulm_rms_norm_forward(const float *x, const float *weight, float eps, int64_t rows, int64_t width, float *y,
                            float *rstd, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
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
        Part part(rows);
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

// Results of so many numbers are in no cache any more when they are read: at 3072 rows of 1536 writing past the
// caches saved a quarter of relu2's time and a fifth of swiglu's backward, at 1024 as much as reading then cost.
constexpr long LARGE = 1 << 22;

// To a place in a tensor that torch has just allocated, so aligned.
static inline void put(float *p, Floats v, bool past) {
    if (past) stream(p, v);
    else store(p, v);
}

// gate_up [rows, 2 width] to silu(gate) * up [rows, width].
void cpulm_swiglu_forward(const float *gate_up, int64_t rows, int64_t width, float *y, int threads) {
    bool past = rows * width >= LARGE;
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                Floats gate = load(gate_up + i * 2 * width + j), up = load(gate_up + i * 2 * width + width + j);
                put(y + i * width + j, gate / (1.0f + exponential(-gate)) * up, past);
            }
        streamed();
    }
}

void cpulm_swiglu_backward(const float *dy, const float *gate_up, int64_t rows, int64_t width, float *grad, int threads) {
    bool past = 2 * rows * width >= LARGE;
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        for (long i = part.begin; i < part.end; i++)
            for (long j = 0; j < width; j += LANES) {
                const float *at = gate_up + i * 2 * width + j;
                Floats gate = load(at), up = load(at + width), g = load(dy + i * width + j);
                Floats sigmoid = 1.0f / (1.0f + exponential(-gate));
                Floats silu = gate * sigmoid;
                put(grad + i * 2 * width + j, g * up * (sigmoid + silu * (1.0f - sigmoid)), past);
                put(grad + i * 2 * width + width + j, g * silu, past);
            }
        streamed();
    }
}

// What is not a number stays so.
static inline Floats positive(Floats v) { return v < 0.0f ? all(0.0f) : v; }

// max(x, 0)².
void cpulm_relu2_forward(const float *x, int64_t count, float *y, int threads) {
    bool past = count >= LARGE;
#pragma omp parallel num_threads(threads)
    {
        Part part(count / LANES);
        for (long i = part.begin * LANES; i < part.end * LANES; i += LANES) {
            Floats v = positive(load(x + i));
            put(y + i, v * v, past);
        }
        streamed();
    }
}

void cpulm_relu2_backward(const float *dy, const float *x, int64_t count, float *dx, int threads) {
    bool past = count >= LARGE;
#pragma omp parallel num_threads(threads)
    {
        Part part(count / LANES);
        for (long i = part.begin * LANES; i < part.end * LANES; i += LANES) {
            Floats v = positive(load(x + i));
            put(dx + i, (v + v) * load(dy + i), past);
        }
        streamed();
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
