/* Products of matrices in WebAssembly, which is assembled here: it has vectors of two float64, JavaScript has none.
 *
 * `f(weight, rows, columns, x, out)` adds x weight^T to out, for four tokens: x (4, columns) and out (4, rows) in
 * float64, weight (rows, columns) in float32, by the bytes at which they begin in the memory `m`. A step of the inner
 * loop takes two columns of two rows of weights, for all four tokens; rows and columns are even.
 */
const KERNEL = (() => {
  const I32 = 0x7f, V128 = 0x7b, VOID = 0x40, END = 0x0b;
  const [weight, rows, columns, x, out, stride, next, end, ...tokens] = Array(12).keys(); // parameters, then locals
  const [first, second, ...sums] = [...Array(10).keys()].map(i => 12 + i); // vectors; two sums for each token
  const get = local => [0x20, local], set = local => [0x21, local], number = value => [0x41, value];
  const vector = (code, ...rest) => [0xfd, code, ...rest], aligned = [3, 0]; // to 8 bytes, at no offset
  const plus = [0x6a], minus = [0x6b], times = [0x6c], differ = [0x47];
  const load = vector(0x00, ...aligned), store = vector(0x0b, ...aligned), zero = vector(0x0c, ...Array(16).fill(0));
  const widened = [...vector(0x5d, ...aligned), ...vector(0x5f)]; // two float32, as float64
  const added = vector(0xf0, 1), multiplied = vector(0xf2, 1);
  const halves = from => vector(0x0d, ...[0, 16].flatMap(of => [...Array(8).keys()].map(byte => of + from + byte)));

  const loop = (body, whether) => [0x03, VOID, ...body, ...whether, 0x0d, 0, END]; // again where `whether` is not 0
  const move = (local, bytes) => [...get(local), ...bytes, ...plus, ...set(local)];
  const apart = (from, step) => tokens.flatMap((token, i) => // the four places of the tokens
    [...(i ? [...get(tokens[i - 1]), ...step, ...plus] : get(from)), ...set(token)]);
  const both = i => [...get(sums[2 * i]), ...get(sums[2 * i + 1])];

  const inner = loop([
    ...get(weight), ...widened, ...set(first), ...get(next), ...widened, ...set(second),
    ...sums.flatMap((sum, i) => [
      ...get(sum), ...get(tokens[i >> 1]), ...load, ...get(i % 2 ? second : first), ...multiplied, ...added,
      ...set(sum)]),
    ...move(weight, number(8)), ...move(next, number(8)), ...tokens.flatMap(token => move(token, number(16))),
  ], [...get(tokens[0]), ...get(end), ...differ]);
  const outer = loop([
    ...get(weight), ...get(columns), ...number(4), ...times, ...plus, ...set(next),
    ...apart(x, [...get(columns), ...number(8), ...times]), ...get(tokens[1]), ...set(end),
    ...sums.flatMap(sum => [...zero, ...set(sum)]), ...inner,
    ...get(next), ...set(weight), ...apart(out, get(stride)),
    ...tokens.flatMap((token, i) => [ // the halves of both sums added up, to what is there
      ...get(token), ...get(token), ...load, ...both(i), ...halves(0), ...both(i), ...halves(8), ...added, ...added,
      ...store]),
    ...move(out, number(16)), ...get(rows), ...number(2), ...minus, ...set(rows),
  ], get(rows));

  const list = bytes => [bytes.length & 127 | 128, bytes.length >> 7, ...bytes]; // after their number
  const text = word => list([...word].map(character => character.charCodeAt(0)));
  const locals = [2, 7, I32, 10, V128], begin = [...get(rows), ...number(8), ...times, ...set(stride)];
  const sections = {
    1: [1, 0x60, ...list(Array(5).fill(I32)), 0], 2: [1, ...text("m"), ...text("m"), 2, 0, 0], // type, memory
    3: [1, 0], 7: [1, ...text("f"), 0, 0], 10: [1, ...list([...locals, ...begin, ...outer, END])], // function
  };
  const bytes = Object.entries(sections).flatMap(([id, body]) => [Number(id), ...list(body)]);
  return new WebAssembly.Module(new Uint8Array([0, ...text("asm").slice(2), 1, 0, 0, 0, ...bytes]));
})();
