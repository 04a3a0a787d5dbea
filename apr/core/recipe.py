"""What an artefact was made from, and whether it still is.

A *recipe* holds the parameters that a job may read, the hashes of its code, and the digests of the recipes
of what it reads. A *seal*, written beside the artefact as its last file, repeats the recipe and adds the
hashes of the artefact's own files and of those it read; and, for people, commit, versions and machine. An
artefact is fresh when its seal holds the recipe wanted now and its files are the sealed ones: no dates, no
database, so it holds after a checkout or a pull.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr.core.errors import DataError
from apr.core.files import read_json, remove, write_json
from apr.core.params import Params, partial_params
from apr.core.provenance import provenance

DIRECTORY_SEAL = "recipe.json"


@dataclass(frozen=True)
class Job:
    """One artefact to make: `outputs` are files, or directories that hold nothing else."""

    id: str
    recipe: dict[str, Any]
    """`params`, `code` (hash by path) and `upstream` (digest of recipe by job id)."""
    outputs: tuple[str, ...]
    seal: str
    upstream: dict[str, str]
    """Seal of each job whose artefact this one reads, by job id."""

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def read_job(path: Path) -> Job:
    value = read_json(path)
    return Job(**value | {"outputs": tuple(value["outputs"])})


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_tree(root: Path, base: Path) -> dict[str, str]:
    """SHA-256 of each file at or below `root`, by its path from `base`; seals and bytecode are left out."""
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    return {
        Path(os.path.relpath(path, base)).as_posix(): _hash_file(path)
        for path in files
        if "__pycache__" not in path.parts and path.name != DIRECTORY_SEAL
    }


def _hash_file(path: Path) -> str:
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def outputs_of(job: Job) -> dict[str, str]:
    """Hashes of the artefact's files as they are now, by their path from the seal."""
    base = Path(job.seal).parent
    return {name: value for path in job.outputs for name, value in hash_tree(Path(path), base).items()}


def why_stale(job: Job) -> str | None:
    """Why the artefact of `job` must be made again; None if it is what its recipe says."""
    if not Path(job.seal).is_file():
        return "not made yet"
    try:
        seal = read_json(job.seal)
        recipe, outputs, inputs = seal["recipe"], seal["outputs"], seal["inputs"]
    except (DataError, KeyError, TypeError):
        return f"{job.seal} is broken"
    if recipe != job.recipe:
        return difference(recipe, job.recipe)
    if outputs != (found := outputs_of(job)):
        return f"{difference(outputs, found)} since it was sealed"
    for name, path in job.upstream.items():
        if inputs.get(name) != _sealed_outputs(path):
            return f"{name} was made again"
    return None


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first entry in which two nested mappings differ, in words."""
    before, after = dict(flat(old)), dict(flat(new))
    for key in [*after, *before]:
        if before.get(key) != after.get(key):
            if key.startswith("params."):
                return f"{key[7:]}: {before.get(key)} -> {after.get(key)}"
            return f"{key} changed"
    return "nothing changed"


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping by their dotted paths."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _sealed_outputs(seal: str) -> str | None:
    try:
        return digest(read_json(seal)["outputs"])
    except (DataError, KeyError):
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
    write_json(job.seal, {"recipe": job.recipe, "inputs": inputs, "outputs": outputs_of(job),
                          "made_by": made_by})  # fmt: skip
