// Norms, dropout and activations.
#pragma once
#include "check.h"

namespace {

void norms() {
    for (const Shape &shape : SHAPES) {
        int64_t rows = shape.rows, width = shape.width;
        Floats x = floats(rows * width, 0.3), weight = floats(width, 1), bias = floats(width), dy = floats(x.size());
        int64_t sums = call<int>("cpulm_sum_blocks") * width;
        Memory out = run("rms_norm_forward", 2, [&](Memory &to, int threads) {
            float *y = to.take(x.size()), *rstd = to.take(rows);
            call("cpulm_rms_norm_forward", x.data(), weight.data(), EPS, rows, width, y, rstd, threads);
        });
        Floats rstd = out.floats(1);
        auto rms = [&](const Doubles &in) { return rms_norm(&in[0], &in[x.size()], rows, width, EPS); };
        compare(out.floats(0), rms(doubles(joined({x, weight}))), "y is wrong");
        out = run("rms_norm_backward", 2, [&](Memory &to, int threads) {
            float *dx = to.take(x.size()), *weight_grad = to.take(width), *scratch = to.take(sums);
            call("cpulm_rms_norm_backward", dy.data(), x.data(), weight.data(), rstd.data(), rows, width, dx,
                 weight_grad, scratch, threads);
        });
        compare_gradient(joined({out.floats(0), out.floats(1)}), joined({x, weight}), dy, rms);

        for (const Floats &its_bias : {bias, Floats()}) {
            out = run("layer_norm_forward", 3, [&](Memory &to, int threads) {
                float *y = to.take(x.size()), *mean = to.take(rows), *factor = to.take(rows);
                call("cpulm_layer_norm_forward", x.data(), weight.data(), its_bias.data(), EPS, rows, width, y, mean,
                     factor, threads);
            });
            compare(out.floats(0), layer_norm(&doubles(x)[0], &doubles(weight)[0],
                                              its_bias.empty() ? nullptr : &doubles(bias)[0], rows, width, EPS),
                    "y is wrong");
        }
        Floats mean = out.floats(1), factor = out.floats(2);
        out = run("layer_norm_backward", 3, [&](Memory &to, int threads) {
            float *dx = to.take(x.size()), *weight_grad = to.take(width), *bias_grad = to.take(width);
            call("cpulm_layer_norm_backward", dy.data(), x.data(), weight.data(), mean.data(), factor.data(), rows,
                 width, dx, weight_grad, bias_grad, to.take(2 * sums), threads);
        });
        compare_gradient(joined({out.floats(0), out.floats(1), out.floats(2)}), joined({x, weight, bias}), dy,
                         [&](const Doubles &in) {
                             return layer_norm(&in[0], &in[x.size()], &in[x.size() + width], rows, width, EPS);
                         });
    }
}

void dropout() {
    for (const Shape &shape : SHAPES) {
        int64_t count = shape.rows * shape.width;
        uint32_t seed = random_word(), below = 0x60000000u;
        Floats x = floats(count), wanted(count);
        for (int64_t i = 0; i < count; i++)
            wanted[i] = hash((uint32_t)i * 0x9e3779b9u + hash(seed)) < below ? 0 : x[i] * 1.6f;
        Memory out = run("dropout", 1, [&](Memory &to, int threads) {
            call("cpulm_dropout", x.data(), count, seed, below, 1.6f, to.take(count), threads);
        });
        compare_exactly(out.floats(0), wanted, "y is wrong");
    }
}

// Also of numbers that are large or not finite, and of as many as are stored past the caches.
void activations() {
    auto relu2 = [](const Doubles &x) {
        Doubles y;
        for (double each : x) y.push_back(activation("relu2", each, 0));
        return y;
    };
    for (const Shape &shape : {SHAPES[0], SHAPES[1], SHAPES[2]}) {
        int64_t rows = shape.rows, width = shape.width, count = rows * width;
        auto glu = [=](const Doubles &x) { return swiglu(&x[0], rows, width); };
        Floats x = floats(2 * count), half(x.begin(), x.begin() + count), dy = floats(count);
        x[0] = -120, x[1] = 100, half[0] = -1e10f;
        Memory out = run("swiglu_forward", 1, [&](Memory &to, int threads) {
            call("cpulm_swiglu_forward", x.data(), rows, width, to.take(count), threads);
        });
        compare(out.floats(0), glu(doubles(x)), "y is wrong");
        out = run("relu2_forward", 1, [&](Memory &to, int threads) {
            call("cpulm_relu2_forward", half.data(), count, to.take(count), threads);
        });
        compare(out.floats(0), relu2(doubles(half)), "y is wrong");
        out = run("swiglu_backward", 1, [&](Memory &to, int threads) {
            call("cpulm_swiglu_backward", dy.data(), x.data(), rows, width, to.take(2 * count), threads);
        });
        compare_gradient(out.floats(0), x, dy, glu);
        out = run("relu2_backward", 1, [&](Memory &to, int threads) {
            call("cpulm_relu2_backward", dy.data(), half.data(), count, to.take(count), threads);
        });
        compare_gradient(out.floats(0), half, dy, relu2);
    }
    Floats many = floats(PAST_THE_CACHES);
    Memory streamed = run("relu2_forward", 1, [&](Memory &to, int threads) {
        call("cpulm_relu2_forward", many.data(), PAST_THE_CACHES, to.take(PAST_THE_CACHES), threads);
    });
    compare(streamed.floats(0), relu2(doubles(many)), "y is wrong");
    Floats nan(32, NAN);
    int64_t one = 1, width = 16;
    Memory out = run("swiglu_forward", 1, [&](Memory &to, int threads) {
        call("cpulm_swiglu_forward", nan.data(), one, width, to.take(width), threads);
    });
    report(out.floats(0)[0] != out.floats(0)[0] ? 0 : INFINITY, "hides NaN");
    out = run("relu2_forward", 1, [&](Memory &to, int threads) {
        call("cpulm_relu2_forward", nan.data(), width, to.take(width), threads);
    });
    report(out.floats(0)[0] != out.floats(0)[0] ? 0 : INFINITY, "hides NaN");
}

} // namespace
