// Runs one new token of each sequence through all blocks of a model, with a cache of earlier keys and values.
// Included by kernels.cpp; cpulm/native/decode.py calls it. Pointers to absent tensors are null.
#pragma once
#include "abi.h"
#include "thread_range.h"
#include "vector.h"
#include <cmath>

// Python asks for these lists by name, so their order stands here alone.
#define DECODE_NORMS(X) X(rmsnorm) X(layernorm)
#define DECODE_ACTIVATIONS(X) X(swiglu) X(gelu) X(gelu_erf) X(relu) X(relu2)
// Of the model and its cache. `up_width` counts the inputs of the activation, a gate's included; `batch` and `cache_tokens` are those of keys and values.
#define DECODE_SIZES(X)                                                                                                \
    X(layers) X(batch) X(width) X(heads) X(kv_heads) X(head_dim) X(inner) X(up_width) X(cache_tokens) X(norm) X(activation)
// Of a layer: weights [outputs, inputs]; keys and values [batch, kv_heads, cache_tokens, head_dim].
#define DECODE_TENSORS(X)                                                                                              \
    X(attn_norm)                                                                                                       \
    X(attn_norm_bias)                                                                                                  \
    X(qkv) X(qkv_bias) X(q_norm) X(k_norm) X(out) X(out_bias) X(mlp_norm) X(mlp_norm_bias) X(up) X(up_bias) X(down)    \
        X(down_bias) X(keys) X(values)

