"""Several jobs of apr in one start, as torch and transformers take seconds to import:

    accelerate launch --config_file profiles/accelerate/fsdp.yaml -m tests.processes.verbs JOBS

JOBS is a JSON list of [whether FSDP shards, stage, its arguments, folder to run it in, update to be killed
in or null]. A job that was not killed leaves `seen-RANK.json` in its folder, of every micro-batch: number of
the update, and which shares of the weights and of the optimizer's state this process has.

Accelerate shards on accelerators only. What it asks before it does so is answered here for the CPU; from
there on everything is what it does on GPUs, through gloo instead of NCCL. Other jobs run as ddp.yaml says.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import Trainer

from apr.core.params import parse_params
from apr.core.ranks import rank
from apr.core.settings import read_yaml
from apr.pipeline.run import function_of
from apr.pipeline.stages import STAGES
from apr.training.rl import trainer

trainer.quickest = lambda device: torch.float32  # gradients that do not depend on who has which rows
PREPARE = PartialState._prepare_backend


class Killed(BaseException):
    """Stands for a kill: no handler of the program sees it."""


def shard_on_cpu(wanted: bool) -> None:
    os.environ["ACCELERATE_USE_FSDP"] = str(wanted).lower()
    PartialState._prepare_backend = PREPARE
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if wanted:
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def part(tensors: list[torch.Tensor]) -> float | None:
    """Which share of these tensors' numbers is in this process; None if there are none."""
    local = sum(t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in tensors)
    return local / sum(t.numel() for t in tensors) if tensors else None


def run(fsdp: bool, stage: str, arguments: dict[str, str], folder: str, killed_in: int | None) -> None:
    shard_on_cpu(fsdp)
    os.chdir(folder)
    seen, step = [], Trainer.training_step

    def noting(trainer, model, *args, **kwargs):
        update = trainer.state.global_step
        if update == killed_in:
            raise Killed
        state = [t for tensors in trainer.optimizer.state.values() for t in tensors.values() if t.ndim]
        seen.append([update, part(list(model.parameters())), part(state)])
        return step(trainer, model, *args, **kwargs)

    Trainer.training_step = noting
    try:
        paths = {name: Path(value) if value.startswith("/") else value for name, value in arguments.items()}
        function_of(STAGES[stage].function)(parse_params(read_yaml("params.yaml"), "params.yaml"), **paths)
    except Killed:
        return
    finally:
        Trainer.training_step = step
    Path(f"seen-{rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(*job)
