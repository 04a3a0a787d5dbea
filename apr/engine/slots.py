"""Continuous batching over any Hugging Face causal LM."""

import time
from collections.abc import Hashable, Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from apr.core.model_files import check_window
from apr.core.params import Engine
from apr.engine.checkpoint import load_model
from apr.engine.interface import Segment
from apr.engine.runners import runner_of
from apr.engine.scheduler import Scheduler


class SlotEngine(Scheduler):
    """A `Decoder` with `slots` threads in memory, each of at most `window` tokens.

    Threads beyond that wait, in order of rank and arrival. A stopped thread keeps its slot, so an extension
    prefills only what was appended; if others wait while stopped threads hold more than half of the slots,
    those stopped last lose theirs and are prefilled again when extended, so nothing ever waits for good: one
    slot is enough for any number of threads.

    `workers` threads of the operating system share what is decoded in C, and change nothing of it.

    `model` must be in evaluation mode. Changed weights are decoded with after `reload_weights`. Raises
    `CheckpointError` unless its layers see all of a window.
    """

    def __init__(
        self, model: PreTrainedModel, stop_ids: Iterable[int], slots: int, window: int, workers: int = 1
    ):
        config = model.config.get_text_config()
        check_window(Path(model.name_or_path or "."), config, window)
        self._model, self._workers = model, workers
        self._runner = runner_of(model)(model, slots, window)
        super().__init__(stop_ids, config.vocab_size, slots, window, patient=not self._runner.ragged)
        self.prefill_seconds = self.decode_seconds = 0.0
        """Wall-clock time of steps that read prompts or joined tokens, and of those that only decode."""

    def reload_weights(self, model: PreTrainedModel) -> None:
        """Decodes with the weights that `model` has now: the engine's own model, or another of its shapes.

        Raises `ValueError` if it has others, and while threads are open: their keys are of the old weights.
        """
        if self._sequences:
            raise ValueError("new weights: threads are open")
        if _shapes(model) != _shapes(self._model) or runner_of(model) is not type(self._runner):
            raise ValueError("new weights: of another architecture than the model's")
        self._model = model
        self._runner.reload(model)

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Segment]]:
        """Admits waiting threads, then samples a token for every live one, or some more while it goes on."""
        if self._model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding")
        started = time.perf_counter()
        slots, stopped = self.schedule()
        if not len(slots):
            return stopped
        share = self._runner.advance(self.table, slots, self._workers)
        stopped += self.record(slots)
        seconds = time.perf_counter() - started
        self.prefill_seconds += share * seconds
        self.decode_seconds += (1 - share) * seconds
        return stopped


def open_engine(settings: Engine, window: int, stop_ids: Iterable[int], checkpoint: Path) -> SlotEngine:
    """Returns the model of `checkpoint` in an engine with empty slots. Raises `CheckpointError`."""
    torch.set_num_threads(settings.torch_threads)
    model = load_model(checkpoint, settings.device)
    return SlotEngine(model, stop_ids, settings.slots, window, settings.workers)


def _shapes(model: PreTrainedModel) -> list[tuple[str, torch.Size, torch.dtype, torch.device]]:
    return [(name, p.shape, p.dtype, p.device) for name, p in model.named_parameters()]
