"""The report of a real run, and the viewer, as files; in a browser where there is one."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from apr.core.files import read_json
from apr.pipeline.plan import load_scale
from apr.results.claims.claims import CLAIMS
from apr.results.evidence import read_evidence
from apr.results.figures.make import FIGURES
from apr.results.render import TEMPLATES, render
from apr.results.report.page import make_report, numeric, picture
from apr.results.report.trees import problem_cases
from apr.results.threads import rollout_entry
from apr.rollouts.rollout import Rollout, Spawn, Status, Thread
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.problems import read_problems
from tests.chromium import CHROMIUM, open_browser

VOID = {"br", "img", "link", "meta"}
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium; on Debian: apt-get install chromium")


class Page(HTMLParser):
    """Elements with their attributes and the text of each `figcaption`; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.captions, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data):
        if "figcaption" in self._open:
            self.captions[-1] += data


@pytest.fixture(scope="module")
def report(made):
    return (made.path / "results/report.html").read_text()


@pytest.fixture(scope="module")
def page(report):
    return Page(report)


@pytest.fixture(scope="module")
def cases(report):
    return json.loads(report.split('id="cases">')[1].split("</script>")[0])


def test_nothing_is_loaded_and_every_link_has_an_end(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert [link for link in links if not link.startswith("#")] == ["https://arxiv.org/abs/2504.15466"]
    for tag, attributes in page.elements:
        if tag != "a":
            loaded = [attributes.get(name) for name in ("src", "href", "srcset", "data", "action")]
            assert all(url is None or url.startswith("data:") for url in loaded), tag
    style = TEMPLATES.loader.get_source(TEMPLATES, "report/page.css")[0]
    assert "@import" not in style and "url(" not in style


def test_every_claim_and_every_figure_with_its_caption(report, page):
    for claim in CLAIMS:
        assert f"<code>{claim.id}</code>" in report
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == [*(exhibit.name for exhibit in FIGURES), "training-sft", "training-rl"]
    assert sum(tag == "img" for tag, _ in page.elements) == len(figures) == len(page.captions)
    for exhibit, caption in zip(FIGURES, page.captions, strict=False):
        assert caption.startswith(" ".join(exhibit.caption.split()).split(". ")[0]), exhibit.name
        assert "6 test problems" in caption and " From " in caption
    assert len(report) < 3_000_000


def test_how_the_run_was_made(made, report):
    seal = read_json(made.path / "data/models/rl/apr/recipe.json")
    for version in seal["made_by"]["versions"].values():
        assert f">{version}</td>" in report
    assert seal["made_by"]["commit"] in report
    for stage in ("problems", "sft", "rl", "evaluate", "latency", "teacher", "figures", "claims"):
        assert f"<td>{stage}</td>" in report
    assert "checkpoint_steps: 1000" in report


def test_problems_and_steps_of_training_are_shown(made, cases, report):
    shown = ["sft/sos_plus T=0", "rl/sos_plus T=0", "sft/apr T=0", "rl/apr T=0",
             "rl/apr_max condition 10 T=0"]  # fmt: skip
    tested = [case for case in cases if case["group"] == "test problems"]
    assert [[rollout["name"] for rollout in case["rollouts"]] for case in tested] == [shown] * len(tested)
    kinds = ", ".join(case["title"].split(":")[0] for case in tested)
    assert {"widest", "deepest"} <= set(kinds.split(", "))
    for policy in ("sos_plus", "apr", "apr_max"):
        trained = [case for case in cases if case["group"] == f"training of rl/{policy}"]
        names = [f"{policy} after step {step}" for step in (0, 1, 2)]
        assert [[rollout["name"] for rollout in case["rollouts"]] for case in trained] == [names] * 4
    assert "No rollouts were kept" not in report


def without_costs(report):
    """The report without who made what, in how much time and memory: other tests may have made it again."""
    report = re.sub(r"<th>made by</th>.*?</table>", "", report, flags=re.S)
    before, after = report.split("seconds, added up</th>", 1)
    return before, after.split("</table>", 1)[1]


def test_it_is_the_same_bytes_again_and_says_what_it_lacks(made, report, tmp_path):
    root = tmp_path / "run"
    for folder in ("data", "results", "logs"):
        shutil.copytree(made.path / folder, root / folder)
    params = load_scale("default", made.path)
    make_report(params, root, root / "again.html")
    assert without_costs((root / "again.html").read_text()) == without_costs(report)
    (root / "data/models/rl/apr/rollouts.parquet").unlink()
    for ending in ("csv", "svg", "png"):
        (root / f"results/figures/fig8.{ending}").unlink()
    make_report(params, root, root / "less.html")
    said = (root / "less.html").read_text()
    assert "No rollouts were kept while rl/apr trained." in said and "after step 0" in said
    assert "No sweep has a point of fig8." in said and "No sweep has" not in report
    assert '"training of rl/apr"' not in said and '"training of rl/apr_max"' in said


def test_rollouts_are_as_evaluated_or_say_that_they_are_not(made, cases):
    notes = [rollout["note"] for case in cases for rollout in case["rollouts"]]
    assert set(notes) == {""}
    params, data = load_scale("default", made.path), made.path / "data"
    evidence = read_evidence(params, data / "eval", data / "latency.json")
    for key, cell in evidence.cells.items():
        cell.columns["prompt"][:] += key.stage == "rl"
    problems = read_problems(open_task(params), data / "problems/test.parquet")
    for case in problem_cases(evidence, problems, data / "models"):
        for rollout in case["rollouts"]:
            assert rollout["note"].endswith("other rounding") == rollout["name"].startswith("rl/")


def page_of(params, cases=(), **values):
    """The page of a run that has nothing to show but `cases` and `values`."""
    nothing = dict.fromkeys(("claims", "untold", "figures", "undrawn", "training"), ())
    nothing |= dict.fromkeys(("ledger", "spent", "stages", "made"), ((), ()))
    return render("report/page.html", **nothing | {"params": params, "cases": cases, "numeric": numeric,
                                              "settings": "", **values})  # fmt: skip


def test_what_is_shown_cannot_end_the_script(params):
    shown = page_of(params, {"a": "</script><!--"}, spent=(("x",), [("<b>",)]), settings="{{ params }} <i>")
    text = shown.split('id="cases">')[1].split("</script>")[0]
    assert json.loads(text) == {"a": "</script><!--"} and "<" not in text
    assert "<td>&lt;b&gt;</td>" in shown and "<pre>{{ params }} &lt;i&gt;</pre>" in shown


def test_numbers_are_set_right_where_a_whole_column_has_them(params):
    rows = [("+1.5 [+0.1, +2.0]", "76.9%", 3), ("", None, "3.11.7 (2)")]
    text = page_of(params, spent=(("n", "of", "mixed"), rows)).replace("</td>\n", "").replace("</td>", "")
    cells = text.replace('<td class="number">', "<N>").replace("<td>", "<T>")
    assert "<N>+1.5 [+0.1, +2.0]<N>76.9%<T>3" in cells and "<N><N><T>3.11.7 (2)" in cells


def test_a_picture_loses_its_caption_and_nothing_else(made):
    svg = (made.path / "results/figures/fig4a.svg").read_text()
    cut, caption = picture(svg)
    assert caption.startswith("Accuracy against mean total tokens per problem after SFT, T = 1.")
    changed = [(a, b) for a, b in zip(svg.splitlines(), cut.splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    (before, after), = changed  # fmt: skip
    heights = [float(line.split('height="')[1].split("pt")[0]) for line in (before, after)]
    assert 0.6 * heights[0] < heights[1] < heights[0] - 20


def wide(language, children, sampled, repeat=1):
    """A root that spawns `children` one after another in `repeat` spawns; child n samples up to `sampled`."""
    vocabulary = language.vocabulary
    prompt, word = vocabulary.encode("<root> 27 :0 3 5 9 go"), vocabulary.encode("12 + 9 = 21 3 5")
    root = Thread(0, -1, 0, len(prompt), list(prompt), [False] * len(prompt), [], Status.DONE)
    threads = [root]
    for _ in range(repeat):
        root.ids += word * 6
        root.sampled += [True] * 6 * len(word)
        made = list(range(len(threads), len(threads) + children))
        root.spawns.append(Spawn(len(root.ids), made))
        for index in made:
            text = vocabulary.encode("<child> 27 :1 12 + 9 = 21 3 5 go")
            own = (word * sampled)[: sampled - index % 7] + vocabulary.encode("join none end")
            threads.append(Thread(index, 0, 1, len(text), text + own, [False] * len(text) + [True] * len(own),
                                  [], Status.DONE))  # fmt: skip
        joined = vocabulary.encode("joined none " * children + "resume")
        root.ids += joined
        root.sampled += [False] * len(joined)
    end = vocabulary.encode("answer none end")
    root.ids += end
    root.sampled += [True] * len(end)
    return Rollout("wide", threads)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def viewer(params, browser, tmp_path):
    """The page with two problems: a small tree twice, and one of 201 threads."""
    task = open_task(params)
    sizes = {"small": [(3, 20, 1), (2, 20, 2)], "wide": [(100, 60, 2)]}
    problem = Problem("p", (3, 5, 9), 27)
    cases = []
    for name, these in sizes.items():
        shown = [rollout_entry(task, problem, wide(task.language, *size), f"r{place}")
                 for place, size in enumerate(these)]  # fmt: skip
        cases.append({"group": "g", "title": name, "note": "n", "rollouts": shown})
    path = tmp_path / "viewer.html"
    path.write_text(page_of(params, cases))
    browser.complaints.clear()
    browser.open(path)
    yield browser
    assert browser.complaints == []


def chosen(browser):
    """Rollout and thread that are chosen in the drawing, and what the panel says of it."""
    return browser.run("(() => { const row = document.querySelector('.row.chosen').dataset;"
                       "return [Number(row.rollout), Number(row.thread),"
                       " document.querySelector('#thread dd').textContent] })()")  # fmt: skip


@needs_chromium
def test_the_report_in_a_browser(made, browser, tmp_path):
    browser.complaints.clear()
    browser.asked.clear()
    path = made.path / "results/report.html"
    for width in (1366, 800):
        browser.open(path, width)
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
        assert browser.run(broken) == [] and browser.run("document.images.length") == len(FIGURES) + 2
        lost = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.hash))"
        assert browser.run(f"{lost}.length") == 0
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.querySelectorAll('#trees .row').length") >= 5
    assert browser.complaints == []
    assert {url for url in browser.asked if not url.startswith("data:")} == {path.as_uri()}
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@needs_chromium
def test_keys_walk_the_threads(viewer):
    viewer.run("viewer.focus()")
    assert chosen(viewer) == [0, 0, "root of r0"]
    for key, expected in (
        ("ArrowDown", [0, 1, "child 1 of r0, spawned by root"]), ("ArrowUp", [0, 0, "root of r0"]),
        ("ArrowUp", [0, 0, "root of r0"]), ("ArrowRight", [0, 1, "child 1 of r0, spawned by root"]),
        ("ArrowLeft", [0, 0, "root of r0"]), ("c", [0, 1, "child 1 of r0, spawned by root"]),
        ("c", [0, 0, "root of r0"]),
    ):  # fmt: skip
        viewer.press(key)
        assert chosen(viewer) == expected, key
    for _ in range(6):
        viewer.press("ArrowDown")
    assert chosen(viewer) == [1, 2, "child 2 of r1, spawned by root"]
    viewer.press("Enter")
    assert viewer.run("document.activeElement.id") == "thread"
    viewer.press("Escape")
    assert viewer.run("document.activeElement.id") == "viewer"
    viewer.press("j")
    assert viewer.run("picker.value") == "1" and chosen(viewer) == [0, 0, "root of r0"]
    viewer.press("j")
    viewer.press("k")
    assert viewer.run("picker.value") == "1"


@needs_chromium
def test_a_click_chooses_a_thread_and_shows_what_it_was_told(viewer):
    viewer.click('.row[data-rollout="1"][data-thread="3"]')
    assert chosen(viewer) == [1, 3, "child 3 of r1, spawned by root"]
    told, returned = (
        viewer.run(f"[...document.querySelectorAll('#thread dt')].find(e => e.textContent === '{name}')"
                   ".nextElementSibling.textContent") for name in ("was told", "returned")
    )  # fmt: skip
    assert told == "<child> 27 :1 12 + 9 = 21 3 5 go" and returned == "none"
    injected = viewer.run("document.querySelector('.tokens .injected').textContent")
    assert injected.split() == told.split()
    assert viewer.run("document.querySelector('.tokens').textContent").split()[-3:] == ["join", "none", "end"]
    viewer.click("#next")
    assert viewer.run("picker.value") == "1"


@needs_chromium
def test_bars_and_edges_are_where_the_steps_are(viewer):
    """The second rollout: 42 steps, two children of 22 and 21, 42 steps, two of 20 and 19, and 3."""
    bars = viewer.run("[...document.querySelectorAll('.row[data-rollout=\"1\"] .bar')].map(bar =>"
                      "[Number(bar.getAttribute('x')), Number(bar.getAttribute('width'))])")  # fmt: skip
    scale = bars[0][1] / 42
    steps = [[round((x - bars[0][0]) / scale, 6), round(width / scale, 6)] for x, width in bars]
    assert steps == [[0, 42], [64, 42], [126, 3], [42, 22], [42, 21], [106, 20], [106, 19]]
    assert viewer.run("document.querySelectorAll('.edge.critical').length") == 2 * (1 + 2)
    assert viewer.run("document.querySelectorAll('.edge').length") == 2 * (3 + 4)


@needs_chromium
def test_two_hundred_threads_are_drawn_quickly(viewer, record_property):
    viewer.run("show(1)")
    assert viewer.run("document.querySelectorAll('.row').length") == 201
    timed = ("[...Array(9)].map(() => { const start = performance.now(); %s;"
             "document.body.getBoundingClientRect(); return performance.now() - start })"
             ".sort((a, b) => a - b)[4]")  # fmt: skip
    redraw, walk = viewer.run(timed % "draw()"), viewer.run(timed % "walk(1)")
    record_property("redraw_ms", redraw)
    print(f"redraw {redraw:.1f} ms, next thread {walk:.1f} ms")
    assert redraw < 2000 and walk < 2000
