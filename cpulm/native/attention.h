// Causal attention from the joint projection to the heads' results: norm and rotation of queries and keys,
// scores, softmax, dropout and the weighted sum, one pair of sequence and key-value head at a time, so that
// all between stays in the second-level cache. The scores of a block of queries are computed once forward and
// once more backward (https://arxiv.org/abs/2205.14135); nothing of size T x T is kept.
#pragma once
#include <cmath>
#include "product.h"

constexpr int BLOCK = 4 * TILE_ROWS;  // queries at a time: with more, more scores behind the diagonal are in vain

struct Shape {
    int batch, tokens, heads, kv_heads, width;  // width of one head, a multiple of LANES
    int row() const { return (heads + 2 * kv_heads) * width; }
    int padded() const { return (tokens + LANES - 1) / LANES * LANES; }
    // Rows of T numbers stand this far apart: at a power of two they would share a few sets of the cache.
    int across() const { return padded() + LANES; }
};

struct Turn {            // what is done to queries and keys before they meet; null: nothing
    const float *weight; // of the norm [width]
    const float *cos, *sin; // [tokens, width / 2]
    float eps;
};

struct Rules {
    const int32_t *first; // [batch, tokens]: the first token that each may see; null: 0
    uint32_t seed;        // of dropout
    uint32_t below;       // hashes below this are dropped; 0: none
    float kept;           // 1 / (1 - p)
};

static inline float normed(const float *x, const Turn &turn, int width, float *out) {
    if (!turn.weight) {
        memcpy(out, x, width * sizeof(float));
        return 1.0f;
    }
    Floats squares = {};
    for (int d = 0; d < width; d += LANES) squares += load(x + d) * load(x + d);
    float rstd = 1.0f / sqrtf(sum(squares) / width + turn.eps);
    for (int d = 0; d < width; d += LANES) store(out + d, load(x + d) * rstd * load(turn.weight + d));
    return rstd;
}

