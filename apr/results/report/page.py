"""`results/report.html`: one file with the claims, the threads, every figure, and how the run was made."""

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from ruamel.yaml import YAML

from apr.core.errors import DataError
from apr.core.files import read_json, write_text
from apr.core.hashes import DIRECTORY_SEAL
from apr.core.params import Params
from apr.core.provenance import cost
from apr.core.recipe import flat
from apr.evaluation.points import evaluated
from apr.evaluation.results import LEDGER
from apr.results.claims.table import NUMBERS, printed
from apr.results.evidence import Evidence, Row, accuracy, mean, read_csv, read_evidence
from apr.results.figures import style
from apr.results.figures.make import figures_of
from apr.results.render import render
from apr.results.report.curves import CURVES, draw_curves
from apr.results.report.trees import problem_cases, training_cases
from apr.tasks import open_task
from apr.tasks.problems import read_problems
from apr.training.rl.log import read_log

SAID = ("model", "method", "stage", "run", "temperature", "condition", "amount", "samples", "join",
        "devices")  # fmt: skip
"""Columns of figures whose values their captions list."""
COUNTED = [name for name in LEDGER if name not in ("total", "threads")]
"""Of the ledger; total is what is sampled, and threads are the children and the root."""
NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]\d+)?%?( \[.*\])?")
VIEW = re.compile(r'height="\S+pt" viewBox="0 0 (\S+) (\S+)"')
LARGE = 450
"""Points of width from which on a figure stands alone."""
BESIDE = ("checks", "report")
"""Stages that the report does not come after."""

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Header and rows; None is an empty cell."""


def make_report(params: Params, root: Path, out: Path) -> None:
    """Writes the report of the run whose `data`, `results` and `logs` lie in `root`; it needs nothing else.

    It depends on the artefacts alone, but for the seconds and memory of jobs that were run here, and for
    versions and machine of those that were not. Raises `DataError` or `CheckpointError` if something is
    missing or broken; a policy whose training kept no rollouts is left out of the viewer.
    """
    data, results, models = root / "data", root / "results", root / "data" / "models"
    evidence = read_evidence(params, data / "eval", data / "latency.json")
    task = open_task(params)
    cases = problem_cases(evidence, read_problems(task, data / "problems/test.parquet"), models)
    cases += training_cases(params, read_problems(task, data / "problems/validation.parquet"), models)
    claims = read_csv(results / "claims.csv")
    kept = {case["group"] for case in cases}
    known = [exhibit.name for exhibit in figures_of(params)]
    drawn = [name for name in known if (results / f"figures/{name}.csv").is_file()]
    write_text(out, render(
        "report/page.html", params=params, numeric=numeric, cases=cases, ledger=_ledger(evidence),
        claims=[row | printed(row) | {"at": _places(row, claims)} for row in claims],
        untold=[policy for policy in sorted(params.rl.policies) if f"training of rl/{policy}" not in kept],
        figures=[_figure(results / "figures", name) for name in drawn],
        undrawn=[name for name in known if name not in drawn],
        training=_training(params, models), spent=_spent(evidence, models), stages=_stages(root / "logs"),
        made=_made(root), settings=_yaml(params),
    ))  # fmt: skip


def numeric(rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Returns which columns have nothing but numbers, and are set to the right."""
    return [all(NUMBER.fullmatch(str(value)) for value in column if value not in (None, ""))
            for column in zip(*rows, strict=True)]  # fmt: skip


def _places(row: Row, rows: Sequence[Row], width: int = 140) -> dict[str, float]:
    """Where the numbers of a claim, and 0, are in its picture, on one scale for all claims of a unit."""
    of_unit = [other[name] for other in rows if other["unit"] == row["unit"] for name in NUMBERS]
    values = [0.0, *(value for value in of_unit if value is not None)]
    scale = width / (max(values) - min(values) or 1)
    found = {"zero": 0.0} | {name: row[name] for name in NUMBERS if row[name] is not None}
    return {name: round(5 + scale * (value - min(values)), 1) for name, value in found.items()}


def picture(svg: str) -> tuple[str, str]:
    """Returns a figure as `style.save` wrote it without the caption below it, and the caption."""
    title = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
    if title is None:
        raise DataError("a figure without its caption; make the figures again")
    caption, (width, height) = unescape(title[1]), _size(svg)
    height -= 72 * style.wrap_caption(caption, width / 72)[1]
    view = f'height="{height:g}pt" viewBox="0 0 {width:g} {height:g}"'
    return VIEW.sub(view, svg, count=1), caption


def _size(svg: str) -> tuple[float, float]:
    """Width and height in points."""
    found = VIEW.search(svg)
    assert found, "as matplotlib writes it"
    return float(found[1]), float(found[2])


