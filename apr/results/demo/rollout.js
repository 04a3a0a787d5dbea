/* A tree of threads and how it proceeds, as apr/rollouts/orchestrator.py has it. All threads that can decode sample a
 * token at each step, so the steps of a rollout are its sequential tokens.
 */
const OUTRUN = "outrun by a sibling";

class Rollout {
  /* `limits`: window, tokens, children, depth. `request`: prompt, temperature, seed, id, join ("all" or "any").
     `open()` gives a thread its cache. */
  constructor(language, limits, request, open = () => null, close = () => {}) {
    Object.assign(this, { language, limits, request, open, close });
    this.threads = []; // in the order in which they were spawned
    this.live = []; // those that sample at the next step
    this.joining = []; // those whose children have all ended in this one
    this.steps = 0;
    this.start(this.begin(request.prompt, [], limits.tokens, null));
  }

  get done() { return !this.live.length; }

  get sampled() { return this.threads.reduce((sum, thread) => sum + thread.sampled, 0); }

  begin(prompt, path, budget, parent) {
    const thread = { prompt: prompt.length, ids: [...prompt], path, budget, parent, index: this.threads.length,
                     sampled: 0, handed: prompt.length, status: "running", reason: "", spawned: [], left: 0, returned: [],
                     until: parent?.until ?? Infinity, cached: 0, cache: null, end: this.steps,
                     parts: [{ start: this.steps, from: 0, read: prompt.length, children: [] }] };
    this.threads.push(thread);
    return thread;
  }

  start(thread) {
    if (thread.budget < 1) return this.finish(thread, "cancelled", "no tokens left to sample");
    if (thread.ids.length >= this.limits.window) return this.finish(thread, "truncated", "the prompt fills the window");
    if (this.steps >= thread.until) return this.finish(thread, "cancelled", OUTRUN);
    thread.key = seedOf(this.request.seed, this.request.id, thread.path);
    thread.cache = this.open();
    this.resume(thread);
  }

  resume(thread) {
    thread.status = "running";
    thread.handed = thread.ids.length;
    thread.limit = Math.min(this.limits.window, thread.ids.length + thread.budget);
    this.live.push(thread);
  }

  /* One step: `tokens` are what the live threads have sampled, in their order. */
  step(tokens) {
    this.steps++;
    const { run, end } = this.language, live = this.live;
    live.forEach((thread, i) => { thread.ids.push(tokens[i]); thread.sampled++; });
    const stops = thread => [run, end].includes(thread.ids.at(-1));
    const stopped = live.filter(thread => stops(thread) || thread.ids.length >= thread.limit);
    this.live = live.filter(thread => !stopped.includes(thread));
    for (const thread of stopped) this.stopped(thread, stops(thread));
    // What a sibling that has returned something leaves no further step; then who has no child left goes on.
    for (const thread of this.live.filter(thread => thread.until <= this.steps)) {
      this.live.splice(this.live.indexOf(thread), 1);
      this.stopped(thread, false);
    }
    while (this.joining.length) this.join(this.joining.shift());
    for (const thread of this.threads) if (["running", "waiting"].includes(thread.status)) thread.end = this.steps;
  }

  stopped(thread, atStop) {
    const { ids } = thread;
    thread.budget -= ids.length - thread.handed;
    if (!atStop) {
      if (thread.budget < 1) this.finish(thread, "truncated", "no tokens left");
      else if (ids.length >= this.limits.window) this.finish(thread, "truncated", "window full");
      else this.finish(thread, "cancelled", OUTRUN);
    } else if (ids.at(-1) === this.language.run) this.spawn(thread);
    else if (!thread.parent) this.finish(thread, "done");
    else {
      const returned = this.language.returned(ids);
      if (!Array.isArray(returned)) return this.malformed(thread, returned);
      thread.returned = returned;
      this.finish(thread, "done");
    }
  }

  malformed(thread, { position, reason }) { this.finish(thread, "malformed", `${reason} (token ${position})`); }

