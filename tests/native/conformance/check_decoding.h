// Decoding one token of each sequence, with matrices in float32 and in blocks of int8.
#pragma once
#include "check.h"

namespace {

// A factor whose rows are quantized without a rounding: whole numbers, 127 or -127 among each 32, times 1 or 2.
Floats whole_blocks(int64_t rows, int64_t inputs) {
    Floats made(rows * inputs);
    float scale = 1;
    for (int64_t i = 0; i < rows * inputs; i++) {
        if (i % 32 == 0) scale = 1 + random_word() % 2;
        made[i] = ((int)(random_word() % 255) - 127) * scale;
        if (i % 32 == i / 32 % 32) made[i] = made[i] < 0 ? -127 * scale : 127 * scale;
    }
    return made;
}

std::vector<uint8_t> in_blocks(const Floats &matrix, int64_t inputs) {
    int64_t outputs = matrix.size() / inputs;
    std::vector<uint8_t> packed(call<int64_t>("cpulm_block_matrix_bytes", outputs, inputs));
    call("cpulm_pack_blocks", matrix.data(), outputs, inputs, packed.data(), 1);
    return packed;
}

void block_products() {
    const struct {
        int64_t rows, outputs, inputs;
    } shapes[] = {{1, 1, 32}, {1, 64, 96}, {3, 80, 64}, {19, 65, 288}, {8, 24, 32}, {2, 300, 64}};
    for (auto &shape : shapes) {
        Floats x = whole_blocks(shape.rows, shape.inputs), matrix = whole_blocks(shape.outputs, shape.inputs);
        Floats bias(shape.outputs);
        for (float &each : bias) each = (int)(random_word() % 2001) - 1000;
        int64_t bytes = call<int64_t>("cpulm_block_matrix_bytes", shape.outputs, shape.inputs);
        Memory packed = run("pack_blocks", 1, [&](Memory &to, int threads) {
            call("cpulm_pack_blocks", matrix.data(), shape.outputs, shape.inputs, to.take<uint8_t>(bytes), threads);
        });
        std::vector<uint8_t> blocks = packed.get<uint8_t>(0);
        auto product = [&](const Floats &from, const float *its_bias) {
            return run("block_product", 1, [&](Memory &to, int threads) {
                       float *y = to.take(shape.rows * shape.outputs);
                       uint8_t *memory =
                           to.take<uint8_t>(call<int64_t>("cpulm_block_workspace", shape.rows, shape.inputs));
                       call("cpulm_block_product", from.data(), shape.rows, shape.inputs, blocks.data(), shape.outputs,
                            its_bias, y, memory, threads);
                   })
                .floats(0);
        };
        compare(product(x, bias.data()), linear(doubles(x), shape.inputs, matrix, bias), "a product is wrong");
        Floats rough = floats(x.size()), fine = floats(matrix.size());
        blocks = in_blocks(fine, shape.inputs);
        compare(product(rough, NO_FLOATS), linear(doubles(rough), shape.inputs, fine, {}), "too rough", 0.05);
        rough[5] = NAN;
        report(std::isnan(product(rough, NO_FLOATS)[0]) ? 0 : INFINITY, "hides NaN");
        fine[5] = INFINITY, rough[5] = 1;
        blocks = in_blocks(fine, shape.inputs);
        report(std::isfinite(product(rough, NO_FLOATS)[0]) ? INFINITY : 0, "hides an infinite weight");
        Floats tiny = matrix;
        for (float &each : tiny) each *= 0x1p-22f; // whose scales are the smallest numbers of float16
        blocks = in_blocks(tiny, shape.inputs);
        compare(product(x, NO_FLOATS), linear(doubles(x), shape.inputs, tiny, {}), "a tiny scale is wrong", 0.02);
    }
}

// The numbers and tensors of a decoder, by the names that the library gives.
struct Decoder {
    std::map<std::string, int32_t> sizes;
    std::string norm, activation;
    bool plain; // biases and learned positions, but neither QK norm nor rotation
    std::vector<int> positions;
    std::vector<std::map<std::string, Floats>> layers;
    std::map<std::string, Floats> last;
    Floats cos, sin;

    Doubles normed(const Doubles &x, std::map<std::string, Floats> &from, const std::string &name) {
        int batch = positions.size(), width = sizes["width"];
        Doubles weight = doubles(from[name]), bias = doubles(from[name + "_bias"]);
        return norm == "layernorm" ? layer_norm(&x[0], &weight[0], &bias[0], batch, width, EPS)
                                   : rms_norm(&x[0], &weight[0], batch, width, EPS);
    }

