/* The forward pass of a Llama or Qwen3 over a ragged batch of tokens, as apr/engine/native.c has it.
 *
 * Weights are float32, sums are taken in float64: what is rounded differs from the engine's in the seventh digit.
 */
const ROWS = 256; // tokens of one pass

/* out (n, rows) = x (n, columns) weight^T, weight (rows, columns); or what is added to out. Four tokens at a time
   share the loads of two rows of weights; a token that is left over takes four rows. */
function multiply({ values, rows, columns }, x, n, out, add = false) {
  const weight = values;
  let token = 0;
  if (!add) out.fill(0, 0, n * rows);
  for (; token + 4 <= n; token += 4) {
    const a = token * columns, b = a + columns, c = b + columns, d = c + columns;
    for (let row = 0; row < rows; row += 2) {
      const u = row * columns, v = u + columns;
      let a0 = 0, b0 = 0, c0 = 0, d0 = 0, a1 = 0, b1 = 0, c1 = 0, d1 = 0;
      for (let i = 0; i < columns; i++) {
        const p = weight[u + i], q = weight[v + i], xa = x[a + i], xb = x[b + i], xc = x[c + i], xd = x[d + i];
        a0 += p * xa; b0 += p * xb; c0 += p * xc; d0 += p * xd;
        a1 += q * xa; b1 += q * xb; c1 += q * xc; d1 += q * xd;
      }
      const at = token * rows + row;
      out[at] += a0; out[at + rows] += b0; out[at + 2 * rows] += c0; out[at + 3 * rows] += d0;
      if (row + 1 === rows) break; // an odd number of rows: the second is none
      out[at + 1] += a1; out[at + rows + 1] += b1; out[at + 2 * rows + 1] += c1; out[at + 3 * rows + 1] += d1;
    }
  }
  for (; token < n; token++) {
    const a = token * columns;
    for (let row = 0; row < rows; row += 4) {
      const s = row * columns, t = s + columns, u = t + columns, v = u + columns;
      let s0 = 0, t0 = 0, u0 = 0, v0 = 0;
      for (let i = 0; i < columns; i++) {
        const value = x[a + i];
        s0 += value * weight[s + i]; t0 += value * weight[t + i];
        u0 += value * weight[u + i]; v0 += value * weight[v + i];
      }
      const sums = [s0, t0, u0, v0], at = token * rows + row;
      for (let i = 0; i < 4 && row + i < rows; i++) out[at + i] += sums[i];
    }
  }
}

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
   then the matrices, two signed numbers of 20 bits in 5 bytes. */
function unpack(shapes, bytes) {
  const floats = new DataView(bytes.buffer), tensors = {};
  let at = 0;
  for (const [name, rows, columns] of shapes) {
    const single = new Float32Array(rows);
    for (let i = 0; i < rows; i++, at += 4) single[i] = floats.getFloat32(at, true);
    tensors[name] = columns ? { rows, columns, scales: single } : single;
  }
  const half = 1 << 19;
  for (const matrix of Object.values(tensors).filter(tensor => tensor.scales)) {
    const { rows, columns, scales } = matrix, values = matrix.values = new Float32Array(rows * columns);
    for (let i = 0; i < values.length; i += 2, at += 5) {
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
    this.tensors = unpack(shapes, bytes);
    this.outputs = this.tensors.head ?? this.tensors.embedding;
    const { hidden, heads, groups, head, ffn, window, frequencies } = this;
    this.projected = (heads + 2 * groups) * head;
    const buffers = { hidden, normed: hidden, projection: this.projected, attended: heads * head, gated: 2 * ffn,
                      inner: ffn };
    this.buffers = Object.fromEntries(
      Object.entries(buffers).map(([name, width]) => [name, new Float64Array(ROWS * width)]));
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

  /* The logits after the last token of each thread. Feeds `ids` beyond those of which `cached` are in `cache`. */
  logits(threads) {
    const rows = [], last = [];
    for (const thread of threads) {
      for (let position = thread.cached; position < thread.ids.length; position++)
        rows.push({ cache: thread.cache, token: thread.ids[position], position });
      last.push(rows.length - 1);
      thread.cached = thread.ids.length;
    }
    const { hidden, outputs } = this, ends = new Float64Array(threads.length * hidden);
    for (let start = 0, next = 0; start < rows.length; start += ROWS) {
      const part = rows.slice(start, start + ROWS);
      this.pass(part);
      for (; next < last.length && last[next] < start + part.length; next++) {
        const at = (last[next] - start) * hidden;
        ends.set(this.buffers.hidden.subarray(at, at + hidden), next * hidden);
      }
    }
    normalise(this.tensors.norm, ends, threads.length, hidden, this.epsilon, ends);
    const found = new Float64Array(threads.length * outputs.rows);
    multiply(outputs, ends, threads.length, found);
    return threads.map((_, i) => found.subarray(i * outputs.rows, (i + 1) * outputs.rows));
  }

  /* Hidden states of n <= ROWS tokens, into the buffer of that name; keys and values are in the caches after it. */
  pass(rows) {
    const { hidden, normed, projection, attended, gated, inner } = this.buffers, { tensors, ffn, epsilon } = this;
    const n = rows.length, width = this.hidden;
    rows.forEach(({ token }, row) =>
      hidden.set(tensors.embedding.values.subarray(token * width, (token + 1) * width), row * width));
    for (let layer = 0; layer < this.layers; layer++) {
      normalise(tensors[`${layer}.norm`], hidden, n, width, epsilon, normed);
      multiply(tensors[`${layer}.projection`], normed, n, projection);
      this.attend(layer, rows, projection, attended);
      multiply(tensors[`${layer}.output`], attended, n, hidden, true);
      normalise(tensors[`${layer}.mlp_norm`], hidden, n, width, epsilon, normed);
      multiply(tensors[`${layer}.gate_up`], normed, n, gated);
      for (let row = 0; row < n; row++)
        for (let i = 0; i < ffn; i++) {
          const gate = gated[2 * row * ffn + i];
          inner[row * ffn + i] = gate / (1 + Math.exp(-gate)) * gated[(2 * row + 1) * ffn + i];
        }
      multiply(tensors[`${layer}.down`], inner, n, hidden, true);
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
      let score = 0;
      for (let i = 0; i < head; i++) score += turned[i] * keys[from + i];
      scores[t] = score;
      if (score > most) most = score;
    }
    for (let t = 0; t < n; t++) total += scores[t] = Math.exp(scores[t] - most);
    for (let i = 0; i < head; i++) out[to + i] = 0;
    for (let t = 0, from = at; t < n; t++, from += head) {
      const share = scores[t] / total;
      for (let i = 0; i < head; i++) out[to + i] += share * values[from + i];
    }
  }
}
