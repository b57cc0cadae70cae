// Attention, and decoding one token.
#pragma once
#include "check.h"

namespace {

void attention() {
    for (Attention s : {Attention{1, 1, 1, 1, 16, false, false, false, 0, 0}, Attention{2, 49, 4, 2, 32, true, true},
                        Attention{1, 70, 3, 1, 48, true, true, true, 7, 0x40000000u},
                        Attention{2, 25, 2, 2, 16, false, true, true}}) {
        int64_t angles = (int64_t)s.tokens * s.width / 2, rows = (int64_t)s.batch * s.tokens;
        if (s.below) s.kept = 1 / (1 - s.below / 4294967296.0);
        for (int64_t i = 0; i < angles; i++) {
            double angle = i / (s.width / 2) * std::pow(1e4, -2.0 * (i % (s.width / 2)) / s.width);
            s.cos.push_back(std::cos(angle)), s.sin.push_back(std::sin(angle));
        }
        for (int64_t i = 0; i < rows; i++) s.first.push_back(s.packed ? i % s.tokens * 2 / 3 / 5 * 5 : 0);
        Floats qkv = floats(s.inputs()), weights = floats(s.norm ? 2 * s.width : 0, 1), dy = floats(s.outputs());
        const float *q_weight = s.norm ? weights.data() : nullptr, *k_weight = s.norm ? q_weight + s.width : nullptr;
        const float *cos = s.rope ? s.cos.data() : nullptr, *sin = s.rope ? s.sin.data() : nullptr;
        const int32_t *first = s.packed ? s.first.data() : nullptr;
        int64_t work = call<int64_t>("cpulm_attention_workspace", s.tokens, s.width);
        Doubles lse(rows * s.heads), wanted = s.forward(doubles(joined({qkv, weights})), lse.data());
        Memory out = run("attention_forward", 2, [&](Memory &to, int threads) {
            float *y = to.take(s.outputs()), *its_lse = to.take(rows * s.heads), *memory = to.take(threads * work);
            call("cpulm_attention_forward", qkv.data(), s.batch, s.tokens, s.heads, s.kv_heads, s.width, q_weight,
                 k_weight, cos, sin, s.eps, first, s.seed, s.below, s.kept, y, its_lse, memory, threads);
        });
        Floats y = out.floats(0), its_lse = out.floats(1);
        compare(y, wanted, "y is wrong");
        compare(its_lse, lse, "lse is wrong");
        int64_t tasks = (int64_t)s.batch * s.kv_heads;
        out = run("attention_backward", 2, [&](Memory &to, int threads) {
            float *dqkv = to.take(s.inputs()), *grads = to.take(tasks * 2 * s.width), *memory = to.take(threads * work);
            call("cpulm_attention_backward", dy.data(), qkv.data(), y.data(), its_lse.data(), s.batch, s.tokens,
                 s.heads, s.kv_heads, s.width, q_weight, k_weight, cos, sin, s.eps, first, s.seed, s.below, s.kept,
                 dqkv, grads, memory, threads);
        });
        Floats grads(weights.size()), parts = out.floats(1);
        for (size_t i = 0; i < parts.size() && s.norm; i++) grads[i % grads.size()] += parts[i];
        compare_gradient(joined({out.floats(0), grads}), joined({qkv, weights}), dy,
                         [&](const Doubles &in) { return s.forward(in); });
    }
}

// The numbers and tensors of a decoder, by the names that the library gives.
struct Decoder {
    std::map<std::string, int32_t> sizes;
    std::string norm, activation;
    bool plain; // biases and learned positions, but neither QK norm nor rotation
    int position;
    std::vector<std::map<std::string, Floats>> layers;
    Floats cos, sin;

