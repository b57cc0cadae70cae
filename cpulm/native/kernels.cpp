// Everything in a training step besides large matrix products, with as few passes over memory as possible.
// Compiled on the machine that uses it; cpulm/native/kernels.py calls it. Unless stated otherwise, matrices are
// contiguous float32, widths are multiples of LANES, and `parts` is how many parts the work has: about as
// many as threads, or several for each thread of the pool.
#include "abi.h"
#include "attention.h"
#include "decode.h"
#include "part_range.h"

const OpenMP *cpulm_openmp;

namespace {

// Adds the rows of sums [count, width] in order.
void add_blocks(const float *sums, int64_t count, int64_t width, float *out) {
    for (int64_t j = 0; j < width; j += LANES) {
        Floats total = load(sums + j);
        for (int64_t b = 1; b < count; b++) total += load(sums + b * width + j);
        store(out + j, total);
    }
}

// BLAS's product of matrices that are stored by columns, which torch calls too.
typedef void Sgemm(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                   const int *, const float *, const int *, const float *, float *, const int *);
Sgemm *sgemm;

} // namespace

extern "C" {

int cpulm_lanes() { return LANES; }

int cpulm_sum_blocks() { return SUM_BLOCKS; }

const char *cpulm_openmp_functions() { return OPENMP_FUNCTIONS(NAME_OF); }

// Takes the addresses of OPENMP_FUNCTIONS in their order. Returns whether regions now run on several threads.
int cpulm_use_openmp(void *const *functions) {
    static OpenMP given;
    memcpy(&given, functions, sizeof given);
    bool gomp = given.GOMP_parallel && given.GOMP_barrier;
    bool kmpc = given.__kmpc_fork_call && given.__kmpc_push_num_threads && given.__kmpc_barrier &&
                given.__kmpc_global_thread_num;
    if (!gomp) given.GOMP_parallel = nullptr, given.GOMP_barrier = nullptr;
    bool complete = given.omp_get_thread_num && given.omp_get_num_threads && (gomp || kmpc);
    cpulm_openmp = complete ? &given : nullptr;
    return complete;
}

// Takes the address of BLAS's sgemm_; null: products are not computed here.
void cpulm_use_sgemm(const void *function) { sgemm = (Sgemm *)function; }

// out [rows, cols] = a [rows, depth] b [depth, cols], or added to it, by sgemm, which has to be given; a or b may be stored
// transposed. Each part computes some rows.
void cpulm_product(const float *a, int a_transposed, const float *b, int b_transposed, int64_t rows, int64_t cols,
                   int64_t depth, float *out, int add, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        int width = cols, height = range.end - range.begin, inner = depth;
        int b_row = b_transposed ? inner : width, a_row = a_transposed ? (int)rows : inner;
        float one = 1.0f, kept = add;
        if (height > 0)
            sgemm(b_transposed ? "T" : "N", a_transposed ? "T" : "N", &width, &height, &inner, &one, b, &b_row,
                  a + range.begin * (a_transposed ? 1 : depth), &a_row, &kept, out + range.begin * cols, &width);
    });
}

// y[i] = 0 if the hash of i and the seed is below `below`, else x[i] * scale.
void cpulm_dropout(const float *x, int64_t count, uint32_t seed, uint32_t below, float scale, float *y, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, count / LANES);
        Words lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = i;
        uint32_t start = hash32(seed);
        for (int64_t i = range.begin * LANES; i < range.end * LANES; i += LANES) {
            Words hash = hash32((lanes + (uint32_t)i) * 0x9e3779b9u + start);
            store(y + i, hash < below ? splat(0.0f) : load(x + i) * scale);
        }
    });
}

void cpulm_rms_norm_forward(const float *x, const float *weight, float eps, int64_t rows, int64_t width, float *y,
                            float *rstd, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++) {
            Floats squares = {};
            for (int64_t j = 0; j < width; j += LANES) squares += load(x + i * width + j) * load(x + i * width + j);
            float r = 1.0f / sqrtf(horizontal_sum(squares) / width + eps); // not read back after every store
            for (int64_t j = 0; j < width; j += LANES)
                store(y + i * width + j, load(x + i * width + j) * r * load(weight + j));
            rstd[i] = r;
        }
    });
}

// weight_grad [width]; `scratch` [SUM_BLOCKS, width].
void cpulm_rms_norm_backward(const float *dy, const float *x, const float *weight, const float *rstd, int64_t rows,
                             int64_t width, float *dx, float *weight_grad, float *scratch, int parts) {
    SumBlocks blocks(rows);
    parallel(parts, [=](const Part &part) {
        PartRange range(part, blocks.count);
        for (int64_t b = range.begin; b < range.end; b++) {
            float *sums = scratch + b * width;
            memset(sums, 0, width * sizeof(float));
            for (int64_t i = blocks.begin(b); i < blocks.end(b); i++) {
                const float *g = dy + i * width, *v = x + i * width;
                Floats along = {};
                for (int64_t j = 0; j < width; j += LANES) along += load(g + j) * load(v + j) * load(weight + j);
                float r = rstd[i], back = horizontal_sum(along) * r * r / width;
                for (int64_t j = 0; j < width; j += LANES) {
                    Floats gradient = load(g + j), value = load(v + j);
                    store(sums + j, load(sums + j) + gradient * value * r);
                    store(dx + i * width + j, (gradient * load(weight + j) - value * back) * r);
                }
            }
        }
    });
    add_blocks(scratch, blocks.count, width, weight_grad);
}

