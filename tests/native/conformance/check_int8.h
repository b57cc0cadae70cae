// Int8: products, packing and quantizing, whose sums are exact.
#pragma once
#include "check.h"

namespace {

// The whole numbers that a product adds up, and scales that are powers of two, are exact in float32.
Floats scales(int64_t count) {
    Floats made(count);
    for (float &x : made) x = 0.5f * (1 << random_word() % 3);
    return made;
}

Floats whole_floats(int64_t count) {
    Floats made(count);
    for (float &x : made) x = (int)(random_word() % 2001) - 1000;
    return made;
}

Bytes transposed(const Bytes &x, int64_t rows) {
    Bytes y(x.size());
    int64_t width = x.size() / rows;
    for (int64_t i = 0; i < (int64_t)x.size(); i++) y[i % width * rows + i / width] = x[i];
    return y;
}

struct Product { // left [rows, depth] times the transpose of right [cols, depth]
    int64_t rows, cols, depth;
    Bytes left, right;
    Floats row_scale, column_scale, bias, old, kept;

    Product(int64_t rows, int64_t cols, int64_t depth)
        : rows(rows), cols(cols), depth(depth), left(bytes(rows * depth)), right(bytes(cols * depth)),
          row_scale(scales(rows)), column_scale(scales(cols)), bias(whole_floats(cols)), old(whole_floats(rows * cols)),
          kept(scales(rows)) {}

    Floats wanted(bool with_bias, bool add, bool with_kept) const {
        Floats out(rows * cols);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++) {
                int32_t sum = 0;
                for (int64_t k = 0; k < depth; k++) sum += left[i * depth + k] * right[j * depth + k];
                out[i * cols + j] = sum * row_scale[i] * column_scale[j] + (with_bias ? bias[j] : 0) +
                                    (add ? old[i * cols + j] * (with_kept ? kept[i] : 1) : 0);
            }
        return out;
    }

    void compute(Memory &to, const int8_t *its_left, bool packed, const uint8_t *its_right, int64_t quads, bool biased,
                 bool add, bool with_kept, bool symmetric, int threads) const {
        call("cpulm_int8_product", its_left, (int)packed, its_right, rows, cols, quads * 4, row_scale.data(),
             column_scale.data(), biased ? bias.data() : NO_FLOATS, to.copy(old), (int)add,
             with_kept ? kept.data() : NO_FLOATS, (int)symmetric, threads);
    }
};

void products() {
    for (Product p : {Product(1, 16, 4), Product(7, 80, 36), Product(97, 48, 516), Product(200, 208, 64),
                      Product(33, 1 << 16, 8)}) {
        for (int kind = 0; kind < 4; kind++) { // plain, with bias, added, added to a part of what was there
            Bytes packed(p.right.size());
            Memory out = run("int8_product", 1, [&](Memory &to, int threads) {
                uint8_t *right = (uint8_t *)packed.data();
                call("cpulm_pack_transposed", p.right.data(), p.cols, p.depth, right, threads);
                p.compute(to, p.left.data(), false, right, p.depth / 4, kind == 1, kind > 1, kind == 3, false, threads);
            });
            compare_exactly(out.floats(0), p.wanted(kind == 1, kind > 1, kind == 3), "a sum is wrong");
            if (p.cols > 1000) break;
        }
    }
    for (Product p : {Product(16, 16, 32), Product(112, 112, 100)}) {
        p.right = p.left, p.column_scale = p.row_scale;
        Bytes packed(p.right.size());
        Memory out = run("int8_product", 1, [&](Memory &to, int threads) {
            call("cpulm_pack_transposed", p.right.data(), p.cols, p.depth, (uint8_t *)packed.data(), threads);
            p.compute(to, p.left.data(), false, (uint8_t *)packed.data(), p.depth / 4, false, false, false, true,
                      threads);
        });
        compare_exactly(out.floats(0), p.wanted(false, false, false), "a sum of a symmetric product is wrong");
    }
}

