"""Random solvable problems, unique over all splits by (sorted numbers, target)."""

from pathlib import Path

from apr.core.errors import ParamsError
from apr.core.files import atomic_path, write_rows
from apr.core.params import Params, Problems
from apr.core.seeds import derive_rng
from apr.countdown.problem import PROBLEM_SCHEMA, Problem
from apr.countdown.solvable import solvable

SPLITS = ("test", "validation", "train")
"""In the order of generation: a larger training set changes neither test nor validation."""

ATTEMPTS = 10_000


def draw_problem(settings: Problems, problem_id: str, seed: int, taken: set) -> Problem:
    """A solvable problem whose key is not in `taken`, uniform over draws from the ranges of `settings`."""
    rng = derive_rng(seed, problem_id)
    for _ in range(ATTEMPTS):
        numbers = tuple(sorted(rng.randint(*settings.number_range) for _ in range(settings.numbers)))
        target = rng.randint(*settings.target_range)
        if (numbers, target) not in taken and solvable(numbers, target, settings.max_value):
            return Problem(problem_id, numbers, target)
    raise ParamsError(
        f"problems: no new solvable problem in {ATTEMPTS} draws after {len(taken)}; "
        "allowed: fewer problems, or wider number_range and target_range"
    )


def generate_problems(settings: Problems, seed: int) -> dict[str, list[Problem]]:
    """The problems of each split, by name."""
    taken: set[tuple[tuple[int, ...], int]] = set()
    splits: dict[str, list[Problem]] = {}
    for split in SPLITS:
        splits[split] = []
        for index in range(getattr(settings, split)):
            problem = draw_problem(settings, f"{split}-{index:07d}", seed, taken)
            taken.add((problem.numbers, problem.target))
            splits[split].append(problem)
    return splits


def make_problems(params: Params, out: Path) -> None:
    """Writes ``{train,validation,test}.parquet`` into the directory `out`, all or nothing."""
    with atomic_path(out) as partial:
        for split, problems in generate_problems(params.problems, params.seed).items():
            rows = [
                {"problem_id": problem.id, "numbers": list(problem.numbers), "target": problem.target}
                for problem in problems
            ]
            write_rows(partial / f"{split}.parquet", rows, PROBLEM_SCHEMA)
