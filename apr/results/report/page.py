"""`results/report.html`: one file with the claims, the threads, every figure, and how the run was made."""

import csv
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from ruamel.yaml import YAML

from apr.core.errors import DataError
from apr.core.files import read_json, write_text
from apr.core.params import Params
from apr.core.provenance import cost
from apr.core.recipe import DIRECTORY_SEAL, flat
from apr.evaluation.points import jobs
from apr.evaluation.results import LEDGER
from apr.results.claims.table import FORMATS, printed_cells
from apr.results.evidence import Evidence, Row, accuracy, mean, read_evidence
from apr.results.figures import style
from apr.results.figures.make import FIGURES, name_of
from apr.results.report import curves
from apr.results.report.trees import problem_cases, training_cases
from apr.tasks.countdown import read_problems
from apr.training.rl.log import read_log

TEMPLATE = Path(__file__).with_name("page.html")
NUMBERS = ("value", "low", "high", "threshold", "paper")
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


def make_report(params: Params, root: Path, out: Path) -> None:
    """Writes the report of the run whose `data`, `results` and `logs` lie in `root`; it needs nothing else.

    It depends on the artefacts alone, but for the seconds and memory of jobs that were run here, and for
    versions and machine of those that were not. Raises `DataError` or `CheckpointError` if something is
    missing or broken; a policy whose training kept no rollouts is left out of the viewer.
    """
    data, results = root / "data", root / "results"
    evidence = read_evidence(params, data / "eval", data / "latency")
    problems, models = data / "problems", data / "models"
    cases = problem_cases(evidence, read_problems(problems / "test.parquet"), models)
    cases += training_cases(params, read_problems(problems / "validation.parquet"), models)
    write_text(out, fill(TEMPLATE.read_text(), {
        "task": escape(_task(params)), "claims": _claims(results / "claims.csv"), "cases": embedded(cases),
        "untold": _untold(params, cases), "figures": "".join(_figure(results / "figures", name_of(module))
                                                             for module in FIGURES),
        "training": _training(params, models), "ledger": _ledger(evidence),
        "spent": _spent(evidence, models), "stages": _stages(root / "logs"), "made": _made(root),
        "params": escape(_yaml(params)),
    }))  # fmt: skip


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with the text of each part in the place of its name in double braces."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def embedded(value: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], raw: Sequence[str] = ()) -> str:
    """An HTML table; None is an empty cell, and the columns named in `raw` are HTML already."""
    columns = []
    for name, values in zip(header, zip(*rows, strict=True), strict=True):
        texts = ["" if value is None else str(value) for value in values]
        kind = ' class="number"' if all(NUMBER.fullmatch(text) for text in texts if text) else ""
        columns.append([f"<th{kind}>{escape(name)}</th>",
                        *(f"<td{kind}>{text if name in raw else escape(text)}</td>" for text in texts)])
    head, *body = ("<tr>" + "".join(cells) + "</tr>\n" for cells in zip(*columns, strict=True))
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _task(params: Params) -> str:
    task = params.problems
    numbers, targets = (f"{low} to {high}" for low, high in (task.number_range, task.target_range))
    bound = "unbounded" if task.max_value is None else f"up to {task.max_value}"
    return (f"{task.numbers} numbers from {numbers}, targets from {targets}, intermediate values {bound}; "
            f"threads of up to {params.grammar.window} tokens; seed {params.seed}; "
            f"{params.eval.problems} test problems; intervals of 95 % from {params.eval.bootstrap} bootstrap "
            "resamples of the problems")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path.read_text()


def _read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(_read_text(path), newline="")))


def _claims(path: Path) -> str:
    """The table of claims, each with a picture of its interval, on one scale for all of a unit."""
    rows: list[Row] = [row | {name: float(row[name]) if row[name] else None for name in NUMBERS}
                       for row in _read_csv(path)]  # fmt: skip
    cells = []
    for row in rows:
        name, sentence, measured, threshold, paper, n, _, note, status = map(escape, printed_cells(row))
        cells.append((f"{sentence}<br><small><code>{name}</code> {note}</small>", measured, paper, threshold,
                      _interval(row, rows), n,
                      f'<span class="status {status.replace(" ", "-")}">{status}</span>'))  # fmt: skip
    header = ("claim", "measured [95 %]", "paper", "threshold", "interval", "problems x samples", "status")
    return table(header, cells, raw=header)


def _interval(row: Row, rows: Sequence[Row], width: int = 150) -> str:
    """A line from low to high, a dot at the value; ticks at 0 and the threshold; the paper's diamond."""
    if row["value"] is None:
        return ""
    values = [other[name] for other in rows if other["unit"] == row["unit"] for name in NUMBERS]
    least = min(0.0, *(value for value in values if value is not None))
    scale = (width - 10) / (max(value for value in values if value is not None) - least)
    x = {name: 5 + scale * (row[name] - least) for name in NUMBERS if row[name] is not None}
    zero, paper = 5 - scale * least, ""
    if "paper" in x:
        paper = f'<path class="paper" d="M{x["paper"]:.1f} 4l4 5-4 5-4-5z"/>'
    factor, form = FORMATS[row["unit"]]
    said = ", ".join(f"{name} {format(factor * row[name], form)}" for name in x)
    return (f'<svg class="interval" width="{width}" height="18" role="img"><title>{said}</title>'
            f'<path class="zero" d="M{zero:.1f} 1v16"/>'
            f'<path class="threshold" d="M{x["threshold"]:.1f} 1v16"/>'
            f'<path class="spread" d="M{x["low"]:.1f} 9H{x["high"]:.1f}"/>{paper}'
            f'<circle cx="{x["value"]:.1f}" cy="9" r="3.5"/></svg>')