// Packed matrices have an order of their own in memory on each CPU: what they hold is what a product makes of them.
void packing() {
    for (Product p : {Product(16, 16, 4), Product(112, 80, 36), Product(48, 208, 516)}) {
        Memory out = run("pack_transposed", 1, [&](Memory &to, int threads) {
            call("cpulm_pack_transposed", p.right.data(), p.cols, p.depth, to.take<uint8_t>(p.right.size()), threads);
        });
        for (int64_t missing : {0, 1, 3}) { // rows of the last quad
            for (int64_t i = 0; i < (int64_t)p.left.size(); i++)
                if (i % p.depth >= p.depth - missing) p.left[i] = 0;
            Bytes left = transposed(p.left, p.rows), right = transposed(p.right, p.cols);
            int64_t quads = p.depth / 4, before = quads / 3;
            Memory packed = run("pack_rows", 2, [&](Memory &to, int threads) {
                uint8_t *its_left = to.take<uint8_t>(left.size()), *its_right = to.take<uint8_t>(right.size());
                call("cpulm_pack_rows", left.data(), before * 4, p.rows, its_left, quads, (int64_t)0, 0, threads);
                call("cpulm_pack_rows", &left[before * 4 * p.rows], p.depth - missing - before * 4, p.rows, its_left,
                     quads, before, 0, threads);
                call("cpulm_pack_rows", right.data(), p.depth, p.cols, its_right, quads, (int64_t)0, 1, threads);
            });
            compare_exactly(packed.get<uint8_t>(1), out.get<uint8_t>(0), "the same matrix was packed in two ways");
            Memory product;
            p.compute(product, packed.get<int8_t>(0).data(), true, out.get<uint8_t>(0).data(), quads, false, false,
                      false, false, 1);
            compare_exactly(product.floats(0), p.wanted(false, false, false), "a packed left factor is wrong");
        }
    }
}

// The bytes of x [depth, width] in panels, from their product with the identity.
Bytes unpacked(const std::vector<uint8_t> &panels, int64_t depth, int64_t width, bool right) {
    int64_t wide = (depth + 15) / 16 * 16; // whole vectors
    Product p(right ? depth : width, right ? width : wide, depth);
    p.row_scale.assign(p.rows, 1), p.column_scale.assign(p.cols, 1);
    Bytes identity(wide * depth), eye(wide * depth), x(depth * width);
    for (int64_t i = 0; i < depth; i++) identity[i * depth + i] = 1;
    Memory out;
    call("cpulm_pack_transposed", identity.data(), wide, depth, (uint8_t *)eye.data(), 1);
    const int8_t *left = right ? identity.data() : (int8_t *)panels.data();
    p.compute(out, left, !right, right ? panels.data() : (uint8_t *)eye.data(), depth / 4, false, false, false, false,
              1);
    Floats product = out.floats(0);
    for (int64_t i = 0; i < depth * width; i++)
        x[i] = right ? product[i] : product[i % width * wide + i / width];
    return x;
}

// Compares whole numbers with x [rows, width] divided by the scales of its rows, or those of its columns.
void compare_quantized(const Bytes &whole, const Floats &scale, const Floats &x, int64_t width, bool by_row) {
    double error = 0;
    Doubles most(scale.size());
    for (size_t i = 0; i < x.size(); i++) {
        double &its = most[by_row ? i / width : i % width];
        its = std::fmax(its, std::fabs(x[i]));
    }
    for (size_t i = 0; i < most.size(); i++) error = std::fmax(error, std::fabs(scale[i] * 127 - most[i]) * 1e6);
    for (size_t i = 0; i < whole.size(); i++) { // the last quad of rows may end after x
        double its = scale[by_row ? i / width : i % width];
        double off = std::fabs(whole[i] - (i < x.size() && its > 0 ? x[i] / its : 0)) - 0.5;
        error = std::fmax(error, off * 1e4); // half-way the float32 arithmetic decides
    }
    report(error, by_row ? "a row is wrong" : "a column is wrong");
}

void quantizing() {
    for (const Shape &shape : SHAPES) {
        int64_t rows = shape.rows, width = shape.width, depth = (rows + 3) / 4 * 4;
        Floats x = floats(rows * width);
        for (int64_t j = 0; j < width; j++) x[rows / 2 * width + j] = 0;
        for (int right = 0; right < 2; right++) {
            Memory out = run("quantize", 4, [&](Memory &to, int threads) {
                int8_t *by_row = to.take<int8_t>(x.size());
                float *row_scale = to.take(rows), *column_scale = to.take(width);
                uint8_t *by_column = to.take<uint8_t>(depth * width);
                call("cpulm_quantize", x.data(), rows, width, by_row, row_scale, by_column, column_scale, right,
                     to.take(threads * width), threads);
            });
            compare_quantized(out.get<int8_t>(0), out.floats(1), x, width, true);
            compare_quantized(unpacked(out.get<uint8_t>(3), depth, width, right), out.floats(2), x, width, false);
        }
        x[0] = NAN;
        Memory out = run("quantize", 1, [&](Memory &to, int threads) {
            float *row_scale = to.take(rows);
            call("cpulm_quantize", x.data(), rows, width, to.take<int8_t>(x.size()), row_scale, (uint8_t *)nullptr,
                 NO_FLOATS, 0, NO_FLOATS, threads);
        });
        report(std::isnan(out.floats(0)[0]) ? 0 : INFINITY, "hides NaN");
    }
}

} // namespace
