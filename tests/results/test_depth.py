"""The table and the claims of the scale `depth`, from cells written by hand."""

import pytest
from test_figures import cell, evidence, values

from apr.core.errors import ParamsError
from apr.core.params import load_params, parse_params
from apr.evaluation.results import Key
from apr.results.claims.table import claim_row, claims_of
from apr.results.evidence import csv_text, read_csv
from apr.results.figures.depth import DEPTH
from apr.results.figures.exhibit import draw_exhibit
from apr.results.figures.make import FIGURES, figures_of


@pytest.fixture(scope="module")
def deep():
    return load_params("params.yaml", "presets/depth.yaml")


def test_the_scale_alone_has_them(params, deep):
    assert figures_of(deep) == [*FIGURES, DEPTH] and DEPTH not in figures_of(params)
    assert {claim.id for claim in claims_of(deep)} - {claim.id for claim in claims_of(params)} == {
        "depth", "teacher_nested"}  # fmt: skip


def test_a_method_nests_no_deeper_than_the_engine(deep):
    values = deep.model_dump()
    values["engine"]["max_depth"] = 1
    with pytest.raises(ParamsError) as said:
        parse_params(values)
    assert str(said.value) == ("params: traces.methods.nested: 2 is not allowed; allowed: threads nested at "
                               "most engine.max_depth = 1 deep")  # fmt: skip


def test_the_table_by_hand(deep, tmp_path):
    votes = [[0, 0, 1]] * 4
    cells = {
        Key("apr", "sft", 0.0): cell([[1], [0], [0], [0]], total=[[900]] * 4, sequential=[[200]] * 4,
                                     threads=[[6]] * 4),
        Key("nested", "sft", 0.0): cell([[1], [1], [1], [0]], total=[[2400]] * 4, threads=[[21]] * 4),
        Key("nested", "sft", 0.0, None, "any"): cell([[1], [1], [1], [1]], total=[[1200]] * 4),
        Key("apr", "sft", 0.5): cell([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]], votes=votes,
                                     total=[[800, 900, 1000]] * 4, sequential=[[190, 200, 210]] * 4),
    }  # fmt: skip
    found = evidence(deep, cells)
    rows = DEPTH.rows(found)
    assert values(rows, "label", "accuracy", "total", "threads") == [
        ("depth 1, SFT, greedy", 0.25, 900, 6), ("depth 2, SFT, greedy", 0.75, 2400, 21),
        ("depth 2, SFT, greedy, first success", 1.0, 1200, 1),
        ("depth 1, SFT, cons@3, T = 0.5", 0.5, 2700, 3),
    ]  # fmt: skip
    assert values(rows, "sequential") == [(200,), (1,), (1,), (200,)], "samples decode at the same time"
    assert rows[0]["accuracy_low"] < 0.25 < rows[0]["accuracy_high"] and "rl/nested" in found.lacks()
    (tmp_path / "depth.csv").write_text(csv_text(rows))
    draw_exhibit(DEPTH, read_csv(tmp_path / "depth.csv"))


@pytest.mark.parametrize(
    ("solved", "status"), [(60, "supported"), (54, "direction only"), (50, "not supported")]
)
def test_depth_two_over_depth_one(deep, solved, status):
    """Of 100 problems depth 1 solves the first 50."""
    claims = {claim.id: claim for claim in claims_of(deep)}
    cells = {Key(name, "sft", 0.0): cell([[int(place < count)] for place in range(100)])
             for name, count in (("apr", 50), ("nested", solved))}  # fmt: skip
    row = claim_row(claims["depth"], evidence(deep, cells))
    assert (row["value"], row["status"]) == (pytest.approx(solved / 100 - 0.5), status)
    assert row["threshold"] == 0.05 and row["note"] == f"{solved}.0% against 50.0%"
    cells[Key("nested", "solver", 0.0)] = cell([[1, 0]] * 100)
    row = claim_row(claims["teacher_nested"], evidence(deep, cells))
    assert row["value"] == pytest.approx(solved / 50) and row["threshold"] == 0.85
