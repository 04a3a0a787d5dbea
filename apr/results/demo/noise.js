/* Seeds and noise of sampling, as apr/core/seeds.py and apr/engine/scheduler.py have them, and draws with it. */
const WORD = (1n << 64n) - 1n;
const ORDERS = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map(order => [...order].map(digit => parseInt(digit, 16)));
const START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];

/* BLAKE2b of up to 128 ASCII characters, its first 8 bytes as a number. */
function blake2b(text) {
  const block = new DataView(new ArrayBuffer(128));
  [...text].forEach((character, i) => block.setUint8(i, character.charCodeAt(0)));
  const message = ORDERS[0].map(i => block.getBigUint64(8 * i, true));
  const first = START[0] ^ 0x01010008n; // one lane, no key, a digest of 8 bytes
  const v = [first, ...START.slice(1), ...START];
  v[12] ^= BigInt(text.length);
  v[14] ^= WORD; // the last block
  const turn = (value, by) => (value >> by | value << 64n - by) & WORD;
  const mix = (a, b, c, d, x, y) => {
    v[a] = v[a] + v[b] + x & WORD; v[d] = turn(v[d] ^ v[a], 32n);
    v[c] = v[c] + v[d] & WORD; v[b] = turn(v[b] ^ v[c], 24n);
    v[a] = v[a] + v[b] + y & WORD; v[d] = turn(v[d] ^ v[a], 16n);
    v[c] = v[c] + v[d] & WORD; v[b] = turn(v[b] ^ v[c], 63n);
  };
  const columns = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]];
  const diagonals = [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];
  for (let round = 0; round < 12; round++) {
    const order = ORDERS[round % 10];
    [...columns, ...diagonals].forEach((four, i) => mix(...four, message[order[2 * i]], message[order[2 * i + 1]]));
  }
  return first ^ v[0] ^ v[8];
}

/* The seed of a thread: `path` says which child of which child of the root it is. */
const seedOf = (seed, id, path) => blake2b(`(${[seed, `'${id}'`, ...path].join(", ")})`) >> 1n;

/* A number in [0, 1) for each place of a thread, by splitmix64. */
function uniform(key, position) {
  let z = key + BigInt(position + 1) * 0x9e3779b97f4a7c15n & WORD;
  z = (z ^ z >> 30n) * 0xbf58476d1ce4e5b9n & WORD;
  z = (z ^ z >> 27n) * 0x94d049bb133111ebn & WORD;
  return Number((z ^ z >> 31n) >> 11n) * 2 ** -53;
}

/* The token with the largest logit; above temperature 0 one that is drawn by inverse CDF at `noise`. */
function pick(logits, temperature, noise) {
  const best = logits.reduce((best, value, token) => (value > logits[best] ? token : best), 0);
  if (temperature === 0) return best;
  const sums = [];
  let total = 0;
  for (const value of logits) sums.push(total += Math.exp((value - logits[best]) / temperature));
  const threshold = noise * total;
  const token = sums.findIndex(sum => sum > threshold);
  return token < 0 ? logits.length - 1 : token;
}
