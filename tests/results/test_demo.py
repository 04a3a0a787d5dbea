"""The demo in a browser: it decodes what the engine decodes, by keyboard and on a telephone too."""

import json
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from apr.cli.publish import PARALLEL, SERIAL, own_params
from apr.core.errors import CheckpointError
from apr.core.seeds import derive_seed
from apr.engine.interface import Segment
from apr.engine.scheduler import uniforms
from apr.engine.slots import open_engine
from apr.language import Condition
from apr.language.tokenizer import load_language
from apr.results.demo import make_demo
from apr.results.demo.page import in_bits, quantised
from apr.results.threads import rollout_entry
from apr.rollouts.decoding import orchestrate
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.rollout import Limits, Request, Rollout, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks import make_tokenizer, open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.solvable import solvable
from apr.tasks.problems import draw_problems
from apr.training.checkpoint import new_model, save_checkpoint
from tests.chromium import CHROMIUM, open_browser
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium; on Debian: apt-get install chromium")
MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def untrained(params, tmp_path_factory):
    """Llama and Qwen3 with random weights that are large enough to make up their mind about a next token."""
    root = tmp_path_factory.mktemp("untrained")
    make_tokenizer(params, root / "tokenizer")
    vocabulary, window = open_task(params).language.vocabulary, params.grammar.window
    qwen = Qwen3Config(
        vocab_size=vocabulary.size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=window,
        tie_word_embeddings=False, pad_token_id=vocabulary.pad, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    models = {"llama": new_model(params.model, vocabulary.size, vocabulary.pad, window, 1),
              "qwen": Qwen3ForCausalLM(qwen)}  # fmt: skip
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 4
            else:
                parameter.data += 0.1 * torch.rand_like(parameter)
        save_checkpoint(model, root / "tokenizer", root / name)
    return root


@pytest.fixture(scope="module")
def demo(params, untrained):
    make_demo(params, untrained / "llama", untrained / "qwen", untrained / "demo.html")
    return untrained / "demo.html"


@pytest.fixture
def page(browser, demo):
    browser.complaints.clear()
    browser.open(demo)
    yield browser
    assert browser.complaints == []


def decoded_by_engine(params, checkpoint, requests):
    """The ids of all threads of each rollout."""
    language = load_language(checkpoint)
    engine = open_engine(params.engine, params.grammar.window, language.syntax.stop_ids, checkpoint)
    rollouts = orchestrate(params, language, engine).run(requests)
    return [[thread.ids for thread in rollout.threads] for rollout in rollouts]


DECODE = """(() => {
  const model = lanes[%d].model, rollouts = %s.map(({ prompt, temperature, seed, join }) => begin(
    model, language, SETUP.limits, { prompt, temperature, seed: BigInt(seed), id: "solve/0", join }));
  while (!rollouts.every(rollout => rollout.done)) advance(model, rollouts);
  return rollouts.map(({ threads }) => threads.map(({ ids }) => ids));
})()"""


def decoded_by_page(browser, lane, requests):
    """The same by the page that is open, twenty rollouts at a time."""
    asked = [request._asdict() | {"seed": str(request.seed)} for request in requests]
    return [ids for start in range(0, len(asked), 20)
            for ids in browser.run(DECODE % (lane, json.dumps(asked[start : start + 20])))]


def requests_of(task, count, temperature=0.0, join="all", children=None):
    condition = None if children is None else Condition("children", children)
    return [Request("solve/0", task.prompt(problem, condition), temperature, 7, join)
            for _, problem in islice(draw_problems(task), count)]


@pytest.mark.parametrize("lane, model", enumerate(("llama", "qwen")))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_untrained_models_decode_as_in_the_engine(page, params, untrained, lane, model, temperature):
    requests = requests_of(open_task(params), 10, temperature)
    wanted = decoded_by_engine(params, untrained / model, requests)
    assert len({tuple(ids) for (ids,) in wanted}) == 10 and sum(len(ids) for (ids,) in wanted) > 300
    assert decoded_by_page(page, lane, requests) == wanted


def test_the_pipeline_makes_the_page(made, browser):
    browser.complaints.clear()
    browser.open(made.path / "data/demo.html")
    browser.run("at('speed').value = 7; start()")
    finish(browser)
    assert browser.run("lanes.every(lane => lane.rollout.sampled > 0)") and browser.complaints == []


@pytest.mark.skipif(not MODELS.is_dir(), reason="no trained models in models/")
@pytest.mark.parametrize("lane, model", enumerate((PARALLEL, SERIAL)))
def test_all_tokens_of_two_hundred_problems_are_the_engines(browser, tmp_path, lane, model):
    params = own_params(MODELS / model)
    make_demo(params, MODELS / PARALLEL, MODELS / SERIAL, tmp_path / "demo.html")
    browser.open(tmp_path / "demo.html")
    task = open_task(params)
    more = [(20, {"temperature": 1.0})] + [(20, {"children": 10, "join": "any"})] * (model == PARALLEL)
    for count, asked in [(200, {}), *more]:
        requests = requests_of(task, count, **asked)
        wanted = decoded_by_engine(params, MODELS / model, requests)
        assert decoded_by_page(browser, lane, requests) == wanted, asked


SPAWNS = ["spawn #2 27 :1 3 #1 27 run", "spawn 27 :1 #2 3 #1 5 run", "spawn #1 27 5 run",
          "spawn #3 1 #2 2 #1 3 run"]
ROOT = [*SPAWNS * 4, *["answer 3 + 4 = 7 end"] * 3, "answer none end", "answer 3 * 9 = 27 , 27 + 5 end",
        "end", "run", "spawn run", "spawn #2 5 run", "spawn #1 run", "spawn #2 3 #2 3 run", "spawn 3 run",
        "spawn 3 #1 run", "spawn 3 go #1 4 run", "spawn #1 go run"]  # fmt: skip
CHILD = [*["join 3 + 4 = 7 end", "join none end"] * 4, "join 7 end", "end", "join end", "join go 3 end",
         *SPAWNS]  # fmt: skip
FILLING = "list", "27", ":1 3 + 4 = 7", "12345"


class Streams:
    """A decoder whose threads read aloud from streams of random words, a stream for each path."""

    capacity = 4

    def __init__(self, language, seed):
        self.language, self.random, self.streams = language, random.Random(seed), {}
        self.texts, self.limits = {}, {}

    def stream(self, path):
        if path not in self.streams:
            words, ends = [], CHILD if path else ROOT
            for _ in range(12):
                words += self.random.choices(FILLING, k=self.random.randint(0, 9))
                words.append(self.random.choice(ends))
            self.streams[path] = self.language.vocabulary.encode(" ".join(words))
        return self.streams[path]

    def open(self, live, prompt, sampling, limit, rank=0):
        self.texts[live], self.limits[live] = [len(prompt), 0], limit

    def extend(self, live, ids, limit):
        self.texts[live][0] += len(ids)
        self.limits[live] = limit

    def shorten(self, live, limit):
        if live in self.limits:
            self.limits[live] = min(limit, self.limits[live])

    def close(self, live):
        self.limits.pop(live, None)

    def step(self):
        live = self.random.choice(list(self.limits))
        (length, at), limit = self.texts[live], self.limits.pop(live)
        new = []
        for token in self.stream(live.path)[at : at + limit - length]:
            new.append(token)
            if token in self.language.syntax.stop_ids:
                break
        self.texts[live] = [length + len(new), at + len(new)]
        reason = "stop" if new[-1] in self.language.syntax.stop_ids else "length"
        return [(live, Segment(new, [0.0] * len(new), reason))]


READ = """(({ streams, limits, prompt, join, numbers, target }) => {
  const rollout = new Rollout(language, limits, { prompt, temperature: 0, seed: 0n, id: "p", join });
  while (!rollout.done) rollout.step(rollout.live.map(({ path, sampled }) => streams[path.join()][sampled]));
  return rollout.entry("n", numbers, target);
})(%s)"""


def level_by_level(entry):
    """The threads in the order of a rollout; the page has them as they were spawned."""
    threads, order = entry["threads"], [0]
    for index in order:
        order += [child for *_, children in threads[index]["parts"] for child in children]
    place = {index: number for number, index in enumerate(order)} | {-1: -1}
    assert len(place) == len(threads) + 1
    return entry | {"threads": [
        threads[index] | {"parent": place[threads[index]["parent"]],
                          "parts": [[*part, [place[child] for child in children]]
                                    for *part, children in threads[index]["parts"]]}
        for index in order
    ]}  # fmt: skip


@pytest.mark.parametrize("join", ["all", "any"])
def test_spawns_joins_and_verdicts_are_the_orchestrators(page, params, join):
    """Random threads, whatever becomes of them; the page decodes them in step, here one runs ahead."""
    task = open_task(params)
    statuses, solved, deepest = Counter(), 0, 0
    for seed in range(150):
        decoder, problem = Streams(task.language, seed), Problem("p", (3, 4), 7)
        limits = Limits(window=[40, 64, 128][seed % 3], max_tokens=[60, 200][seed % 2],
                        max_children=2 + seed % 2, max_depth=1 + seed // 3 % 3)  # fmt: skip
        request = Request("p", task.prompt(problem), 0.0, 0, join)
        (rollout,) = Orchestrator(decoder, task.language.syntax, limits).run([request])
        wanted = json.loads(json.dumps(rollout_entry(task, problem, rollout, "n")))
        given = {"streams": {",".join(map(str, path)): ids for path, ids in decoder.streams.items()},
                 "limits": dict(zip(("window", "tokens", "children", "depth"), limits, strict=True)),
                 "prompt": request.prompt, "join": join, "numbers": problem.numbers, "target": 7}  # fmt: skip
        shown = level_by_level(page.run(READ % json.dumps(given)))
        assert {key: shown[key] for key in wanted} == wanted, f"seed {seed}"
        statuses.update(thread["status"] for thread in wanted["threads"])
        solved += wanted["solved"]
        deepest = max(deepest, rollout.usage.depth)
    assert min(statuses[name] for name in ("done", "malformed", "truncated")) > 20 and solved > 3
    assert join == "all" or statuses["cancelled"] > 5
    assert deepest == 3


def test_answers_are_judged_as_the_verifier_judges(page, params):
    task = open_task(params)
    rng, texts = random.Random(5), []
    for _ in range(400):
        operations = []
        for _ in range(rng.randint(1, 3)):
            left, right, sign = rng.choice([0, 3, 3, 5, 9]), rng.choice([0, 3, 5, 15]), rng.choice("+-*/")
            value = {"+": left + right, "-": left - right, "*": left * right, "/": left // (right or 1)}[sign]
            operations.append(f"{left} {sign} {right} = {max(0, value + rng.choice([0, 0, 0, 0, 1]))}")
        texts.append(f"answer {' , '.join(operations)} end")
    texts += ["answer none end", "none end", "answer 3 + 5 end", "answer 3 + 5 = 8 none end", "answer end",
              "answer 3", "answer 3 + 5 = 8 , end", "answer none none end", "answer 3 = 5 = 8 end",
              "answer 3 + 5 = 8 , 8 + 9 = 17 end", "answer 9 / 3 = 3 , 3 * 5 = 15 end",
              f"answer {'9' * 120} end"]  # fmt: skip
    problem, wanted, all_ids = Problem("p", (3, 5, 9), 15), [], []
    for text in texts:
        ids = task.language.vocabulary.encode(text)
        thread = Thread(0, -1, 0, 0, ids, [True] * len(ids), [], Status.DONE)
        said = judge(task, problem, Rollout("p", [thread]))
        wanted.append([said.status, said.answer, said.strict, said.reason])
        all_ids.append(ids)
    shown = page.run(f"""{json.dumps(all_ids)}.map(ids => {{
      const rollout = {{ threads: [{{ status: "done", reason: "", ids }}], language }};
      const said = Rollout.prototype.judge.call(rollout, [3, 5, 9], 15);
      return [said.status, said.answer, said.solved, said.reason];
    }})""")
    assert shown == wanted
    assert len({reason for *_, reason in wanted}) > 20 and any(solved for _, _, solved, _ in wanted)


def test_noise_and_numbers_are_the_engines(page, params):
    places = [(0,), (0, 3), (2**63 - 1, 12, 4)]
    seeds = [derive_seed(seed, "solve/0", *path) for seed, *path in places]
    asked = json.dumps([[str(seed), path] for seed, *path in places])
    assert page.run(f"{asked}.map(([seed, path]) => String(seedOf(BigInt(seed), 'solve/0', path)))") == [
        str(seed) for seed in seeds]  # fmt: skip
    positions = [0, 17, 255]
    wanted = uniforms(np.array(seeds), np.array(positions)).tolist()
    pairs = json.dumps([[str(seed), place] for seed, place in zip(seeds, positions, strict=True)])
    assert page.run(f"{pairs}.map(([seed, place]) => uniform(BigInt(seed), place))") == wanted
    number = open_task(params).language.vocabulary.number
    for value in (0, 9, 100, 101, 256, 99999, 10**12):
        assert page.run(f"language.number('{value}')") == number(value)


PLAY = """(scripts => lanes.forEach((lane, place) => {
  lane.model.logits = threads => threads.map(({ path, ids }) => {
    const logits = new Float64Array(SETUP.words.length);
    logits[scripts[place][path.join()][ids.length]] = 1;
    return logits;
  });
}))(%s)"""


def demonstration(task, params, method, problem, children):
    """The ids of each thread of a solver's trace, by its path."""
    trace = task.demonstrate(problem, params.traces.methods[method], random.Random(3), children)
    return {str(place - 1) if place else "": thread.ids for place, thread in enumerate(trace)}


@pytest.fixture
def played(page, params):
    """The page, on which the solvers' demonstrations of its first problem are decoded: APR spawns 6."""
    task, problem = open_task(params), Problem("p", (3, 5, 9, 12), 27)
    scripts = [demonstration(task, params, "apr", problem, 6),
               demonstration(task, params, "sos_plus", problem, None)]  # fmt: skip
    page.run(PLAY % json.dumps(scripts))
    return page


def finish(browser):
    """Waits until both models are done, for a minute at most."""
    browser.run("new Promise((done, fail) => { setTimeout(fail, 60000, Error('still decoding'));"
                "(function look() { if (playing) setTimeout(look, 20); else done(); })() })")  # fmt: skip


def text(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)}).textContent")


def test_a_problem_is_solved_by_keyboard_alone(played):
    played.run("at('speed').focus()")
    for _ in range(4):
        played.press("ArrowRight")
    assert text(played, "#pace") == "as fast as it goes"
    played.run("boxes[0].focus()")
    played.press("Enter")
    finish(played)
    assert text(played, "#parallel .verdict") == "solved"
    assert text(played, "#parallel .answer") == "9 / 3 = 3, 5 * 3 = 15, 15 + 12 = 27"
    assert text(played, "#serial .verdict") == "not solved: declares no solution"
    assert played.run("document.querySelectorAll('#parallel .row').length") == 7
    steps, tokens, threads, _ = (int(n) for n in played.run(
        "[...document.querySelectorAll('#parallel .counts b')].map(e => e.textContent)"))  # fmt: skip
    assert threads == 7 and tokens > steps == played.run("lanes[0].rollout.steps")
    said = text(played, "#events")
    assert "APR spawns 6 children" in said and "APR: solved after" in said and "returns 9 / 3 = 3" in said
    assert played.run("document.querySelectorAll('.edge.critical').length") == 2
    played.run("lanes[0].drawing.focus()")
    for key, expected in (("ArrowDown", "child 1 of APR"), ("ArrowRight", "child 1 of APR"),
                          ("ArrowLeft", "root of APR"), ("ArrowRight", "child 1 of APR")):  # fmt: skip
        played.press(key)
        assert text(played, "#thread dd").startswith(expected), key
    assert played.run("document.activeElement.getAttribute('aria-activedescendant')") == "row-0-1"
    assert played.run("document.querySelector('[aria-selected=true]').id") == "row-0-1"
    for _ in range(9):
        played.press("ArrowDown")
    assert text(played, "#thread dd") == "root of SoS+"
    assert played.run("document.activeElement === lanes[1].drawing")
    played.press("Enter")
    assert played.run("document.activeElement.id") == "thread"
    played.press("Escape")
    assert played.run("document.activeElement === lanes[1].drawing")


def test_pause_and_step(played):
    played.click("#step")
    assert played.run("[playing, ...lanes.map(lane => lane.rollout.steps)]") == [False, 1, 1]
    played.click("#step")
    assert played.run("lanes[0].rollout.steps") == 2 and text(played, "#pause") == "Go on"
    played.run("lanes[0].drawing.focus()")
    played.press(".")
    assert played.run("lanes[0].rollout.steps") == 3
    played.press(" ")
    assert played.run("playing") and text(played, "#pause") == "Pause"
    played.click("#pause")
    assert not played.run("playing") and not played.run("lanes[0].rollout.done")


@pytest.mark.parametrize(
    "numbers, target, said",
    [
        (["3"], "27", "at least two numbers"),
        (["3", "x", "5"], "27", "A number is “x”: please give a whole number"),
        (["3", "-5"], "27", "A number is “-5”"),
        (["3", "5.0"], "27", "A number is “5.0”"),
        (["3", "9999999999"], "27", "at most nine digits"),
        (["3", "5"], "", "needs a target"),
        (["3", "5"], "<b>", "The target is “<b>”"),
        ([], "", "at least two numbers"),
    ],
)
def test_what_is_no_problem_gets_a_sentence(page, numbers, target, said):
    page.run(f"fill({{ numbers: {json.dumps(numbers)}, target: {json.dumps(target)} }})")
    page.click("#start")
    assert said in text(page, "#error") and text(page, "#error").endswith(".")
    assert page.run("problem === null || !playing")
    page.run("fill({ numbers: [1, 1], target: 50 }); at('seed').value = '-1'")
    page.click("#start")
    assert "The seed is a whole number" in text(page, "#error")
    page.run("at('seed').value = '0'")
    page.click("#start")
    assert text(page, "#error") == "" and "has no solution" in text(page, "#remark")


def test_remarks_and_drawn_problems(page):
    for numbers, target, said in (([3, 5, 9, 12], 27, ""), ([2, 5, 10, 10], 1000, "above 100"),
                                  ([3, 5, 9], 17, "is another kind"), ([1, 1, 1, 1], 50, "no solution")):
        asked = f"{{ numbers: {numbers}, target: {target} }}"
        assert said in page.run(f"remarkOn({asked})") and bool(said) == bool(page.run(f"remarkOn({asked})"))
    for _ in range(20):
        drawn = page.run("drawProblem()")
        assert solvable(tuple(drawn["numbers"]), drawn["target"], 100)
        assert page.run(f"remarkOn({json.dumps(drawn)})") == ""
    page.run("(data => { data.setData('text', ' 1, 2 3,4 -> 10 '); boxes[1].dispatchEvent(new ClipboardEvent("
             "'paste', { bubbles: true, cancelable: true, clipboardData: data })) })(new DataTransfer())")
    assert page.run("[...boxes.map(box => box.value), at('target').value]") == ["1", "2", "3", "4", "10"]


def test_a_state_of_any_depth_is_shown(page):
    said = "<root> 27 :0 3 5 go :1 5 - 3 = 2 :1099511627776 4"
    shown = page.run(f"lines({json.dumps(said)})").split("\n")
    assert shown == ["&#60;root&#62; 27", ":0 3 5 go", "  :1 5 - 3 = 2", f"{'  ' * 9}:1099511627776 4"]


def test_a_frame_after_no_time_or_less_stops_nothing(played):
    played.click("#random")
    played.run("at('speed').value = 7; start(); tick(before); tick(before - 5)")
    finish(played)
    assert played.run("lanes.every(lane => lane.rollout.sampled > 0)")


@pytest.mark.parametrize("width", [360, 820, 1366])
def test_it_fits_and_asks_for_nothing(played, demo, width):
    played.asked.clear()
    played.open(demo, width)
    played.click("#random")
    played.run("at('speed').value = 7")
    finish(played)
    assert played.run("document.documentElement.scrollWidth") <= width
    small = ("[...document.querySelectorAll('button, input:not([type=range]), select')].filter(e =>"
             " e.offsetParent && e.getBoundingClientRect().height < 36).map(e => e.id)")  # fmt: skip
    assert played.run(small) == []
    unnamed = ("[...document.querySelectorAll('input, select')].filter(e => !e.labels.length"
               " && !e.getAttribute('aria-label')).length")  # fmt: skip
    assert played.run(unnamed) == 0
    assert {url for url in played.asked if not url.startswith("data:")} == {demo.as_uri()}
    assert demo.stat().st_size <= 6_000_000


def test_what_cannot_be_shown_is_refused(params, untrained, tmp_path):
    vocabulary = open_task(params).language.vocabulary
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        make_demo(params, untrained / "llama", tmp_path, tmp_path / "demo.html")
    gpt2 = GPT2Config(vocab_size=vocabulary.size, n_embd=8, n_layer=1, n_head=1, n_positions=256,
                      bos_token_id=None, eos_token_id=None)
    save_checkpoint(GPT2LMHeadModel(gpt2), untrained / "tokenizer", tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel is not allowed; allowed for the demo: Llama"):
        make_demo(params, untrained / "llama", tmp_path / "gpt2", tmp_path / "demo.html")
    grammar = params.grammar.model_copy(update={"number_tokens": 50})
    other = params.model_copy(update={"grammar": grammar})
    make_tokenizer(other, tmp_path / "tokenizer")
    size = open_task(other).language.vocabulary.size
    save_checkpoint(new_model(params.model, size, 0, 256, 1), tmp_path / "tokenizer", tmp_path / "other")
    with pytest.raises(CheckpointError, match="not both in this project's own tokens"):
        make_demo(params, untrained / "llama", tmp_path / "other", tmp_path / "demo.html")


def test_weights_are_rounded_to_a_millionth_of_the_largest_in_their_row():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 10)).astype(np.float32)
    values[2], values[3, 1] = 0, 100
    scales, numbers = quantised(values)
    most = np.abs(values).max(axis=1, keepdims=True)
    assert (np.abs(numbers * scales[:, None].astype(float) - values) <= most * 1e-6).all()
    assert not numbers[2].any() and np.abs(numbers).max() == 2**19 - 1
    packed = in_bits(np.array([[-(2**19) + 1, 2**19 - 1]]))
    assert int.from_bytes(packed, "little") == 1 | (2**20 - 1) << 20
