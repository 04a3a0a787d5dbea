"""Claims on evaluation files written by hand: values, statuses, and what the README may say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_figures import cell, evidence

from apr.core.errors import DataError
from apr.core.files import write_rows
from apr.evaluation.points import Point, teachers
from apr.evaluation.points import timed as timed_models
from apr.evaluation.results import EVAL_SCHEMA, Key
from apr.results.claims.claims import CLAIMS
from apr.results.claims.table import END, START, check_readme, claim_row, make_claims
from apr.results.evidence import pool

BY_ID = {claim.id: claim for claim in CLAIMS}


def measure(params, name, cells, latencies=None):
    return claim_row(BY_ID[name], evidence(params, cells, latencies))


def column(*groups):
    """(problems, 1): `groups` are (problems, value)."""
    return [[value] for count, value in groups for _ in range(count)]


@pytest.mark.parametrize(
    ("solved", "status"),
    [(70, "supported"), (55, "direction only"), (42, "not supported")],
)
def test_a_difference_needs_its_threshold_and_an_interval_above_zero(params, solved, status):
    cells = {Key("apr", "sft", 0.0, 10): cell(column((solved, 1), (100 - solved, 0))),
             Key("sos_plus", "sft", 0.0): cell(column((40, 1), (60, 0))),
             Key("sos_plus", "sft", 0.0, 64): cell(column((20, 1), (80, 0)))}  # fmt: skip
    row = measure(params, "apr_over_sos_plus", cells)
    assert row["value"] == pytest.approx((solved - 40) / 100), "SoS+ at its best condition"
    assert (row["problems"], row["samples"], row["seeds"], row["status"]) == (100, "1", 1, status)
    assert row["paper"] == pytest.approx(0.832 - 0.573)


def test_what_was_not_measured_is_named(params):
    row = measure(params, "rl_more", {Key("apr", stage, 1.0): cell([[1]]) for stage in ("sft", "rl")})
    assert (row["status"], row["value"], row["seeds"]) == ("not measured", None, 0)
    assert row["note"] == "missing: sft/sos_plus T=1: unconditioned; rl/sos_plus T=1: unconditioned"


@pytest.mark.parametrize(("solved", "status"), [(45, "supported"), (40, "not supported")])
def test_ratio_to_the_teacher(params, solved, status):
    teacher = cell([[1, 0]] * 100)  # two samples: 50 %
    cells = {Key("apr", "sft", 0.0): cell(column((solved, 1), (100 - solved, 0))),
             Key("apr", "solver", 0.0): teacher}  # fmt: skip
    row = measure(params, "teacher_apr", cells)
    assert (row["value"], row["status"]) == (pytest.approx(solved / 50), status)
    assert row["low"] < row["value"] < row["high"]


def test_equal_tokens_gives_sos_plus_no_fewer_tokens(params):
    votes = np.array([[0, 1, 1], [0, 1, 2]])
    serial = cell([[1, 0, 0], [1, 0, 0]], total=[[10, 10, 10]] * 2, votes=votes)
    cells = {Key("sos_plus", "sft", 1.0): serial,
             Key("apr", "sft", 1.0, 9): cell([[1], [1]], total=[[21], [21]]),
             Key("apr", "sft", 1.0, 10): cell([[1], [1]], total=[[31], [31]])}  # fmt: skip
    row = measure(params, "equal_tokens", cells)
    assert row["note"] == "9 children asked for, cons@3", "10 children would take 4 samples"
    assert row["value"] == 0.5 and row["samples"] == "1/3"  # cons@3: wrong by two votes, right as the first
    row = measure(params, "equal_tokens", {key: cells[key] for key in cells if key.condition != 9})
    assert row["note"] == "missing: sft/sos_plus T=1 samples 4 to 4"


def timed(**seconds):
    """By model: seconds by condition; of `apr` those with join any, and twice as long with join all."""
    joins = {"sos_plus": {"all": 1}, "apr": {"all": 2, "any": 1}}
    return {Key(model, "sft", 0.0, condition, join): {"problems": [{"seconds": factor * value}]}
            for model, entries in seconds.items() for condition, value in entries.items()
            for join, factor in joins[model].items()}  # fmt: skip


def test_equal_latency_takes_the_best_that_is_as_quick(params):
    half, most, none = (cell(column((n, 1), (100 - n, 0))) for n in (50, 90, 0))
    cells = {Key("sos_plus", "sft", 0.0): half, Key("sos_plus", "sft", 0.0, 64): none,
             **{Key("apr", "sft", 0.0, k, join): found for join in ("all", "any")
                for k, found in ((3, none), (6, most), (10, most))}}  # fmt: skip
    serial, asked = {None: 0.5, 64: 0.2}, "children asked for"
    row = measure(params, "equal_latency", cells, timed(sos_plus=serial, apr={3: 0.1, 6: 0.4, 10: 0.9}))
    assert (row["value"], row["status"]) == (0.4, "supported")
    assert row["note"] == f"6 {asked}, 400 ms against 500 ms"
    row = measure(params, "equal_latency_all", cells, timed(sos_plus=serial, apr={3: 0.1, 6: 0.4, 10: 0.9}))
    assert (row["value"], row["note"]) == (-0.5, f"3 {asked}, 200 ms against 500 ms")
    row = measure(params, "equal_latency", cells, timed(sos_plus=serial, apr={6: 0.7, 10: 0.9}))
    assert (row["value"], row["status"]) == (0.4, "not supported")
    assert row["note"] == f"6 {asked}, 700 ms against 500 ms: no APR is as quick"
    assert measure(params, "equal_latency", cells, timed(apr={6: 0.7}))["status"] == "not measured"


def test_gains_of_rl(params):
    cells = {Key(model, stage, 1.0): cell(column((n, 1), (100 - n, 0)), children=column((50, n), (50, n + 2)))
             for (model, stage), n in {("apr", "sft"): 40, ("apr", "rl"): 60, ("sos_plus", "sft"): 40,
                                       ("sos_plus", "rl"): 45}.items()}  # fmt: skip
    rows = {name: measure(params, name, cells) for name in ("rl_apr", "rl_more", "rl_children")}
    assert {name: row["value"] for name, row in rows.items()} == pytest.approx(
        {"rl_apr": 0.2, "rl_more": 0.15, "rl_children": 20}
    )
    assert {row["status"] for row in rows.values()} == {"supported"}


def test_conditioning(params):
    def asked(used):
        cells = {Key("apr", "sft", 1.0, k): cell([[1]] * 4, children=[[n] for n in used(k)])
                 for k in range(11)}  # fmt: skip
        return measure(params, "conditioning_children", cells)

    exact = asked(lambda k: [k] * 4)
    assert exact["value"] == pytest.approx(1) and exact["status"] == "supported"
    assert asked(lambda k: [3] * 4)["value"] == 0
    rows = [[k, min(k, 4), 10 - k, 5] for k in range(11)]
    pairs = np.array([(k, used) for k in range(11) for used in rows[k]])
    ranks = [[(np.sum(side < value) + np.sum(side <= value)) / 2 for value in side] for side in pairs.T]
    assert asked(lambda k: rows[k])["value"] == pytest.approx(np.corrcoef(ranks)[0, 1])

    cells = {Key("sos_plus", "sft", 0.0, 64): cell([[1]] * 4, longest=[[60], [64], [65], [10]]),
             Key("sos_plus", "sft", 0.0, 288): cell([[1]] * 4, longest=[[288]] * 4)}  # fmt: skip
    row = measure(params, "conditioning_tokens", cells)
    assert (row["value"], row["note"], row["status"]) == (0.75, "budgets 64", "not supported")


def test_runs_of_several_seeds_are_pooled(params):
    def run(seed, solved):
        cells = {Key("apr", "sft", 1.0): cell(column((4, 0))), Key("apr", "rl", 1.0): cell(column(*solved))}
        return evidence(params.model_copy(update={"seed": seed}), cells)

    runs = [run(0, [(3, 1), (1, 0)]), run(1, [(1, 1), (3, 0)])]
    row = claim_row(BY_ID["rl_apr"], pool(runs), runs)
    assert (row["value"], row["problems"], row["seeds"]) == (0.5, 8, 2)
    assert row["note"] == "by seed: +75.0, +25.0"
    assert claim_row(BY_ID["rl_apr"], pool(runs[:1]), runs[:1])["note"] == ""
    with pytest.raises(DataError, match=r"the seeds \[0, 0\]"):
        pool([runs[0], runs[0]])
    with pytest.raises(DataError, match="more parameters than the seed"):
        pool([runs[0], evidence(params.model_copy(update={"seed": 2, "rl": None}), {})])


def test_latencies_are_pooled(params):
    key = Key("apr", "sft", 0.0, None, "any")
    timed = [{key: {"problems": [{"seconds": n}], "p50": {"seconds": n}}} for n in (1, 3)]
    runs = [evidence(params.model_copy(update={"seed": i}), {}, found) for i, found in enumerate(timed)]
    assert pool(runs).latencies == {key: {"problems": [{"seconds": 1}, {"seconds": 3}]}}


@pytest.fixture(scope="module")
def paths(params, artefacts, row, tmp_path_factory):
    """claims.md of plausible artefacts and teachers that solve everything."""
    folder = tmp_path_factory.mktemp("claims")
    for method in teachers(params):
        points = [Point(condition, 0.0, 0) for condition in (None, *([10] if method == "apr" else []))]
        rows = [row(method, "solver", problem, point, "children")
                for problem in range(params.eval.problems) for point in points]  # fmt: skip
        write_rows(folder / "teacher" / f"{method}.parquet", rows, EVAL_SCHEMA)
    return artefacts / "eval", artefacts / "latency.json", folder / "teacher", folder / "claims.md"


def test_the_table_and_the_readme(params, paths, tmp_path):
    readme, out = tmp_path / "README.md", paths[-1]
    readme.write_text("without a block\n")
    make_claims(params, *paths, readme=readme)
    lines = out.read_text().splitlines()
    assert len(lines) == 2 + len(CLAIMS) == len(out.with_suffix(".csv").read_text().splitlines()) + 1
    assert not [line for line in lines if "not measured" in line], "the default sweeps cover every claim"

    readme.write_text(f"before\n{START}old\n{END}after\n")
    make_claims(params, *paths, update_readme=readme)
    assert readme.read_text() == f"before\n{START}{out.read_text()}{END}after\n"
    make_claims(params, *paths, readme=readme)
    refused = next(line for line in lines if line.endswith("| not supported |"))
    readme.write_text(readme.read_text().replace(refused, refused.replace("not supported", "supported")))
    name = refused.split()[1]
    with pytest.raises(DataError, match=f"{name} is printed as 'supported', but is 'not supported'"):
        make_claims(params, *paths, readme=readme)


def test_where_a_part_was_evaluated_claims_that_need_more_are_left_out(params, paths, tmp_path):
    evaluations, latencies, solvers, whole = paths
    make_claims(params, *paths)
    for model in timed_models(params):
        path = tmp_path / f"{model}.parquet"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(evaluations / f"{model}.parquet", path)
    out = tmp_path / "claims.md"
    with pytest.raises(DataError, match="no such file"):
        make_claims(params, tmp_path, latencies, solvers, out)
    make_claims(params, tmp_path, latencies, solvers, out, partial=True)
    left_out = set(whole.read_text().splitlines()) - set(out.read_text().splitlines())
    assert {line.split()[1] for line in left_out} == {"equal_sequences", "equal_problems"}
    assert set(out.read_text().splitlines()) < set(whole.read_text().splitlines())
    with pytest.raises(DataError, match="no claim can be measured"):
        make_claims(params, tmp_path / "none", tmp_path / "none", tmp_path / "none", out, partial=True)


@pytest.mark.parametrize(
    ("printed", "measured", "passes"),
    [("supported", "supported", True), ("supported", "direction only", False),
     ("supported", "not measured", False), ("direction only", "not supported", False),
     ("direction only", "supported", True), ("not supported", "not measured", True)],
)  # fmt: skip
def test_the_readme_may_say_less_but_not_more(tmp_path, printed, measured, passes):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}| claim | status |\n| --- | --- |\n| a | {printed} |\n{END}")
    if passes:
        check_readme(readme, {"a": measured})
    else:
        with pytest.raises(DataError, match=f"a is printed as '{printed}', but is '{measured}'"):
            check_readme(readme, {"a": measured})


def test_a_broken_block_is_an_error(tmp_path):
    readme = tmp_path / "README.md"
    for text, message in ((START, "without"), (f"{START}| b | supported |\n{END}", "not a line"),
                          (f"{START}| a | proven |\n{END}", "not a line")):  # fmt: skip
        readme.write_text(text)
        with pytest.raises(DataError, match=message):
            check_readme(readme, {"a": "supported"})


def test_the_readme_of_the_repository_prints_claims_that_exist():
    check_readme(Path("README.md"), dict.fromkeys(BY_ID, "supported"))