  spawn(thread) {
    const messages = this.language.messages(thread.ids), depth = thread.path.length;
    if (!Array.isArray(messages)) return this.malformed(thread, messages);
    if (depth >= this.limits.depth) return this.finish(thread, "malformed", `spawn at depth ${depth}`);
    if (messages.length > this.limits.children)
      return this.finish(thread, "malformed", `spawn of ${messages.length} children`);
    thread.status = "waiting";
    const share = Math.floor(thread.budget / messages.length);
    thread.budget -= share * messages.length;
    const first = thread.spawned.flat().length;
    const children = messages.map((message, place) =>
      this.begin(this.language.childPrompt(message), [...thread.path, first + place], share, thread));
    thread.spawned.push(children);
    thread.parts.at(-1).children = children.map(child => child.index);
    thread.left = children.length;
    for (const child of children) this.start(child);
  }

  finish(thread, status, reason = "") {
    Object.assign(thread, { status, reason, end: this.steps });
    if (thread.cache) this.close(thread.cache);
    thread.cache = null;
    const { parent } = thread, { nothing } = this.language;
    if (!parent) return;
    if (status !== "done") thread.returned = nothing;
    parent.budget += thread.budget;
    if (this.request.join === "any" && status === "done" && thread.returned.join() !== nothing.join())
      for (const sibling of parent.spawned.at(-1)) this.outrun(sibling);
    if (!--parent.left) this.joining.push(parent);
  }

  /* A thread, and all below it, have no step after this one. */
  outrun(thread) {
    thread.until = Math.min(thread.until, this.steps);
    for (const child of thread.spawned.flat()) this.outrun(child);
  }

  join(thread) {
    const joined = this.language.joined(thread.spawned.at(-1).map(child => child.returned));
    const from = thread.ids.length;
    if (this.steps >= thread.until) return this.finish(thread, "cancelled", OUTRUN);
    if (thread.budget < 1) return this.finish(thread, "truncated", "no tokens left");
    if (from + joined.length >= this.limits.window)
      return this.finish(thread, "truncated", "joined messages do not fit the window");
    thread.ids.push(...joined);
    thread.parts.push({ start: this.steps, from, read: joined.length, children: [] });
    this.resume(thread);
  }

  /* Status, answer and the strict verdict on the root. */
  judge(numbers, target) {
    const [{ status, reason, ids }] = this.threads;
    if (status !== "done") return { status, reason, solved: false, answer: null };
    const operations = this.language.answer(ids);
    if (operations === null) return { status, reason: "declares no solution", solved: false, answer: "none" };
    if (!Array.isArray(operations))
      return { status: "malformed", reason: operations.reason, solved: false, answer: null };
    const verdict = verify(numbers, target, operations);
    const answer = operations.map(([left, sign, right, result]) => `${left} ${sign} ${right} = ${result}`).join(", ");
    return { status, reason: verdict, solved: verdict === "solved", answer };
  }

  /* The rollout as the drawing takes it (apr/results/threads), finished or not. */
  entry(name, numbers, target) {
    const chain = [0], { language } = this;
    for (const index of chain)
      for (const { children } of this.threads[index].parts)
        if (children.length)
          chain.push(children.reduce((a, b) => (this.threads[b].end > this.threads[a].end ? b : a)));
    const threads = this.threads.map(thread => {
      const { ids, parts, status, reason, path, end, index } = thread;
      const pieces = parts.map(({ start, from, read, children }, place) => {
        const middle = from + read, until = parts[place + 1]?.from ?? ids.length;
        return [start, until - middle, language.decode(ids.slice(from, middle)),
                language.decode(ids.slice(middle, until)), children];
      });
      const returned = thread.parent && status === "done" ? thread.returned : language.nothing;
      return { parent: thread.parent?.index ?? -1, depth: path.length, status, reason, end, parts: pieces,
               critical: chain.includes(index), returned: language.decode(returned) };
    });
    return { name, note: "", ...this.judge(numbers, target), total: this.sampled, sequential: this.steps,
             children: threads.length - 1, threads };
  }
}

/* One step of all rollouts that are not done, on one model. */
function advance(model, rollouts) {
  const open = rollouts.filter(rollout => !rollout.done), live = open.flatMap(rollout => rollout.live);
  const logits = model.logits(live);
  let at = 0;
  for (const rollout of open) {
    const { temperature } = rollout.request;
    rollout.step(rollout.live.map(thread =>
      pick(logits[at++], temperature, temperature && uniform(thread.key, thread.ids.length))));
  }
}

/* A rollout on a model. */
const begin = (model, language, limits, request) =>
  new Rollout(language, limits, request, () => model.open(), cache => model.close(cache));
