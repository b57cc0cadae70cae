/**
 * cpulm's transformer, one token at a time, for a browser.
 *
 * The weights stay as they are in the page: int8 with a scale for each 32 of a row. They lie in the memory that
 * matvec.wasm computes in; everything else is float32 in JavaScript.
 */
class Engine {
  /**
   * @param model settings of the model, and for each tensor its shape [rows, columns] and places in `bytes`
   * @param bytes all tensors
   * @param wasm matvec.wasm
   */
  constructor(model, bytes, wasm) {
    this.settings = model.settings;
    this.tensors = model.tensors;
    const { n_layer, n_embd, inner_width, block_size, kv_heads, head_width } = this.settings;
    const widest = Math.max(n_embd, inner_width, this.settings.n_head * head_width);
    const tallest = Math.max(...Object.values(model.tensors).map((tensor) => tensor.rows));
    this.inputAt = align(bytes.length);
    this.outputAt = align(this.inputAt + 4 * align(widest));
    const total = this.outputAt + 4 * tallest;
    this.memory = new WebAssembly.Memory({ initial: Math.ceil(total / 65536) });
    new Uint8Array(this.memory.buffer).set(bytes);
    const instance = new WebAssembly.Instance(new WebAssembly.Module(wasm), { page: { memory: this.memory } });
    this.matvec = instance.exports.matvec;
    this.input = new Float32Array(this.memory.buffer, this.inputAt, align(widest));
    this.cacheWidth = kv_heads * head_width;
    const cached = n_layer * block_size * this.cacheWidth;
    this.keys = new Float32Array(cached);
    this.values = new Float32Array(cached);
    this.frequencies = Float64Array.from(
      { length: head_width / 2 },
      (_, pair) => this.settings.rope_theta ** ((-2 * pair) / head_width),
    );
  }

  /** The logits behind `token` at `position`; the tokens before it have been given before. */
  logits(token, position) {
    let x = this.row("wte.weight", token);
    if ("wpe.weight" in this.tensors) add(x, this.row("wpe.weight", position));
    for (let layer = 0; layer < this.settings.n_layer; layer++) {
      const name = `blocks.${layer}.`;
      add(x, this.attention(name, this.norm(`${name}attn_norm`, x), layer, position));
      add(x, this.mlp(name, this.norm(`${name}mlp_norm`, x)));
    }
    x = this.norm("norm", x);
    return this.linear("lm_head.weight" in this.tensors ? "lm_head" : "wte", x);
  }

  attention(name, x, layer, position) {
    const { n_head, kv_heads, head_width: width, block_size } = this.settings;
    const qkv = this.linear(`${name}attn.qkv`, x);
    for (let head = 0; head < n_head + kv_heads; head++) {
      const part = qkv.subarray(head * width, (head + 1) * width);
      if (this.settings.qk_norm) this.rmsNorm(`${name}attn.${head < n_head ? "q" : "k"}_norm`, part);
      if (this.settings.position === "rope") this.rotate(part, position);
    }
    const cache = layer * block_size * this.cacheWidth;
    const [q, kv] = [n_head * width, this.cacheWidth];
    this.keys.set(qkv.subarray(q, q + kv), cache + position * kv);
    this.values.set(qkv.subarray(q + kv), cache + position * kv);
    const y = new Float32Array(q);
    const scores = new Float64Array(position + 1);
    for (let head = 0; head < n_head; head++) {
      const first = cache + Math.floor((head * kv_heads) / n_head) * width;
      for (let past = 0; past <= position; past++) {
        const key = first + past * kv;
        let sum = 0;
        for (let i = 0; i < width; i++) sum += qkv[head * width + i] * this.keys[key + i];
        scores[past] = sum / Math.sqrt(width);
      }
      softmax(scores);
      for (let past = 0; past <= position; past++) {
        const value = first + past * kv;
        for (let i = 0; i < width; i++) y[head * width + i] += scores[past] * this.values[value + i];
      }
    }
    return this.linear(`${name}attn.out`, y);
  }

  mlp(name, x) {
    if (this.settings.mlp !== "swiglu") {
      return this.linear(`${name}mlp.down`, this.linear(`${name}mlp.up`, x).map(ACTIVATIONS[this.settings.mlp]));
    }
    const both = this.linear(`${name}mlp.gate_up`, x);
    const width = this.settings.inner_width;
    const hidden = both.slice(0, width);
    for (let i = 0; i < width; i++) hidden[i] = (hidden[i] / (1 + Math.exp(-hidden[i]))) * both[width + i];
    return this.linear(`${name}mlp.down`, hidden);
  }

