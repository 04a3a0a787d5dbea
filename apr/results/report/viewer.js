"use strict";
const CASES = JSON.parse(document.getElementById("cases").textContent);
const [viewer, trees, panel, picker, note] =
  ["viewer", "trees", "thread", "problem", "note"].map(id => document.getElementById(id));
const LEFT = 46, RIGHT = 10, TOP = 14;
let current = 0, chosen = 0, threads = [];

const html = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const broken = /\s(?=(?::\d+|#\d+|spawn|joined|resume|join|answer|list|goto)(?:\s|$))/g;
const indent = (_, depth) => "  ".repeat(depth) + ":" + depth;
const lines = text => html(text.replace(broken, "\n").replace(/^:(\d+)/gm, indent));
const label = index => (index ? `child ${index}` : "root");
const spawns = thread => thread.parts.flatMap(part => part[4]);

function look(rollout, thread, index) {
  if (thread.status === "malformed") return "broken";
  if (thread.status !== "done") return "cut";
  return (index ? thread.returned !== "none" : rollout.solved) ? "found" : "";
}

/* Depth first: a child below its parent. */
function order(rollout) {
  const found = [];
  const visit = index => { found.push(index); spawns(rollout.threads[index]).forEach(visit); };
  visit(0);
  return found;
}

function tree(rollout, place, most, width) {
  const rows = order(rollout), height = rows.length > 60 ? 7 : 15, bar = height > 10 ? 9 : 5;
  const x = step => LEFT + (width - LEFT - RIGHT) * step / most;
  const y = Object.fromEntries(rows.map((index, row) => [index, TOP + height * (row + .5)]));
  const bottom = TOP + height * rows.length;
  let grid = "", edges = "", bars = "";
  const unit = 10 ** Math.floor(Math.log10(most));
  const tick = [.1, .2, .5, 1, 2].map(n => Math.max(1, Math.round(n * unit))).find(n => most / n <= 9);
  for (let step = 0; step <= most; step += tick)
    grid += `<path class="grid" d="M${x(step)} ${TOP}V${bottom}"/>`
      + `<text x="${x(step)}" y="10" text-anchor="middle">${step}</text>`;
  rows.forEach(index => {
    const thread = rollout.threads[index];
    let marks = "", end = 0;
    thread.parts.forEach(([start, sampled, , , children], part) => {
      if (part) edges += `<path class="wait" d="M${x(end)} ${y[index]}H${x(start)}"/>`;
      end = start + sampled;
      if (sampled) {
        const wide = Math.max(1, x(end) - x(start));
        marks += `<rect class="bar ${look(rollout, thread, index)}" x="${x(start)}" y="${y[index] - bar / 2}"`
          + ` width="${wide}" height="${bar}"/>`;
        if (thread.critical)
          marks += `<path class="under" d="M${x(start)} ${y[index] + bar / 2 + 1}h${wide}"/>`;
      }
      if (!children.length) return;
      const resumed = thread.parts[part + 1] ? thread.parts[part + 1][0] : thread.end;
      for (const child of [...children].sort((a, b) => rollout.threads[a].critical - rollout.threads[b].critical)) {
        const kind = rollout.threads[child].critical ? " critical" : "", done = rollout.threads[child].end;
        edges += `<path class="edge${kind}" d="M${x(end)} ${y[index]}V${y[child]}"/>`
          + `<path class="wait${kind}" d="M${x(done)} ${y[child]}H${x(resumed)}"/>`
          + `<path class="edge${kind}" d="M${x(resumed)} ${y[child]}V${y[index]}"/>`;
      }
    });
    const at = `x="${LEFT - 6}" y="${y[index] + 3.5}"`;
    const name = height > 10 ? `<text ${at} text-anchor="end">${label(index)}</text>` : "";
    bars += `<g class="row" data-thread="${index}" data-rollout="${place}">`
      + `<title>${label(index)}: ${html(thread.status)}, step ${thread.parts[0][0]} to ${thread.end}</title>`
      + `<rect class="hit" y="${y[index] - height / 2}" width="${width}" height="${height}"/>${name}${marks}</g>`;
  });
  const verdict = rollout.solved ? '<b class="good">solved</b>' : `<b class="bad">${html(rollout.reason)}</b>`;
  return `<h4>${html(rollout.name)} <span>${verdict} · ${rollout.children} children · ${rollout.total} tokens, `
    + `${rollout.sequential} of them sequential${rollout.note ? " · " + html(rollout.note) : ""}</span></h4>`
    + `<svg viewBox="0 0 ${width} ${bottom + 2}">${grid}${bars}<g pointer-events="none">${edges}</g></svg>`;
}

function draw() {
  const shown = CASES[current];
  const most = Math.max(1, ...shown.rollouts.map(rollout => rollout.sequential));
  const width = Math.max(320, Math.floor(trees.clientWidth - 26));
  threads = shown.rollouts.flatMap((rollout, place) => order(rollout).map(index => ({ rollout, place, index })));
  trees.innerHTML = shown.rollouts.map((rollout, place) => tree(rollout, place, most, width)).join("");
  note.textContent = shown.note;
  picker.value = current;
  choose(Math.min(chosen, threads.length - 1));
}

function choose(place) {
  chosen = place;
  const { rollout, place: tree, index } = threads[place], thread = rollout.threads[index];
  trees.querySelector(".chosen")?.classList.remove("chosen");
  const row = trees.querySelector(`[data-rollout="${tree}"][data-thread="${index}"]`);
  row.classList.add("chosen");
  const sampled = thread.parts.reduce((sum, part) => sum + part[1], 0);
  const facts = [
    ["thread", `${label(index)} of ${rollout.name}${index ? `, spawned by ${label(thread.parent)}` : ""}`],
    ["status", thread.status + (thread.reason ? `: ${thread.reason}` : "")],
    ["steps", `${thread.parts[0][0]} to ${thread.end}, ${sampled} tokens sampled`
      + (thread.critical ? ", on the critical path" : "")],
    ["was told", thread.parts[0][2]],
  ];
  if (index) facts.push(["returned", thread.returned]);
  else facts.push(["answered", rollout.answer ?? "nothing"], ["verdict", rollout.solved ? "solved" : rollout.reason]);
  const text = thread.parts.map(([, , read, written]) =>
    (read ? `<span class="injected">${lines(read)}</span>\n` : "") + lines(written)).join("\n");
  panel.innerHTML = `<dl>${facts.map(([name, value]) => `<dt>${name}</dt><dd>${html(value)}</dd>`).join("")}</dl>`
    + `<p><span class="injected">injected</span>, sampled:</p><div class="tokens">${text}</div>`;
}

function show(place) {
  current = (place + CASES.length) % CASES.length;
  chosen = 0;
  draw();
}

function walk(step) {
  choose(Math.max(0, Math.min(threads.length - 1, chosen + step)));
  reveal();
}

function to(index) {
  const place = threads.findIndex(entry => entry.rollout === threads[chosen].rollout && entry.index === index);
  if (place >= 0) { choose(place); reveal(); }
}

const reveal = () => trees.querySelector(".chosen").scrollIntoView({ block: "nearest", behavior: "instant" });
const KEYS = {
  j: () => show(current + 1),
  k: () => show(current - 1),
  ArrowDown: () => walk(1),
  ArrowUp: () => walk(-1),
  ArrowLeft: () => to(threads[chosen].rollout.threads[threads[chosen].index].parent),
  ArrowRight: () => to(spawns(threads[chosen].rollout.threads[threads[chosen].index])[0]),
  c: () => {
    const { rollout } = threads[chosen];
    const path = threads.filter(entry => entry.rollout === rollout && rollout.threads[entry.index].critical);
    const place = path.indexOf(threads[chosen]);
    to(path[(place + 1) % path.length].index);
  },
  Enter: () => panel.focus(),
  Escape: () => viewer.focus(),
};

if (CASES.length) {
  const groups = [...new Set(CASES.map(shown => shown.group))];
  const option = (shown, place) => `<option value="${place}">${html(shown.title)}</option>`;
  picker.innerHTML = groups.map(group => `<optgroup label="${html(group)}">`
    + CASES.map((shown, place) => (shown.group === group ? option(shown, place) : "")).join("")
    + "</optgroup>").join("");
  picker.addEventListener("change", () => show(Number(picker.value)));
  document.getElementById("previous").addEventListener("click", KEYS.k);
  document.getElementById("next").addEventListener("click", KEYS.j);
  trees.addEventListener("click", event => {
    const row = event.target.closest(".row");
    if (!row) return;
    const [place, index] = [Number(row.dataset.rollout), Number(row.dataset.thread)];
    choose(threads.findIndex(entry => entry.place === place && entry.index === index));
    viewer.focus({ preventScroll: true });
  });
  viewer.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    if (event.target === picker && event.key !== "Escape") return;
    if (document.activeElement === panel && event.key.startsWith("Arrow")) return;
    if (event.target.tagName === "BUTTON" && event.key === "Enter") return;
    event.preventDefault();
    KEYS[event.key]();
  });
  addEventListener("resize", draw);
  draw();
} else {
  viewer.textContent = "No rollouts to show.";
}