def picture(svg: str) -> tuple[str, str]:
    """A figure as `style.save` wrote it: the same without the caption below it, and the caption."""
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


def _framed(name: str, title: str, svg: str, caption: str, source: str, more: str = "") -> str:
    """A figure element; `source` says what it was drawn from."""
    large = "large" if _size(svg)[0] > LARGE else "small"
    return (f'<figure id="{name}" class="{large}"><h3>{title}</h3><img alt="{escape(caption)}" '
            f'src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}">'
            f"<figcaption>{escape(caption)} <span>{escape(source)}</span></figcaption>{more}</figure>\n")


def _figure(folder: Path, name: str) -> str:
    svg, caption = picture(_read_text(folder / f"{name}.svg"))
    rows = _read_csv(folder / f"{name}.csv")
    values = {column: dict.fromkeys(row[column] for row in rows) for column in SAID if column in rows[0]}
    source = "; ".join(f"{column} {', '.join(value or 'none' for value in found)}"
                       for column, found in values.items())  # fmt: skip
    numbers = table(list(rows[0]), [list(row.values()) for row in rows])
    title = re.sub(r"^(fig|table)(?=\d)", lambda match: match[1].title() + " ", name)
    return _framed(name, title, svg, caption, f"From {source}.",
                   f"<details><summary>{name}.csv, {len(rows)} rows</summary>{numbers}</details>")


def _training(params: Params, models: Path) -> str:
    sft, rl, drawn = params.sft, params.rl, ""
    sources = {"sft": f"From log.jsonl of each model; {sft.rows_per_step * sft.row_tokens} tokens a step.",
               "rl": f"From log.jsonl of each policy; {rl.prompts} problems x {rl.group} rollouts a step."}
    for stage, (draw, caption) in curves.CURVES.items():
        logs = {model: read_log(models / stage / model / "log.jsonl")
                for at, model in jobs(params) if at == stage}  # fmt: skip
        if not logs:
            continue
        with matplotlib.rc_context(style.RC):
            draw(logs).savefig(text := StringIO(), format="svg", metadata={"Date": None, "Creator": None})
        drawn += _framed(f"training-{stage}", style.STAGES[stage], text.getvalue(), caption, sources[stage])
    return drawn


def _untold(params: Params, cases: Sequence[Mapping[str, Any]]) -> str:
    """Which policies the viewer lacks."""
    kept = {case["group"] for case in cases}
    lacking = [f"rl/{policy}" for policy in sorted(params.rl.policies)
               if f"training of rl/{policy}" not in kept]
    return f"No rollouts were kept while {', '.join(lacking)} trained." if lacking else ""


def _ledger(evidence: Evidence) -> str:
    """Means over rollouts at every point of the sweeps."""
    rows = []
    for key, cell in evidence.cells.items():
        counts = [f"{value:,.1f}" if (value := mean(cell, column).mean()) >= 10 else f"{value:.2f}"
                  for column in COUNTED]  # fmt: skip
        rows.append((f"{key.stage}/{key.model}", key.condition, f"{key.temperature:g}", key.join,
                     f"{len(cell.problems)} x {cell.samples}", f"{accuracy(cell).mean():.1%}", *counts))
    header = ("model", "condition", "T", "join", "n", "accuracy",
              *(name.removesuffix("_threads") for name in COUNTED))  # fmt: skip
    free = [row for row in rows if row[1] is None]
    return (table(header, free) + f"<details><summary>all {len(rows)} points of the sweeps</summary>"
            f"{table(header, rows)}</details>")  # fmt: skip


def _spent(evidence: Evidence, models: Path) -> str:
    """Tokens of each model's training and evaluation, in all."""
    rl, rows = evidence.params.rl, []
    for stage, model in jobs(evidence.params):
        if stage == "sft":
            trained = read_json(models / stage / model / "metrics.json")["tokens"]
        else:
            steps = read_log(models / stage / model / "log.jsonl")
            trained = rl.prompts * rl.group * sum(line["total_tokens"] for line in steps)
        decoded = sum(int(cell.sampled.sum()) for key, cell in evidence.cells.items()
                      if (key.stage, key.model) == (stage, model))  # fmt: skip
        rows.append((f"{stage}/{model}", f"{trained:,.0f}", f"{decoded:,}"))
    return table(("model", "tokens trained on (SFT) or sampled to train (RL)", "sampled to evaluate"), rows)


def _stages(logs: Path) -> str:
    """What the jobs that were run here took, by stage."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(logs.rglob("*.tsv")):
        stage = path.relative_to(logs).with_suffix("").parts[0]
        if stage not in BESIDE:
            stages.setdefault(stage, []).append(cost(path))
    rows = []
    for stage, found in stages.items():
        seconds, most = sum(job["seconds"] for job in found), max(job["peak_mib"] or 0 for job in found)
        rows.append((stage, len(found), f"{seconds:,.0f}", f"{most:,.0f}"))
    return table(("stage", "jobs", "seconds, added up", "largest job (MiB)"), rows)


def _made(root: Path) -> str:
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
    return table(("made by", f"{len(seals)} artefacts"), rows)


def _yaml(params: Params) -> str:
    text, yaml = StringIO(), YAML()
    yaml.default_flow_style = None  # lists and the innermost mappings on one line
    yaml.width = 100
    yaml.dump(json.loads(json.dumps(params.model_dump(mode="json"), sort_keys=True)), text)
    return text.getvalue()
