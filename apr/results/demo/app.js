/* The page: reads a problem, lets both models decode it step by step, shows their threads. */
const SETUP = JSON.parse(document.getElementById("setup").textContent);
const FASTEST = 1e9, PACES = [2, 5, 10, 20, 40, 80, 160, FASTEST]; // steps a second
const BUSY = 30; // milliseconds of decoding before the page is drawn again
const PICTURES = matchMedia("(prefers-reduced-motion: reduce)").matches ? 600 : 0; // milliseconds between two pictures
const NARROW = 820; // pixels, as in page.css
const at = id => document.getElementById(id);
const [form, trees, panel, events] = ["form", "trees", "thread", "events"].map(at);
const boxes = [...document.querySelectorAll(".number")];

const language = new Language(SETUP.words, SETUP.numbers);
const lanes = [...document.querySelectorAll(".lane")].map(element => ({
  element, name: element.querySelector("h2").textContent, drawing: element.querySelector(".drawing"), rollout: null, milliseconds: 0,
  model: new Model(SETUP.models[element.id], bytesOf(at(`weights-${element.id}`).textContent)),
}));
let problem = null, playing = false, chosen = { place: 0, index: 0 }, owed = 0, before = 0, drawn = 0;

/* The whole number that somebody has written; throws a sentence if it is none. */
function natural(text, what) {
  if (!/^[0-9]{1,9}$/.test(text))
    throw `${what} is “${text.slice(0, 20)}”: please give a whole number from 0 on, of at most nine digits.`;
  return Number(text);
}

/* Problem and settings as they stand in the form; throws a sentence if they are no problem. */
function read() {
  const given = boxes.map(box => box.value.trim()).filter(Boolean);
  if (given.length < 2) throw "A problem has at least two numbers.";
  const numbers = given.map(text => natural(text, "A number"));
  if (!at("target").value.trim()) throw "A problem needs a target.";
  const target = natural(at("target").value.trim(), "The target"), seed = at("seed").value.trim();
  if (!/^[0-9]{1,19}$/.test(seed) || BigInt(seed) >= 1n << 63n) throw "The seed is a whole number from 0 on, below 2^63.";
  const children = at("children").value;
  return { numbers, target, children: children === "" ? null : Number(children), join: at("join").value,
           temperature: Number(at("temperature").value), seed: BigInt(seed) };
}

/* What to know of a problem before it is decoded. */
function remarkOn({ numbers, target }) {
  const { number_range: [low, high], target_range: [least, most], max_value: bound } = SETUP.problems;
  if (!solve(numbers, target)) return "This problem has no solution, so neither model can find one.";
  if (bound !== null && !solve(numbers, target, bound))
    return `Every solution goes through a result above ${bound}, which the models have not learnt to use.`;
  if (numbers.some(number => number < low || number > high) || target < least || target > most
      || numbers.length < SETUP.problems.numbers)
    return `The models have learnt ${SETUP.problems.numbers} numbers from ${low} to ${high} and targets from ${least} to `
      + `${most}; this problem is another kind.`;
  return "";
}

/* A problem that has a solution, drawn as those were that the models have learnt from. */
function drawProblem() {
  const { numbers: count, number_range: range, target_range: targets, max_value: bound } = SETUP.problems;
  const between = ([low, high]) => low + Math.floor(Math.random() * (high - low + 1));
  for (;;) {
    const numbers = Array.from({ length: count }, () => between(range)).sort((a, b) => a - b), target = between(targets);
    if (solve(numbers, target, bound ?? Infinity)) return { numbers, target };
  }
}

function fill({ numbers, target }) {
  boxes.forEach((box, place) => { box.value = numbers[place] ?? ""; });
  at("target").value = target;
}

