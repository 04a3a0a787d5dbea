"""What an artefact was made from, and whether it still is.

A *recipe* holds the parameters that a job may read, the hashes of its code, and the digests of the recipes
of what it reads. A *seal*, written beside the artefact as its last file, repeats the recipe and adds the
hashes of the artefact's own files and of those it read; and, for people, commit, versions and machine. An
artefact is fresh when its seal holds the recipe wanted now and its files are the sealed ones: no dates, no
database, so it holds after a checkout or a pull.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from apr.core.errors import DataError
from apr.core.files import read_json, remove, write_json
from apr.core.hashes import DIRECTORY_SEAL, digest, hash_file, hash_tree
from apr.core.params import Params, partial_params
from apr.core.provenance import provenance


@dataclass(frozen=True)
class Job:
    """One artefact to make: `function` ("module:name") is called with parameters, `names` and `paths`."""

    id: str
    function: str
    names: dict[str, str]
    paths: dict[str, str]
    outputs: tuple[str, ...]
    """Files, or directories that hold nothing else."""
    seal: str
    upstream: dict[str, str]
    """Seal of each job whose artefact this one reads, by job id."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """`params`, `code` (hash by path), `upstream` (digest of recipe by job id), `base` (hash by path)."""

    @property
    def stage(self) -> str:
        return self.id.split("/")[0]

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def read_job(path: Path) -> Job:
    """Returns the job that `Job.write` wrote. Raises `DataError` if that is none."""
    try:
        value = read_json(path)
        return Job(**value | {"outputs": tuple(value["outputs"])})
    except (TypeError, KeyError):
        raise DataError(f"{path}: not a job") from None


class Reason(NamedTuple):
    """Why a job has to run: what `key` of its seal was, and what is wanted or found now."""

    kind: str
    """absent, broken (its seal); params, code, base (of the recipe); output (its file has changed); upstream
    (another recipe), remade (another artefact of the same), stale: the job `key` that is read."""
    key: str = ""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        return {
            "absent": "not made yet",
            "broken": f"{self.key} is broken",
            "params": f"{self.key}: {self.old} -> {self.new}",
            "output": f"{self.key} changed since it was sealed",
            "remade": f"{self.key} was made again",
            "stale": f"{self.key} is stale",
            "upstream": f"{self.key} is made from other settings",
        }.get(self.kind, f"{self.key} changed")


def seal_of(output: str) -> str:
    """Returns `recipe.json` in a directory, `FILE.recipe` beside a file."""
    return f"{output}.recipe" if Path(output).suffix else f"{output}/{DIRECTORY_SEAL}"


def outputs_of(job: Job, of: Callable[[Path], str] = hash_file) -> dict[str, str]:
    """Returns hashes of the artefact's files as they are now, by their path from the seal."""
    base = Path(job.seal).parent
    return {name: value for path in job.outputs for name, value in hash_tree(Path(path), base, of).items()}


def why_stale(job: Job, of: Callable[[Path], str] = hash_file) -> Reason | None:
    """Returns why the artefact of `job` must be made again; None if it is what its recipe says."""
    if not Path(job.seal).is_file():
        return Reason("absent")
    try:
        seal = read_json(job.seal)
        recipe, outputs, inputs = seal["recipe"], dict(seal["outputs"]), dict(seal["inputs"])
        changes = [(kind, change) for kind in ("params", "base", "code", "upstream")
                   if (change := difference(recipe.get(kind, {}), job.recipe.get(kind, {})))]  # fmt: skip
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return Reason("broken", job.seal)
    for kind, change in changes:
        return Reason(kind, *change)
    if change := difference(outputs, outputs_of(job, of)):
        return Reason("output", *change)
    for name, path in job.upstream.items():
        if inputs.get(name) != (found := _sealed_outputs(path)):
            return Reason("remade", name, inputs.get(name), found)
    return None


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first key in which two nested mappings differ, and its values; None if they are equal."""
    before, after = dict(flat(old)), dict(flat(new))
    for key in [*after, *before]:
        if (change := (before.get(key, "absent"), after.get(key, "absent")))[0] != change[1]:
            return key, *change
    return None


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nested mapping by their dotted paths."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _sealed_outputs(seal: str) -> str | None:
    try:
        return digest(read_json(seal)["outputs"])
    except (DataError, KeyError, TypeError):
        return None


@contextmanager
def make(job: Job) -> Iterator[Params]:
    """Yields the job's parameters (those it declares, no others) and seals what was made.

    Raises `DataError` if something it reads is not there or was made from another recipe.
    """
    for name, path in job.upstream.items():
        if digest(read_json(path)["recipe"]) != job.recipe["upstream"][name]:
            raise DataError(f"{path}: {name} was not made from the settings wanted now; make it first")
    made_by = provenance()  # before the work: nothing may fail between it and its seal
    remove(Path(job.seal))
    yield partial_params(job.recipe["params"])
    inputs = {name: _sealed_outputs(path) for name, path in job.upstream.items()}
    write_json(job.seal, {
        "job": job.id, "place": job.seal, "recipe": job.recipe, "inputs": inputs,
        "outputs": outputs_of(job), "made_by": made_by,
    })  # fmt: skip
