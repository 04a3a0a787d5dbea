"""Every figure from files in the real schema; the numbers in the CSVs by hand."""

import csv
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from apr.core.errors import DataError
from apr.core.files import read_json
from apr.core.params import Params, load_params
from apr.evaluation.points import evaluated
from apr.evaluation.results import Cell, Key
from apr.results.evidence import Evidence, by_key, csv_text, read_csv, read_evidence
from apr.results.figures import make_figures, style
from apr.results.figures.exhibit import draw_exhibit, write_exhibit
from apr.results.figures.make import FIGURES, metrics_of

BY_NAME = {exhibit.name: exhibit for exhibit in FIGURES}
IDS = list(BY_NAME)


def cell(strict, **columns):
    """A cell of (problems, samples); every other column is 1, and all answers of a problem agree."""
    strict = np.array(strict, bool)
    counts = ("total", "sequential", "longest", "children", "threads")
    base = dict.fromkeys(counts, np.ones(strict.shape, int))
    base |= {f"steps_{devices}": np.ones(strict.shape) for devices in (1, 2, 4, 8, 16)}
    base |= {"lenient": strict, "votes": np.zeros(strict.shape, int)}
    arrays = {name: np.array(values) for name, values in columns.items()}
    return Cell(tuple(map(str, range(len(strict)))), base | arrays | {"strict": strict})


def evidence(params, cells, latencies=None):
    return Evidence(params, cells, latencies or {})


