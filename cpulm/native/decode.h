// All blocks of a model for one new token of each text, with the keys and values of those before it.
// A part of kernels.cpp; cpulm/native/decoding.py calls it. What is not there is null.
#pragma once
#include "parts.h"
#include "vector.h"
#include <cmath>

namespace decode {

enum Norm { RMS, LAYER };
enum Activation { SWIGLU, GELU, GELU_ERF, RELU, RELU2 };

struct Layer { // weights [outputs, inputs]; keys and values [batch, kv_heads, room, head_dim]
    const float *attn_norm, *attn_norm_bias, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias;
    const float *mlp_norm, *mlp_norm_bias, *up, *up_bias, *down, *down_bias;
    float *keys, *values;
};

struct Sizes {
    int32_t layers, batch, width, heads, kv_heads, head_dim, inner, room, norm, activation;
    float eps;
};

constexpr int ROWS = 4; // of a matrix at once: their sums do not wait for each other

// Rows `begin` to `end` of a matrix [.., inner] times each row of x [batch, inner], plus a bias, to y, or added to it.
static void multiplied(const float *matrix, const float *bias, const float *x, long batch, long inner, long begin,
                       long end, float *y, long y_row, bool add) {
    for (long n = begin; n < end; n += ROWS) {
        long some = end - n < ROWS ? end - n : ROWS;
        const float *row[ROWS];
        for (int i = 0; i < ROWS; i++) row[i] = matrix + (n + (i < some ? i : 0)) * inner;
        for (long b = 0; b < batch; b++) {
            Floats sums[ROWS] = {};
            for (long j = 0; j < inner; j += LANES) {
                Floats v = load(x + b * inner + j);
                for (int i = 0; i < ROWS; i++) sums[i] += v * load(row[i] + j);
            }
            for (long i = 0; i < some; i++) {
                float *at = y + b * y_row + n + i;
                *at = sum(sums[i]) + (bias ? bias[n + i] : 0.0f) + (add ? *at : 0.0f);
            }
        }
    }
}

static float rms_factor(const float *x, long width, float eps) {
    Floats squares = {};
    for (long j = 0; j < width; j += LANES) squares += load(x + j) * load(x + j);
    return 1.0f / sqrtf(sum(squares) / width + eps);
}

static void normed(const float *x, const Sizes &s, const float *weight, const float *bias, float *y) {
    long width = s.width;
    Floats total = {}, squares = {};
    float mean = 0, factor;
    if (s.norm == LAYER) {
        for (long j = 0; j < width; j += LANES) total += load(x + j);
        mean = sum(total) / width;
        for (long j = 0; j < width; j += LANES) squares += (load(x + j) - mean) * (load(x + j) - mean);
        factor = 1.0f / sqrtf(sum(squares) / width + s.eps);
    } else
        factor = rms_factor(x, width, s.eps);
    for (long j = 0; j < width; j += LANES) {
        Floats v = (load(x + j) - mean) * factor * load(weight + j);
        store(y + j, bias ? v + load(bias + j) : v);
    }
}

// One head's query or key after its norm and rotation.
static void turned(const float *x, long width, const float *weight, float eps, const float *cos, const float *sin,
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

// One text's queries of one key-value head, over that head's `seen` keys and values.
static void attended(const float *queries, long group, long width, const float *keys, const float *values, long seen,
                     float *scores, float *y) {
    float scale = 1.0f / sqrtf(width);
    for (long h = 0; h < group; h++, queries += width, y += width) {
        float most = -INFINITY, total = 0;
        for (long t = 0; t < seen; t++) {
            Floats along = {};
            for (long j = 0; j < width; j += LANES) along += load(queries + j) * load(keys + t * width + j);
            scores[t] = sum(along) * scale;
            most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
        }
        for (long t = 0; t < seen; t++) total += scores[t] = expf(scores[t] - most);
        for (long j = 0; j < width; j += LANES) {
            Floats mixed = {};
            for (long t = 0; t < seen; t++) mixed += scores[t] * load(values + t * width + j);
            store(y + j, mixed / total);
        }
    }
}

static Floats activated(Floats up, Floats gate, int activation) {
    Floats positive = up < 0.0f ? all(0.0f) : up;
    switch (activation) {
    case SWIGLU: return gate / (1.0f + exponential(-gate)) * up;
    case GELU: // 1 + tanh(v) is 2 / (1 + exp(-2 v))
        return up / (1.0f + exponential(-1.5957691216f * (up + 0.044715f * up * up * up)));
    case GELU_ERF:
        for (int i = 0; i < LANES; i++) up[i] *= 0.5f * (1.0f + erff(up[i] * 0.7071067812f));
        return up;
    case RELU: return positive;
    default: return positive * positive;
    }
}

struct Room { // for one token of each text
    float *normed, *qkv, *mixed, *up, *hidden, *scores;
    Room(const Sizes &s, int threads) {
        long q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
        long up_width = s.activation == SWIGLU ? 2 * s.inner : s.inner;
        long numbers = s.batch * (s.width + q + 2 * kv + q + up_width + s.inner) + (long)threads * s.room;
        normed = (float *)malloc(numbers * sizeof(float));
        qkv = normed + s.batch * s.width;
        mixed = qkv + s.batch * (q + 2 * kv);
        up = mixed + s.batch * q;
        hidden = up + s.batch * up_width;
        scores = hidden + s.batch * s.inner;
    }
    ~Room() { free(normed); }
};

// The heads of one text and key-value head: the new key and value to their places, and the results.
static void attend(const Layer &layer, const Sizes &s, long task, long position, const float *cos, const float *sin,
                   const Room &room) {
    long b = task / s.kv_heads, k = task % s.kv_heads, d = s.head_dim, group = s.heads / s.kv_heads;
    float *q = room.qkv + b * (s.heads + 2 * s.kv_heads) * d, *key = q + (s.heads + k) * d;
    float *keys = layer.keys + task * s.room * d, *values = layer.values + task * s.room * d;
    turned(key, d, layer.k_norm, s.eps, cos, sin, keys + position * d);
    memcpy(values + position * d, key + s.kv_heads * d, d * sizeof(float));
    float *queries = q + k * group * d;
    for (long h = 0; h < group; h++) turned(queries + h * d, d, layer.q_norm, s.eps, cos, sin, queries + h * d);
    attended(queries, group, d, keys, values, position + 1, room.scores + (long)omp_get_thread_num() * s.room,
             room.mixed + (b * s.heads + k * group) * d);
}

// Some of the MLP's hidden numbers of all texts.
static void hidden_part(const Layer &layer, const Sizes &s, const Room &room, long begin, long end) {
    long width = s.activation == SWIGLU ? 2 * s.inner : s.inner;
    for (long first = 0; first < width; first += s.inner)
        multiplied(layer.up, layer.up_bias, room.normed, s.batch, s.width, first + begin, first + end, room.up, width,
                   false);
    for (long b = 0; b < s.batch; b++)
        for (long j = begin; j < end; j += LANES) {
            const float *gate = room.up + b * width + j;
            store(room.hidden + b * s.inner + j, activated(load(gate + width - s.inner), load(gate), s.activation));
        }
}

// x [batch, width] becomes the output of all layers; the new keys and values go to `position` of the cache. `cos` and
// `sin` [head_dim / 2] are the rotation's there.
extern "C" void cpulm_decode(const Layer *layers, const Sizes *sizes, int64_t position, const float *cos,
                             const float *sin, float *x, int threads) {
    const Sizes &s = *sizes;
    Room room(s, threads);
    long q = s.heads * s.head_dim, qkv = q + 2 * s.kv_heads * s.head_dim;
#pragma omp parallel num_threads(threads)
    for (const Layer *layer = layers; layer < layers + s.layers; layer++) {
        Part texts(s.batch), projected(qkv), tasks(s.batch * s.kv_heads), stream(s.width), inner(s.inner / LANES);
        for (long b = texts.begin; b < texts.end; b++)
            normed(x + b * s.width, s, layer->attn_norm, layer->attn_norm_bias, room.normed + b * s.width);
#pragma omp barrier
        multiplied(layer->qkv, layer->qkv_bias, room.normed, s.batch, s.width, projected.begin, projected.end, room.qkv,
                   qkv, false);
#pragma omp barrier
        for (long task = tasks.begin; task < tasks.end; task++) attend(*layer, s, task, position, cos, sin, room);
#pragma omp barrier
        multiplied(layer->out, layer->out_bias, room.mixed, s.batch, q, stream.begin, stream.end, x, s.width, true);
#pragma omp barrier
        for (long b = texts.begin; b < texts.end; b++)
            normed(x + b * s.width, s, layer->mlp_norm, layer->mlp_norm_bias, room.normed + b * s.width);
#pragma omp barrier
        hidden_part(*layer, s, room, inner.begin * LANES, inner.end * LANES);
#pragma omp barrier
        multiplied(layer->down, layer->down_bias, room.hidden, s.batch, s.inner, stream.begin, stream.end, x, s.width,
                   true);
#pragma omp barrier
    }
}

} // namespace decode
