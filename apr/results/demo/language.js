/* Threads as token ids and Countdown's problems, as apr/language, apr/tasks/countdown and docs/thread-language.md
 * have them. What breaks the grammar is `{ position, reason }`; everything else that is read is an array.
 */
const FRAMING = new Set(["<pad>", "<unk>", "<root>", "<child>", "go", "spawn", "run", "joined", "resume", "join",
                         "answer", "end"]);

class Language {
  constructor(words, numberTokens) {
    this.words = words;
    this.ids = new Map(words.map((word, id) => [word, id]));
    this.largest = numberTokens;
    this.countOf = new Map();
    for (let count = 1; this.ids.has(`#${count}`); count++) this.countOf.set(this.ids.get(`#${count}`), count);
    this.run = this.ids.get("run");
    this.end = this.ids.get("end");
    this.nothing = this.encode("none");
  }

  get depths() { return this.words.filter(word => word.startsWith(":")).length; }

  word(id) { return this.words[id] ?? "<unk>"; }

  decode(ids) { return ids.map(id => this.word(id)).join(" ").replaceAll(" ##", ""); }

  /* Numbers in digits and words of the language, between blanks. */
  encode(text) {
    return text.split(" ").flatMap(word => (/^\d+$/.test(word) ? this.number(word) : [this.ids.get(word)]));
  }

  number(digits) {
    let cut = digits.length;
    while (!this.ids.has(digits.slice(0, cut))) cut--;
    return [digits.slice(0, cut), ...[...digits.slice(cut)].map(digit => `##${digit}`)].map(word => this.ids.get(word));
  }

  /* The number that starts at `position` and the position after it; null if none does, or one beyond all bounds. */
  readNumber(ids, position) {
    let digits = this.word(ids[position]), next = position + 1;
    if (!/^\d+$/.test(digits)) return null;
    for (; this.word(ids[next]).startsWith("##"); next++) digits += this.word(ids[next]).slice(2);
    return next - position > 100 ? null : [BigInt(digits), next];
  }

  prompt(numbers, target, children = null) {
    const asked = children === null ? "" : ` children ${children}`;
    return this.encode(`<root> ${target} :0 ${[...numbers].sort((a, b) => a - b).join(" ")}${asked} go`);
  }

  childPrompt(message) { return [...this.encode("<child>"), ...message, ...this.encode("go")]; }

  /* The messages of the spawn block that ends `ids`; each begins with what stands before the first. */
  messages(ids) {
    const last = ids.length - 1, start = ids.lastIndexOf(this.ids.get("spawn")), head = [], found = [];
    if (start < 0) return { position: last, reason: "run without spawn" };
    let left = 0;
    for (let position = start + 1; position < last; position++) {
      const word = this.word(ids[position]), count = this.countOf.get(ids[position]);
      if (count) {
        if (found.length && count !== left - 1) return { position, reason: `'${word}' after '#${left}'` };
        left = count;
        found.push([]);
      } else if (FRAMING.has(word)) return { position, reason: `'${word}' inside a spawn` };
      else (found.at(-1) ?? head).push(ids[position]);
    }
    if (!found.length) return { position: last, reason: "spawn of nothing" };
    if (left !== 1) return { position: last, reason: `run after '#${left}'` };
    if (!found.every(message => message.length)) return { position: last, reason: "empty message" };
    return found.map(message => [...head, ...message]);
  }

  /* What a child returns whose last token is `end`. */
  returned(ids) {
    const last = ids.length - 1, start = ids.lastIndexOf(this.ids.get("join"));
    if (start < 0) return { position: last, reason: "child ends without join" };
    for (let position = start + 1; position < last; position++)
      if (FRAMING.has(this.word(ids[position])))
        return { position, reason: `'${this.word(ids[position])}' inside a join` };
    return start + 1 < last ? ids.slice(start + 1, last) : { position: last, reason: "empty join" };
  }

  /* What is appended to a parent. */
  joined(returns) {
    const [joined, resume] = this.encode("joined resume");
    return [...returns.flatMap(returned => [joined, ...returned]), resume];
  }

  /* The operations that a root answers, each [left, sign, right, result]; null if it declares no solution. */
  answer(ids) {
    const start = ids.lastIndexOf(this.ids.get("answer"));
    if (start < 0) return { position: ids.length, reason: "no answer" };
    let position = start + 1;
    const word = () => (position < ids.length ? this.word(ids[position]) : "nothing");
    const fail = wanted => { throw { position, reason: `expected ${wanted}, found '${word()}'` }; };
    const take = (...allowed) => {
      if (!allowed.includes(word())) fail(allowed.length > 1 ? `one of ${allowed.join(" ")}` : `'${allowed[0]}'`);
      return this.word(ids[position++]);
    };
    const number = () => {
      const found = this.readNumber(ids, position) ?? fail("a number");
      position = found[1];
      return found[0];
    };
    try {
      let found = null;
      if (word() === "none") position++;
      else {
        found = [];
        do found.push([number(), take("+", "-", "*", "/"), number(), (take("="), number())]);
        while (word() === "," && ++position);
      }
      take("end");
      return position === ids.length ? found : { position, reason: "text after the end" };
    } catch (fault) {
      if (fault.reason) return fault;
      throw fault;
    }
  }
}

/* What is wrong with one operation; null if nothing is. */
function fault([left, sign, right, result]) {
  if (sign === "/" && right === 0n) return "division by zero";
  if (sign === "/" && left % right) return "division is not exact";
  const value = { "+": left + right, "-": left - right, "*": left * right, "/": right && left / right }[sign];
  if (value < 0n) return "negative result";
  return value === result ? null : `result is ${value}`;
}

/* The strict verdict: "solved", or why not. Every number and every result is used once, and the last result is the
   target. */
function verify(numbers, target, operations) {
  const left = numbers.map(BigInt), known = new Set(left);
  let broken = null;
  for (const [place, operation] of operations.entries()) {
    const where = `operation ${place + 1}`, wrong = fault(operation), pair = [operation[0], operation[2]];
    if (wrong) return `${where}: ${wrong}`;
    if (!pair.every(value => known.has(value))) return `${where}: operand never seen`;
    const places = [left.indexOf(pair[0]), left.indexOf(pair[1], pair[0] === pair[1] ? left.indexOf(pair[0]) + 1 : 0)];
    if (places.includes(-1)) broken ??= `${where}: operand already used`;
    for (const at of places.filter(at => at >= 0).sort((a, b) => b - a)) left.splice(at, 1);
    left.push(operation[3]);
    known.add(operation[3]);
  }
  const last = operations.at(-1)[3];
  if (last !== BigInt(target)) return `last result is ${last}, not ${target}`;
  if (!broken && operations.length !== numbers.length - 1) broken = "numbers left over";
  return broken ?? "solved";
}

/* Operations as text that reach the target with all numbers and with no result above `most`; null if none do. */
function solve(numbers, target, most = Infinity) {
  if (numbers.length === 1) return numbers[0] === target ? [] : null;
  for (let i = 0; i < numbers.length; i++)
    for (let j = i + 1; j < numbers.length; j++) {
      const rest = numbers.filter((_, k) => k !== i && k !== j);
      const high = Math.max(numbers[i], numbers[j]), low = Math.min(numbers[i], numbers[j]);
      const results = { "+": high + low, "-": high - low, "*": high * low, "/": low ? high / low : NaN };
      for (const [sign, result] of Object.entries(results)) {
        if (!Number.isInteger(result) || result > most) continue;
        const found = solve([...rest, result], target, most);
        if (found) return [`${high} ${sign} ${low} = ${result}`, ...found];
      }
    }
  return null;
}
