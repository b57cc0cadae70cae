// Runs one new token of each sequence through all blocks of a model, with caches of earlier keys and values.
// Included by kernels.cpp; cpulm/native/decode.py calls it. Pointers to absent tensors are null.
#pragma once
#include "abi.h"
#include "thread_range.h"
#include "vector.h"
#include <cmath>

// Python asks for these lists by name, so their order stands here alone.
#define DECODE_NORMS(X) X(rmsnorm) X(layernorm)
#define DECODE_ACTIVATIONS(X) X(swiglu) X(gelu) X(gelu_erf) X(relu) X(relu2)
// Of the model. `up_width` counts the inputs of the activation, a gate's included.
#define DECODE_SIZES(X)                                                                                                \
    X(layers) X(width) X(heads) X(kv_heads) X(head_dim) X(inner) X(up_width) X(norm) X(activation)
// Of a layer: weights [outputs, inputs].
#define DECODE_TENSORS(X)                                                                                              \
    X(attn_norm)                                                                                                       \
    X(attn_norm_bias)                                                                                                  \
    X(qkv)                                                                                                             \
    X(qkv_bias) X(q_norm) X(k_norm) X(out) X(out_bias) X(mlp_norm) X(mlp_norm_bias) X(up) X(up_bias) X(down)           \
        X(down_bias)

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

// A sequence: its keys and values, [kv_heads, room, head_dim] in each layer, and the place of its new token.
struct DecodeSequence {
    float *keys, *values;
    int64_t layer_stride, room, position;
};

struct DecodeSizes {
#define SIZE(name) int32_t name;
    DECODE_SIZES(SIZE)
#undef SIZE
    float eps; // of all norms
    int64_t batch;
    DecodeSizes(const int32_t *from, float norm_eps, int64_t sequences) : eps(norm_eps), batch(sequences) {
#define READ(name) name = *from++;
        DECODE_SIZES(READ)
#undef READ
    }
    int64_t q_width() const { return (int64_t)heads * head_dim; }
    int64_t qkv_width() const { return (int64_t)(heads + 2 * kv_heads) * head_dim; }
};

constexpr int ROWS_AT_ONCE = 4; // Independent sums hide the latency of the multiply-add.

// y[b, n] = x[b] matrix[n] + bias[n] for rows n in begin..end of matrix [.., inner], x [batch, inner]; `add`: y += it.
void matmul_rows(const float *matrix, const float *bias, const float *x, int64_t batch, int64_t inner, int64_t begin,
                 int64_t end, float *y, int64_t y_row, bool add) {
    for (int64_t n = begin; n < end; n += ROWS_AT_ONCE) {
        int64_t some = end - n < ROWS_AT_ONCE ? end - n : ROWS_AT_ONCE;
        const float *row[ROWS_AT_ONCE];
        for (int i = 0; i < ROWS_AT_ONCE; i++) row[i] = matrix + (n + (i < some ? i : 0)) * inner;
        for (int64_t b = 0; b < batch; b++) {
            Floats sums[ROWS_AT_ONCE] = {};
            for (int64_t j = 0; j < inner; j += LANES) {
                Floats v = load(x + b * inner + j);
                for (int i = 0; i < ROWS_AT_ONCE; i++) sums[i] += v * load(row[i] + j);
            }
            for (int64_t i = 0; i < some; i++) {
                float *at = y + b * y_row + n + i;
                *at = horizontal_sum(sums[i]) + (bias ? bias[n + i] : 0.0f) + (add ? *at : 0.0f);
            }
        }
    }
}

float rms_factor(const float *x, int64_t width, float eps) {
    Floats squares = {};
    for (int64_t j = 0; j < width; j += LANES) squares += load(x + j) * load(x + j);
    return 1.0f / sqrtf(horizontal_sum(squares) / width + eps);
}

void apply_norm(const float *x, const DecodeSizes &s, const float *weight, const float *bias, float *y) {
    int64_t width = s.width;
    Floats total = {}, squares = {};
    float mean = 0, factor;
    if (s.norm == NORM_layernorm) {
        for (int64_t j = 0; j < width; j += LANES) total += load(x + j);
        mean = horizontal_sum(total) / width;
        for (int64_t j = 0; j < width; j += LANES) squares += (load(x + j) - mean) * (load(x + j) - mean);
        factor = 1.0f / sqrtf(horizontal_sum(squares) / width + s.eps);
    } else
        factor = rms_factor(x, width, s.eps);
    for (int64_t j = 0; j < width; j += LANES) {
        Floats v = (load(x + j) - mean) * factor * load(weight + j);
        store(y + j, bias ? v + load(bias + j) : v);
    }
}

// Norm and rotary embedding of one query or key head.
void transform_head(const float *x, int64_t width, const float *weight, float eps, const float *cos, const float *sin,
                    float *y) {
    float factor = weight ? rms_factor(x, width, eps) : 1.0f;
    for (int64_t j = 0; j < width; j++) y[j] = weight ? x[j] * factor * weight[j] : x[j];
    if (!cos) return;
    for (int64_t j = 0, half = width / 2; j < half; j++) {
        float a = y[j], b = y[half + j];
        y[j] = a * cos[j] - b * sin[j];
        y[half + j] = b * cos[j] + a * sin[j];
    }
}