// mean and rstd [rows]; bias may be null.
void cpulm_layer_norm_forward(const float *x, const float *weight, const float *bias, float eps, int64_t rows,
                              int64_t width, float *y, float *mean, float *rstd, int parts) {
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++) {
            const float *v = x + i * width;
            Floats total = {}, squares = {};
            for (int64_t j = 0; j < width; j += LANES) total += load(v + j);
            float middle = horizontal_sum(total) / width;
            for (int64_t j = 0; j < width; j += LANES) squares += (load(v + j) - middle) * (load(v + j) - middle);
            float r = 1.0f / sqrtf(horizontal_sum(squares) / width + eps);
            for (int64_t j = 0; j < width; j += LANES) {
                Floats scaled = (load(v + j) - middle) * r * load(weight + j);
                store(y + i * width + j, bias ? scaled + load(bias + j) : scaled);
            }
            mean[i] = middle;
            rstd[i] = r;
        }
    });
}

// weight_grad and bias_grad [width]; `scratch` [2, SUM_BLOCKS, width].
void cpulm_layer_norm_backward(const float *dy, const float *x, const float *weight, const float *mean,
                               const float *rstd, int64_t rows, int64_t width, float *dx, float *weight_grad,
                               float *bias_grad, float *scratch, int parts) {
    SumBlocks blocks(rows);
    float *bias_scratch = scratch + SUM_BLOCKS * width;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, blocks.count);
        for (int64_t b = range.begin; b < range.end; b++) {
            float *sums = scratch + b * width, *bias_sums = bias_scratch + b * width;
            memset(sums, 0, width * sizeof(float));
            memset(bias_sums, 0, width * sizeof(float));
            for (int64_t i = blocks.begin(b); i < blocks.end(b); i++) {
                const float *g = dy + i * width, *v = x + i * width;
                float middle = mean[i], r = rstd[i];
                Floats total = {}, along = {};
                for (int64_t j = 0; j < width; j += LANES) {
                    Floats scaled = load(g + j) * load(weight + j);
                    total += scaled;
                    along += scaled * (load(v + j) - middle);
                }
                float shift = horizontal_sum(total) / width, back = horizontal_sum(along) * r * r / width;
                for (int64_t j = 0; j < width; j += LANES) {
                    Floats gradient = load(g + j), value = load(v + j) - middle;
                    store(sums + j, load(sums + j) + gradient * value * r);
                    store(bias_sums + j, load(bias_sums + j) + gradient);
                    store(dx + i * width + j, (gradient * load(weight + j) - shift - value * back) * r);
                }
            }
        }
    });
    add_blocks(scratch, blocks.count, width, weight_grad);
    add_blocks(bias_scratch, blocks.count, width, bias_grad);
}

// Outputs of this many numbers have left the caches before they are read. At 3072 rows of 1536, storing past the caches
// saved a quarter of the time of relu2 and a fifth of that of swiglu's backward pass; at 1024 rows it saved as much as
// the later reads then cost.
constexpr int64_t LARGE = 1 << 22;

// `p` is aligned: it points into a tensor that torch has just allocated.
static inline void store_or_stream(float *p, Floats v, bool past) {
    if (past)
        stream(p, v);
    else
        store(p, v);
}

// gate_up [rows, 2 width] to silu(gate) * up [rows, width].
void cpulm_swiglu_forward(const float *gate_up, int64_t rows, int64_t width, float *y, int parts) {
    bool past = rows * width >= LARGE;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++)
            for (int64_t j = 0; j < width; j += LANES) {
                Floats gate = load(gate_up + i * 2 * width + j), up = load(gate_up + i * 2 * width + width + j);
                store_or_stream(y + i * width + j, gate / (1.0f + exponential(-gate)) * up, past);
            }
        stream_fence();
    });
}

void cpulm_swiglu_backward(const float *dy, const float *gate_up, int64_t rows, int64_t width, float *grad,
                           int parts) {
    bool past = 2 * rows * width >= LARGE;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, rows);
        for (int64_t i = range.begin; i < range.end; i++)
            for (int64_t j = 0; j < width; j += LANES) {
                const float *at = gate_up + i * 2 * width + j;
                Floats gate = load(at), up = load(at + width), g = load(dy + i * width + j);
                Floats sigmoid = 1.0f / (1.0f + exponential(-gate));
                Floats silu = gate * sigmoid;
                store_or_stream(grad + i * 2 * width + j, g * up * (sigmoid + silu * (1.0f - sigmoid)), past);
                store_or_stream(grad + i * 2 * width + width + j, g * silu, past);
            }
        stream_fence();
    });
}