namespace {

#define NORM(name) NORM_##name,
enum Norm { DECODE_NORMS(NORM) };
#undef NORM
#define ACTIVATION(name) ACTIVATION_##name,
enum Activation { DECODE_ACTIVATIONS(ACTIVATION) };
#undef ACTIVATION

#define TENSOR(name) float *name;
struct DecodeLayer {
    DECODE_TENSORS(TENSOR)
};
#undef TENSOR

struct DecodeSizes {
#define SIZE(name) int32_t name;
    DECODE_SIZES(SIZE)
#undef SIZE
    float eps; // of all norms
    DecodeSizes(const int32_t *from, float norm_eps) : eps(norm_eps) {
#define READ(name) name = *from++;
        DECODE_SIZES(READ)
#undef READ
    }
    long q_width() const { return (long)heads * head_dim; }
    long qkv_width() const { return (long)(heads + 2 * kv_heads) * head_dim; }
};

constexpr int ROWS_AT_ONCE = 4; // Independent sums hide the latency of the multiply-add.

// y[b, n] = x[b] matrix[n] + bias[n] for rows n in begin..end of matrix [.., inner], x [batch, inner]; `add`: y += it.
void matmul_rows(const float *matrix, const float *bias, const float *x, long batch, long inner, long begin, long end,
                 float *y, long y_row, bool add) {
    for (long n = begin; n < end; n += ROWS_AT_ONCE) {
        long some = end - n < ROWS_AT_ONCE ? end - n : ROWS_AT_ONCE;
        const float *row[ROWS_AT_ONCE];
        for (int i = 0; i < ROWS_AT_ONCE; i++) row[i] = matrix + (n + (i < some ? i : 0)) * inner;
        for (long b = 0; b < batch; b++) {
            Floats sums[ROWS_AT_ONCE] = {};
            for (long j = 0; j < inner; j += LANES) {
                Floats v = load(x + b * inner + j);
                for (int i = 0; i < ROWS_AT_ONCE; i++) sums[i] += v * load(row[i] + j);
            }
            for (long i = 0; i < some; i++) {
                float *at = y + b * y_row + n + i;
                *at = horizontal_sum(sums[i]) + (bias ? bias[n + i] : 0.0f) + (add ? *at : 0.0f);
            }
        }
    }
}

float rms_factor(const float *x, long width, float eps) {
    Floats squares = {};
    for (long j = 0; j < width; j += LANES) squares += load(x + j) * load(x + j);
    return 1.0f / sqrtf(horizontal_sum(squares) / width + eps);
}

void apply_norm(const float *x, const DecodeSizes &s, const float *weight, const float *bias, float *y) {
    long width = s.width;
    Floats total = {}, squares = {};
    float mean = 0, factor;
    if (s.norm == NORM_layernorm) {
        for (long j = 0; j < width; j += LANES) total += load(x + j);
        mean = horizontal_sum(total) / width;
        for (long j = 0; j < width; j += LANES) squares += (load(x + j) - mean) * (load(x + j) - mean);
        factor = 1.0f / sqrtf(horizontal_sum(squares) / width + s.eps);
    } else
        factor = rms_factor(x, width, s.eps);
    for (long j = 0; j < width; j += LANES) {
        Floats v = (load(x + j) - mean) * factor * load(weight + j);
        store(y + j, bias ? v + load(bias + j) : v);
    }
}

// Norm and rotary embedding of one query or key head.
void transform_head(const float *x, long width, const float *weight, float eps, const float *cos, const float *sin,
                    float *y) {
    float factor = weight ? rms_factor(x, width, eps) : 1.0f;
    for (long j = 0; j < width; j++) y[j] = weight ? x[j] * factor * weight[j] : x[j];
    if (!cos) return;
    for (long j = 0, half = width / 2; j < half; j++) {
        float a = y[j], b = y[half + j];
        y[j] = a * cos[j] - b * sin[j];
        y[half + j] = b * cos[j] + a * sin[j];
    }
}

// Attention of the `group` queries that share a key-value head, over its first `seen` keys and values.
void attend_head(const float *queries, long group, long width, const float *keys, const float *values, long seen,
                 float *scores, float *y) {
    float scale = 1.0f / sqrtf(width);
    for (long h = 0; h < group; h++, queries += width, y += width) {
        float most = -INFINITY, total = 0;
        for (long t = 0; t < seen; t++) {
            Floats along = {};
            for (long j = 0; j < width; j += LANES) along += load(queries + j) * load(keys + t * width + j);
            scores[t] = horizontal_sum(along) * scale;
            most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
        }
        for (long t = 0; t < seen; t++) total += scores[t] = expf(scores[t] - most);
        for (long j = 0; j < width; j += LANES) {
            Floats attended = {};
            for (long t = 0; t < seen; t++) attended += scores[t] * load(values + t * width + j);
            store(y + j, attended / total);
        }
    }
}

Floats activate(Floats up, Floats gate, int activation) {
    Floats positive = up < 0.0f ? splat(0.0f) : up;
    switch (activation) {
    case ACTIVATION_swiglu: return gate / (1.0f + exponential(-gate)) * up;
    case ACTIVATION_gelu: // 1 + tanh(v) is 2 / (1 + exp(-2 v))
        return up / (1.0f + exponential(-1.5957691216f * (up + 0.044715f * up * up * up)));
    case ACTIVATION_gelu_erf:
        for (int i = 0; i < LANES; i++) up[i] *= 0.5f * (1.0f + erff(up[i] * 0.7071067812f));
        return up;
    case ACTIVATION_relu: return positive;
    default: return positive * positive;
    }
}

struct DecodeWorkspace { // activations of one token of each sequence, in memory that the caller allocates
    float *normed, *qkv, *attended, *up, *hidden, *scores;
    DecodeWorkspace(const DecodeSizes &s, float *memory) {
        normed = memory;
        qkv = normed + s.batch * s.width;
        attended = qkv + s.batch * s.qkv_width();
        up = attended + s.batch * s.q_width();
        hidden = up + s.batch * s.up_width;
        scores = hidden + s.batch * s.inner; // of each thread
    }
    static long numbers(const DecodeSizes &s, int threads) {
        return s.batch * (s.width + s.qkv_width() + s.q_width() + s.up_width + s.inner) +
               (long)threads * s.cache_tokens;
    }
};

// One sequence and key-value head: append the new key and value to the cache, then attend with the head's queries.
void attend_group(const DecodeLayer &layer, const DecodeSizes &s, long task, long position, const float *cos,
                  const float *sin, const DecodeWorkspace &work) {
    long b = task / s.kv_heads, k = task % s.kv_heads, d = s.head_dim, group = s.heads / s.kv_heads;
    float *q = work.qkv + b * (s.heads + 2 * s.kv_heads) * d, *key = q + (s.heads + k) * d;
    float *keys = layer.keys + task * s.cache_tokens * d, *values = layer.values + task * s.cache_tokens * d;
    transform_head(key, d, layer.k_norm, s.eps, cos, sin, keys + position * d);
    memcpy(values + position * d, key + s.kv_heads * d, d * sizeof(float));
    float *queries = q + k * group * d;
    for (long h = 0; h < group; h++) transform_head(queries + h * d, d, layer.q_norm, s.eps, cos, sin, queries + h * d);
    attend_head(queries, group, d, keys, values, position + 1,
                work.scores + (long)omp_get_thread_num() * s.cache_tokens,
                work.attended + (b * s.heads + k * group) * d);
}

// The MLP's hidden units begin..end of all sequences.
void mlp_hidden(const DecodeLayer &layer, const DecodeSizes &s, const DecodeWorkspace &work, long begin, long end) {
    long width = s.up_width;
    for (long first = 0; first < width; first += s.inner)
        matmul_rows(layer.up, layer.up_bias, work.normed, s.batch, s.width, first + begin, first + end, work.up, width,
                    false);
    for (long b = 0; b < s.batch; b++)
        for (long j = begin; j < end; j += LANES) {
            const float *gate = work.up + b * width + j;
            store(work.hidden + b * s.inner + j, activate(load(gate + width - s.inner), load(gate), s.activation));
        }
}

} // namespace

