// What int8 training computes between its products: softmax, the loss beside a teacher, Muon.
#pragma once
#include "check.h"

namespace {

// Whether rounding numbers up at random, with the bits that the kernels take, gives these bytes of one row.
double rounding_error(const Doubles &numbers, float largest_logit, int64_t row, const int8_t *whole) {
    double error = 0;
    uint32_t bits;
    memcpy(&bits, &largest_logit, sizeof bits);
    uint32_t seed = hash(bits ^ hash((uint32_t)row));
    for (size_t j = 0; j < numbers.size(); j++) {
        double off = numbers[j] + (hash(seed + (uint32_t)j) >> 8) / 16777216.0 - whole[j]; // from 0 to 1
        error = std::fmax(error, std::fmax(-off, off - 1) * 1e4);
    }
    return error;
}

// Probabilities of one row of logits at a temperature.
Doubles probabilities(const float *logits, int64_t width, double temperature = 1) {
    double top = *std::max_element(logits, logits + width), total = 0;
    Doubles p(logits, logits + width);
    for (double &each : p) total += each = std::exp((each - top) / temperature);
    for (double &each : p) each /= total;
    return p;
}

std::vector<int64_t> some_targets(int64_t rows, int64_t width) {
    std::vector<int64_t> targets(rows);
    for (int64_t i = 0; i < rows; i++) targets[i] = i % 5 == 3 ? -100 : i % width;
    return targets;
}

void softmax() {
    for (const Shape &shape : SHAPES) {
        int64_t rows = shape.rows, width = shape.width;
        Floats x = floats(rows * width);
        for (float &each : x) each *= 8;
        std::vector<int64_t> targets = some_targets(rows, width);
        if (rows > 1) targets[1] = width;
        Memory out = run("softmax", 3, [&](Memory &to, int threads) {
            float *loss = to.take(rows), *scale = to.take(rows);
            call("cpulm_softmax", x.data(), rows, width, targets.data(), loss, to.take<int8_t>(x.size()), scale,
                 threads);
        });
        Floats loss = out.floats(0);
        Bytes whole = out.get<int8_t>(2);
        Doubles wanted(rows), scale(rows);
        double error = 0;
        for (int64_t i = 0; i < rows; i++) {
            const float *row = &x[i * width], top = *std::max_element(row, row + width);
            Doubles p = probabilities(row, width);
            double most = *std::max_element(p.begin(), p.end());
            if (targets[i] >= width) {
                report(std::isnan(loss[i]) ? 0 : INFINITY, "takes a target that does not exist");
                loss[i] = 0;
            } else if (targets[i] >= 0)
                wanted[i] = -std::log(p[targets[i]]);
            scale[i] = targets[i] < 0 ? 0 : most / 127;
            for (double &each : p) each *= 126.99999 / most;
            error = std::fmax(error, rounding_error(p, top, i, &whole[i * width]));
        }
        report(error, "a probability is wrong");
        compare(loss, wanted, "a loss is wrong");
        compare(out.floats(1), scale, "a scale is wrong");
    }
}

void distillation() {
    const float weight = 0.3f;
    for (float temperature : {1.0f, 2.5f})
        for (const Shape &shape : SHAPES) {
            int64_t rows = shape.rows, width = shape.width;
            Floats x = floats(rows * width), taught = floats(rows * width);
            for (size_t i = 0; i < x.size(); i++) x[i] *= 4, taught[i] *= 8;
            std::vector<int64_t> targets = some_targets(rows, width);
            Memory out = run("distill", 3, [&](Memory &to, int threads) {
                float *losses = to.take(2 * rows), *scale = to.take(rows);
                int8_t *by_row = to.take<int8_t>(x.size());
                float *logits = to.copy(x), *others = to.copy(taught);
                call("cpulm_distill", logits, others, rows, width, targets.data(), weight, temperature, losses, by_row,
                     scale, threads);
            });
            Floats scale = out.floats(1);
            Bytes whole = out.get<int8_t>(2);
            Doubles losses(2 * rows), wanted_scale(rows);
            double error = 0;
            for (int64_t i = 0; i < rows; i++) {
                const float *row = &x[i * width], top = *std::max_element(row, row + width);
                Doubles p = probabilities(row, width), soft = probabilities(row, width, temperature);
                Doubles q = probabilities(&taught[i * width], width, temperature), gradient(width);
                double most = 0;
                for (int64_t j = 0; j < width; j++) {
                    gradient[j] = (1 - weight) * p[j] + weight * temperature * (soft[j] - q[j]);
                    most = std::fmax(most, std::fabs(gradient[j]));
                    if (targets[i] >= 0) losses[rows + i] += q[j] * std::log(q[j] / soft[j]);
                }
                if (targets[i] >= 0) losses[i] = -std::log(p[targets[i]]), wanted_scale[i] = most / 126.9999;
                for (double &each : gradient) each *= 126.9999 / most;
                error = std::fmax(error, rounding_error(gradient, top, i, &whole[i * width]));
            }
            report(error, "a gradient is wrong");
            compare(out.floats(0), losses, "a loss is wrong");
            compare(scale, wanted_scale, "a scale is wrong");
        }
}

void muon() {
    const int ITERATIONS = 5;
    const double A = 3.4445, B = -4.775, C = 2.0315; // Muon's
    const float momentum = 0.95f, decay = 0.01f, step_size = 0.1f;
    for (int64_t count : {1, 3})
        for (const Shape &shape : {Shape{32, 80}, Shape{80, 48}, Shape{16, 16}}) {
            int64_t rows = shape.rows, width = shape.width, size = rows * width, blocks = 2;
            bool tall = rows > width;
            std::vector<Floats> weights, gradients, averages;
            for (int n = 0; n < count; n++)
                for (auto *list : {&weights, &gradients, &averages}) list->push_back(floats(blocks * size));
            Memory out = run("muon", 2 * count, [&](Memory &to, int threads) {
                std::vector<float *> its_weights, its_averages;
                std::vector<const float *> its_gradients;
                for (int n = 0; n < count; n++) {
                    its_weights.push_back(to.copy(weights[n])), its_averages.push_back(to.copy(averages[n]));
                    its_gradients.push_back(gradients[n].data());
                }
                int64_t work = call<int64_t>("cpulm_muon_workspace", count * blocks, rows, width, threads);
                call("cpulm_muon", its_weights.data(), its_gradients.data(), its_averages.data(), count, blocks, rows,
                     width, momentum, decay, step_size, ITERATIONS, (float)A, (float)B, (float)C,
                     (void *)to.take<char>(work), threads);
            });
            for (int n = 0; n < count; n++) {
                Floats found = out.floats(2 * n);
                Doubles average(blocks * size), wanted(blocks * size), steps(blocks * size);
                for (int64_t block = 0; block < blocks * size; block += size) {
                    Doubles x(size);
                    double squares = 0;
                    for (int64_t i = block; i < block + size; i++) {
                        average[i] = averages[n][i] + (gradients[n][i] - averages[n][i]) * (1.0 - momentum);
                        double direction = average[i] - (average[i] - gradients[n][i]) * (1.0 - momentum);
                        int64_t row = (i - block) / width, column = (i - block) % width;
                        x[tall ? column * rows + row : i - block] = direction;
                        squares += direction * direction;
                    }
                    for (double &each : x) each /= std::sqrt(squares);
                    for (int k = 0; k < ITERATIONS; k++)
                        x = newton_schulz_step(x, tall ? width : rows, tall ? rows : width, A, B, C);
                    for (int64_t i = block; i < block + size; i++) {
                        int64_t row = (i - block) / width, column = (i - block) % width;
                        steps[i] = x[tall ? column * rows + row : i - block];
                        wanted[i] = (found[i] - weights[n][i] * (1 - decay)) / -step_size;
                    }
                }
                compare(out.floats(2 * n + 1), average, "an average is wrong");
                compare(Floats(wanted.begin(), wanted.end()), steps, "a weight is wrong", 0.2);
            }
        }
}

} // namespace