// Keeps NaN.
static inline Floats relu(Floats v) { return v < 0.0f ? splat(0.0f) : v; }

// max(x, 0)².
void cpulm_relu2_forward(const float *x, int64_t count, float *y, int parts) {
    bool past = count >= LARGE;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, count / LANES);
        for (int64_t i = range.begin * LANES; i < range.end * LANES; i += LANES) {
            Floats v = relu(load(x + i));
            store_or_stream(y + i, v * v, past);
        }
        stream_fence();
    });
}

void cpulm_relu2_backward(const float *dy, const float *x, int64_t count, float *dx, int parts) {
    bool past = count >= LARGE;
    parallel(parts, [=](const Part &part) {
        PartRange range(part, count / LANES);
        for (int64_t i = range.begin * LANES; i < range.end * LANES; i += LANES) {
            Floats v = relu(load(x + i));
            store_or_stream(dx + i, (v + v) * load(dy + i), past);
        }
        stream_fence();
    });
}

// Floats of the workspace of each part; for `memory` below.
int64_t cpulm_attention_workspace(int tokens, int head_dim) {
    return AttentionWorkspace::numbers(AttentionShape{1, tokens, 1, 1, head_dim});
}

// qkv [batch, tokens, (heads + 2 kv_heads) width] to y [batch, tokens, heads width] and lse [batch, heads, tokens].
void cpulm_attention_forward(const float *qkv, int batch, int tokens, int heads, int kv_heads, int head_dim,
                             const float *q_weight, const float *k_weight, const float *cos, const float *sin,
                             float eps, const int32_t *first, uint32_t seed, uint32_t below, float kept, float *y,
                             float *lse, float *memory, int parts) {
    AttentionShape s = {batch, tokens, heads, kv_heads, head_dim};
    QKTransform q_transform = {q_weight, cos, sin, eps}, k_transform = {k_weight, cos, sin, eps};
    MaskAndDropout mask = {first, seed, below, kept};
    parallel(parts, [=](const Part &part) {
        AttentionWorkspace work(s, memory + part.number * AttentionWorkspace::numbers(s));
        for (int task = part.take(); task < s.batch * s.kv_heads; task = part.take())
            attention_forward(qkv, s, q_transform, k_transform, mask, task / s.kv_heads, task % s.kv_heads, work, y,
                              lse);
    });
}

// weight_grads [batch * kv_heads, 2, width]: the caller adds up the gradients of the query and key norms' weights.
void cpulm_attention_backward(const float *dy, const float *qkv, const float *y, const float *lse, int batch,
                              int tokens, int heads, int kv_heads, int head_dim, const float *q_weight,
                              const float *k_weight, const float *cos, const float *sin, float eps,
                              const int32_t *first, uint32_t seed, uint32_t below, float kept, float *dqkv,
                              float *weight_grads, float *memory, int parts) {
    AttentionShape s = {batch, tokens, heads, kv_heads, head_dim};
    QKTransform q_transform = {q_weight, cos, sin, eps}, k_transform = {k_weight, cos, sin, eps};
    MaskAndDropout mask = {first, seed, below, kept};
    parallel(parts, [=](const Part &part) {
        AttentionWorkspace work(s, memory + part.number * AttentionWorkspace::numbers(s));
        for (int task = part.take(); task < s.batch * s.kv_heads; task = part.take()) {
            float *grads = weight_grads + (int64_t)task * 2 * s.width;
            memset(grads, 0, 2 * s.width * sizeof(float));
            attention_backward(dy, qkv, y, lse, s, q_transform, k_transform, mask, task / s.kv_heads, task % s.kv_heads,
                               work, dqkv, grads, grads + s.width);
        }
    });
}
} // extern "C"

SIGNATURE_OF(cpulm_lanes)
SIGNATURE_OF(cpulm_sum_blocks)
SIGNATURE_OF(cpulm_use_openmp)
SIGNATURE_OF(cpulm_use_sgemm)
SIGNATURE_OF(cpulm_product)
SIGNATURE_OF(cpulm_dropout)
SIGNATURE_OF(cpulm_rms_norm_forward)
SIGNATURE_OF(cpulm_rms_norm_backward)
SIGNATURE_OF(cpulm_layer_norm_forward)
SIGNATURE_OF(cpulm_layer_norm_backward)
SIGNATURE_OF(cpulm_swiglu_forward)
SIGNATURE_OF(cpulm_swiglu_backward)
SIGNATURE_OF(cpulm_relu2_forward)
SIGNATURE_OF(cpulm_relu2_backward)
SIGNATURE_OF(cpulm_attention_workspace)
SIGNATURE_OF(cpulm_attention_forward)
SIGNATURE_OF(cpulm_attention_backward)
