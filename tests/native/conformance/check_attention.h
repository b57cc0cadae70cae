// Attention.
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

} // namespace