    // What the sequence b attends to, from its new queries, keys and values.
    Doubles attend(std::map<std::string, Floats> &layer, double *qkv, int b) {
        int heads = sizes["heads"], kv_heads = sizes["kv_heads"], d = sizes["head_dim"], position = positions[b];
        int row = heads + 2 * kv_heads, half = d / 2;
        Attention s = {1, position + 1, heads, kv_heads, d, !plain, !plain};
        s.first.resize(s.tokens);
        Doubles all(s.inputs()), weights = doubles(joined({layer["q_norm"], layer["k_norm"]})), attended(heads * d);
        for (int h = 0; h < heads + kv_heads && !plain; h++)
            transform_head(qkv + h * d, d, &weights[h < heads ? 0 : d], EPS, &cos[position * half],
                           &sin[position * half]);
        for (int n = 0; n < 2 * kv_heads; n++) { // the cache of keys, and that of values
            Floats &cache = layer[n < kv_heads ? "keys" : "values"];
            float *at = &cache[(b * kv_heads + n % kv_heads) * (int64_t)ROOM * d];
            for (int k = 0; k < d; k++) at[position * d + k] = qkv[(heads + n) * d + k];
            for (int t = 0; t <= position; t++)
                std::copy(at + t * d, at + (t + 1) * d, &all[(t * row + heads + n) * d]);
        }
        std::copy(qkv, qkv + heads * d, &all[position * row * d]);
        for (int h = 0; h < heads; h++) s.attend(all, 0, h, position, &attended[h * d]);
        return attended;
    }

    // The logits of all sequences x [batch, width]; the layers' keys and values too.
    Doubles forward(Doubles x) {
        int width = sizes["width"], inner = sizes["inner"], up_width = sizes["up_width"];
        for (auto &layer : layers) {
            auto add = [&](const Doubles &y) {
                for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
            };
            Doubles qkv = linear(normed(x, layer, "attn_norm"), width, layer["qkv"], layer["qkv_bias"]), attended;
            for (size_t b = 0; b < positions.size(); b++) {
                Doubles its = attend(layer, &qkv[b * qkv.size() / positions.size()], b);
                attended.insert(attended.end(), its.begin(), its.end());
            }
            add(linear(attended, attended.size() / positions.size(), layer["out"], layer["out_bias"]));
            Doubles up = linear(normed(x, layer, "mlp_norm"), width, layer["up"], layer["up_bias"]);
            Doubles hidden(positions.size() * inner);
            for (size_t i = 0; i < hidden.size(); i++) {
                double *gate = &up[i / inner * up_width + i % inner];
                hidden[i] = ::activation(activation, gate[up_width - inner], *gate);
            }
            add(linear(hidden, inner, layer["down"], layer["down_bias"]));
        }
        return linear(normed(x, last, "norm"), width, last["head"], {});
    }

