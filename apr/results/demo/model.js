/* The forward pass of a Llama or Qwen3 over a ragged batch of tokens, as apr/engine/native.c has it.
 *
 * Weights are float32, sums are taken in float64: what is rounded differs from the engine's in the seventh digit.
 */
const ROWS = 256; // tokens of one pass

/* out (n, d) = weight x / sqrt(mean(x^2) + epsilon), over each d numbers of x; out may be x. */
function normalise(weight, x, n, d, epsilon, out, from = 0) {
  for (let row = 0, at = from; row < n; row++, at += d) {
    let total = 0;
    for (let i = 0; i < d; i++) total += x[at + i] * x[at + i];
    const factor = 1 / Math.sqrt(total / d + epsilon);
    for (let i = 0; i < d; i++) out[at + i] = weight[i] * (x[at + i] * factor);
  }
}

/* Bytes of a base64 text. */
const bytesOf = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

/* The tensors that `pack` in page.py wrote: first all that is float32 (vectors, a scale for each row of a matrix),
   then the matrices, two signed numbers of 20 bits in 5 bytes. `take(length)` gives a matrix its place, which has an
   even number of rows. */
function unpack(shapes, bytes, take) {
  const floats = new DataView(bytes.buffer), tensors = {};
  let at = 0;
  for (const [name, rows, columns] of shapes) {
    const single = new Float32Array(rows);
    for (let i = 0; i < rows; i++, at += 4) single[i] = floats.getFloat32(at, true);
    tensors[name] = columns ? { rows, columns, scales: single } : single;
  }
  const half = 1 << 19;
  for (const matrix of Object.values(tensors).filter(tensor => tensor.scales)) {
    const { rows, columns, scales } = matrix, length = rows * columns, even = rows + rows % 2;
    const values = Object.assign(matrix, { rows: even, values: take(even * columns) }).values;
    for (let i = 0; i < length; i += 2, at += 5) {
      const middle = bytes[at + 2];
      const first = bytes[at] | bytes[at + 1] << 8 | (middle & 15) << 16;
      const second = middle >> 4 | bytes[at + 3] << 4 | bytes[at + 4] << 12;
      values[i] = (first - half) * scales[Math.floor(i / columns)];
      values[i + 1] = (second - half) * scales[Math.floor((i + 1) / columns)];
    }
  }
  return tensors;
}

class Model {
  /* `config`: layers, hidden, heads, groups (heads of keys and values), head (numbers of a head), ffn, epsilon,
     window, frequencies (of the rotary embedding) and its scaling. */
  constructor({ config, shapes }, bytes) {
    Object.assign(this, config);
    const { hidden, heads, groups, head, ffn, window, frequencies } = this;
    const words = shapes.find(([name]) => name === "embedding")[1];
    this.words = words;
    this.projected = (heads + 2 * groups) * head;
    const widths = { hidden, normed: hidden, projection: this.projected, attended: heads * head, gated: 2 * ffn,
                     inner: ffn, found: words + 1 };
    const singles = shapes.reduce((sum, [, rows, columns]) => sum + (rows + 1) * columns + 2, 0);
    const doubles = Object.values(widths).reduce((sum, width) => sum + width * ROWS, 0);
    const memory = new WebAssembly.Memory({ initial: Math.ceil((4 * singles + 8 * doubles) / 65536) });
    let free = 0;
    const take = (numbers, length) => {
      const array = new numbers(memory.buffer, free, length);
      free += Math.ceil(array.byteLength / 8) * 8;
      return array;
    };
    this.tensors = unpack(shapes, bytes, length => take(Float32Array, length));
    this.outputs = this.tensors.head ?? this.tensors.embedding;
    this.buffers = Object.fromEntries(
      Object.entries(widths).map(([name, width]) => [name, take(Float64Array, width * ROWS)]));
    this.kernel = new WebAssembly.Instance(KERNEL, { m: { m: memory } }).exports.f;
    this.scores = new Float64Array(window);
    this.turned = new Float64Array(head);
    this.cosine = new Float64Array(window * frequencies.length);
    this.sine = new Float64Array(window * frequencies.length);
    for (let position = 0; position < window; position++)
      frequencies.forEach((frequency, i) => {
        const angle = Math.fround(position * frequency), at = position * frequencies.length + i;
        this.cosine[at] = Math.fround(Math.cos(angle) * this.scaling);
        this.sine[at] = Math.fround(Math.sin(angle) * this.scaling);
      });
    this.free = [];
  }

  /* Keys and values of a thread: for each layer (groups, window, head) twice. */
  open() {
    const size = this.groups * this.window * this.head;
    return this.free.pop() ?? Array.from({ length: 2 * this.layers }, () => new Float32Array(size));
  }

  close(cache) { this.free.push(cache); }

  /* out (n, rows) = x (n, columns) weight^T, buffers of `ROWS` rows; or what is added to out. */
  multiply({ values, rows, columns }, x, n, out, add = false) {
    if (!add) out.fill(0, 0, n * rows);
    for (let token = 0; token < n; token += 4)
      this.kernel(values.byteOffset, rows, columns, x.byteOffset + 8 * token * columns,
                  out.byteOffset + 8 * token * rows);
  }