function start() {
  try {
    problem = read();
    const { numbers, target, children, temperature, seed, join } = problem;
    const prompts = [children, null].map(asked => language.prompt(numbers, target, asked));
    if (prompts[0].length >= SETUP.limits.window) throw "These numbers are too long for the models.";
    lanes.forEach((lane, place) => {
      const request = { prompt: prompts[place], temperature, seed, id: "solve/0", join };
      lane.rollout?.live.forEach(thread => lane.model.close(thread.cache));
      lane.rollout = begin(lane.model, language, SETUP.limits, request);
      lane.milliseconds = 0;
    });
  } catch (sentence) {
    if (typeof sentence !== "string") throw sentence;
    at("error").textContent = sentence;
    return false;
  }
  at("error").textContent = "";
  at("remark").textContent = remarkOn(problem);
  events.textContent = "";
  chosen = { place: 0, index: 0 };
  play(true);
  if (innerWidth <= NARROW) at("pause").scrollIntoView({ block: "start" });
  return true;
}

function play(on) {
  playing = on && lanes.some(lane => !lane.rollout.done);
  before = performance.now();
  owed = 1;
  show();
  if (playing) requestAnimationFrame(tick);
}

/* One step of both models. */
function stepAll() {
  for (const lane of lanes) {
    if (lane.rollout.done) continue;
    const { threads } = lane.rollout, count = threads.length;
    const begun = performance.now();
    advance(lane.model, [lane.rollout]);
    lane.milliseconds += performance.now() - begun;
    if (threads.length > count) say(`${lane.name} spawns ${threads.length - count} children`);
    for (const thread of threads.slice(1)) if (ended(thread)) announce(lane, thread);
    if (lane.rollout.done) say(`${lane.name}: ${verdict(lane)} after ${lane.rollout.steps} steps`);
  }
}

const ended = thread => !["running", "waiting"].includes(thread.status);
const verdict = ({ rollout }) => {
  const { solved, reason } = rollout.judge(problem.numbers, problem.target);
  return solved ? "solved" : `not solved: ${reason}`;
};

function announce(lane, thread) {
  if (thread.announced) return;
  thread.announced = true;
  const text = thread.status === "done" ? language.decode(thread.returned) : thread.status;
  if (text !== "none") say(`${lane.name}: ${label(thread.index)} returns ${text}`);
}

function say(text) {
  const line = document.createElement("p");
  line.textContent = text;
  events.append(line);
}

function tick(now) {
  if (!playing) return;
  const passed = Math.max(0, now - before); // a frame may be dated before the click that asked for it
  owed = Math.min(owed + passed / 1000 * PACES[at("speed").value], 1000);
  before = now;
  const until = performance.now() + BUSY;
  while (owed >= 1 && lanes.some(lane => !lane.rollout.done)) {
    stepAll();
    owed--;
    if (performance.now() > until) { owed = Math.min(owed, 1); break; }
  }
  if (lanes.every(lane => lane.rollout.done)) playing = false;
  if (!playing || now - drawn >= PICTURES) { drawn = now; show(); }
  if (playing) requestAnimationFrame(tick);
}

/* Steps that the drawings have room for: more at a time, so that they do not move at every step. */
function room() {
  const most = Math.max(...lanes.map(({ rollout }) => rollout.steps), 1);
  if (lanes.every(({ rollout }) => rollout.done)) return most;
  return [40, 80, 120, 160, 240, 320, 480, 640].find(size => size >= most) ?? Math.ceil(most / 500) * 500;
}

function show() {
  const entries = lanes.map(({ rollout, name }) => rollout.entry(name, problem.numbers, problem.target)), most = room();
  const coarse = matchMedia(`(pointer: coarse), (max-width: ${NARROW}px)`).matches;
  lanes.forEach((lane, place) => {
    const { element, drawing, rollout, milliseconds } = lane, entry = entries[place];
    const width = Math.max(260, drawing.clientWidth), threads = entry.threads.length;
    drawing.innerHTML = threadRows(entry, place, most, width, coarse ? 20 : 17);
    element.querySelector(".counts").innerHTML =
      [["steps", rollout.steps], ["tokens", entry.total], [threads > 1 ? "threads" : "thread", threads],
       ["ms", Math.round(milliseconds)]].map(([unit, count]) => `<span><b>${count}</b> ${unit}</span>`).join("");
    const chip = element.querySelector(".verdict");
    chip.className = `verdict ${rollout.done ? (entry.solved ? "good" : "bad") : ""}`;
    chip.textContent = rollout.done ? verdict(lane) : `${rollout.live.length} decoding`;
    element.querySelector(".answer").textContent = rollout.done ? entry.answer ?? "no answer" : "";
  });
  choose(chosen.place, chosen.index, entries[chosen.place]);
  at("pause").disabled = lanes.every(({ rollout }) => rollout.done);
  at("step").disabled = at("pause").disabled;
  at("pause").textContent = playing || at("pause").disabled ? "Pause" : "Go on";
}

