"""A long life in short: nothing grows with the number of rollouts."""

import gc
import threading

import psutil
import torch

from apr.engine.slots import SlotEngine
from apr.pipeline.plan import load_scale
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.rollout import Limits, Request
from apr.tasks import open_task
from apr.tasks.problems import generate_problems
from apr.training.checkpoint import new_model

ROUNDS, ROLLOUTS = 8, 250


def test_two_thousand_rollouts_leave_memory_threads_and_files_as_they_were():
    torch.set_num_threads(1)
    params = load_scale("default")
    language = open_task(params).language
    small = params.model.model_copy(update={"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 2, "ffn": 64})
    size, pad = language.vocabulary.size, language.vocabulary.pad
    model = new_model(small, size, pad, params.grammar.window, 0).eval()
    settings = params.problems.model_copy(update={"train": 0, "validation": 0, "test": ROLLOUTS})
    task = open_task(params.model_copy(update={"problems": settings}))
    problems = generate_problems(task)["test"]
    limits = Limits(params.grammar.window, 300, params.grammar.max_children, 2)
    process, used, sampled = psutil.Process(), [], 0
    for number in range(ROUNDS):
        engine = SlotEngine(model, language.syntax.stop_ids, 64, params.grammar.window)
        requests = [Request(f"{problem.id}/{number}", task.prompt(problem),
                            1.0, number) for problem in problems]  # fmt: skip
        rollouts = Orchestrator(engine, language.syntax, limits).run(requests)
        sampled += sum(rollout.usage.total for rollout in rollouts)
        del engine, requests, rollouts
        gc.collect()
        used.append((process.memory_info().rss, threading.active_count(), process.num_fds()))
    memory, threads, files = zip(*used[1:], strict=True)
    assert sampled > 2000 * 20
    assert memory[-1] - memory[0] < 20 << 20
    assert len(set(threads)) == len(set(files)) == 1
