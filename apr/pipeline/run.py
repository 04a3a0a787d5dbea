"""`apr run`: makes one artefact, as the table of stages says, and seals it."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path

from apr.core.params import partial_params
from apr.core.ranks import rank
from apr.core.recipe import Job, make, read_job
from apr.pipeline.stages import STAGES


def run(recipe: Path, workers: int = 1) -> None:
    """Makes what the job file `recipe` asks for, in `workers` processes where the function can use them.

    With `engine.accelerate` this process becomes `accelerate launch`, which starts this again several times;
    the first of them seals what they make. Raises `AprError`.
    """
    job = read_job(recipe)
    config = STAGES[job.stage].trains and job.recipe["params"]["engine"]["accelerate"]
    if config and "RANK" not in os.environ:
        command = ["-m", "accelerate.commands.launch", "--config_file", config, "-m", "apr", "run", job.id,
                   "--recipe", str(recipe)]  # fmt: skip
        print("python", *command, file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *command])
    if rank() > 0:
        return call(job, workers)
    partial_params(job.recipe["params"])  # imports the task, by whose classes settings are read
    before = set(sys.modules)
    with make(job):
        call(job, workers)
    for name in sorted(sys.modules.keys() - before):
        file = name.replace(".", "/")
        if name.startswith("apr.") and not {f"{file}.py", f"{file}/__init__.py"} & job.recipe["code"].keys():
            print(f"apr: warning: {name} was imported, but is not in the recipe of {job.id}", file=sys.stderr)


def call(job: Job, workers: int = 1) -> None:
    """Calls the function of a job with the parameters that it declares."""
    paths = {key: Path(path) for key, path in job.paths.items()}
    function = function_of(job.function)
    more = {"workers": workers} if "workers" in signature(function).parameters else {}
    function(partial_params(job.recipe["params"]), **job.names, **paths, **more)


def function_of(path: str) -> Callable[..., None]:
    """Returns the function at "module:name"."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