def values(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture(scope="module")
def drawn(params, artefacts, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    data = [artefacts / name for name in ("eval", "latency.json", "models")]
    make_figures(params, *data, out / "figures", out / "m.json")
    return out


def test_all_figures_are_written_thrice(drawn):
    names = {path.name for path in (drawn / "figures").iterdir()}
    assert names == {f"{name}.{ending}" for name in IDS for ending in ("svg", "png", "csv")}


def test_figures_are_the_same_bytes_again(params, artefacts, drawn, tmp_path):
    found = read_evidence(params, artefacts / "eval", artefacts / "latency.json")
    for exhibit in (FIGURES[0], FIGURES[4], FIGURES[6]):
        write_exhibit(exhibit, found, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (drawn / "figures" / path.name).read_bytes(), path.name
    assert b"<dc:date>" not in (tmp_path / "fig4a.svg").read_bytes()


def test_the_default_sweeps_cover_every_figure(params, drawn):
    """Fig 8 alone does without some children at low temperatures."""
    with (drawn / "figures" / "fig4a.csv").open() as file:
        series = [(row["series"], row["amount"]) for row in csv.DictReader(file)]
    assert series[:11] == [("APR, children asked for", str(n)) for n in range(11)]
    assert series[11:] == [(f"SoS+ {kind}@n", str(n)) for kind in ("cons", "pass") for n in range(1, 9)]
    lengths = {"table1": 8, "table2": 12, "table3": 16, "table4": 16, "fig5": 24, "fig7": 12, "fig4b": 96}
    for name, lines in lengths.items():
        assert len((drawn / "figures" / f"{name}.csv").read_text().splitlines()) == lines + 1, name
    svg = {name: (drawn / "figures" / f"{name}.svg").read_text() for name in IDS}
    assert {name for name, text in svg.items() if "Not measured" in text} == {"fig8"}


def test_fig4a_by_hand(params):
    votes = [[0, 1, 1], [-1, -1, 2]]
    samples = cell([[1, 0, 0], [0, 0, 1]], total=[[10, 20, 30], [40, 40, 40]], votes=votes)
    found = evidence(params, {
        Key("apr", "sft", 1.0, 0): cell([[1], [0]], total=[[100], [200]]),
        Key("sos_plus", "sft", 1.0): samples,
    })  # fmt: skip
    rows = FIGURES[0].rows(found)
    assert values(rows, "series", "amount", "tokens", "accuracy") == [
        ("APR, children asked for", 0, 150, 0.5),
        ("SoS+ cons@n", 1, 30, pytest.approx(1 / 3)),
        ("SoS+ cons@n", 2, 60, pytest.approx((2 / 3 + 2 / 3) / 2)),
        ("SoS+ cons@n", 3, 90, 0.5),
        ("SoS+ pass@n", 1, 30, pytest.approx(1 / 3)),
        ("SoS+ pass@n", 2, 60, pytest.approx(2 / 3)),
        ("SoS+ pass@n", 3, 90, 1.0),
    ]
    assert found.lacks() == "sft/apr T=1: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10; sft/sos_plus T=1 samples 4 to 8"


def test_fig4b_counts_what_fits(params):
    found = evidence(params, {Key("apr", "sft", 0.0, 3): cell([[1], [1], [0]], longest=[[64], [200], [10]])})
    rows = FIGURES[1].rows(found)
    assert values(rows, "window", "accuracy")[::4] == [(18, 0), (90, 1 / 3), (162, 1 / 3), (234, 2 / 3)]
    assert rows[3]["accuracy"] == 1 / 3 and rows[3]["window"] == 72
    assert "sft/apr T=0: 6, 10" in found.lacks() and "sft/sos_plus conditioned on tokens T=0" in found.lacks()


def test_fig5_by_hand(params):
    before = cell([[0], [1]], total=[[100], [300]], threads=[[1], [3]], children=[[0], [2]])
    after = cell([[1], [1]], total=[[300], [400]], threads=[[3], [4]], children=[[2], [3]])
    rows = FIGURES[2].rows(evidence(params, {Key("apr", "sft", 0.0): before, Key("apr", "rl", 0.0): after}))
    assert values(rows, "quantity", "stage", "value") == [
        ("accuracy", "sft", 0.5), ("accuracy", "rl", 1.0), ("accuracy", "change", 0.5),
        ("total tokens", "sft", 200), ("total tokens", "rl", 350), ("total tokens", "change", 150),
        ("tokens per sequence", "sft", 100), ("tokens per sequence", "rl", 100),
        ("tokens per sequence", "change", 0),
        ("children", "sft", 1), ("children", "rl", 2.5), ("children", "change", 1.5),
    ]  # fmt: skip
    assert values(rows, "value_low", "value_high")[-1] == (1, 2)


def test_fig6_joins_accuracy_with_latency(params):
    timed = {"conditions": [{"condition": 3, "join": join, "problems": [{"seconds": n}, {"seconds": 1.5}],
                             "p50": {"seconds": 1.0}, "p95": {"seconds": 1.45}}
                            for join, n in (("all", 0.5), ("any", 0.1))]}  # fmt: skip
    cells = {Key("apr", "sft", 0.0): cell([[1]]), Key("apr", "sft", 0.0, 3): cell([[0]], sequential=[[70]]),
             Key("apr", "sft", 0.0, 3, "any"): cell([[1]], sequential=[[50]])}  # fmt: skip
    found = evidence(params, cells, by_key("apr", "sft", timed["conditions"]))
    rows = FIGURES[3].rows(found)
    assert values(rows, "condition", "accuracy", "sequential", "latency", "latency_p95") == [
        (None, 1, 1, None, None), (3, 0, 70, 1.0, 1.45), (3, 1, 50, 0.8, 1.45),
    ]  # fmt: skip
    assert "latency of sft/apr" in found.lacks()
    labels = [axes.get_xlabel() for axes in FIGURES[3].draw(rows, []).axes]
    assert labels == ["sequential tokens per problem", "seconds per problem"]


def test_joins_pairs_the_kinds_by_what_was_asked(params):
    found = evidence(params, {
        Key("apr", "sft", 0.0, 4): cell([[1], [1]], total=[[100], [300]], sequential=[[50], [70]]),
        Key("apr", "sft", 0.0, 4, "any"): cell([[1], [0]], total=[[90], [270]], sequential=[[40], [50]]),
        Key("apr", "sft", 0.0, 5, "any"): cell([[1], [0]]),
    })  # fmt: skip
    rows = BY_NAME["joins"].rows(found)
    assert values(rows, "join", "condition", "total", "sequential", "accuracy") == [
        ("all", 4, 200, 60, 1.0), ("any", 4, 180, 45, 0.5)
    ]  # fmt: skip
    changes = values(rows, "total_change", "sequential_change", "accuracy_change")
    assert changes == [(0, 0, 0), (-20, -15, -0.5)]


def test_devices_set_the_model_beside_what_was_measured(params):
    entry = {"condition": 3, "join": "any", "problems": [{"seconds": 0.5}, {"seconds": 1.5}],
             "p50": {"seconds": 1.0}, "p95": {"seconds": 1.45}, "modelled": {"1": 1.1, "2": 0.6}}  # fmt: skip
    cells = {Key("apr", "sft", 0.0, 3, "any"): cell([[1], [0]]), Key("sos_plus", "sft", 0.0): cell([[1]])}
    found = evidence(params, cells, by_key("apr", "sft", [entry]))
    rows = BY_NAME["devices"].rows(found)
    assert values(rows, "condition", "devices", "accuracy", "latency", "modelled", "error") == [
        (None, None, 1, None, None, None), (3, 1, 0.5, 1.0, 1.1, pytest.approx(0.1)),
        (3, 2, 0.5, 1.0, 0.6, None),
    ]  # fmt: skip
    assert "latency of sft/sos_plus T=0; modelled latency of sft/sos_plus T=0" in found.lacks()


def test_fig7_holds_apr_at_ten_children(params):
    found = evidence(params, {Key("apr", "sft", 0.0, 10): cell([[0], [1]], total=[[5], [7]]),
                              Key("apr_max", "rl", 0.0, 10): cell([[1], [1]], total=[[8], [8]])})  # fmt: skip
    rows = FIGURES[4].rows(found)
    assert values(rows, "run", "stage", "accuracy", "tokens", "gain") == [
        ("APR held", "sft", 0.5, 6, None), ("APR held", "rl", 1.0, 8, 0.5),
    ]  # fmt: skip
    assert found.lacks() == "; ".join(
        f"{stage}/{model} T={temperature}: {conditions}"
        for temperature, held in ((0, ""), (1, ", 10"))
        for model, stage, conditions in (
            ("sos_plus", "sft", "unconditioned"), ("sos_plus", "rl", "unconditioned"),
            ("apr", "sft", "unconditioned" + held), ("apr", "rl", "unconditioned"),
            *([("apr_max", "rl", "10")] if held else []),
        )
    )  # fmt: skip


def test_table3_by_hand(params):
    found = evidence(params, {Key("apr", "rl", 0.5): cell([[1, 0], [1, 1]], lenient=[[1, 1], [1, 1]])})
    rows = FIGURES[8].rows(found)
    names = ("label", "temperature", "accuracy", "lenient", "paper", "samples")
    assert values(rows, *names) == [("APR + RL", 0.5, 0.75, 1.0, 0.813, 2)]


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("name", ["fig4a", "fig6", "fig8"])
def test_labels_cover_nothing_and_name_the_nearest_mark(name):
    """On the recorded run: where a label has ink, the figure without labels has paper or its pale grid."""
    rows = read_csv(Path(f"results/figures/{name}.csv"))
    with matplotlib.rc_context(style.RC):
        figure, _ = draw_exhibit(BY_NAME[name], rows)
        labels = [(axes, text) for axes in figure.axes for text in axes.texts]
        assert len(labels) > 5
        whole, boxes = pixels(figure), [text.get_window_extent() for _, text in labels]
        for (axes, text), box in zip(labels, boxes, strict=True):
            marks = axes.transData.transform([other.xy for at, other in labels if at is axes])
            own = axes.transData.transform(text.xy)
            away = [np.linalg.norm(np.clip(at, box.min, box.max) - at) for at in (own, *marks)]
            crowd = sum(np.linalg.norm(marks - own, axis=1) < 25)  # pixels; a mark has 10
            assert crowd > 1 or away[0] == min(away), text
            text.set_visible(False)
        bare = pixels(figure)
    inked = (whole != bare).any(axis=2)
    assert inked.any() and bare[inked].min() > 220
    pairs = combinations(boxes, 2)
    assert not [pair for pair in pairs if Bbox.intersection(*pair)]


def test_paper_marks_stand_beside_the_axes_and_apart():
    with matplotlib.rc_context(style.RC):
        figure, _ = draw_exhibit(BY_NAME["fig4a"], read_csv(Path("results/figures/fig4a.csv")))
        figure.draw_without_rendering()
        (axes,) = (axes for axes in figure.axes if axes.child_axes)
        names = [text for text in axes.child_axes[0].get_yticklabels() if text.get_text()]
        assert " ".join(text.get_text() for text in names).count("paper: ") >= 2
        boxes = [text.get_window_extent() for text in names]
        assert all(box.x0 > axes.bbox.x1 for box in boxes)
        assert not any(Bbox.intersection(one, other) for one, other in combinations(boxes, 2))


def test_a_line_goes_by_tokens_and_says_what_is_out_of_order(params):
    cells = {Key("apr", "sft", 1.0, asked): cell([[1]] * 6, total=[[tokens]] * 6)
             for asked, tokens in ((0, 60), (1, 290), (2, 240), (3, 350))}  # fmt: skip
    rows, notes = BY_NAME["fig4a"].rows(evidence(params, cells)), []
    (axes,) = BY_NAME["fig4a"].draw(rows, notes).axes
    assert list(axes.lines[0].get_xdata()) == [60, 240, 290, 350]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "1", "2", "3"]
    assert notes[0] == "Asked for 1 APR decodes more than for 2, as no trace spawns a single child."


@pytest.mark.parametrize("exhibit", FIGURES, ids=IDS)
def test_a_figure_without_any_point_is_left_out_and_says_what_to_sweep(params, tmp_path, capsys, exhibit):
    write_exhibit(exhibit, evidence(params, {}), tmp_path)
    assert not list(tmp_path.iterdir())
    said = rf"{exhibit.name}: left out, as no sweep has a point of it; missing: .*T=.*\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_few_points_and_no_success_still_make_every_figure(write, tmp_path):
    """The smallest scale: six problems, nothing solved, fewer points."""
    params: Params = load_params("params.yaml", "presets/smoke.yaml")
    for stage, model in evaluated(params):
        write(params, tmp_path, stage, model, lambda problem, point: {"strict": False, "expression": None})
        path = tmp_path / "models" / stage / model
        path.mkdir(parents=True)
        (path / "metrics.json").write_text('{"loss": 1.5, "reward": 0}')
    found = read_evidence(params, tmp_path / "eval", tmp_path / "latency.json")
    with matplotlib.rc_context(style.RC):
        for exhibit in FIGURES:
            (tmp_path / "rows.csv").write_text(csv_text(exhibit.rows(found.fresh())))
            draw_exhibit(exhibit, read_csv(tmp_path / "rows.csv"))
    assert metrics_of(found, tmp_path / "models")["sft_apr_accuracy_greedy"] == 0


def test_a_scale_with_one_model_alone_has_the_figures_that_show_it(params, artefacts, tmp_path):
    found, made = read_evidence(params, artefacts / "eval", artefacts / "latency.json"), set()
    for stage, model in (("sft", "apr"), ("rl", "apr"), ("sft", "sos_plus"), ("rl", "apr_max")):
        cells = {key: its for key, its in found.cells.items() if (key.stage, key.model) == (stage, model)}
        alone = replace(found, cells=cells)
        with matplotlib.rc_context(style.RC):
            for exhibit in FIGURES:
                if rows := exhibit.rows(alone.fresh()):
                    made.add((model, stage, exhibit.name))
                    (tmp_path / "rows.csv").write_text(csv_text(rows))
                    draw_exhibit(exhibit, read_csv(tmp_path / "rows.csv"))
    assert {("apr", "rl", "fig7"), ("apr_max", "rl", "fig7"), ("apr", "sft", "joins")} <= made
    assert ("sos_plus", "sft", "joins") not in made


def test_metrics_are_flat_and_paired(params, drawn):
    metrics = read_json(drawn / "m.json")
    assert metrics["sft_apr_train_loss"] == 0.25 and metrics["rl_apr_train_reward"] == 0.5
    gain = metrics["rl_minus_sft_apr_accuracy_greedy"]
    assert gain == pytest.approx(metrics["rl_apr_accuracy_greedy"] - metrics["sft_apr_accuracy_greedy"])
    low, high = (metrics[f"rl_minus_sft_apr_accuracy_greedy_{side}"] for side in ("low", "high"))
    assert low < gain < high
    assert "sft_sos_plus_children_greedy" not in metrics and metrics["sft_apr_children_greedy"] > 0
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_missing_evaluation_is_named(params, artefacts, tmp_path):
    with pytest.raises(DataError, match=r"rl/apr.parquet: no such file"):
        make_figures(params, tmp_path, artefacts / "latency.json", artefacts / "models", tmp_path / "f",
                     tmp_path / "m.json")  # fmt: skip
    assert not (tmp_path / "f").exists()