  /* The logits after the last token of each thread. Feeds `ids` beyond those of which `cached` are in `cache`. */
  logits(threads) {
    const rows = [], last = [];
    for (const thread of threads) {
      for (let position = thread.cached; position < thread.ids.length; position++)
        rows.push({ cache: thread.cache, token: thread.ids[position], position });
      last.push(rows.length - 1);
      thread.cached = thread.ids.length;
    }
    const { buffers: { hidden, normed, found }, outputs, hidden: width, words } = this, logits = [];
    for (let start = 0; start < rows.length; start += ROWS) {
      const part = rows.slice(start, start + ROWS);
      const ends = last.filter(row => row >= start && row < start + part.length);
      this.pass(part);
      ends.forEach((row, i) => {
        const at = (row - start) * width;
        normed.set(hidden.subarray(at, at + width), i * width);
      });
      normalise(this.tensors.norm, normed, ends.length, width, this.epsilon, normed);
      this.multiply(outputs, normed, ends.length, found);
      ends.forEach((_, i) => logits.push(found.slice(i * outputs.rows, i * outputs.rows + words)));
    }
    return logits;
  }

  /* Hidden states of n <= ROWS tokens, into the buffer of that name; keys and values are in the caches after it. */
  pass(rows) {
    const { hidden, normed, projection, attended, gated, inner } = this.buffers, { tensors, ffn, epsilon } = this;
    const n = rows.length, width = this.hidden;
    rows.forEach(({ token }, row) =>
      hidden.set(tensors.embedding.values.subarray(token * width, (token + 1) * width), row * width));
    for (let layer = 0; layer < this.layers; layer++) {
      normalise(tensors[`${layer}.norm`], hidden, n, width, epsilon, normed);
      this.multiply(tensors[`${layer}.projection`], normed, n, projection);
      this.attend(layer, rows, projection, attended);
      this.multiply(tensors[`${layer}.output`], attended, n, hidden, true);
      normalise(tensors[`${layer}.mlp_norm`], hidden, n, width, epsilon, normed);
      this.multiply(tensors[`${layer}.gate_up`], normed, n, gated);
      for (let row = 0; row < n; row++)
        for (let i = 0; i < ffn; i++) {
          const gate = gated[2 * row * ffn + i];
          inner[row * ffn + i] = gate / (1 + Math.exp(-gate)) * gated[(2 * row + 1) * ffn + i];
        }
      this.multiply(tensors[`${layer}.down`], inner, n, hidden, true);
    }
  }

  attend(layer, rows, projection, attended) {
    const { heads, groups, head, window, epsilon, tensors, projected } = this;
    const queryNorm = tensors[`${layer}.query_norm`], keyNorm = tensors[`${layer}.key_norm`];
    rows.forEach(({ cache, position }, row) => {
      const start = row * projected, key = start + heads * head, value = key + groups * head;
      if (queryNorm) normalise(queryNorm, projection, heads, head, epsilon, projection, start);
      if (keyNorm) normalise(keyNorm, projection, groups, head, epsilon, projection, key);
      for (let group = 0; group < groups; group++) {
        const at = (group * window + position) * head, from = group * head;
        this.rotate(projection, key + from, position, 1, cache[2 * layer], at);
        for (let i = 0; i < head; i++) cache[2 * layer + 1][at + i] = projection[value + from + i];
      }
    });
    rows.forEach(({ cache, position }, row) => {
      for (let i = 0; i < heads; i++) {
        this.rotate(projection, row * projected + i * head, position, head ** -.5, this.turned, 0);
        const at = Math.floor(i * groups / heads) * window * head;
        this.look(cache[2 * layer], cache[2 * layer + 1], at, position + 1, attended, (row * heads + i) * head);
      }
    });
  }

  /* The rotary embedding of one head, times a scale. */
  rotate(x, from, position, scale, out, to) {
    const half = this.head / 2, { cosine, sine } = this;
    for (let i = 0; i < half; i++) {
      const c = cosine[position * half + i], s = sine[position * half + i], a = x[from + i], b = x[from + half + i];
      out[to + i] = (a * c - b * s) * scale;
      out[to + half + i] = (b * c + a * s) * scale;
    }
  }

  /* out = softmax(query . keys) values over n positions; the query is in `turned`. */
  look(keys, values, at, n, out, to) {
    const { head, scores, turned } = this;
    let most = -Infinity, total = 0;
    for (let t = 0, from = at; t < n; t++, from += head) {
      let even = 0, odd = 0; // two sums, so that neither waits for the other
      for (let i = 0; i < head; i += 2) {
        even += turned[i] * keys[from + i];
        odd += turned[i + 1] * keys[from + i + 1];
      }
      const score = scores[t] = even + odd;
      if (score > most) most = score;
    }
    for (let t = 0; t < n; t++) total += scores[t] = Math.exp(scores[t] - most);
    for (let i = 0; i < head; i += 2) {
      let even = 0, odd = 0;
      for (let t = 0, from = at + i; t < n; t++, from += head) {
        even += scores[t] * values[from];
        odd += scores[t] * values[from + 1];
      }
      out[to + i] = even / total;
      out[to + i + 1] = odd / total;
    }
  }
}