    static constexpr int ROOM = 9;
};

Decoder random_decoder(const std::string &activation, bool blocks) {
    bool gated = activation == "swiglu", plain = activation == "gelu_erf";
    int32_t width = blocks ? 64 : 32, inner = blocks ? 96 : 48, vocab = 21, kv_heads = gated ? 2 : 4, up = inner;
    if (gated) up *= 2;
    std::vector<int> positions = plain ? std::vector<int>{0} : std::vector<int>{6, 2, 0, 8};
    Decoder decoder = {{{"layers", 2}, {"width", width}, {"heads", 4}, {"kv_heads", kv_heads}, {"head_dim", 16},
                        {"inner", inner}, {"up_width", up}, {"vocab_size", vocab}, {"in_blocks", blocks}},
                       plain ? "layernorm" : "rmsnorm", activation, plain, positions, {},
                       {{"norm", floats(width, 1)}, {"norm_bias", floats(plain ? width : 0)},
                        {"head", floats(vocab * width)}},
                       floats(8 * Decoder::ROOM), floats(8 * Decoder::ROOM)};
    int qkv = (4 + 2 * kv_heads) * 16, cache = positions.size() * kv_heads * Decoder::ROOM * 16;
    for (int n = 0; n < 2; n++) {
        std::map<std::string, Floats> layer = {
            {"attn_norm", floats(width, 1)}, {"mlp_norm", floats(width, 1)}, {"qkv", floats(qkv * width)},
            {"out", floats(width * 64)}, {"up", floats(up * width)}, {"down", floats(width * inner)},
            {"keys", floats(cache)}, {"values", floats(cache)}};
        const std::pair<const char *, int> biases[] = {{"attn_norm_bias", width}, {"mlp_norm_bias", width},
                                                       {"qkv_bias", qkv}, {"out_bias", width},
                                                       {"up_bias", up}, {"down_bias", width}};
        for (auto &bias : biases) layer[bias.first] = floats(plain ? bias.second : 0);
        for (auto &name : {"q_norm", "k_norm"}) layer[name] = floats(plain ? 0 : 16, 1);
        decoder.layers.push_back(layer);
    }
    return decoder;
}

void compare_decoding(Decoder decoder, double tolerance) {
    auto &size = decoder.sizes;
    auto index = [](const std::vector<std::string> &list, const std::string &name) {
        return (int32_t)(std::find(list.begin(), list.end(), name) - list.begin());
    };
    size["norm"] = index(names("cpulm_decode_norms"), decoder.norm);
    size["activation"] = index(names("cpulm_decode_activations"), decoder.activation);
    std::vector<int32_t> numbers;
    for (const std::string &name : names("cpulm_decode_sizes")) numbers.push_back(size.at(name));
    int64_t batch = decoder.positions.size(), kv_heads = size["kv_heads"], room = Decoder::ROOM, longest = 0;
    for (int position : decoder.positions) longest = position + 1 > longest ? position + 1 : longest;
    std::vector<std::vector<uint8_t>> packed;
    const std::map<std::string, int> inputs = {
        {"qkv", size["width"]}, {"out", 64}, {"up", size["width"]}, {"down", size["inner"]}, {"head", size["width"]}};
    auto address = [&](std::map<std::string, Floats> &from, const std::string &name) -> const void * {
        const Floats &tensor = from.at(name);
        if (tensor.empty()) return nullptr;
        if (!size["in_blocks"] || !inputs.count(name)) return tensor.data();
        packed.push_back(in_blocks(tensor, inputs.at(name)));
        return packed.back().data();
    };
    std::vector<const void *> addresses;
    for (auto &layer : decoder.layers)
        for (const std::string &name : names("cpulm_decode_tensors")) addresses.push_back(address(layer, name));
    for (const std::string &name : names("cpulm_decode_last_tensors"))
        addresses.push_back(address(decoder.last, name));
    Floats x = floats(batch * size["width"]);
    Memory out = run("decode", 3, [&](Memory &to, int threads) {
        float *logits = to.take(batch * size["vocab_size"]);
        float *cached[2];
        for (int n = 0; n < 2; n++) {
            const char *name = n ? "values" : "keys";
            cached[n] = to.copy(joined({decoder.layers[0][name], decoder.layers[1][name]}));
        }
        std::vector<int64_t> table;
        int64_t each = kv_heads * room * 16;
        for (int64_t b = 0; b < batch; b++)
            for (int64_t number : {(int64_t)(cached[0] + b * each), (int64_t)(cached[1] + b * each), batch * each, room,
                                   (int64_t)decoder.positions[b]})
                table.push_back(number);
        float *its_x = to.copy(x);
        float *memory = to.take(call<int64_t>("cpulm_decode_workspace", numbers.data(), batch, longest, threads));
        call("cpulm_decode", (void *const *)addresses.data(), numbers.data(), EPS, (const void *)table.data(), batch,
             longest, decoder.plain ? NO_FLOATS : decoder.cos.data(), decoder.plain ? NO_FLOATS : decoder.sin.data(),
             its_x, logits, memory, threads);
    });
    compare(out.floats(0), decoder.forward(doubles(x)), "the logits are wrong", tolerance);
    for (int n = 0; n < 2; n++) {
        const char *name = n ? "values" : "keys";
        Floats wanted = joined({decoder.layers[0][name], decoder.layers[1][name]});
        compare(out.floats(1 + n), doubles(wanted), "the cache is wrong", tolerance);
    }
}

void decoding() {
    for (const std::string &activation : names("cpulm_decode_activations"))
        for (bool blocks : {false, true})
            compare_decoding(random_decoder(activation, blocks), blocks ? 0.4 : TOLERANCE);
}

} // namespace
