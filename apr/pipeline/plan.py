"""Which artefacts the parameters ask for, what each is made from, and which of them are stale.

Snakemake runs what is stale here; `dvc.yaml` says which parameters and which code each stage depends on; this
module joins the two. The jobs of a stage are finer than its DVC stage: one per method, policy or model.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from apr.core.errors import ParamsError
from apr.core.files import remove, write_text
from apr.core.model_files import model_files
from apr.core.params import PRETRAINED, Params, load_params, read_yaml
from apr.core.recipe import DIRECTORY_SEAL, Job, digest, hash_tree, why_stale
from apr.core.settings import NAMES, is_name
from apr.evaluation.points import evaluated, teachers

DEFAULT_SCALE = "default"


class Node(NamedTuple):
    """A job before its recipe is known; `keys` narrows mappings of parameters to the entries it needs."""

    stage: str
    outputs: tuple[str, ...]
    upstream: tuple[str, ...]
    keys: dict[str, set[str]] = {}


def nodes(params: Params) -> dict[str, Node]:
    """Every job, by id, upstream first."""
    found = {
        "problems": Node("problems", ("data/problems",), ()),
        "tokenizer": Node("tokenizer", ("data/tokenizer",), ()),
    }
    for method in params.traces.methods:
        only = {"traces.methods": {method}, "sft.tokens": {method}}
        traces, model = f"traces/{method}", f"data/models/sft/{method}"
        found[traces] = Node("traces", (f"data/traces/{method}.parquet",), ("problems", "tokenizer"), only)
        found[f"sft/{method}"] = Node("sft", (model,), (traces, "tokenizer"), only)
    for policy, settings in params.rl.policies.items():
        read: tuple[str, ...] = ("problems", f"sft/{settings.method}")
        only = {"rl.policies": {policy}, "traces.methods": {settings.method}}
        found[f"rl/{policy}"] = Node("rl", (f"data/models/rl/{policy}",), read, only)
    for stage, model in evaluated(params):
        read, only = ("problems", f"{stage}/{model}"), _keys_of_model(params, stage, model)
        name = f"{stage}/{model}"
        found[f"evaluate/{name}"] = Node("evaluate", (f"data/eval/{name}.parquet",), read, only)
        if stage == "rl" or model in teachers(params):  # Figure 6
            found[f"latency/{name}"] = Node("latency", (f"data/latency/{name}.json",), read, only)
    read = tuple(name for name, node in found.items() if node.stage not in ("tokenizer", "traces"))
    found["figures"] = Node("figures", ("results/figures", "results/metrics.json"), read)
    for method in teachers(params):
        only = _keys_of_model(params, "sft", method)
        read = ("problems", "tokenizer")
        found[f"teacher/{method}"] = Node("teacher", (f"data/teacher/{method}.parquet",), read, only)
    read = tuple(name for name, node in found.items() if node.stage in ("evaluate", "latency", "teacher"))
    found["claims"] = Node("claims", ("results/claims.md", "results/claims.csv"), read)
    read = tuple(name for name, node in found.items() if node.stage not in ("tokenizer", "traces"))
    found["checks"] = Node("checks", ("results/checks.json",), read)
    read = tuple(name for name, node in found.items() if node.stage not in ("tokenizer", "traces", "checks"))
    found["report"] = Node("report", ("results/report.html",), read)
    return found


def _keys_of_model(params: Params, stage: str, model: str) -> dict[str, set[str]]:
    method = model if stage == "sft" else params.rl.policies[model].method
    sweeps = params.eval.sweeps.items()
    return {
        "traces.methods": {method},
        "rl.policies": {model} if stage == "rl" else set(),
        "eval.sweeps": {name for name, sweep in sweeps if model in sweep.models and stage in sweep.stages},
    }


def select(values: dict[str, Any], declared: Iterable[str], keys: dict[str, set[str]]) -> dict[str, Any]:
    """The nested `values` cut down to the dotted keys `declared`, and some mappings further to `keys`."""
    chosen: dict[str, Any] = {}
    for dotted in declared:
        *sections, last = dotted.split(".")
        source, target = values, chosen
        for section in sections:
            source, target = source[section], target.setdefault(section, {})
        target[last] = _narrow(source[last], dotted, keys)
    return chosen


def _narrow(value: Any, path: str, keys: dict[str, set[str]]) -> Any:
    if not isinstance(value, dict):
        return value
    kept = keys.get(path, value)
    return {key: _narrow(item, f"{path}.{key}", keys) for key, item in value.items() if key in kept}


class Stage(NamedTuple):
    """What `dvc.yaml` declares: dotted keys of `params.yaml`, paths of code, whether `sft.base` is read."""

    params: list[str]
    code: list[str]
    base: bool


def declared_stages(repository: Path) -> dict[str, Stage]:
    stages = read_yaml(repository / "dvc.yaml")["stages"]
    return {
        name: Stage(stage["params"], [path for path in stage["deps"] if path.startswith("apr/")],
                    PRETRAINED in stage["deps"])
        for name, stage in stages.items()
    }


class Plan:
    """The jobs of one scale, and why those that are stale are so. Paths are relative to the repository."""

    def __init__(self, scale: str = DEFAULT_SCALE, repository: Path = Path()):
        self.scale, self.params = scale, load_scale(scale, repository)
        self.root = "" if scale == DEFAULT_SCALE else f"scales/{scale}/"
        self.marker = f"{self.root}.recipes/stale"
        self.nodes = nodes(self.params)
        self._repository = repository
        self.jobs: dict[str, Job] = {}
        self.stale: dict[str, str] = {}
        stages = declared_stages(repository)
        code: dict[str, str] = {}
        values = self.params.model_dump(mode="json")
        base = {only: hash_base(self.params, repository, only) for only in (False, True)}
        for name, node in self.nodes.items():
            stage = stages[node.stage]
            for path in stage.code:
                code[path] = code.get(path) or digest(hash_tree(repository / path, repository))
            recipe = {
                "params": select(values, stage.params, node.keys),
                "code": {path: code[path] for path in stage.code},
                "upstream": {other: digest(self.jobs[other].recipe) for other in node.upstream},
            }
            if self.params.sft.base and stage.base:
                recipe["base"] = base[node.stage == "tokenizer"]
            self.jobs[name] = job = self._job(name, node, recipe)
            if reason := why_stale(job):
                self.stale[name] = reason
            elif stale := [other for other in node.upstream if other in self.stale]:
                self.stale[name] = f"{stale[0]} is stale"

    def because(self, name: str) -> Iterator[str]:
        """Why a job is stale, back to what is stale by itself; nothing if it is fresh."""
        while reason := self.stale.get(name):
            yield f"{name}: {reason}"
            name = reason.removeprefix("upstream.").removesuffix(" changed").removesuffix(" is stale")

    def _job(self, name: str, node: Node, recipe: dict[str, Any]) -> Job:
        outputs = tuple(str(self._repository / f"{self.root}{path}") for path in node.outputs)
        upstream = {other: self.jobs[other].seal for other in node.upstream}
        return Job(name, recipe, outputs, seal_of(outputs[0]), upstream)

    def seals(self, stage: str | None = None) -> list[str]:
        """The seals of one stage's jobs, or of all."""
        return [job.seal for name, job in self.jobs.items() if stage in (None, self.nodes[name].stage)]

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(node.stage for node in self.nodes.values()))

    def job_file(self, name: str) -> str:
        """Where `write` puts a job; its name changes with the recipe, so a running job's file never does."""
        return f"{self.root}.recipes/{name}-{digest(self.jobs[name].recipe)[:12]}.json"

    def write(self) -> None:
        """Writes what the jobs read, and the marker that is newer than anything stale."""
        for name, job in self.jobs.items():
            job.write(self._repository / self.job_file(name))
        write_text(self._repository / self.marker, f"{time.time()}\n")

    def prune(self) -> Iterator[str]:
        """Removes sealed artefacts that the parameters no longer ask for; yields their seals."""
        wanted = {Path(job.seal) for job in self.jobs.values()}
        data = self._repository / f"{self.root}data"
        for seal in sorted([*data.rglob("*.recipe"), *data.rglob(DIRECTORY_SEAL)]):
            if seal not in wanted:
                remove(seal.parent if seal.name == DIRECTORY_SEAL else seal.with_suffix(""))
                remove(seal)
                yield str(seal)