const entryOf = place => lanes[place].rollout.entry(lanes[place].name, problem.numbers, problem.target);

function choose(place, index, entry = entryOf(place)) {
  chosen = { place, index };
  const row = chooseRow(trees, place, index);
  lanes.forEach(({ drawing }, i) => drawing.setAttribute("aria-activedescendant", i === place ? row.id : `row-${i}-0`));
  const below = panel.scrollHeight - panel.scrollTop - panel.clientHeight < 4;
  panel.innerHTML = threadText(entry, index);
  if (below && playing) panel.scrollTop = panel.scrollHeight;
  return row;
}

function stepOnce() {
  if (!problem && !start()) return;
  playing = false;
  stepAll();
  show();
}

/* Moves along the rows of both drawings. */
function walk(by) {
  const rows = lanes.flatMap((_, place) => order(entryOf(place)).map(index => ({ place, index })));
  const here = rows.findIndex(row => row.place === chosen.place && row.index === chosen.index);
  const { place, index } = rows[Math.max(0, Math.min(rows.length - 1, here + by))];
  go(place, index);
}

function go(place, index) {
  choose(place, index).scrollIntoView({ block: "nearest" });
  lanes[place].drawing.focus({ preventScroll: true });
}

const to = index => { if (index >= 0) go(chosen.place, index); };
const KEYS = {
  ArrowDown: () => walk(1),
  ArrowUp: () => walk(-1),
  ArrowLeft: () => to(entryOf(chosen.place).threads[chosen.index].parent),
  ArrowRight: () => to(spawns(entryOf(chosen.place).threads[chosen.index])[0] ?? -1),
  " ": () => play(!playing),
  ".": stepOnce,
  Enter: () => panel.focus(),
};

form.addEventListener("submit", event => { event.preventDefault(); start(); });
at("random").addEventListener("click", () => { fill(drawProblem()); start(); });
at("pause").addEventListener("click", () => play(!playing));
at("step").addEventListener("click", stepOnce);
at("speed").addEventListener("input", pace);
trees.addEventListener("click", event => {
  const row = event.target.closest(".row");
  if (row) choose(Number(row.dataset.rollout), Number(row.dataset.thread));
});
trees.addEventListener("focusin", event => {
  const place = lanes.findIndex(({ drawing }) => drawing === event.target);
  if (problem && place !== chosen.place) choose(place, 0);
});
trees.addEventListener("keydown", event => {
  if (!problem || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
panel.addEventListener("keydown", event => { if (event.key === "Escape") lanes[chosen.place].drawing.focus(); });
// "3 5 9 12 -> 27", pasted into a box, fills them all.
form.addEventListener("paste", event => {
  const found = event.clipboardData.getData("text").match(/^\s*(\d+(?:[\s,]+\d+)+)\s*(?:->|→|=)\s*(\d+)\s*$/);
  const numbers = found?.[1].split(/[\s,]+/) ?? [];
  if (!found || numbers.length > boxes.length) return;
  event.preventDefault();
  fill({ numbers, target: found[2] });
});
addEventListener("resize", () => { if (problem) show(); });

function pace() {
  const steps = PACES[at("speed").value];
  at("pace").textContent = steps === FASTEST ? "as fast as it goes" : `${steps} steps/s`;
}

at("settings").open = innerWidth > NARROW;
pace();
fill({ numbers: [3, 5, 9, 12].slice(0, boxes.length), target: 27 });
