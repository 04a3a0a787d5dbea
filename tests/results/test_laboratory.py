"""Figures and claims of the laboratory from cells and logs written by hand."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from test_figures import cell, evidence, values

from apr.core.params import load_params
from apr.evaluation.results import Cell, Key
from apr.results.claims.laboratory import LABORATORY as CLAIMS
from apr.results.claims.products import PRODUCTS
from apr.results.claims.table import claim_row, claims_of
from apr.results.digits import digits_of
from apr.results.evidence import csv_text, read_csv
from apr.results.figures import style
from apr.results.figures.controllers import best
from apr.results.figures.digits import DIGITS
from apr.results.figures.exhibit import draw_exhibit, write_exhibit
from apr.results.figures.make import FIGURES, LABORATORY, figures_of

BY_NAME = {exhibit.name: exhibit for exhibit in LABORATORY}
BY_ID = {claim.id: claim for claim in CLAIMS}
COSTS = {"decode": {"1": 1.0, "2": 2.0, "4": 4.0}, "context": {"1": 0.0}, "prefill": {"8": 1.0}}
"""A step takes a second for each thread of a device."""


@pytest.fixture(scope="module")
def laboratory():
    return load_params("params.yaml", "presets/laboratory.yaml")


def test_a_scale_has_what_it_has_policies_for(params, laboratory):
    assert figures_of(params) == [*FIGURES] and len(claims_of(params)) + len(CLAIMS) == len(
        claims_of(laboratory))  # fmt: skip
    assert figures_of(laboratory) == [*FIGURES, *LABORATORY]
    for name in ("smoke", "paper-task"):
        other = load_params("params.yaml", f"presets/{name}.yaml")
        assert figures_of(other) == [*FIGURES] and claims_of(other) == claims_of(params), name
    other = load_params("params.yaml", "presets/multiplication.yaml")
    assert figures_of(other) == [*FIGURES, DIGITS] and claims_of(other) == [*claims_of(params), *PRODUCTS]
    seeds = [load_params("params.yaml", f"presets/laboratory-seed{seed}.yaml") for seed in (1, 2)]
    assert seeds == [laboratory.model_copy(update={"seed": seed}) for seed in (1, 2)]


def test_rewards_by_step(laboratory):
    line = {"children": 5.0, "accuracy": 0.5, "sequential_tokens": 180.0, "total_tokens": 600.0, "kl": None}
    found = evidence(laboratory, {})
    found.training = {"apr": [line | {"step": 1}], "parallel": [line | {"step": step, "children": 6.0 + step}
                                                                for step in (1, 2)]}  # fmt: skip
    rows = BY_NAME["rewards"].rows(found)
    assert values(rows, "policy", "step", "children", "paid_until") == [
        ("apr", 1, 5, None), ("parallel", 1, 7, 1.5), ("parallel", 2, 8, 1.5),
    ]  # fmt: skip
    assert found.lacks() == "log of rl/critical_path"


def policies(**solved):
    """After RL at T = 1, four problems: by policy, how many of them are solved, and sequential tokens."""
    return {Key(name, "rl", 1.0): cell([[int(place < n)] for place in range(4)], children=[[n]] * 4,
                                       sequential=[[tokens]] * 4)
            for name, (n, tokens) in solved.items()}  # fmt: skip


def test_policies_beside_the_papers(laboratory):
    cells = policies(apr=(2, 200), critical_path=(3, 150), own=(1, 200), oracle=(4, 200))
    rows = BY_NAME["rewarded"].rows(evidence(laboratory, cells))
    assert values(rows, "policy", "accuracy", "gain", "sequential", "saved") == [
        ("apr", 0.5, 0, 200, 0), ("critical_path", 0.75, 0.25, 150, 0.25)
    ]  # fmt: skip
    found = evidence(laboratory, cells)
    log = {"own_child_same": 1.0, "own_child_opposite": 0.0, "broadcast_child_same": 0.6}
    more = log | {"broadcast_child_same": 0.8, "own_child_opposite": None}
    found.training = {"own": [log, more], "apr": [{}]}
    rows = BY_NAME["credit"].rows(found)
    assert values(rows, "credit", "gain", "child_same", "child_opposite") == [
        ("broadcast", 0, pytest.approx(0.7), None), ("own", -0.25, 1, 0), ("oracle", 0.5, None, None)
    ]  # fmt: skip
    claims = [claim_row(BY_ID[f"credit_{name}"], found) for name in ("own", "oracle", "difference")]
    assert [row["status"] for row in claims] == ["not supported", "not supported", "not measured"]
    assert [row["value"] for row in claims] == [-0.25, 0.5, None], "four problems are few"


@pytest.mark.parametrize(("solved", "tokens", "status"), [
    (2, 160, "supported"), (2, 180, "not supported"), (1, 100, "not supported"),
])  # fmt: skip
def test_tokens_are_saved_only_at_the_same_accuracy(laboratory, solved, tokens, status):
    found = evidence(laboratory, policies(apr=(2, 200), critical_path=(solved, tokens)))
    row = claim_row(BY_ID["critical_path"], found)
    assert (row["value"], row["status"]) == (pytest.approx(1 - tokens / 200), status)
    assert row["note"].startswith(f"accuracy {25 * (solved - 2):+.1f} [")


def test_the_model_of_both_forms_by_budget(laboratory):
    cells = {Key(name, stage, 0.0, amount): cell([[int(n > place)] for place in range(4)])
             for (name, stage), n in {("sos_plus", "sft"): 1, ("mixed", "sft"): 3, ("serial", "rl"): 2,
                                      ("mixed_serial", "rl"): 1}.items() for amount in (64, 288)}  # fmt: skip
    del cells[Key("mixed", "sft", 0.0, 64)]
    rows = BY_NAME["mixed"].rows(evidence(laboratory, cells))
    assert values(rows, "stage", "model", "condition", "accuracy", "gain") == [
        ("sft", "sos_plus", 64, 0.25, 0), ("sft", "sos_plus", 288, 0.25, 0), ("sft", "mixed", 288, 0.75, 0.5),
        ("rl", "serial", 64, 0.5, 0), ("rl", "mixed_serial", 64, 0.25, -0.25),
        ("rl", "serial", 288, 0.5, 0), ("rl", "mixed_serial", 288, 0.25, -0.25),
    ]  # fmt: skip
    row = claim_row(BY_ID["mixed_serial"], evidence(laboratory, cells))
    assert (row["value"], row["note"]) == (0.5, "75.0% against 25.0%")
    most = {Key(name, "sft", 0.0, 10): cell([[1]] * 8 + [[0]] * 2) for name in ("mixed", "apr")}
    assert claim_row(BY_ID["mixed_parallel"], evidence(laboratory, most))["status"] == "supported"


def timed(key, costs=None, **modelled):
    return {key: {"problems": [{"problem_id": "0"}], "modelled": modelled, "costs": costs}}


def test_controllers_by_hand(laboratory):
    serial = cell([[0, 1, 1], [0, 0, 1]], votes=[[0, 1, 1], [-1, 1, 2]], total=[[2, 4, 6], [1, 1, 1]],
                  sequential=[[2, 4, 6], [1, 1, 1]], sampled=[[2, 4, 6], [1, 1, 1]], prompt=[[1] * 3] * 2)
    adaptive, quick = Key("apr", "rl", 0.0), Key("apr", "sft", 0.0, 6, "any")
    cells = {Key("sos_plus", "sft", 1.0): serial, quick: cell([[1], [1]], total=[[90], [70]]),
             adaptive: cell([[1], [0]], total=[[30], [50]], sequential=[[20], [30]])}  # fmt: skip
    latencies = timed(Key("sos_plus", "sft", 0.0), COSTS) | timed(adaptive, **{"1": 0.3, "2": 0.2, "8": 0.1})
    found = evidence(laboratory, cells, latencies)
    rows = BY_NAME["controllers"].rows(found)
    names = ("controller", "accuracy", "total", "sequential", "seconds_1", "seconds_2", "seconds_8")
    assert values(rows, *names) == [
        ("cons@1", pytest.approx(0.5), 2.5, 2.5, 2, 2, 2),
        # three threads for 2 steps, two for 2, one for 2; on two devices the first and third share one
        ("cons@3", 0.5, 7.5, 3.5, 3 * 2 + 2 * 2 + 2, 2 * 2 + 4, 6),
        # the first answer; of the second problem's first order the second sample's
        ("until 1 of 3 agree", (2 / 3 + 1 / 3) / 2, (4 + 4 / 3) / 2, (4 + 4 / 3) / 2, 2, 2, 2),
        # orders 0 1 1, 1 1, 1 0 1: 12, 10 and 12 tokens; the others do not agree: all, and the first answer
        ("until 2 of 3 agree", (1 + 1 / 3) / 2, pytest.approx((34 / 3 + 3) / 2),
         pytest.approx((34 / 3 + 3) / 2), 12, 12, 12),
        ("until 3 of 3 agree", (1 + 1 / 3) / 2, 7.5, 7.5, 12, 12, 12),
        ("6 children, first success", 1, 80, 1, None, None, None),
        ("adaptive, RL", 0.5, 40, 25, 0.3, 0.2, 0.1),
    ]  # fmt: skip
    assert "samples 4 to 5" in found.lacks()
    tens = cell(np.ones((40, 3)), total=np.full((40, 3), 10), votes=[[0] * 3] * 40)
    voted = {Key("sos_plus", "sft", 1.0): tens,
             adaptive: cell(np.ones((40, 1)), total=np.full((40, 1), 25))}  # fmt: skip
    row = claim_row(BY_ID["adaptive_over_votes"], evidence(laboratory, voted))
    assert (row["value"], row["note"]) == (0, "100.0% against cons@1 100.0%")
    voted[adaptive] = cell(np.ones((40, 1)), total=np.full((40, 1), 35))
    row = claim_row(BY_ID["adaptive_over_votes"], evidence(laboratory, voted))
    assert row["note"] == "missing: sft/sos_plus T=1 samples 4 to 4"


def test_which_number_of_children_is_best_for_how_many_devices(laboratory):
    cells = {Key("apr", "sft", 0.0, asked): cell([[1]] * solved + [[0]] * (4 - solved))
             for asked, solved in ((None, 1), (2, 1), (6, 3), (10, 4))}  # fmt: skip
    seconds = {2: {"1": 1, "8": 1}, 6: {"1": 2, "8": 1.5}, 10: {"1": 8, "8": 2.5}}
    latencies = timed(Key("sos_plus", "sft", 0.0), **dict.fromkeys(("1", "2", "4", "8", "16"), 1.5))
    for asked, given in seconds.items():
        every = {devices: given["1" if devices == "1" else "8"] for devices in ("1", "2", "4", "8", "16")}
        latencies |= timed(Key("apr", "sft", 0.0, asked), **every)
    rows = BY_NAME["children"].rows(evidence(laboratory, cells, latencies))
    shown = [row for row in rows if row["devices"] in (1, 8)]
    assert values(shown, "children", "devices", "accuracy", "seconds", "per_solved", "within") == [
        (2, 1, 0.25, 1, 4, 1), (2, 8, 0.25, 1, 4, 1), (6, 1, 0.75, 2, pytest.approx(8 / 3), 0),
        (6, 8, 0.75, 1.5, 2, 1), (10, 1, 1, 8, 8, 0), (10, 8, 1, 2.5, 2.5, 0),
    ]  # fmt: skip
    assert best(rows, 1, "all") == {"within": 2, "per_solved": 6}
    assert best(rows, 8, "all") == {"within": 6, "per_solved": 6}


def test_a_policy_told_of_devices_beside_numbers_of_children(laboratory):
    window = laboratory.grammar.window
    assert laboratory.rl.policies["devices"].reward_weight == 1.0

    def some(solved, children, *steps):
        """Four problems; steps on 1 and 2 devices and on more, in windows: by one it is worth 0.5."""
        columns = {f"steps_{devices}": [[steps[devices > 2] * window]] * 4 for devices in (1, 2, 4, 8, 16)}
        return cell([[1]] * solved + [[0]] * (4 - solved), children=[[children]] * 4, **columns)

    cells = {Key("apr", "sft", 0.0, 3): some(2, 3, 0.25, 0.25), Key("apr", "sft", 0.0): some(4, 5, 0, 0),
             Key("apr", "sft", 0.0, 10): some(4, 9, 3, 0.25)}  # fmt: skip
    cells |= {Key("devices", "rl", 0.0, devices): some(3, devices / 2, 0.25, 0.25) for devices in (1, 4, 16)}
    cells |= {Key("devices", "rl", 1.0, devices): some(3, children, 1, 1)
              for devices, children in ((1, 4.5), (16, 6.0))}  # fmt: skip
    found = evidence(laboratory, cells)
    rows = [row for row in BY_NAME["devices_asked"].rows(found) if row["devices"] in (1, 8, 16)]
    assert values(rows, "devices", "asked", "best", "children", "accuracy", "steps", "worth") == [
        (1, None, 0, 0.5, 0.75, window / 4, pytest.approx(0.6)), (1, 3, 1, 3, 0.5, window / 4, 0.4),
        (1, 10, 0, 9, 1, 3 * window, 0.25), (8, 3, 0, 3, 0.5, window / 4, 0.4),
        (8, 10, 1, 9, 1, window / 4, 0.8), (16, None, 0, 8, 0.75, window / 4, pytest.approx(0.6)),
        (16, 3, 0, 3, 0.5, window / 4, 0.4), (16, 10, 1, 9, 1, window / 4, 0.8),
    ]  # fmt: skip
    assert found.lacks() == "rl/devices T=0: 2, 8"
    row = claim_row(BY_ID["devices_worth"], found)
    assert (row["value"], row["status"]) == (pytest.approx(3 * 0.6 / (0.4 + 0.8 + 0.8)), "not supported")
    assert row["note"] == ("by devices 1: 0.600, 0.400 by 3 children; 4: 0.600, 0.800 by 10 children; "
                           "16: 0.600, 0.800 by 10 children")  # fmt: skip
    row = claim_row(BY_ID["devices_children"], found)
    assert (row["value"], row["note"], row["status"]) == (1.5, "6.0 against 4.5", "supported")


def test_every_exhibit_is_drawn_or_left_out(laboratory, tmp_path, capsys):
    cells = policies(apr=(2, 200), critical_path=(3, 150), own=(1, 200), difference=(2, 100), oracle=(4, 200))
    cells |= {Key(name, stage, 0.0, 64): cell([[1], [0]]) for name, stage in (
        ("sos_plus", "sft"), ("mixed", "sft"), ("serial", "rl"), ("mixed_serial", "rl"))}  # fmt: skip
    cells |= {Key("apr", "sft", 0.0, asked, join): cell([[1], [0]])
              for asked in (2, 6) for join in ("all", "any")}  # fmt: skip
    latencies = {}
    for key in cells:
        latencies |= timed(key, **dict.fromkeys(("1", "2", "4", "8", "16"), 1.5))
    found = evidence(laboratory, cells, latencies)
    found.training = {name: [{"step": step, "children": 5.0, "accuracy": 0.5, "sequential_tokens": 180.0,
                              "total_tokens": 600.0, f"{name}_child_same": 0.5} for step in (1, 2)]
                      for name in laboratory.rl.policies}  # fmt: skip
    with matplotlib.rc_context(style.RC):
        for exhibit in LABORATORY:
            (tmp_path / "rows.csv").write_text(csv_text(exhibit.rows(found.fresh())))
            figure, _ = draw_exhibit(exhibit, read_csv(tmp_path / "rows.csv"))
            figure.savefig(tmp_path / f"{exhibit.name}.png")
    assert len([*Path(tmp_path).glob("*.png")]) == len(LABORATORY)
    for exhibit in LABORATORY:
        write_exhibit(exhibit, evidence(laboratory, {}), tmp_path / "empty")
        assert f"{exhibit.name}: left out, as no sweep has a point" in capsys.readouterr().err


def test_products_by_their_digits():
    """Of two problems of each number of digits, and two of 5, which were not trained on."""
    params = load_params("params.yaml", "presets/multiplication.yaml")
    names = [f"test-{number:07d}" for number in range(1000)]
    sizes = digits_of(params, Cell((*names,), {}))
    chosen = [at for size in (2, 3, 4, 5) for at in np.flatnonzero(sizes == size)[:2]]
    problems = tuple(names[at] for at in chosen)
    assert [*digits_of(params, Cell(problems, {}))] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert [*digits_of(params, Cell(tuple(f"0/{name}" for name in problems), {}))] == [2, 2, 3, 3, 4, 4, 5, 5]

    def made(right, sequential):
        found = cell([[n] for n in right], children=[[0]] * 8, sequential=[[n] for n in sequential])
        return Cell(problems, found.columns)

    right = [1, 1, 1, 1, 1, 0, 0, 0]
    serial = made(right, [40, 40, 60, 60, 100, 100, 900, 900])
    found = evidence(params, {Key("serial", "sft", 0.0): serial,
                              Key("parallel", "sft", 0.0): made(right, [20, 20, 30, 30, 50, 50, 900, 900])})
    rows = DIGITS.rows(found)
    assert [row["series"] for row in rows] == ["serial, SFT"] * 4 + ["parallel, SFT"] * 4
    assert values(rows[:4], "digits", "trained", "problems", "accuracy", "sequential") == [
        (2, 1, 2, 1.0, 40), (3, 1, 2, 1.0, 60), (4, 1, 2, 0.5, 100), (5, 0, 2, 0.0, 900),
    ]  # fmt: skip
    row = claim_row(PRODUCTS[0], found)
    assert (row["value"], row["status"]) == (2.0, "supported")
    assert row["note"] == "accuracy +0.0 [+0.0, +0.0], of 6 problems"
    worse = made([1, 1, 1, 0, 1, 0, 0, 0], [20, 20, 30, 30, 50, 50, 900, 900])
    found = evidence(params, {Key("serial", "sft", 0.0): serial, Key("parallel", "sft", 0.0): worse})
    assert claim_row(PRODUCTS[0], found)["status"] == "not supported", "at the cost of accuracy"
