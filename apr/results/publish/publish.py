"""`apr publish`: copies what a run has made, if it is what the run's results say, and writes cards."""

import json
import shutil
from collections.abc import Collection, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from apr.core.errors import DataError, ParamsError, quoted
from apr.core.files import atomic_path, count_rows, read_json, write_json
from apr.core.hashes import hash_file
from apr.core.model_files import model_files
from apr.core.params import Params
from apr.evaluation.points import ModelId, evaluated
from apr.evaluation.results import Cell, Key
from apr.results.evidence import Evidence, Row, accuracy, mean, read_evidence
from apr.results.render import render
from apr.tasks.problems import SPLITS

PAPER = "arxiv:2504.15466"
DATA, DEMO = "data", "demo"
PLACES = {DATA: "datasets/countdown", DEMO: "spaces/demo"}
PARAMS_FILE = "params.json"
"""Beside a published model: the parameters of its run."""
COLUMNS = {"tokens": "total", "sequential tokens": "sequential", "children": "children"}
"""What a model card says of a rollout's usage, and the ledger's name for it."""


def publish(params: Params, root: Path, out: Path, only: Collection[str] = ()) -> list[Path]:
    """Returns the folders that it has written below `out`: ``models/PHASE/NAME`` for each evaluated model,
    ``datasets/countdown`` and ``spaces/demo``; or those among `only`: "data", "demo", "rl/apr" and the like.

    `root` is where the `data` and `results` of the run lie. Raises `DataError` if a file is not the one that
    ``results/run.json`` was written of, or an accuracy not that of ``results/metrics.json``.
    """
    models = {str(model): model for model in evaluated(params)}
    known = [*models, DATA, *([DEMO] if (root / "data/demo.html").is_file() else [])]
    for name in only:
        if name not in known:
            raise ParamsError(f"--only: {quoted(name)} is not allowed; allowed: {', '.join(known)}")
    run = _Run(root)
    evidence = read_evidence(params, root / "data/eval", root / "data/latency.json")
    written = []
    for name in only or known:
        place = out / PLACES.get(name, f"models/{name}")
        with atomic_path(place) as partial:
            partial.mkdir()
            if name == DATA:
                card = _data(params, run, partial)
            elif name == DEMO:
                run.copy("data/demo.html", partial / "index.html")
                card = _card("space.md", {
                    "title": "Adaptive Parallel Reasoning", "emoji": "🧵", "colorFrom": "blue",
                    "colorTo": "green", "sdk": "static", "app_file": "index.html", "pinned": False,
                    "license": "apache-2.0", "tags": [PAPER],
                })  # fmt: skip
            else:
                card = _model(evidence, run, models[name], partial)
            (partial / "README.md").write_text(card)
        written.append(place)
    return written


class _Run:
    """The files of a run below `root`, each as ``results/run.json`` says."""

    def __init__(self, root: Path):
        self.root = root
        jobs = read_json(root / "results/run.json")["jobs"].values()
        self._hashes = {path: value for job in jobs for path, value in job["outputs"].items()}

    def copy(self, path: str, to: Path) -> None:
        if self._hashes.get(path) != hash_file(self.root / path):
            raise DataError(f"{self.root / path}: not the file of the run in results/run.json; run it again")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / path, to)


def _card(template: str, metadata: dict[str, Any], **values: Any) -> str:
    """Metadata in the Hub's format, then text."""
    text, yaml = StringIO(), YAML()
    yaml.width = 1000
    yaml.dump(json.loads(json.dumps(metadata)), text)
    return f"---\n{text.getvalue()}---\n\n{render(f'publish/{template}', **values)}"


def _model(evidence: Evidence, run: _Run, model: ModelId, to: Path) -> str:
    """Copies a model and the parameters of its run; its card."""
    params, source = evidence.params, Path("data/models") / str(model)
    files = [*model_files(run.root / source), run.root / source / "generation_config.json"]
    for path in files:
        run.copy(path.relative_to(run.root).as_posix(), to / path.relative_to(run.root / source))
    write_json(to / PARAMS_FILE, params.model_dump(mode="json"))
    metrics = read_json(run.root / "results/metrics.json")
    rows = [_measured(evidence, key, cell) for key, cell in evidence.cells.items()
            if (key.stage, key.model) == model and key.condition is None and key.join == "all"]  # fmt: skip
    for row in rows:
        name = f"{model.phase}_{model.name}_accuracy_" + ("T1" if row["temperature"] == 1 else "greedy")
        if row["temperature"] in (0, 1) and abs(metrics.get(name, row["accuracy"]) - row["accuracy"]) > 1e-6:
            raise DataError(f"{run.root}/results/metrics.json: {name} is {metrics[name]}, evaluated was "
                            f"{row['accuracy']:.6f}; run it again")  # fmt: skip
    seal = read_json(run.root / source / "recipe.json")
    return _card("model.md", _model_metadata(params, model, rows), params=params, model=model, rows=rows,
                 columns=[*COLUMNS], made=seal["made_by"], window=params.grammar.window,
                 parallel=params.traces.spawns(model.method(params)) > 0)  # fmt: skip


def _measured(evidence: Evidence, key: Key, cell: Cell) -> Row:
    return {
        "temperature": key.temperature, "n": f"{len(cell.problems)} x {cell.samples}",
        **evidence.spread(accuracy=accuracy(cell)),
        **{name: mean(cell, column).mean() for name, column in COLUMNS.items()},
    }  # fmt: skip


def _model_metadata(params: Params, model: ModelId, rows: Iterable[Row]) -> dict[str, Any]:
    base = params.sft.base
    results = [
        {"task": {"type": "text-generation", "name": "Countdown"},
         "dataset": {"type": "countdown", "name": f"Countdown, {params.problems}", "split": "test"},
         "metrics": [{"type": "accuracy", "value": round(100 * row["accuracy"], 1),
                      "name": f"solved (%), T = {row['temperature']:g}, 95 % interval "
                              f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}"}]}
        for row in rows
    ]  # fmt: skip
    return {
        "license": "other" if base else "apache-2.0", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["countdown", "parallel-reasoning", PAPER],
        **({"base_model": base} if base else {}),
        "model-index": [{"name": f"apr {model}", "results": results}],
    }  # fmt: skip


def _data(params: Params, run: _Run, to: Path) -> str:
    """Copies problems and traces; their card."""
    problems = [f"problems/{split}.parquet" for split in reversed(SPLITS)]
    traces = {method: f"traces/{method}.parquet" for method in params.traces.methods}
    rows = {}
    for path in (*problems, *traces.values()):
        run.copy(f"data/{path}", to / path)
        rows[path] = count_rows(to / path)
    splits = [{"split": Path(path).stem, "path": path} for path in problems]
    configs = [{"config_name": "problems", "default": True, "data_files": splits}]
    configs += [{"config_name": f"traces_{method}", "data_files": path} for method, path in traces.items()]
    total = sum(rows.values())
    size = next((name for most, name in SIZES if total < most), "1M<n<10M")
    metadata = {"license": "apache-2.0", "pretty_name": "Countdown problems and thread traces",
                "task_categories": ["text-generation"], "tags": ["countdown", "synthetic", PAPER],
                "size_categories": [size], "configs": configs}  # fmt: skip
    return _card("data.md", metadata, params=params, rows=rows, traces=traces)


SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""What the Hub calls a number of rows."""
