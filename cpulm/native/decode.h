// Runs one new token of each sequence through a model, with caches of earlier keys and values.
// Included by kernels.cpp; cpulm/native/decode.py calls it. Pointers to absent tensors are null.
#pragma once
#include "abi.h"
#include "block_product.h"
#include <cmath>

// Python asks for these lists by name, so their order stands here alone.
#define DECODE_NORMS(X) X(rmsnorm) X(layernorm)
#define DECODE_ACTIVATIONS(X) X(swiglu) X(gelu) X(gelu_erf) X(relu) X(relu2)
// Of the model. `up_width` counts the inputs of the activation, a gate's included; `in_blocks`: whether the matrices are
// those of block_product.h.
#define DECODE_SIZES(X)                                                                                                \
    X(layers)                                                                                                          \
    X(width) X(heads) X(kv_heads) X(head_dim) X(inner) X(up_width) X(vocab_size) X(norm) X(activation) X(in_blocks)
// Of a layer: weights [outputs, inputs].
#define DECODE_TENSORS(X)                                                                                              \
    X(attn_norm)                                                                                                       \
    X(attn_norm_bias)                                                                                                  \
    X(qkv)                                                                                                             \
    X(qkv_bias) X(q_norm) X(k_norm) X(out) X(out_bias) X(mlp_norm) X(mlp_norm_bias) X(up) X(up_bias) X(down)           \
        X(down_bias)
// Behind the layers.
#define DECODE_LAST_TENSORS(X) X(norm) X(norm_bias) X(head)

