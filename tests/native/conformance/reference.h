// What the kernels compute, as plain loops over doubles.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace {

typedef std::vector<double> Doubles;

const double PI = std::acos(-1.0); // M_PI is not in every <cmath>

uint32_t hash(uint32_t x) { // the finalizer of MurmurHash3
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

Doubles rms_norm(const double *x, const double *weight, int64_t rows, int64_t width, double eps) {
    Doubles y(rows * width);
    for (int64_t i = 0; i < rows; i++) {
        double squares = 0;
        for (int64_t j = 0; j < width; j++) squares += x[i * width + j] * x[i * width + j];
        double factor = 1 / std::sqrt(squares / width + eps);
        for (int64_t j = 0; j < width; j++) y[i * width + j] = x[i * width + j] * factor * weight[j];
    }
    return y;
}

Doubles layer_norm(const double *x, const double *weight, const double *bias, int64_t rows, int64_t width, double eps) {
    Doubles centred(rows * width);
    for (int64_t i = 0; i < rows; i++) {
        double mean = 0;
        for (int64_t j = 0; j < width; j++) mean += x[i * width + j] / width;
        for (int64_t j = 0; j < width; j++) centred[i * width + j] = x[i * width + j] - mean;
    }
    Doubles y = rms_norm(centred.data(), weight, rows, width, eps);
    for (int64_t i = 0; bias && i < rows * width; i++) y[i] += bias[i % width];
    return y;
}

double activation(const std::string &name, double up, double gate) {
    if (name == "swiglu") return gate / (1 + std::exp(-gate)) * up;
    if (name == "gelu") return up * 0.5 * (1 + std::tanh(std::sqrt(2 / PI) * (up + 0.044715 * up * up * up)));
    if (name == "gelu_erf") return up * 0.5 * (1 + std::erf(up * std::sqrt(0.5)));
    double positive = up > 0 ? up : 0;
    return name == "relu" ? positive : positive * positive;
}

// Gate and up side by side in x [rows, 2 width].
Doubles swiglu(const double *x, int64_t rows, int64_t width) {
    Doubles y(rows * width);
    for (int64_t i = 0; i < rows * width; i++) {
        const double *gate = x + i / width * 2 * width + i % width;
        y[i] = activation("swiglu", gate[width], *gate);
    }
    return y;
}

// Of one head [width] in place: the norm unless `weight` is null, the rotation unless `cos` is.
void transform_head(double *x, int64_t width, const double *weight, double eps, const float *cos, const float *sin) {
    if (weight) {
        Doubles y = rms_norm(x, weight, 1, width, eps);
        std::copy(y.begin(), y.end(), x);
    }
    for (int64_t d = 0, half = width / 2; cos && d < half; d++) {
        double a = x[d], b = x[half + d];
        x[d] = a * cos[d] - b * sin[d];
        x[half + d] = b * cos[d] + a * sin[d];
    }
}

struct Attention {
    int batch, tokens, heads, kv_heads, width;
    bool norm, rope, packed; // packed: several documents in each row
    uint32_t seed, below; // of dropout
    float eps = 1e-6f, kept = 1;
    std::vector<float> cos, sin;
    std::vector<int32_t> first;

    int64_t row() const { return (int64_t)(heads + 2 * kv_heads) * width; }
    int64_t inputs() const { return batch * tokens * row(); }
    int64_t outputs() const { return (int64_t)batch * tokens * heads * width; }

    // From qkv and the weights of both norms, one after the other, to y and, if wanted, lse [batch, heads, tokens].
    Doubles forward(Doubles x, double *lse = nullptr) const {
        const double *weights = x.data() + inputs();
        for (int64_t i = 0; i < (int64_t)batch * tokens; i++)
            for (int h = 0; h < heads + kv_heads; h++)
                transform_head(&x[i * row() + h * width], width, norm ? weights + (h < heads ? 0 : width) : nullptr,
                               eps, rope ? &cos[i % tokens * width / 2] : nullptr, &sin[i % tokens * width / 2]);
        Doubles y(outputs());
        for (int b = 0; b < batch; b++)
            for (int h = 0; h < heads; h++)
                for (int t = 0; t < tokens; t++) {
                    double level = attend(x, b, h, t, &y[((int64_t)(b * tokens + t) * heads + h) * width]);
                    if (lse) lse[((int64_t)b * heads + h) * tokens + t] = level;
                }
        return y;
    }

    double attend(const Doubles &x, int b, int h, int t, double *y) const {
        int key_head = heads + h / (heads / kv_heads);
        auto at = [&](int token, int head) { return &x[(int64_t)(b * tokens + token) * row() + head * width]; };
        Doubles weights;
        double total = 0, most = -INFINITY;
        for (int u = first[b * tokens + t]; u <= t; u++) {
            double along = 0;
            for (int d = 0; d < width; d++) along += at(t, h)[d] * at(u, key_head)[d];
            weights.push_back(along / std::sqrt(width));
            most = std::fmax(most, weights.back());
        }
        for (double &weight : weights) total += weight = std::exp(weight - most);
        uint32_t row_hash = hash(seed + (uint32_t)((b * heads + h) * tokens + t));
        for (int u = first[b * tokens + t], n = 0; u <= t; u++, n++) {
            bool dropped = below && hash((uint32_t)u * 0x9e3779b9u + row_hash) < below;
            for (int d = 0; d < width && !dropped; d++)
                y[d] += weights[n] / total * kept * at(u, key_head + kv_heads)[d];
        }
        return most + std::log(total);
    }
};

// x [rows, inner] times the transpose of matrix [cols, inner], plus bias.
Doubles linear(const Doubles &x, int64_t inner, const std::vector<float> &matrix, const std::vector<float> &bias) {
    int64_t rows = x.size() / inner, cols = matrix.size() / inner;
    Doubles y(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        y[i] = bias.empty() ? 0 : bias[i % cols];
        for (int64_t k = 0; k < inner; k++) y[i] += x[i / cols * inner + k] * matrix[i % cols * inner + k];
    }
    return y;
}

// One step of Newton and Schulz: a x + (b G + c G G) x, G = x xT, x [rows, cols].
Doubles newton_schulz_step(const Doubles &x, int64_t rows, int64_t cols, double a, double b, double c) {
    Doubles gram(rows * rows), polynomial(rows * rows), y(rows * cols);
    for (int64_t i = 0; i < rows * rows; i++)
        for (int64_t k = 0; k < cols; k++) gram[i] += x[i / rows * cols + k] * x[i % rows * cols + k];
    for (int64_t i = 0; i < rows * rows; i++) {
        polynomial[i] = b * gram[i] + (i / rows == i % rows ? a : 0);
        for (int64_t k = 0; k < rows; k++) polynomial[i] += c * gram[i / rows * rows + k] * gram[k * rows + i % rows];
    }
    for (int64_t i = 0; i < rows * cols; i++)
        for (int64_t k = 0; k < rows; k++) y[i] += polynomial[i / cols * rows + k] * x[k * cols + i % cols];
    return y;
}

} // namespace
