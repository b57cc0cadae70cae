// Causal attention from the fused qkv projection to the heads' outputs: QK norm, rotary embedding, scores, softmax,
// dropout and weighted sum, one pair of sequence and key-value head at a time, so that all intermediate values stay
// in the L2 cache. The scores of a block of queries are computed in the forward pass and again in the backward pass
// (https://arxiv.org/abs/2205.14135); nothing of size T x T is stored.
#pragma once
#include <cmath>
#include "small_matmul.h"

namespace {

constexpr int BLOCK = 4 * TILE_ROWS; // queries at a time; larger blocks compute more scores above the diagonal in vain

struct AttentionShape {
    int batch, tokens, heads, kv_heads, width; // width of one head, a multiple of LANES
    int row() const { return (heads + 2 * kv_heads) * width; }
    int padded_tokens() const { return (tokens + LANES - 1) / LANES * LANES; }
    // Row stride of transposed matrices: rows a power of two apart would share a few sets of the cache.
    int transposed_stride() const { return padded_tokens() + LANES; }
};

struct QKTransform { // QK norm and rotary embedding; null pointers: left out
    const float *weight; // of the norm [width]
    const float *cos, *sin; // [tokens, width / 2]
    float eps;
};

struct MaskAndDropout {
    const int32_t *first; // [batch, tokens]: the first token that each token attends to; null: 0
    uint32_t seed; // of dropout
    uint32_t below; // weights whose hash is below this are dropped; 0: none
    float kept; // 1 / (1 - p)
};

inline float apply_qk_norm(const float *x, const QKTransform &transform, int width, float *out) {
    if (!transform.weight) {
        memcpy(out, x, width * sizeof(float));
        return 1.0f;
    }
    Floats squares = {};
    for (int d = 0; d < width; d += LANES) squares += load(x + d) * load(x + d);
    float rstd = 1.0f / sqrtf(horizontal_sum(squares) / width + transform.eps);
    for (int d = 0; d < width; d += LANES) store(out + d, load(x + d) * rstd * load(transform.weight + d));
    return rstd;
}

inline void apply_rope(float *x, const QKTransform &transform, int t, int width, float direction) {
    if (!transform.cos) return;
    int half = width / 2;
    const float *cos = transform.cos + (int64_t)t * half, *sin = transform.sin + (int64_t)t * half;
    int d = 0;
    for (; d + LANES <= half; d += LANES) {
        Floats a = load(x + d), b = load(x + d + half), c = load(cos + d), s = direction * load(sin + d);
        store(x + d, a * c - b * s);
        store(x + d + half, b * c + a * s);
    }
    for (; d < half; d++) {
        float a = x[d], b = x[d + half], s = direction * sin[d];
        x[d] = a * cos[d] - b * s;
        x[d + half] = b * cos[d] + a * s;
    }
}

// Stores past the caches: the next reader is another part of the model, long after the row would have left them.
inline void stream_row(const float *x, int width, float *out) {
    for (int d = 0; d < width; d += LANES) stream(out + d, load(x + d));
}

inline void prefetch(const float *row, int width) {
    for (int line = 0; line < width * 4; line += 64) __builtin_prefetch((const char *)row + line);
}

// From the gradient `g` of a transformed row to that of the row `x`; accumulates the gradient of the norm's weight.
inline void qk_transform_backward(float *g, const float *x, const QKTransform &transform, int t, int width, float *out,
                                  float *weight_grad) {
    apply_rope(g, transform, t, width, -1.0f);
    if (!transform.weight) return stream_row(g, width, out);
    Floats squares = {}, along = {};
    for (int d = 0; d < width; d += LANES) {
        Floats v = load(x + d);
        squares += v * v;
        along += v * load(g + d) * load(transform.weight + d);
    }
    float rstd = 1.0f / sqrtf(horizontal_sum(squares) / width + transform.eps);
    float back = horizontal_sum(along) * rstd * rstd / width;
    for (int d = 0; d < width; d += LANES) {
        Floats v = load(x + d), gradient = load(g + d);
        store(weight_grad + d, load(weight_grad + d) + gradient * v * rstd);
        stream(out + d, (gradient * load(transform.weight + d) - v * back) * rstd);
    }
}

// Rows and width are multiples of LANES.
inline void transpose(const float *x, int rows, int width, float *out, int out_row) {
    for (int t = 0; t < rows; t += LANES)
        for (int d = 0; d < width; d += LANES)
            transpose_block((const Word *)x + (int64_t)t * width + d, width, (Word *)out + (int64_t)d * out_row + t,
                            out_row, 0);
}

// Copies the queries, keys or values of one head to [tokens, width], transformed and scaled, followed by zeros.
void gather_head(const float *from, const AttentionShape &shape, const QKTransform *transform, float scale,
                 float *out) {
    for (int t = 0; t < shape.tokens; t++) {
        const float *x = from + (int64_t)t * shape.row();
        float *y = out + (int64_t)t * shape.width;
        prefetch(x + 8 * (int64_t)shape.row(), shape.width); // too far apart for the hardware prefetcher
        if (!transform) {
            memcpy(y, x, shape.width * sizeof(float));
            continue;
        }
        apply_qk_norm(x, *transform, shape.width, y);
        apply_rope(y, *transform, t, shape.width, 1.0f);
        if (scale != 1.0f)
            for (int d = 0; d < shape.width; d += LANES) store(y + d, load(y + d) * scale);
    }
    int64_t end = (int64_t)shape.tokens * shape.width, padded_end = (int64_t)shape.padded_tokens() * shape.width;
    memset(out + end, 0, (padded_end - end) * sizeof(float));
}

inline Ints column_numbers(int j) {
    static constexpr int32_t first[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const UnalignedInts *)first + j;
}

// A token attends to itself at least, and to nothing before token 0.
inline int first_token(const MaskAndDropout &mask, const AttentionShape &shape, int b, int t) {
    int first = mask.first ? mask.first[(int64_t)b * shape.tokens + t] : 0;
    return first < 0 ? 0 : first > t ? t : first;
}

// e^score at the keys from j on; 0 for keys outside from..to.
inline Floats masked_exp(Floats scores, int j, int from, int to) {
    if (j >= from && j + LANES - 1 <= to) return exponential(scores);
    if (j > to || j + LANES <= from) return Floats{};
    Ints column = column_numbers(j);
    return ((column <= to) & (column >= from)) ? exponential(scores) : Floats{};
}

// Dropout's factors for the weights of one query at the keys from j on: 0 or 1 / (1 - p).
inline Floats dropout_scale(const MaskAndDropout &mask, uint32_t row, int j) {
    Words hash = hash32((Words)column_numbers(j) * 0x9e3779b9u + row);
    return hash < mask.below ? Floats{} : splat(mask.kept);
}

inline uint32_t row_hash(const MaskAndDropout &mask, const AttentionShape &shape, int b, int h, int t) {
    return hash32(mask.seed + (uint32_t)(((int64_t)b * shape.heads + h) * shape.tokens + t));
}

struct AttentionWorkspace { // of one part, in memory that the caller allocates
    float *k, *k_transposed, *v, *v_transposed, *q, *grad, *k_grad, *v_grad, *scores, *score_grads, *small;
    AttentionWorkspace(const AttentionShape &s, float *next) {
        float **matrices[] = {&k, &k_transposed, &v, &v_transposed, &q, &grad, &k_grad, &v_grad};
        for (float **matrix : matrices) *matrix = next, next += matrix_numbers(s);
        scores = next, next += block_numbers(s);
        score_grads = next, next += block_numbers(s);
        small = next;
    }
    static int64_t matrix_numbers(const AttentionShape &s) { return (int64_t)s.transposed_stride() * s.width; }
    static int64_t block_numbers(const AttentionShape &s) { return (int64_t)BLOCK * s.transposed_stride(); }
    static int64_t numbers(const AttentionShape &s) {
        return 8 * matrix_numbers(s) + 2 * block_numbers(s) + (int64_t)BLOCK * s.width;
    }
};

void attention_forward(const float *qkv, const AttentionShape &s, const QKTransform &q_transform,
                       const QKTransform &k_transform, const MaskAndDropout &mask, int b, int g,
                       AttentionWorkspace &work, float *y, float *lse) {
    int width = s.width, padded = s.padded_tokens(), stride = s.transposed_stride(), group = s.heads / s.kv_heads;
    const float *rows = qkv + (int64_t)b * s.tokens * s.row();
    gather_head(rows + (int64_t)(s.heads + g) * width, s, &k_transform, 1.0f, work.k);
    transpose(work.k, padded, width, work.k_transposed, stride);
    gather_head(rows + (int64_t)(s.heads + s.kv_heads + g) * width, s, nullptr, 1.0f, work.v);
    for (int h = g * group; h < (g + 1) * group; h++) {
        gather_head(rows + (int64_t)h * width, s, &q_transform, 1.0f / sqrtf((float)width), work.q);
        for (int start = 0; start < s.tokens; start += BLOCK) {
            int count = s.tokens - start < BLOCK ? s.tokens - start : BLOCK;
            int keys = (start + count + LANES - 1) / LANES * LANES;
            small_matmul(count, keys, width, work.q + (int64_t)start * width, width, 1, work.k_transposed, stride,
                         work.scores, stride, false);
            for (int i = 0; i < count; i++) {
                int t = start + i, from = first_token(mask, s, b, t);
                float *row = work.scores + (int64_t)i * stride;
                float most = row[from];
                Floats mosts = splat(most);
                for (int j = from; j % LANES && j <= t; j++) most = row[j] > most ? row[j] : most;
                int even = (from + LANES - 1) / LANES * LANES;
                int j = even;
                for (; j + LANES <= t + 1; j += LANES) mosts = max(mosts, load(row + j));
                for (; j <= t; j++) most = row[j] > most ? row[j] : most;
                most = horizontal_max(mosts) > most ? horizontal_max(mosts) : most;
                Floats total = {};
                uint32_t hash = mask.below ? row_hash(mask, s, b, h, t) : 0;
                for (j = 0; j < keys; j += LANES) {
                    Floats weight = masked_exp(load(row + j) - most, j, from, t);
                    total += weight;
                    store(row + j, mask.below ? weight * dropout_scale(mask, hash, j) : weight);
                }
                float divisor = horizontal_sum(total);
                lse[((int64_t)b * s.heads + h) * s.tokens + t] = most + logf(divisor);
                work.small[i] = 1.0f / divisor;
            }
            float *out = work.grad;
            small_matmul(count, width, start + count, work.scores, stride, 1, work.v, width, out, width, false);
            for (int i = 0; i < count; i++) {
                float *to = y + ((int64_t)(b * (int64_t)s.tokens + start + i) * s.heads + h) * width;
                for (int d = 0; d < width; d += LANES)
                    stream(to + d, load(out + (int64_t)i * width + d) * work.small[i]);
            }
        }
    }
}

void attention_backward(const float *dy, const float *qkv, const float *y, const float *lse, const AttentionShape &s,
                        const QKTransform &q_transform, const QKTransform &k_transform, const MaskAndDropout &mask,
                        int b, int g, AttentionWorkspace &work, float *dqkv, float *q_weight_grad,
                        float *k_weight_grad) {
    int width = s.width, padded = s.padded_tokens(), stride = s.transposed_stride(), group = s.heads / s.kv_heads;
    int64_t in_row = s.row(), out_row = (int64_t)s.heads * width;
    float scale = 1.0f / sqrtf((float)width);
    const float *rows = qkv + (int64_t)b * s.tokens * in_row;
    float *grads = dqkv + (int64_t)b * s.tokens * in_row;
    gather_head(rows + (int64_t)(s.heads + g) * width, s, &k_transform, 1.0f, work.k);
    transpose(work.k, padded, width, work.k_transposed, stride);
    gather_head(rows + (int64_t)(s.heads + s.kv_heads + g) * width, s, nullptr, 1.0f, work.v);
    transpose(work.v, padded, width, work.v_transposed, stride);
    memset(work.k_grad, 0, (int64_t)padded * width * sizeof(float));
    memset(work.v_grad, 0, (int64_t)padded * width * sizeof(float));
    for (int h = g * group; h < (g + 1) * group; h++) {
        gather_head(rows + (int64_t)h * width, s, &q_transform, scale, work.q);
        for (int start = 0; start < s.tokens; start += BLOCK) {
            int count = s.tokens - start < BLOCK ? s.tokens - start : BLOCK;
            int end = start + count, keys = (end + LANES - 1) / LANES * LANES;
            const float *q = work.q + (int64_t)start * width;
            float *grad = work.grad; // of the outputs of this block [count, width]
            small_matmul(count, keys, width, q, width, 1, work.k_transposed, stride, work.scores, stride, false);
            for (int i = 0; i < count; i++)
                memcpy(grad + (int64_t)i * width,
                       dy + ((int64_t)b * s.tokens + start + i) * out_row + (int64_t)h * width, width * sizeof(float));
            small_matmul(count, keys, width, grad, width, 1, work.v_transposed, stride, work.score_grads, stride,
                         false);
            for (int i = 0; i < count; i++) {
                int t = start + i, from = first_token(mask, s, b, t);
                int64_t at = ((int64_t)b * s.tokens + t) * out_row + (int64_t)h * width;
                const float *out = y + at;
                prefetch(out + BLOCK * out_row, width); // of the next block
                prefetch(dy + at + BLOCK * out_row, width);
                Floats along = {};
                for (int d = 0; d < width; d += LANES) along += load(out + d) * load(grad + (int64_t)i * width + d);
                float delta = horizontal_sum(along), level = lse[((int64_t)b * s.heads + h) * s.tokens + t];
                float *score = work.scores + (int64_t)i * stride, *score_grad = work.score_grads + (int64_t)i * stride;
                uint32_t hash = mask.below ? row_hash(mask, s, b, h, t) : 0;
                for (int j = 0; j < keys; j += LANES) {
                    Floats weight = masked_exp(load(score + j) - level, j, from, t);
                    Floats arriving = load(score_grad + j);
                    Floats used = weight;
                    if (mask.below) {
                        Floats kept = dropout_scale(mask, hash, j);
                        arriving *= kept;
                        used *= kept;
                    }
                    store(score + j, used);
                    store(score_grad + j, weight * (arriving - delta));
                }
            }
            small_matmul(end, width, count, work.scores, 1, stride, grad, width, work.v_grad, width, true);
            small_matmul(end, width, count, work.score_grads, 1, stride, q, width, work.k_grad, width, true);
            small_matmul(count, width, end, work.score_grads, stride, 1, work.k, width, work.small, width, false);
            for (int i = 0; i < count; i++) {
                int t = start + i;
                float *row = work.small + (int64_t)i * width;
                for (int d = 0; d < width; d += LANES) store(row + d, load(row + d) * scale);
                int64_t at = (int64_t)t * in_row + (int64_t)h * width;
                qk_transform_backward(row, rows + at, q_transform, t, width, grads + at, q_weight_grad);
            }
        }
    }
    for (int t = 0; t < s.tokens; t++) {
        int64_t at = (int64_t)t * in_row + (int64_t)(s.heads + g) * width;
        qk_transform_backward(work.k_grad + (int64_t)t * width, rows + at, k_transform, t, width, grads + at,
                              k_weight_grad);
        stream_row(work.v_grad + (int64_t)t * width, width, grads + at + (int64_t)s.kv_heads * width);
    }
}

} // namespace