    // Of all sequences x [batch, width]; the layers' keys and values too.
    Doubles forward(Doubles x) {
        int batch = sizes["batch"], width = sizes["width"], heads = sizes["heads"], kv_heads = sizes["kv_heads"];
        int d = sizes["head_dim"], inner = sizes["inner"], up_width = sizes["up_width"], row = heads + 2 * kv_heads;
        for (auto &layer : layers) {
            auto normed = [&](const char *name) {
                Doubles weight = doubles(layer[name]), bias = doubles(layer[std::string(name) + "_bias"]);
                return norm == "layernorm" ? layer_norm(&x[0], &weight[0], &bias[0], batch, width, EPS)
                                           : rms_norm(&x[0], &weight[0], batch, width, EPS);
            };
            auto add = [&](const Doubles &y) {
                for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
            };
            Attention s = {batch, position + 1, heads, kv_heads, d, !plain, !plain};
            Doubles qkv = linear(normed("attn_norm"), width, layer["qkv"], layer["qkv_bias"]), all(s.inputs());
            Doubles weights = doubles(joined({layer["q_norm"], layer["k_norm"]})), attended;
            s.first.resize(batch * s.tokens);
            for (int b = 0; b < batch; b++) {
                for (int h = 0; h < heads + kv_heads && !plain; h++)
                    transform_head(&qkv[(b * row + h) * d], d, &weights[h < heads ? 0 : d], EPS, &cos[0], &sin[0]);
                for (int n = 0; n < 2 * kv_heads; n++) { // the cache of keys, and that of values
                    Floats &cache = layer[n < kv_heads ? "keys" : "values"];
                    float *at = &cache[(b * kv_heads + n % kv_heads) * (int64_t)sizes["cache_tokens"] * d];
                    for (int k = 0; k < d; k++) at[position * d + k] = qkv[(b * row + heads + n) * d + k];
                    for (int t = 0; t <= position; t++)
                        std::copy(at + t * d, at + (t + 1) * d, &all[((b * s.tokens + t) * row + heads + n) * d]);
                }
                std::copy(&qkv[b * row * d], &qkv[(b * row + heads) * d], &all[((b + 1) * s.tokens - 1) * row * d]);
                for (int h = 0; h < heads; h++) {
                    attended.resize(attended.size() + d);
                    s.attend(all, b, h, position, &attended[attended.size() - d]);
                }
            }
            add(linear(attended, heads * d, layer["out"], layer["out_bias"]));
            Doubles up = linear(normed("mlp_norm"), width, layer["up"], layer["up_bias"]), hidden(batch * inner);
            for (int i = 0; i < batch * inner; i++) {
                double *gate = &up[i / inner * up_width + i % inner];
                hidden[i] = ::activation(activation, gate[up_width - inner], *gate);
            }
            add(linear(hidden, inner, layer["down"], layer["down_bias"]));
        }
        return x;
    }
};

void decoding() {
    std::vector<std::string> sizes = names("cpulm_decode_sizes"), tensors = names("cpulm_decode_tensors");
    std::vector<std::string> norms = names("cpulm_decode_norms"), activations = names("cpulm_decode_activations");
    auto index = [](const std::vector<std::string> &list, const std::string &name) {
        return (int32_t)(std::find(list.begin(), list.end(), name) - list.begin());
    };
    for (const std::string &activation : activations) {
        bool gated = activation == "swiglu", plain = activation == "gelu_erf";
        int32_t inner = 48, width = 32;
        Decoder decoder = {{{"layers", 2}, {"batch", plain ? 1 : 3}, {"width", width}, {"heads", 4},
                            {"kv_heads", gated ? 2 : 4}, {"head_dim", 16}, {"inner", inner},
                            {"up_width", gated ? 2 * inner : inner}, {"cache_tokens", 9}},
                           plain ? "layernorm" : "rmsnorm", activation, plain, plain ? 0 : 6, {}, floats(8), floats(8)};
        auto &size = decoder.sizes;
        size["norm"] = index(norms, decoder.norm), size["activation"] = index(activations, activation);
        int qkv = (4 + 2 * size["kv_heads"]) * 16, cache = size["batch"] * size["kv_heads"] * 9 * 16;
        for (int n = 0; n < 2; n++) {
            std::map<std::string, Floats> layer = {
                {"attn_norm", floats(width, 1)}, {"mlp_norm", floats(width, 1)}, {"qkv", floats(qkv * width)},
                {"out", floats(width * 64)}, {"up", floats(size["up_width"] * width)}, {"down", floats(width * inner)},
                {"keys", floats(cache)}, {"values", floats(cache)}};
            const std::pair<const char *, int> biases[] = {
                {"attn_norm_bias", width}, {"mlp_norm_bias", width}, {"qkv_bias", qkv}, {"out_bias", width},
                {"up_bias", size["up_width"]}, {"down_bias", width}};
            for (auto &bias : biases) layer[bias.first] = floats(decoder.norm == "layernorm" ? bias.second : 0);
            for (auto &name : {"q_norm", "k_norm"}) layer[name] = floats(plain ? 0 : 16, 1);
            for (auto &name : {"attn_norm_bias", "mlp_norm_bias"})
                if (layer[name].empty() && decoder.norm == "layernorm") fail("a bias is missing");
            decoder.layers.push_back(layer);
        }
        std::vector<int32_t> numbers;
        for (const std::string &name : sizes) numbers.push_back(size.at(name));
        Floats x = floats(size["batch"] * width);
        Memory out = run("decode", 5, [&](Memory &to, int threads) {
            float *its_x = to.copy(x);
            std::vector<void *> addresses;
            for (auto &layer : decoder.layers)
                for (const std::string &name : tensors) {
                    const Floats &tensor = layer.at(name);
                    bool cached = name == "keys" || name == "values";
                    addresses.push_back(tensor.empty() ? nullptr : cached ? to.copy(tensor) : (void *)tensor.data());
                }
            float *memory = to.take(call<int64_t>("cpulm_decode_workspace", numbers.data(), threads));
            call("cpulm_decode", addresses.data(), numbers.data(), EPS, (int64_t)decoder.position,
                 plain ? NO_FLOATS : decoder.cos.data(), plain ? NO_FLOATS : decoder.sin.data(), its_x, memory,
                 threads);
        });
        compare(out.floats(0), decoder.forward(doubles(x)), "x is wrong");
        for (int n = 0; n < 4; n++)
            compare(out.floats(1 + n), doubles(decoder.layers[n / 2][n % 2 ? "values" : "keys"]), "the cache is wrong");
    }
}

} // namespace