def _framed(name: str, title: str, svg: str, caption: str, source: str, table: Table | None = None) -> Row:
    """What the page shows of a figure; `source` says what it was drawn from."""
    return {"name": name, "title": title, "caption": caption, "source": source, "table": table,
            "large": _size(svg)[0] > LARGE, "data": b64encode(svg.encode()).decode()}  # fmt: skip


def _figure(folder: Path, name: str) -> Row:
    rows, path = read_csv(folder / f"{name}.csv"), folder / f"{name}.svg"
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    values = {column: dict.fromkeys(row[column] for row in rows) for column in SAID if column in rows[0]}
    source = "; ".join(f"{column} {', '.join('none' if value is None else str(value) for value in found)}"
                       for column, found in values.items())  # fmt: skip
    title = re.sub(r"^(fig|table)(?=\d)", lambda match: match[1].title() + " ", name)
    table = list(rows[0]), [list(row.values()) for row in rows]
    return _framed(name, title, *picture(path.read_text()), f"From {source}.", table)


def _training(params: Params, models: Path) -> list[Row]:
    sft, rl, drawn = params.sft, params.rl, []
    sources = {"sft": f"From log.jsonl of each model; {sft.rows_per_step * sft.row_tokens} tokens a step.",
               "rl": f"From log.jsonl of each policy; {rl.prompts} problems x {rl.group} rollouts a step."}
    for stage, curves in CURVES.items():
        logs = {model: read_log(models / stage / model / "log.jsonl")
                for at, model in evaluated(params) if at == stage}  # fmt: skip
        if not logs:
            continue
        with matplotlib.rc_context(style.RC):
            figure, text = draw_curves(curves, logs), StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        drawn.append(_framed(f"training-{stage}", style.STAGES[stage], text.getvalue(), curves.caption,
                             sources[stage]))  # fmt: skip
    return drawn


def _ledger(evidence: Evidence) -> Table:
    """Means over the rollouts of every cell."""
    rows = []
    for key, cell in evidence.cells.items():
        counts = [f"{value:,.1f}" if (value := mean(cell, column).mean()) >= 10 else f"{value:.2f}"
                  for column in COUNTED]  # fmt: skip
        rows.append((f"{key.stage}/{key.model}", key.condition, f"{key.temperature:g}", key.join,
                     f"{len(cell.problems)} x {cell.samples}", f"{accuracy(cell).mean():.1%}", *counts))
    counted = (name.removesuffix("_threads") for name in COUNTED)
    return ("model", "condition", "T", "join", "n", "accuracy", *counted), rows


def _spent(evidence: Evidence, models: Path) -> Table:
    """Tokens of each model's training and evaluation, in all."""
    rl, rows = evidence.params.rl, []
    for model in evaluated(evidence.params):
        if model.phase == "sft":
            trained = read_json(models / str(model) / "metrics.json")["tokens"]
        else:
            steps = read_log(models / str(model) / "log.jsonl")
            trained = rl.prompts * rl.group * sum(line["total_tokens"] for line in steps)
        decoded = sum(int(cell.sampled.sum()) for key, cell in evidence.cells.items()
                      if (key.stage, key.model) == model)  # fmt: skip
        rows.append((str(model), f"{trained:,.0f}", f"{decoded:,}"))
    return ("model", "tokens trained on (SFT) or sampled to train (RL)", "sampled to evaluate"), rows


def _stages(logs: Path) -> Table:
    """What the jobs that were run here took, by stage."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(logs.rglob("*.tsv")):
        stage = path.relative_to(logs).with_suffix("").parts[0]
        if stage not in BESIDE:
            stages.setdefault(stage, []).append(cost(path))
    rows = [(stage, len(found), f"{sum(job['seconds'] for job in found):,.0f}",
             f"{max(job['peak_mib'] or 0 for job in found):,.0f}") for stage, found in stages.items()]
    return ("stage", "jobs", "seconds, added up", "largest job (MiB)"), rows


def _made(root: Path) -> Table:
    """Commit, versions and machine, as the seals of the artefacts say, and of how many if they differ."""
    results, data = root / "results", root / "data"
    seals = [*data.rglob("*.recipe"), *data.rglob(DIRECTORY_SEAL), results / "figures" / DIRECTORY_SEAL,
             results / "claims.md.recipe"]  # fmt: skip
    found: dict[str, Counter[str]] = {}
    for seal in sorted(seals):
        for name, value in flat(read_json(seal).get("made_by", {})):
            found.setdefault(name, Counter())[str(value)] += 1
    rows = []
    for name, values in found.items():
        said = (f"{value} ({count} artefacts)" for value, count in values.most_common())
        rows.append((name, "; ".join(said if len(values) > 1 else values)))
    return ("made by", f"{len(seals)} artefacts"), rows


def _yaml(params: Params) -> str:
    text, yaml = StringIO(), YAML()
    yaml.default_flow_style = None  # lists and the innermost mappings on one line
    yaml.width = 100
    yaml.dump(json.loads(json.dumps(params.model_dump(mode="json"), sort_keys=True)), text)
    return text.getvalue()