namespace {

#define NORM(name) NORM_##name,
enum Norm { DECODE_NORMS(NORM) };
#undef NORM
#define ACTIVATION(name) ACTIVATION_##name,
enum Activation { DECODE_ACTIVATIONS(ACTIVATION) };
#undef ACTIVATION

#define TENSOR(name) const float *name;
struct DecodeLayer {
    DECODE_TENSORS(TENSOR)
};
struct DecodeLast {
    DECODE_LAST_TENSORS(TENSOR)
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

// Partial sums of one output, which hide the latency of the multiply-add. A row of the matrix is read from one end to the
// other, and fetched in advance: several rows at once are read more slowly, because the CPU fetches few streams ahead.
constexpr int PARTIAL_SUMS = 4, PREFETCHED_BYTES = 1024;

template <int SEQUENCES>
inline void row_product(const float *row, const float *x, int64_t inner, bool fetch, float *out) {
    Floats sums[SEQUENCES][PARTIAL_SUMS] = {};
    int64_t j = 0;
    for (; j + PARTIAL_SUMS * LANES <= inner; j += PARTIAL_SUMS * LANES) {
        for (int64_t line = 0; fetch && line < PARTIAL_SUMS * LANES * 4; line += 64)
            __builtin_prefetch((const char *)(row + j) + PREFETCHED_BYTES + line);
#pragma GCC unroll 4
        for (int p = 0; p < PARTIAL_SUMS; p++) {
            Floats weight = load(row + j + p * LANES);
#pragma GCC unroll 4
            for (int b = 0; b < SEQUENCES; b++) sums[b][p] += weight * load(x + b * inner + j + p * LANES);
        }
    }
    for (; j < inner; j += LANES)
        for (int b = 0; b < SEQUENCES; b++) sums[b][0] += load(row + j) * load(x + b * inner + j);
    for (int b = 0; b < SEQUENCES; b++)
        out[b] = horizontal_sum((sums[b][0] + sums[b][1]) + (sums[b][2] + sums[b][3]));
}

// The outputs n in begin..end of x [batch, inner] times the transpose of a matrix.
void matmul_rows(const float *matrix, const float *x, int64_t batch, int64_t inner, int64_t begin, int64_t end,
                 const BlockOutput &out) {
    for (int64_t n = begin; n < end; n++)
        for (int64_t b = 0; b < batch;) {
            const float *row = matrix + n * inner, *from = x + b * inner;
            float sums[3];
            int some = batch - b < 3 ? batch - b : 3;
            switch (some) {
            case 1: row_product<1>(row, from, inner, b == 0, sums); break;
            case 2: row_product<2>(row, from, inner, b == 0, sums); break;
            default: row_product<3>(row, from, inner, b == 0, sums);
            }
            for (int i = 0; i < some; i++, b++) out.put_one(b, n, sums[i]);
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

// Attention of one query over the first `seen` keys and values; `scores` has room for whole vectors.
void attend_head(const float *query, int64_t width, const float *keys, const float *values, int64_t seen, float *scores,
                 float *y) {
    constexpr int AT_ONCE = 8; // vectors of the output: the values are read once for each of them
    float scale = 1.0f / sqrtf(width), most = -INFINITY;
    for (int64_t t = 0; t < seen; t++) {
        Floats along = {};
        for (int64_t j = 0; j < width; j += LANES) along += load(query + j) * load(keys + t * width + j);
        scores[t] = horizontal_sum(along) * scale;
        most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
    }
    for (int64_t t = seen; t % LANES; t++) scores[t] = -INFINITY;
    Floats totals = {};
    for (int64_t t = 0; t < seen; t += LANES) {
        Floats weights = exponential(load(scores + t) - most);
        store(scores + t, weights);
        totals += weights;
    }
    float total = horizontal_sum(totals);
    int64_t j = 0;
    for (; j + AT_ONCE * LANES <= width; j += AT_ONCE * LANES) {
        Floats sums[AT_ONCE] = {};
        for (int64_t t = 0; t < seen; t++)
#pragma GCC unroll 8
            for (int v = 0; v < AT_ONCE; v++) sums[v] += scores[t] * load(values + t * width + j + v * LANES);
        for (int v = 0; v < AT_ONCE; v++) store(y + j + v * LANES, sums[v] / total);
    }
    for (; j < width; j += LANES) {
        Floats sum = {};
        for (int64_t t = 0; t < seen; t++) sum += scores[t] * load(values + t * width + j);
        store(y + j, sum / total);
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
    uint8_t *quantized; // the inputs of a product, in blocks
    DecodeWorkspace(const DecodeSizes &s, int64_t longest, int threads, float *memory) {
        normed = memory;
        qkv = normed + s.batch * s.width;
        attended = qkv + s.batch * s.qkv_width();
        up = attended + s.batch * s.q_width();
        hidden = up + s.batch * s.up_width;
        scores = hidden + s.batch * s.inner; // of each thread
        quantized = (uint8_t *)(scores + threads * whole_vectors(longest));
    }
    static int64_t numbers(const DecodeSizes &s, int64_t longest, int threads) {
        int64_t widest = s.width > s.q_width() ? s.width : s.q_width();
        int64_t quantized = s.in_blocks ? BlockRows::bytes(s.batch, s.inner > widest ? s.inner : widest) / 4 : 0;
        return s.batch * (s.width + s.qkv_width() + s.q_width() + s.up_width + s.inner) +
               threads * whole_vectors(longest) + quantized;
    }
};

// One thread's part of the model's products.
struct DecodeProducts {
    const Team &team;
    const DecodeSizes &s;
    const DecodeWorkspace &work;
    PartRange sequences;
    DecodeProducts(const Team &team, const DecodeSizes &s, const DecodeWorkspace &work)
        : team(team), s(s), work(work), sequences(team, s.batch) {}

    int64_t unit() const { return s.in_blocks ? STRIP : LANES; } // outputs that one thread computes together
    PartRange units(int64_t outputs) const { return PartRange(team, (outputs + unit() - 1) / unit()); }

    void norm(const float *x, const float *weight, const float *bias) const {
        for (int64_t b = sequences.begin; b < sequences.end; b++)
            apply_norm(x + b * s.width, s, weight, bias, work.normed + b * s.width);
        quantize(work.normed, s.width);
        team.barrier();
    }
    void quantize(const float *x, int64_t inputs) const {
        BlockRows rows(s.batch, inputs, work.quantized);
        for (int64_t b = sequences.begin; s.in_blocks && b < sequences.end; b++) rows.quantize(b, x + b * inputs);
    }
    // Inputs that other threads have computed.
    void take(const float *x, int64_t inputs) const {
        quantize(x, inputs);
        if (s.in_blocks) team.barrier();
    }
    // The outputs of the units begin..end, of inputs that were taken.
    void product(const float *x, int64_t inputs, const float *matrix, int64_t begin, int64_t end,
                 const BlockOutput &out) const {
        if (s.in_blocks)
            return block_matmul(BlockRows(s.batch, inputs, work.quantized), s.batch, (const uint8_t *)matrix, begin,
                                end, out);
        int64_t last = end * LANES < out.outputs ? end * LANES : out.outputs;
        matmul_rows(matrix, x, s.batch, inputs, begin * LANES, last, out);
    }
    void product(const float *x, int64_t inputs, const float *matrix, const BlockOutput &out) const {
        PartRange own = units(out.outputs);
        product(x, inputs, matrix, own.begin, own.end, out);
        team.barrier();
    }
    // The MLP's hidden layer.
    void hidden(const DecodeLayer &layer) const {
        int64_t width = s.up_width;
        PartRange own = units(s.inner);
        for (int64_t first = 0; first < width; first += s.inner)
            product(work.normed, s.width, layer.up, first / unit() + own.begin, first / unit() + own.end,
                    {work.up, width, width, layer.up_bias, false});
        for (int64_t b = 0; b < s.batch; b++)
            for (int64_t j = own.begin * unit(); j < own.end * unit(); j += LANES) {
                const float *gate = work.up + b * width + j;
                store(work.hidden + b * s.inner + j, activate(load(gate + width - s.inner), load(gate), s.activation));
            }
        team.barrier();
    }
};

// Where the attention of all sequences in one layer finds what it needs.
struct DecodeAttention {
    const DecodeLayer &layer;
    const DecodeSizes &s;
    const DecodeWorkspace &work;
    const DecodeSequence *sequences;
    int64_t number; // of the layer
    const float *cos, *sin;

    float *heads(int64_t b) const { return work.qkv + b * s.qkv_width(); }
    int64_t begin(int64_t b, int64_t k) const {
        return number * sequences[b].layer_stride + k * sequences[b].room * s.head_dim;
    }
    void transform(float *head, const float *weight, int64_t position) const {
        int64_t at = position * s.head_dim / 2;
        transform_head(head, s.head_dim, weight, s.eps, cos ? cos + at : nullptr, sin ? sin + at : nullptr, head);
    }
    // The new key and value of one sequence and key-value head to the cache.
    void append(int64_t task) const {
        int64_t b = task / s.kv_heads, k = task % s.kv_heads, d = s.head_dim, position = sequences[b].position;
        float *key = heads(b) + (s.heads + k) * d, *value = key + s.kv_heads * d;
        int64_t at = begin(b, k) + position * d;
        transform(key, layer.k_norm, position);
        memcpy(sequences[b].keys + at, key, d * sizeof(float));
        memcpy(sequences[b].values + at, value, d * sizeof(float));
    }
    // One sequence and query head.
    void attend(int64_t task, float *scores) const {
        int64_t b = task / s.heads, h = task % s.heads, d = s.head_dim, position = sequences[b].position;
        float *query = heads(b) + h * d;
        transform(query, layer.q_norm, position);
        int64_t at = begin(b, h / (s.heads / s.kv_heads));
        attend_head(query, d, sequences[b].keys + at, sequences[b].values + at, position + 1, scores,
                    work.attended + task * d);
    }
    void run(const Team &team, float *scores) const {
        PartRange appended(team, s.batch * s.kv_heads), attended(team, s.batch * s.heads);
        for (int64_t task = appended.begin; task < appended.end; task++) append(task);
        team.barrier();
        for (int64_t task = attended.begin; task < attended.end; task++) attend(task, scores);
        team.barrier();
    }
};

} // namespace

extern "C" {

const char *cpulm_decode_norms() { return DECODE_NORMS(NAME_OF); }
const char *cpulm_decode_activations() { return DECODE_ACTIVATIONS(NAME_OF); }
const char *cpulm_decode_sizes() { return DECODE_SIZES(NAME_OF); }
const char *cpulm_decode_tensors() { return DECODE_TENSORS(NAME_OF); }
const char *cpulm_decode_last_tensors() { return DECODE_LAST_TENSORS(NAME_OF); }

// Floats of the workspace; `longest`: tokens of the longest sequence, the new one included.
int64_t cpulm_decode_workspace(const int32_t *sizes, int64_t batch, int64_t longest, int threads) {
    return DecodeWorkspace::numbers(DecodeSizes(sizes, 0, batch), longest, threads);
}

// Writes the logits [batch, vocab_size] behind the tokens with the embeddings x [batch, width], which is overwritten, and
// the new keys and values at each sequence's position. `cos` and `sin` [positions, head_dim / 2]; null without rotary
// embedding.
void cpulm_decode(void *const *tensors, const int32_t *sizes, float eps, const void *from, int64_t batch,
                  int64_t longest, const float *cos, const float *sin, float *x, float *logits, float *memory,
                  int threads) {
    const DecodeSizes s(sizes, eps, batch);
    const DecodeLayer *layers = (const DecodeLayer *)tensors;
    const DecodeLast *last = (const DecodeLast *)(layers + s.layers);
    const DecodeSequence *sequence = (const DecodeSequence *)from;
    DecodeWorkspace work(s, longest, threads, memory);
    int64_t q = s.q_width(), qkv = s.qkv_width(), padded = whole_vectors(longest);
    parallel_together(threads, [=](const Team &team) {
        DecodeProducts products(team, s, work);
        for (const DecodeLayer *layer = layers; layer < layers + s.layers; layer++) {
            products.norm(x, layer->attn_norm, layer->attn_norm_bias);
            products.product(work.normed, s.width, layer->qkv, {work.qkv, qkv, qkv, layer->qkv_bias, false});
            DecodeAttention attention = {*layer, s, work, sequence, layer - layers, cos, sin};
            attention.run(team, work.scores + team.number * padded);
            products.take(work.attended, q);
            products.product(work.attended, q, layer->out, {x, s.width, s.width, layer->out_bias, true});
            products.norm(x, layer->mlp_norm, layer->mlp_norm_bias);
            products.hidden(*layer);
            products.take(work.hidden, s.inner);
            products.product(work.hidden, s.inner, layer->down, {x, s.width, s.width, layer->down_bias, true});
        }
        products.norm(x, last->norm, last->norm_bias);
        products.product(work.normed, s.width, last->head, {logits, s.vocab_size, s.vocab_size, nullptr, false});
    });
}

} // extern "C"

SIGNATURE_OF(cpulm_decode_workspace)
SIGNATURE_OF(cpulm_decode)