static inline void rotated(float *x, const Turn &turn, int t, int width, float direction) {
    if (!turn.cos) return;
    int half = width / 2;
    const float *cos = turn.cos + (long)t * half, *sin = turn.sin + (long)t * half;
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

// What is written here is read by another part of the model, long after it has left the caches.
static inline void streamed_row(const float *x, int width, float *out) {
    for (int d = 0; d < width; d += LANES) stream(out + d, load(x + d));
}

static inline void soon(const float *row, int width) {
    for (int line = 0; line < width * 4; line += 64) __builtin_prefetch((const char *)row + line);
}

// The gradient `g` of a turned row becomes that of the row `x` itself; the norm weight's is added up.
static inline void turned_back(float *g, const float *x, const Turn &turn, int t, int width, float *out,
                               float *weight_grad) {
    rotated(g, turn, t, width, -1.0f);
    if (!turn.weight) return streamed_row(g, width, out);
    Floats squares = {}, along = {};
    for (int d = 0; d < width; d += LANES) {
        Floats v = load(x + d);
        squares += v * v;
        along += v * load(g + d) * load(turn.weight + d);
    }
    float rstd = 1.0f / sqrtf(sum(squares) / width + turn.eps);
    float back = sum(along) * rstd * rstd / width;
    for (int d = 0; d < width; d += LANES) {
        Floats v = load(x + d), gradient = load(g + d);
        store(weight_grad + d, load(weight_grad + d) + gradient * v * rstd);
        stream(out + d, (gradient * load(turn.weight + d) - v * back) * rstd);
    }
}

// Rows and width are multiples of LANES.
static inline void transposed(const float *x, int rows, int width, float *out, int out_row) {
    for (int t = 0; t < rows; t += LANES)
        for (int d = 0; d < width; d += LANES)
            transposed_block((const Word *)x + (long)t * width + d, width, (Word *)out + (long)d * out_row + t,
                             out_row, 0);
}

// The rows of one kind of one head, [tokens, width], zeros behind them.
static void gathered(const float *from, const Shape &shape, const Turn *turn, float scale, float *out) {
    for (int t = 0; t < shape.tokens; t++) {
        const float *x = from + (long)t * shape.row();
        float *y = out + (long)t * shape.width;
        soon(x + 8 * (long)shape.row(), shape.width); // too far apart for the CPU to foresee
        if (!turn) {
            memcpy(y, x, shape.width * sizeof(float));
            continue;
        }
        normed(x, *turn, shape.width, y);
        rotated(y, *turn, t, shape.width, 1.0f);
        if (scale != 1.0f)
            for (int d = 0; d < shape.width; d += LANES) store(y + d, load(y + d) * scale);
    }
    long end = (long)shape.tokens * shape.width, all_of_it = (long)shape.padded() * shape.width;
    memset(out + end, 0, (all_of_it - end) * sizeof(float));
}

struct Columns { // 0, 1, 2 ...
    Ints numbers;
    Columns() {
        for (int i = 0; i < LANES; i++) numbers[i] = i;
    }
};

static inline Ints columns_from(int j) {
    static const Columns first;
    return first.numbers + j;
}

// e^score at the keys from j on, 0 at those outside from .. to.
static inline Floats weights(Floats scores, int j, int from, int to) {
    if (j >= from && j + LANES - 1 <= to) return exponential(scores);
    if (j > to || j + LANES <= from) return Floats{};
    Ints column = columns_from(j);
    return (column <= to) & (column >= from) ? exponential(scores) : Floats{};
}

// What dropout leaves of one query's weights at the keys from j on: 0 or 1 / (1 - p).
static inline Floats kept_at(const Rules &rules, uint32_t row, int j) {
    Words hash = mixed((Words)columns_from(j) * 0x9e3779b9u + row);
    return hash < rules.below ? Floats{} : all(rules.kept);
}

static inline uint32_t row_hash(const Rules &rules, const Shape &shape, int b, int h, int t) {
    return mixed(rules.seed + (uint32_t)(((long)b * shape.heads + h) * shape.tokens + t));
}

struct Room { // of one thread
    float *k, *k_across, *v, *v_across, *q, *grad, *k_grad, *v_grad, *scores, *score_grads, *small;
    float *all_of_it;
    explicit Room(const Shape &s) {
        long matrix = (long)s.across() * s.width, block = (long)BLOCK * s.across();
        all_of_it = (float *)malloc((8 * matrix + 2 * block + (long)BLOCK * s.width) * sizeof(float));
        float *next = all_of_it;
        float **parts[] = {&k, &k_across, &v, &v_across, &q, &grad, &k_grad, &v_grad};
        for (float **part : parts) *part = next, next += matrix;
        scores = next, next += block;
        score_grads = next, next += block;
        small = next;
    }
    ~Room() { free(all_of_it); }
};

static void attend_forward(const float *qkv, const Shape &s, const Turn &q_turn, const Turn &k_turn, const Rules &rules,
                           int b, int g, Room &room, float *y, float *lse) {
    int width = s.width, padded = s.padded(), across = s.across(), group = s.heads / s.kv_heads;
    const float *rows = qkv + (long)b * s.tokens * s.row();
    gathered(rows + (long)(s.heads + g) * width, s, &k_turn, 1.0f, room.k);
    transposed(room.k, padded, width, room.k_across, across);
    gathered(rows + (long)(s.heads + s.kv_heads + g) * width, s, nullptr, 1.0f, room.v);
    for (int h = g * group; h < (g + 1) * group; h++) {
        gathered(rows + (long)h * width, s, &q_turn, 1.0f / sqrtf((float)width), room.q);
        for (int start = 0; start < s.tokens; start += BLOCK) {
            int count = s.tokens - start < BLOCK ? s.tokens - start : BLOCK;
            int keys = (start + count + LANES - 1) / LANES * LANES;
            product(count, keys, width, room.q + (long)start * width, width, 1, room.k_across, across, room.scores,
                    across, false);
            for (int i = 0; i < count; i++) {
                int t = start + i, from = rules.first ? rules.first[(long)b * s.tokens + t] : 0;
                float *row = room.scores + (long)i * across;
                float most = row[from];
                Floats mosts = all(most);
                for (int j = from; j % LANES && j <= t; j++) most = row[j] > most ? row[j] : most;
                int even = (from + LANES - 1) / LANES * LANES;
                int j = even;
                for (; j + LANES <= t + 1; j += LANES) mosts = larger(mosts, load(row + j));
                for (; j <= t; j++) most = row[j] > most ? row[j] : most;
                most = largest(mosts) > most ? largest(mosts) : most;
                Floats total = {};
                uint32_t hash = rules.below ? row_hash(rules, s, b, h, t) : 0;
                for (j = 0; j < keys; j += LANES) {
                    Floats weight = weights(load(row + j) - most, j, from, t);
                    total += weight;
                    store(row + j, rules.below ? weight * kept_at(rules, hash, j) : weight);
                }
                float divisor = sum(total);
                lse[((long)b * s.heads + h) * s.tokens + t] = most + logf(divisor);
                room.small[i] = 1.0f / divisor;
            }
            float *out = room.grad;
            product(count, width, start + count, room.scores, across, 1, room.v, width, out, width, false);
            for (int i = 0; i < count; i++) {
                float *to = y + ((long)(b * (long)s.tokens + start + i) * s.heads + h) * width;
                for (int d = 0; d < width; d += LANES)
                    stream(to + d, load(out + (long)i * width + d) * room.small[i]);
            }
        }
    }
}

static void attend_backward(const float *dy, const float *qkv, const float *y, const float *lse, const Shape &s,
                            const Turn &q_turn, const Turn &k_turn, const Rules &rules, int b, int g, Room &room,
                            float *dqkv, float *q_weight_grad, float *k_weight_grad) {
    int width = s.width, padded = s.padded(), across = s.across(), group = s.heads / s.kv_heads;
    long in_row = s.row(), out_row = (long)s.heads * width;
    float scale = 1.0f / sqrtf((float)width);
    const float *rows = qkv + (long)b * s.tokens * in_row;
    float *grads = dqkv + (long)b * s.tokens * in_row;
    gathered(rows + (long)(s.heads + g) * width, s, &k_turn, 1.0f, room.k);
    transposed(room.k, padded, width, room.k_across, across);
    gathered(rows + (long)(s.heads + s.kv_heads + g) * width, s, nullptr, 1.0f, room.v);
    transposed(room.v, padded, width, room.v_across, across);
    memset(room.k_grad, 0, (long)padded * width * sizeof(float));
    memset(room.v_grad, 0, (long)padded * width * sizeof(float));
    for (int h = g * group; h < (g + 1) * group; h++) {
        gathered(rows + (long)h * width, s, &q_turn, scale, room.q);
        for (int start = 0; start < s.tokens; start += BLOCK) {
            int count = s.tokens - start < BLOCK ? s.tokens - start : BLOCK;
            int end = start + count, keys = (end + LANES - 1) / LANES * LANES;
            const float *q = room.q + (long)start * width;
            float *grad = room.grad; // of the results of this block [count, width]
            product(count, keys, width, q, width, 1, room.k_across, across, room.scores, across, false);
            for (int i = 0; i < count; i++)
                memcpy(grad + (long)i * width, dy + ((long)b * s.tokens + start + i) * out_row + (long)h * width,
                       width * sizeof(float));
            product(count, keys, width, grad, width, 1, room.v_across, across, room.score_grads, across, false);
            for (int i = 0; i < count; i++) {
                int t = start + i, from = rules.first ? rules.first[(long)b * s.tokens + t] : 0;
                long at = ((long)b * s.tokens + t) * out_row + (long)h * width;
                const float *out = y + at;
                soon(out + BLOCK * out_row, width); // of the next block
                soon(dy + at + BLOCK * out_row, width);
                Floats along = {};
                for (int d = 0; d < width; d += LANES) along += load(out + d) * load(grad + (long)i * width + d);
                float delta = sum(along), level = lse[((long)b * s.heads + h) * s.tokens + t];
                float *score = room.scores + (long)i * across, *score_grad = room.score_grads + (long)i * across;
                uint32_t hash = rules.below ? row_hash(rules, s, b, h, t) : 0;
                for (int j = 0; j < keys; j += LANES) {
                    Floats weight = weights(load(score + j) - level, j, from, t);
                    Floats arriving = load(score_grad + j);
                    Floats used = weight;
                    if (rules.below) {
                        Floats kept = kept_at(rules, hash, j);
                        arriving *= kept;
                        used *= kept;
                    }
                    store(score + j, used);
                    store(score_grad + j, weight * (arriving - delta));
                }
            }
            product(end, width, count, room.scores, 1, across, grad, width, room.v_grad, width, true);
            product(end, width, count, room.score_grads, 1, across, q, width, room.k_grad, width, true);
            product(count, width, end, room.score_grads, across, 1, room.k, width, room.small, width, false);
            for (int i = 0; i < count; i++) {
                int t = start + i;
                float *row = room.small + (long)i * width;
                for (int d = 0; d < width; d += LANES) store(row + d, load(row + d) * scale);
                long at = (long)t * in_row + (long)h * width;
                turned_back(row, rows + at, q_turn, t, width, grads + at, q_weight_grad);
            }
        }
    }
    for (int t = 0; t < s.tokens; t++) {
        long at = (long)t * in_row + (long)(s.heads + g) * width;
        turned_back(room.k_grad + (long)t * width, rows + at, k_turn, t, width, grads + at, k_weight_grad);
        streamed_row(room.v_grad + (long)t * width, width, grads + at + (long)s.kv_heads * width);
    }
}