def hash_base(params: Params, repository: Path, tokenizer_only: bool) -> dict[str, str]:
    """Hashes of the files of `sft.base` that are read, if there is one, or of those that its tokenizer is
    read from."""
    base = params.sft.base
    if base is None:
        return {}
    files = model_files(repository / base, tokenizer_only)
    return {name: value for path in files for name, value in hash_tree(path, repository / base).items()}


def seal_of(output: str) -> str:
    """`recipe.json` in a directory, `FILE.recipe` beside a file."""
    return f"{output}.recipe" if Path(output).suffix else f"{output}/{DIRECTORY_SEAL}"


def load_scale(scale: str, repository: Path = Path()) -> Params:
    """The parameters of `params.yaml`, under `presets/SCALE.yaml` unless the scale is the default."""
    if scale == DEFAULT_SCALE:
        return load_params(repository / "params.yaml")
    presets = sorted(path.stem for path in (repository / "presets").glob("*.yaml"))
    if scale not in presets:
        raise ParamsError(f"scale: {scale!r} is not allowed; allowed: {', '.join([DEFAULT_SCALE, *presets])}")
    preset = repository / "presets" / f"{scale}.yaml"
    if not is_name(scale):
        raise ParamsError(f"{preset}: not named as a scale; allowed: {NAMES}")
    return load_params(repository / "params.yaml", preset)
