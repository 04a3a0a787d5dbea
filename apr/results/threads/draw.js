/* Draws thread trees, and says what a thread was told, has written and has returned. A rollout is as
 * `rollout_entry` in __init__.py makes it; one that still decodes has threads that are "running" or "waiting".
 */
const LEFT = 46, RIGHT = 10, TOP = 14;

const html = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const broken = /\s(?=(?::\d+|#\d+|spawn|joined|resume|join|answer|list|goto)(?:\s|$))/g;
const indent = (_, depth) => "  ".repeat(Math.min(depth, 9)) + ":" + depth; // a model may write any number
const lines = text => html(text.replace(broken, "\n").replace(/^:(\d+)/gm, indent));
const label = index => (index ? `child ${index}` : "root");
const spawns = thread => thread.parts.flatMap(part => part[4]);

function look(rollout, thread, index) {
  if (["running", "waiting"].includes(thread.status)) return "open";
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

/* The threads as SVG, a row each, over `most` steps in `width` pixels. Rows are named by the rollout's `place`. */
function threadRows(rollout, place, most, width, tall = 15) {
  const rows = order(rollout), height = rows.length > 60 ? 7 : tall, bar = height > 10 ? Math.round(.6 * height) : 5;
  const x = step => LEFT + (width - LEFT - RIGHT) * step / most;
  const y = Object.fromEntries(rows.map((index, row) => [index, TOP + height * (row + .5)]));
  const bottom = TOP + height * rows.length;
  let grid = "", edges = "", bars = "";
  const unit = 10 ** Math.floor(Math.log10(most));
  const tick = [.1, .2, .5, 1, 2].map(n => Math.max(1, Math.round(n * unit)))
    .find(n => most / n <= Math.min(9, width / 42));
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
        const { critical, end: done, status } = rollout.threads[child], kind = critical ? " critical" : "";
        edges += `<path class="edge${kind}" d="M${x(end)} ${y[index]}V${y[child]}"/>`;
        if (look(rollout, { status }) === "open") continue;
        edges += `<path class="wait${kind}" d="M${x(done)} ${y[child]}H${x(resumed)}"/>`;
        if (thread.status !== "waiting" || thread.parts[part + 1])
          edges += `<path class="edge${kind}" d="M${x(resumed)} ${y[child]}V${y[index]}"/>`;
      }
    });
    const at = `x="${LEFT - 6}" y="${y[index] + 3.5}"`;
    const name = height > 10 ? `<text ${at} text-anchor="end">${label(index)}</text>` : "";
    const said = `${label(index)}: ${html(thread.status)}, step ${thread.parts[0][0]} to ${thread.end}`;
    bars += `<g class="row" id="row-${place}-${index}" data-thread="${index}" data-rollout="${place}" role="option"`
      + ` aria-selected="false" aria-label="${said}"><title>${said}</title>`
      + `<rect class="hit" y="${y[index] - height / 2}" width="${width}" height="${height}"/>${name}${marks}</g>`;
  });
  return `<svg viewBox="0 0 ${width} ${bottom + 2}" role="presentation">${grid}${bars}`
    + `<g pointer-events="none">${edges}</g></svg>`;
}

/* Marks a row of a drawing in `place` as chosen, and no other. */
function chooseRow(trees, place, index) {
  for (const row of trees.querySelectorAll(".chosen")) {
    row.classList.remove("chosen");
    row.setAttribute("aria-selected", "false");
  }
  const row = trees.querySelector(`#row-${place}-${index}`);
  row?.classList.add("chosen");
  row?.setAttribute("aria-selected", "true");
  return row;
}

/* What there is to say of a thread, as HTML: facts, and its text. */
function threadText(rollout, index) {
  const thread = rollout.threads[index], sampled = thread.parts.reduce((sum, part) => sum + part[1], 0);
  const facts = [
    ["thread", `${label(index)} of ${rollout.name}${index ? `, spawned by ${label(thread.parent)}` : ""}`],
    ["status", thread.status + (thread.reason ? `: ${thread.reason}` : "")],
    ["steps", `${thread.parts[0][0]} to ${thread.end}, ${sampled} tokens sampled`
      + (thread.critical ? ", on the critical path" : "")],
    ["was told", thread.parts[0][2]],
  ];
  if (index) facts.push(["returned", thread.returned]);
  else if (look(rollout, thread, index) !== "open") facts.push(["answered", rollout.answer ?? "nothing"], ["verdict", rollout.solved ? "solved" : rollout.reason]);
  const text = thread.parts.map(([, , read, written]) =>
    (read ? `<span class="injected">${lines(read)}</span>\n` : "") + lines(written)).join("\n");
  return `<dl>${facts.map(([name, value]) => `<dt>${name}</dt><dd>${html(value)}</dd>`).join("")}</dl>`
    + `<p><span class="injected">injected</span>, sampled:</p><div class="tokens">${text}</div>`;
}
