"""CUDA graphs; on a CPU a tape of operations stands for them."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Run = Callable[[], object]


def recorder(device: torch.device) -> Callable[[Run], Run | None] | None:
    """Makes of a step what does it again, or None if that cannot be."""
    if device.type != "cuda":
        return None
    # Graphs share memory if they share a pool and a stream. A pool whose graphs are all gone takes no other.
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