extern "C" {

const char *cpulm_decode_norms() { return DECODE_NORMS(NAME_OF); }
const char *cpulm_decode_activations() { return DECODE_ACTIVATIONS(NAME_OF); }
const char *cpulm_decode_sizes() { return DECODE_SIZES(NAME_OF); }
const char *cpulm_decode_tensors() { return DECODE_TENSORS(NAME_OF); }

// Floats of the workspace.
int64_t cpulm_decode_workspace(const int32_t *sizes, int threads) {
    return DecodeWorkspace::numbers(DecodeSizes(sizes, 0), threads);
}

// Replaces x [batch, width] by the output of all layers and writes the new keys and values at `position` of the cache.
// `cos` and `sin` [head_dim / 2] belong to that position; null without rotary embedding.
void cpulm_decode(void *const *tensors, const int32_t *sizes, float eps, int64_t position, const float *cos,
                  const float *sin, float *x, float *memory, int threads) {
    const DecodeSizes s(sizes, eps);
    const DecodeLayer *layers = (const DecodeLayer *)tensors;
    DecodeWorkspace work(s, memory);
    long q = s.q_width(), qkv = s.qkv_width();
#pragma omp parallel num_threads(threads)
    for (const DecodeLayer *layer = layers; layer < layers + s.layers; layer++) {
        ThreadRange sequences(s.batch), outputs(qkv), tasks(s.batch * s.kv_heads), stream(s.width),
            inner(s.inner / LANES);
        for (long b = sequences.begin; b < sequences.end; b++)
            apply_norm(x + b * s.width, s, layer->attn_norm, layer->attn_norm_bias, work.normed + b * s.width);
#pragma omp barrier
        matmul_rows(layer->qkv, layer->qkv_bias, work.normed, s.batch, s.width, outputs.begin, outputs.end, work.qkv,
                    qkv, false);
#pragma omp barrier
        for (long task = tasks.begin; task < tasks.end; task++) attend_group(*layer, s, task, position, cos, sin, work);
#pragma omp barrier
        matmul_rows(layer->out, layer->out_bias, work.attended, s.batch, q, stream.begin, stream.end, x, s.width, true);
#pragma omp barrier
        for (long b = sequences.begin; b < sequences.end; b++)
            apply_norm(x + b * s.width, s, layer->mlp_norm, layer->mlp_norm_bias, work.normed + b * s.width);
#pragma omp barrier
        mlp_hidden(*layer, s, work, inner.begin * LANES, inner.end * LANES);
#pragma omp barrier
        matmul_rows(layer->down, layer->down_bias, work.hidden, s.batch, s.inner, stream.begin, stream.end, x, s.width,
                    true);
#pragma omp barrier
    }
}

} // extern "C"

SIGNATURE_OF(cpulm_decode_workspace)
SIGNATURE_OF(cpulm_decode)
