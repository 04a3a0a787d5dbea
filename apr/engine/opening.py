"""A checkpoint ready to decode."""

from collections.abc import Iterable
from pathlib import Path

import torch

from apr.core.params import Engine
from apr.engine.checkpoint import load_model
from apr.engine.slots import SlotEngine


def open_engine(settings: Engine, window: int, stop_ids: Iterable[int], checkpoint: Path) -> SlotEngine:
    """Returns the model of `checkpoint` in an engine with empty slots. Raises `CheckpointError`."""
    torch.set_num_threads(settings.torch_threads)
    return SlotEngine(load_model(checkpoint, settings.device), stop_ids, settings.slots, window)
