"""What each job of a scale is made from, and which of them are stale, and why. Snakemake runs those."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from apr.core.errors import ParamsError, quoted
from apr.core.files import read_json
from apr.core.hashes import DIRECTORY_SEAL, Memory, digest, hash_tree
from apr.core.model_files import model_files
from apr.core.params import Params, load_params
from apr.core.recipe import Job, Reason, seal_of, why_stale
from apr.core.settings import NAMES, is_name
from apr.pipeline.code import Code
from apr.pipeline.stages import Names, Stage, jobs, keys_of, writers_of

DEFAULT_SCALE = "default"


class Plan:
    """The jobs of one scale, and why those that are stale are so. Paths are relative to the repository."""

    def __init__(self, scale: str = DEFAULT_SCALE, repository: Path = Path(), root: str | None = None):
        """`root` is put before every path instead of the scale's own."""
        self.scale, self.params, self._repository = scale, load_scale(scale, repository), repository
        self.root = root_of(scale) if root is None else root
        self._memory = Memory(repository / f"{self.root}.recipes/hashes.json")
        looked_at = Memory(repository / ".recipes/code.json")  # one for all scales
        self._code, self._values = Code(repository, looked_at), self.params.model_dump(mode="json")
        self.jobs: dict[str, Job] = {}
        self.stale: dict[str, Reason] = {}
        writers: dict[str, str] = {}
        for name, (stage, names) in jobs(self.params).items():
            upstream = writers_of([path.format(**names) for path in stage.read(self.params)], writers)
            self.jobs[name] = job = self._job(name, stage, names, upstream)
            writers |= {path.format(**names): name for path in stage.written}
            if reason := why_stale(job, self._memory.hash_file):
                self.stale[name] = reason
            elif stale := [other for other in upstream if other in self.stale]:
                self.stale[name] = Reason("stale", stale[0])
        for memory in (self._memory, looked_at):
            memory.save()

    def _job(self, name: str, stage: Stage, names: Names, upstream: list[str]) -> Job:
        recipe = {
            "params": select(self._values, stage.keys(self.params), keys_of(self.params, names)),
            "code": self._code.of(*stage.modules(self.params)),
            "upstream": {other: digest(self.jobs[other].recipe) for other in upstream},
        }
        if stage.base and self.params.sft.base:
            base = self._repository / self.params.sft.base
            recipe["base"] = {file: value for path in model_files(base, stage.base == "tokenizer")
                              for file, value in hash_tree(path, base, self._memory.hash_file).items()}
        outputs = tuple(self._at(path.format(**names)) for path in stage.written)
        return Job(
            name, stage.function,
            names={key: value for key, value in names.items() if f"{{{key}}}" in stage.job},
            paths={key: self._at(path.format(**names)) for key, path in stage.paths.items()}, outputs=outputs,
            seal=seal_of(outputs[0]), recipe=recipe,
            upstream={other: self.jobs[other].seal for other in upstream},
        )  # fmt: skip

    def _at(self, path: str) -> str:
        return str(self._repository / f"{self.root}{path}")

    def because(self, name: str) -> Iterator[tuple[str, Reason]]:
        """Yields why a job is stale, back to what is stale by itself; nothing if it is fresh."""
        while reason := self.stale.get(name):
            yield name, reason
            name = reason.key if reason.kind in ("upstream", "stale") else ""

    def needed(self, stage: str) -> set[str]:
        """Returns a stage's jobs and all that they need."""
        found = {name for name, job in self.jobs.items() if job.stage == stage}
        for name in reversed(self.jobs):
            found |= self.jobs[name].upstream.keys() if name in found else set()
        return found

    def seals(self, stage: str | None = None) -> list[str]:
        """Returns the seals of one stage's jobs, or of all."""
        return [job.seal for job in self.jobs.values() if stage in (None, job.stage)]

    def recipe(self, name: str) -> str:
        """Returns where `write` puts a job; the name changes with the recipe, so a running job's file never
        does."""
        return f"{self.root}.recipes/{name}-{digest(self.jobs[name].recipe)[:12]}.json"

    def write_job(self, name: str) -> Path:
        """Writes a job to where `apr run` reads it; returns that. Raises `ParamsError` if there is none."""
        if name not in self.jobs:
            raise ParamsError(f"job: {quoted(name)} is not allowed; allowed: {', '.join(self.jobs)}")
        path = self._repository / self.recipe(name)
        if not path.is_file():
            self.jobs[name].write(path)
        return path

    def write(self) -> None:
        """Writes what the jobs read, dated so that a rule runs if and only if its job is stale: now, or in
        1970."""
        now = time.time()
        for name, job in self.jobs.items():
            date_back(job, now)
            date = now if name in self.stale else 0
            os.utime(self.write_job(name), (date, date))

    def sweep(self) -> None:
        """Removes what other plans have written, which no run may be using any more."""
        wanted = {self._repository / self.recipe(name) for name in self.jobs}
        for path in (self._repository / f"{self.root}.recipes").rglob("*-????????????.json"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def leftovers(self) -> dict[str, Path]:
        """Returns the artefacts that were made here and that the parameters do not ask for any more, by their
        seals; not copies of others."""
        data, wanted, found = Path(self._at("data")), set(self.seals()), {}
        for seal in sorted([*data.rglob("*.recipe"), *data.rglob(DIRECTORY_SEAL)]):
            place = seal.relative_to(self._repository).as_posix()
            if str(seal) not in wanted and read_json(seal).get("place") == place:
                found[place] = seal.parent if seal.name == DIRECTORY_SEAL else seal.with_suffix("")
        return found


def date_back(job: Job, now: float) -> None:
    """Dates files back that are dated in the future, or at 0, which Snakemake takes for no date."""
    for path in (Path(job.seal), *map(Path, job.outputs)):
        for file in [path, *path.rglob("*")]:
            if file.exists() and not 0 < file.stat().st_mtime <= now:
                os.utime(file, (1, 1))


def select(values: dict[str, Any], declared: Iterable[str], keys: dict[str, set[str]]) -> dict[str, Any]:
    """Returns the nested `values` cut down to the dotted keys `declared`, and some mappings further to
    `keys`."""
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


def root_of(scale: str) -> str:
    """Returns what is put before the paths of a scale."""
    return "" if scale == DEFAULT_SCALE else f"scales/{scale}/"


def scales(repository: Path = Path()) -> list[str]:
    """Returns the names of all scales, the default one first."""
    return [DEFAULT_SCALE, *sorted(path.stem for path in (repository / "presets").glob("*.yaml"))]


def load_scale(scale: str, repository: Path = Path()) -> Params:
    """Returns the parameters of `params.yaml`, under `presets/SCALE.yaml` unless the scale is the default."""
    if scale not in (known := scales(repository)):
        raise ParamsError(f"scale: {quoted(scale)} is not allowed; allowed: {', '.join(known)}")
    preset = None if scale == DEFAULT_SCALE else repository / "presets" / f"{scale}.yaml"
    if preset and not is_name(scale):
        raise ParamsError(f"{preset}: not named as a scale; allowed: {NAMES}")
    return load_params(repository / "params.yaml", preset)
