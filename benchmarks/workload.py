"""Token lengths of real APR rollouts (parents, spawns, children, joins), for `benchmarks.rollout` to replay.

    python -m benchmarks.workload data/models/sft/apr data/problems/test.parquet

decodes problems at T = 1, unconditioned, and writes `workload.json`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from apr.evaluation.points import ModelId, Point
from apr.evaluation.sweep import make_request
from apr.language.tokenizer import load_language
from apr.pipeline.plan import load_scale
from apr.rollouts.decoding import open_decoder, orchestrate
from apr.tasks import open_task
from apr.tasks.problems import read_problems

WORKLOAD = Path(__file__).with_name("workload.json")


class Tree(NamedTuple):
    """Token counts of a rollout: the parent's prompt; what it samples up to its spawn, or in all; prompt and
    sampled tokens of each child; joined tokens; what the parent samples after the join."""

    prompt: int
    before: int
    children: list[list[int]]
    joined: int
    after: int

    @property
    def sampled(self) -> int:
        return self.before + self.after + sum(sampled for _, sampled in self.children)

    @property
    def contexts(self) -> Iterator[int]:
        """For each sampled token, how many it attends to."""
        start = self.prompt + self.before + self.joined
        yield from range(self.prompt, self.prompt + self.before)
        yield from range(start, start + self.after)
        for prompt, sampled in self.children:
            yield from range(prompt, prompt + sampled)


def read_workload() -> list[Tree]:
    return [Tree(*tree) for tree in json.loads(WORKLOAD.read_text())]


def long_parents(trees: list[Tree]) -> list[Tree]:
    """The same with 640 more tokens in prompts, for windows of 1,024: to read a parent again has a price."""
    return [tree._replace(prompt=tree.prompt + 640) for tree in trees]


def record(checkpoint: Path, problems: Path, count: int) -> None:
    """Writes the lengths of rollouts at T = 1, unconditioned."""
    params, language = load_scale("default"), load_language(checkpoint)
    task = open_task(params, language)
    model, point = ModelId("sft", "apr"), Point(None, 1.0, 0)
    requests = [make_request(task, model, problem, point)
                for problem in read_problems(task, problems)[:count]]  # fmt: skip
    with open_decoder(params, language, checkpoint) as decoder:
        rollouts = orchestrate(params, language, decoder).run(requests)
    trees = []
    for rollout in rollouts:
        root, *children = rollout.threads
        at = root.spawns[0].at if root.spawns else len(root.ids)
        after = sum(root.sampled[at:])
        if (children and not after) or len(root.spawns) > 1:
            continue  # a parent that could not go on, or went on twice
        trees.append(Tree(root.prompt_length, at - root.prompt_length,
                          [[child.prompt_length, sum(child.sampled)] for child in children],
                          len(root.ids) - at - after, after))  # fmt: skip
    WORKLOAD.write_text("[\n" + ",\n".join(json.dumps(tree) for tree in trees) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--count", type=int, default=256, help="problems")
    args = parser.parse_args()
    record(args.checkpoint, args.problems, args.count)


if __name__ == "__main__":
    main()
