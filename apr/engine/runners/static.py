"""Decoding in passes of a few fixed shapes, so that a GPU can record each once and then replay it.

Shapes are buckets of rows and, where the pass is that of `transformers` and not a `LlamaStep`, of positions
that attention sees: with 2,048 slots twelve, or less than a hundred, each recorded when it is first met. A
step then costs what the GPU computes, not the launching of a hundred kernels. Passes that read prompts or
joined tokens are launched as they come: they have many shapes, and the scheduler lets threads wait until a
pass is worth it. No pass is compiled: that would take seconds for each shape, where recording takes
milliseconds.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from transformers import PreTrainedModel

from apr.engine.runners import graphs
from apr.engine.runners.llama import LlamaStep
from apr.engine.runners.padded import PREFILL_TOKENS, PaddedModel

ROWS, MANY = 16, 256
"""Rows of a pass: powers of two from `ROWS` to `MANY`, then multiples of `MANY`."""
REACH, REACHES = 128, 4
"""Positions that attention sees: multiples of `REACH`, as far apart as makes at most `REACHES` of them."""


def row_bucket(rows: int, slots: int) -> int:
    size = max(ROWS, 1 << (rows - 1).bit_length()) if rows <= MANY else -(-rows // MANY) * MANY
    return min(size, slots)


def reach_bucket(reach: int, window: int) -> int:
    step = -(-window // (REACH * REACHES)) * REACH
    return min(-(-reach // step) * step, window)


class StaticModel(PaddedModel):
    """A `PaddedModel` whose steps are recorded where there is a recorder: on a GPU."""

    slack = PREFILL_TOKENS  # on a GPU padding is cheaper than one more pass

    def __init__(self, model: PreTrainedModel, slots: int, window: int):
        super().__init__(model, slots, window)
        self._record = graphs.recorder(model.device)
        self._recorded: dict[tuple[int, int, bool], Callable[[], object]] = {}
        self._read_from = self._addresses()
        self._step = LlamaStep(model, self._cache, window) if LlamaStep.supports(model) else None
        self.any_slots = self._step is not None

    def reload(self, model: PreTrainedModel) -> None:
        """What is recorded reads the weights where they were, and is kept only if they still are."""
        super().reload(model)
        if self._step is not None:
            self._step.reload(model)
        elif self._read_from != (now := self._addresses()):
            self._read_from, self._recorded = now, {}
            self._record = self._record and graphs.recorder(model.device)  # of a new pool

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in chain(self._model.parameters(), self._model.buffers())]

    def _rows(self, count: int) -> int:
        return row_bucket(count, self._host.shape[1])

    def _reach(self, end: int) -> int:
        return self._window if self._step is not None else reach_bucket(end, self._window)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, writes: torch.Tensor,
                reach: int, prefix: bool) -> torch.Tensor:  # fmt: skip
        if self._step is None or ids.shape[1] > 1:
            return super()._logits(ids, positions, slots, writes, reach, prefix)
        return self._step.logits(ids[:, 0], positions[:, 0], slots, writes[:, 0])

    def _run(self, rows: int, reach: int, prefix: bool) -> None:
        """Recording a step does it, too."""
        shape, step = (rows, reach, prefix), partial(super()._run, rows, reach, prefix)
        if self._record is not None and shape not in self._recorded:
            if (run := self._record(step)) is None:
                self._record = None  # and launched, as on a CPU
            else:
                self._recorded[shape] = run
        self._recorded.get(shape, step)()