  /** W x + b, of at most one matrix at a time. */
  linear(name, x) {
    const { rows, at, scalesAt, blocks } = this.tensors[`${name}.weight`];
    this.input.fill(0, x.length, 32 * blocks);
    this.input.set(x);
    this.matvec(at, scalesAt, this.inputAt, this.outputAt, rows, blocks);
    const y = new Float32Array(this.memory.buffer, this.outputAt, rows).slice();
    if (`${name}.bias` in this.tensors) add(y, this.row(`${name}.bias`, 0));
    return y;
  }

  /** One row of a tensor. */
  row(name, number) {
    const { columns, at, scalesAt, blocks } = this.tensors[name];
    if (scalesAt === undefined) {
      return new Float32Array(this.memory.buffer, at, (number + 1) * columns).slice(number * columns);
    }
    const weights = new Int8Array(this.memory.buffer, at + number * 32 * blocks, columns);
    const scales = new Float32Array(this.memory.buffer, scalesAt + number * 4 * blocks, blocks);
    return Float32Array.from(weights, (weight, i) => weight * scales[i >> 5]);
  }

  norm(name, x) {
    const y = x.slice();
    if (this.settings.norm === "rmsnorm") return this.rmsNorm(name, y);
    const mean = y.reduce((sum, value) => sum + value, 0) / y.length;
    const variance = y.reduce((sum, value) => sum + (value - mean) ** 2, 0) / y.length;
    const weight = this.row(`${name}.weight`, 0);
    const scale = 1 / Math.sqrt(variance + this.settings.norm_eps);
    for (let i = 0; i < y.length; i++) y[i] = (y[i] - mean) * scale * weight[i];
    if (`${name}.bias` in this.tensors) add(y, this.row(`${name}.bias`, 0));
    return y;
  }

  rmsNorm(name, y) {
    const square = y.reduce((sum, value) => sum + value * value, 0) / y.length;
    const weight = this.row(`${name}.weight`, 0);
    const scale = 1 / Math.sqrt(square + this.settings.norm_eps);
    for (let i = 0; i < y.length; i++) y[i] *= scale * weight[i];
    return y;
  }

  /** Turn each pair that lies half the width apart. */
  rotate(part, position) {
    const half = part.length / 2;
    for (let i = 0; i < half; i++) {
      const angle = position * this.frequencies[i];
      const [cos, sin, a, b] = [Math.cos(angle), Math.sin(angle), part[i], part[half + i]];
      part[i] = a * cos - b * sin;
      part[half + i] = b * cos + a * sin;
    }
  }
}

const ACTIVATIONS = {
  relu: (x) => Math.max(0, x),
  relu2: (x) => Math.max(0, x) ** 2,
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  gelu_erf: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
};

/** Numerical Recipes, 6.2: the relative error of its complement is below 1.2e-7 everywhere. */
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
    -0.82215223, 0.17087277];
  const tail = t * Math.exp(-x * x + terms.reduceRight((sum, term) => term + t * sum, 0));
  return x >= 0 ? 1 - tail : tail - 1;
}

function align(bytes) {
  return Math.ceil(bytes / 32) * 32;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

function softmax(scores) {
  const highest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i] - highest);
  for (let i = 0; i < scores.length; i++) scores[i] /= sum;
}

/**
 * Tokens behind `prompt`, one after another, until the text ends or `count` are made.
 *
 * As in `cpulm generate`: if a token no longer fits into the context, the last half of it is read again, and the
 * text goes on behind that. `ends` is the set of tokens that end a text, `choose` picks a token from the logits,
 * `pause` lets other work be done.
 */
async function* generate(engine, prompt, count, ends, choose, pause, stopped = () => false) {
  const room = Math.min(engine.settings.block_size, prompt.length + count);
  let context = prompt.length <= room ? [...prompt] : prompt.slice(prompt.length - Math.floor(room / 2));
  let read = 0;
  for (let made = 0; made < count; made++) {
    let logits;
    while (read < context.length) {
      logits = engine.logits(context[read], read);
      read++;
      await pause();
      if (stopped()) return;
    }
    const token = choose(logits);
    if (ends.has(token)) return;
    yield token;
    if (context.length === room) {
      context = context.slice(room - (Math.floor(room / 2) - 1));
      read = 0;
    }
    context.push(token);
  }
}

/** The likeliest token at temperature 0, else a random one of the `topK` likeliest (0: of all). */
function sampler(temperature, topK, random = Math.random) {
  return (logits) => {
    if (temperature === 0) return logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);
    let least = -Infinity;
    if (topK > 0 && topK < logits.length) least = Float32Array.from(logits).sort()[logits.length - topK];
    const chances = Float64Array.from(logits, (value) => (value >= least ? value / temperature : -Infinity));
    softmax(chances);
    let left = random();
    const found = chances.findIndex((chance) => (left -= chance) < 0);
    return found >= 0 ? found : chances.lastIndexOf(Math.max(...chances));
  };
}