// Attention of the `group` queries that share a key-value head, over its first `seen` keys and values.
void attend_head(const float *queries, int64_t group, int64_t width, const float *keys, const float *values,
                 int64_t seen, float *scores, float *y) {
    float scale = 1.0f / sqrtf(width);
    for (int64_t h = 0; h < group; h++, queries += width, y += width) {
        float most = -INFINITY, total = 0;
        for (int64_t t = 0; t < seen; t++) {
            Floats along = {};
            for (int64_t j = 0; j < width; j += LANES) along += load(queries + j) * load(keys + t * width + j);
            scores[t] = horizontal_sum(along) * scale;
            most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
        }
        for (int64_t t = 0; t < seen; t++) total += scores[t] = expf(scores[t] - most);
        for (int64_t j = 0; j < width; j += LANES) {
            Floats attended = {};
            for (int64_t t = 0; t < seen; t++) attended += scores[t] * load(values + t * width + j);
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
    static int64_t numbers(const DecodeSizes &s, int64_t longest, int threads) {
        return s.batch * (s.width + s.qkv_width() + s.q_width() + s.up_width + s.inner) + threads * longest;
    }
};

// One sequence and key-value head: append the new key and value to the cache, then attend with the head's queries.
void attend_group(const DecodeLayer &layer, const DecodeSizes &s, int64_t number, const DecodeSequence &sequence,
                  int64_t task, const float *cos, const float *sin, const DecodeWorkspace &work, float *scores) {
    int64_t b = task / s.kv_heads, k = task % s.kv_heads, d = s.head_dim, group = s.heads / s.kv_heads;
    int64_t position = sequence.position, begin = number * sequence.layer_stride + k * sequence.room * d;
    float *q = work.qkv + b * (s.heads + 2 * s.kv_heads) * d, *key = q + (s.heads + k) * d;
    float *keys = sequence.keys + begin, *values = sequence.values + begin;
    if (cos) cos += position * d / 2, sin += position * d / 2;
    transform_head(key, d, layer.k_norm, s.eps, cos, sin, keys + position * d);
    memcpy(values + position * d, key + s.kv_heads * d, d * sizeof(float));
    float *queries = q + k * group * d;
    for (int64_t h = 0; h < group; h++)
        transform_head(queries + h * d, d, layer.q_norm, s.eps, cos, sin, queries + h * d);
    attend_head(queries, group, d, keys, values, position + 1, scores, work.attended + (b * s.heads + k * group) * d);
}

// The MLP's hidden units begin..end of all sequences.
void mlp_hidden(const DecodeLayer &layer, const DecodeSizes &s, const DecodeWorkspace &work, int64_t begin,
                int64_t end) {
    int64_t width = s.up_width;
    for (int64_t first = 0; first < width; first += s.inner)
        matmul_rows(layer.up, layer.up_bias, work.normed, s.batch, s.width, first + begin, first + end, work.up, width,
                    false);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t j = begin; j < end; j += LANES) {
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

// Floats of the workspace; `longest`: tokens of the longest sequence, the new one included.
int64_t cpulm_decode_workspace(const int32_t *sizes, int64_t batch, int64_t longest, int threads) {
    return DecodeWorkspace::numbers(DecodeSizes(sizes, 0, batch), longest, threads);
}

// Replaces x [batch, width] by the output of all layers and writes the new keys and values at each sequence's position.
// `cos` and `sin` [positions, head_dim / 2]; null without rotary embedding.
void cpulm_decode(void *const *tensors, const int32_t *sizes, float eps, const void *from, int64_t batch,
                  int64_t longest, const float *cos, const float *sin, float *x, float *memory, int threads) {
    const DecodeSizes s(sizes, eps, batch);
    const DecodeLayer *layers = (const DecodeLayer *)tensors;
    const DecodeSequence *sequence = (const DecodeSequence *)from;
    DecodeWorkspace work(s, memory);
    int64_t q = s.q_width(), qkv = s.qkv_width();
    parallel(threads, [=](const Team &team) {
        for (const DecodeLayer *layer = layers; layer < layers + s.layers; layer++) {
            ThreadRange sequences(team, s.batch), outputs(team, qkv), tasks(team, s.batch * s.kv_heads),
                stream(team, s.width), inner(team, s.inner / LANES);
            for (int64_t b = sequences.begin; b < sequences.end; b++)
                apply_norm(x + b * s.width, s, layer->attn_norm, layer->attn_norm_bias, work.normed + b * s.width);
            team.barrier();
            matmul_rows(layer->qkv, layer->qkv_bias, work.normed, s.batch, s.width, outputs.begin, outputs.end,
                        work.qkv, qkv, false);
            team.barrier();
            for (int64_t task = tasks.begin; task < tasks.end; task++)
                attend_group(*layer, s, layer - layers, sequence[task / s.kv_heads], task, cos, sin, work,
                             work.scores + team.thread * longest);
            team.barrier();
            matmul_rows(layer->out, layer->out_bias, work.attended, s.batch, q, stream.begin, stream.end, x, s.width,
                        true);
            team.barrier();
            for (int64_t b = sequences.begin; b < sequences.end; b++)
                apply_norm(x + b * s.width, s, layer->mlp_norm, layer->mlp_norm_bias, work.normed + b * s.width);
            team.barrier();
            mlp_hidden(*layer, s, work, inner.begin * LANES, inner.end * LANES);
            team.barrier();
            matmul_rows(layer->down, layer->down_bias, work.hidden, s.batch, s.inner, stream.begin, stream.end, x,
                        s.width, true);
            team.barrier();
        }
    });
}

} // extern "C"

SIGNATURE_OF(cpulm_decode_workspace)
SIGNATURE_OF(cpulm_decode)
