"""Decoding in passes of a few fixed shapes, which a GPU records once as CUDA graphs and then replays.

A pass over one token of each thread, sampling included, reads and writes the same memory every time and looks
at no value on its way, so a step costs what the GPU computes, not the launching of a hundred kernels.
Shapes are buckets of rows and of positions that attention sees: with 2,048 slots and a window of 512 less
than a hundred, each recorded when it is first met.

Passes that read prompts or joined tokens are launched as they come: they have many shapes, and the engine
lets threads wait until a pass is worth it. Nothing is compiled: that would take seconds for each shape, where
recording takes milliseconds.
"""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from numpy import ndarray as Array
from transformers import PreTrainedModel

from apr.engine.padded import PREFILL_TOKENS, PaddedModel, SlotCache, sdpa
from apr.engine.sampling import draw, finite, sample

ROWS, MANY = 16, 256
"""Rows of a pass: powers of two from `ROWS` to `MANY`, then multiples of `MANY`."""
REACH, REACHES = 128, 4
"""Positions that attention sees: multiples of `REACH`, as far apart as makes at most `REACHES` of them."""

Run = Callable[[], object]


def row_bucket(rows: int, slots: int) -> int:
    size = max(ROWS, 1 << (rows - 1).bit_length()) if rows <= MANY else -(-rows // MANY) * MANY
    return min(size, slots)


def reach_bucket(reach: int, window: int) -> int:
    step = -(-window // (REACH * REACHES)) * REACH
    return min(-(-reach // step) * step, window)


class StaticModel(PaddedModel):
    """A `PaddedModel` that also samples, by CUDA graphs; elsewhere than on a GPU nothing is recorded.

    Its memory and graphs outlive it and serve the next one of the same model with weights at the same
    addresses: RL has a new engine for each step, and recording takes seconds in all.
    """

    slack = PREFILL_TOKENS  # on a GPU padding is cheaper than one more pass

    def __init__(self, model: PreTrainedModel, slots: int, window: int):
        super().__init__(model, slots, window)
        key = slots, window, *(tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers()))
        kept = _KEPT.get(model)
        if kept is None or kept.key != key or kept.owner() is not None:
            kept = _KEPT[model] = _Memory(key, self._cache, slots, model.device)
        kept.owner = ref(self)
        self._memory, self._cache = kept, kept.cache

    def sample(
        self, slots: Array, begin: Array, end: Array, ids: Array, temperatures: Array, noise: Array
    ) -> tuple[Array, Array]:
        """What `apr.engine.sampling.sample` draws from the logits of `Forward`; errors as there."""
        tokens, logprobs = np.empty(len(slots), np.int64), np.empty(len(slots))
        one = end - begin == 1
        for rows, way in (~one, self._launched), (one, self._replayed):
            if rows.any():
                fed, drawn = (slots[rows], begin[rows], end[rows], ids), (temperatures[rows], noise[rows])
                tokens[rows], logprobs[rows] = way(*fed, *drawn)
        return tokens, finite(logprobs)

    def _launched(self, slots: Array, begin: Array, end: Array, ids: Array, *drawn: Array) -> Any:
        return sample(self(slots, begin, end, ids), *drawn)

    def _replayed(self, slots: Array, begin: Array, end: Array, ids: Array, *drawn: Array) -> Any:
        memory = self._memory
        first, rows = (row_bucket(n, len(ids)) for n in (int(slots.max()) + 1, len(slots)))
        # The first slots are read where they are; any others are copied.
        prefix = first <= 2 * rows
        rows, places = (first, slots) if prefix else (rows, np.arange(len(slots)))
        given, last = memory.host.numpy(), end - 1
        # Rows that nobody reads keep the rest of an earlier step, and write where nobody reads.
        given[2:4, :rows] = np.arange(rows), np.full(rows, self._window)
        given[:, places] = ids[slots, last], last, slots, last, *(array.view(np.int64) for array in drawn)
        memory.given.copy_(memory.host, non_blocking=True)
        run = self._recorded(rows, reach_bucket(int(end.max()), self._window), prefix)
        if run is None:
            return self._launched(slots, begin, end, ids, *drawn)
        run()
        tokens, logprobs = memory.drawn.cpu().numpy()[:, places]
        return tokens, logprobs.view(np.float64)

    def _recorded(self, *shape: Any) -> Run | None:
        """What does the step of this shape again. Recording does it, too: `given` has to be in place."""
        memory = self._memory
        if shape not in memory.recorded and memory.record is not None:
            with sdpa(self._model):
                run = memory.record(partial(self._step, *shape))
            if run is None:
                memory.record = None
            else:
                memory.recorded[shape] = run
        return memory.recorded.get(shape)

    def _step(self, rows: int, reach: int, prefix: bool) -> None:
        """From `given` to `drawn`: whatever is not in them is the same each time."""
        given, drawn = self._memory.given[:, :rows], self._memory.drawn[:, :rows]
        ids, positions, slots, writes = given[:4]
        logits = self._logits(ids[:, None], positions[:, None], slots, writes[:, None], reach, prefix)
        tokens, logprobs = draw(logits, *given[4:].view(torch.float64))
        drawn[0].copy_(tokens)
        drawn[1].copy_(logprobs.view(torch.int64))


class _Memory:
    """What recorded passes read and write, at fixed addresses."""

    def __init__(self, key: tuple[int, ...], cache: SlotCache, slots: int, device: torch.device):
        self.key, self.cache = key, cache
        self.host = torch.zeros(6, slots, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.given = self.host.to(device)
        """For each row: token, position, slot, where its keys go, and the bits of temperature and noise."""
        self.drawn = torch.zeros(2, slots, dtype=torch.int64, device=device)
        """For each row: the token, and the bits of its log-probability."""
        self.recorded: dict[tuple[int, int, bool], Run] = {}
        self.record = recorder(device)
        self.owner: Callable[[], object] = lambda: None


_KEPT: WeakKeyDictionary[PreTrainedModel, _Memory] = WeakKeyDictionary()


def recorder(device: torch.device) -> Callable[[Run], Run | None] | None:
    """Makes of a step what does it again, or None if that cannot be."""
    if device.type != "cuda":
        return None
    # Graphs share memory if they share a pool and a stream.
    return partial(_graph, pool=torch.cuda.graph_pool_handle(), stream=torch.cuda.Stream(device))


def _graph(step: Run, pool: Any, stream: torch.cuda.Stream) -> Run | None:
    """`step` as a CUDA graph; None, with a warning, where it waits for the GPU, as some models do."""
    step()  # allocates what lasts: the cache, workspaces of libraries
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        warnings.warn("no CUDA graphs for decoding: the model's own pass waits for the GPU", stacklevel=2)
        return None
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay
