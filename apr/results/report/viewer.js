const CASES = JSON.parse(document.getElementById("cases").textContent);
const [viewer, trees, panel, picker, note] =
  ["viewer", "trees", "thread", "problem", "note"].map(id => document.getElementById(id));
let current = 0, chosen = 0, threads = [];

function tree(rollout, place, most, width) {
  const verdict = rollout.solved ? '<b class="good">solved</b>' : `<b class="bad">${html(rollout.reason)}</b>`;
  return `<h4>${html(rollout.name)} <span>${verdict} · ${rollout.children} children · ${rollout.total} tokens, `
    + `${rollout.sequential} of them sequential${rollout.note ? " · " + html(rollout.note) : ""}</span></h4>`
    + threadRows(rollout, place, most, width);
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
  const { rollout, place: tree, index } = threads[place];
  chooseRow(trees, tree, index);
  panel.innerHTML = threadText(rollout, index);
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
