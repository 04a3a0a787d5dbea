"""How many digits the numbers of a test problem of multiplication have, which evaluations do not say."""

from itertools import takewhile
from typing import cast

import numpy as np

from apr.core.params import Params
from apr.evaluation.results import Cell
from apr.tasks import open_task
from apr.tasks.multiplication.settings import MultiplicationProblems
from apr.tasks.problems import SPLITS, draw_problems


def digits_of(params: Params, cell: Cell) -> np.ndarray:
    """Returns (problems,): digits, by drawing the problems again; `cell` may be of several seeds."""
    found: dict[str, int] = {}
    for seed in {name.rpartition("/")[0] for name in cell.problems}:
        task = open_task(params.model_copy(update={"seed": int(seed)}) if seed else params)
        drawn = takewhile(lambda each: each[0] == SPLITS[0], draw_problems(task))
        found |= {f"{seed}/{problem.id}".removeprefix("/"): problem.size for _, problem in drawn}
    return np.array([found[name] for name in cell.problems])


def trained_digits(params: Params) -> tuple[int, int]:
    """Returns the least and the most digits of the problems that were trained on."""
    return cast(MultiplicationProblems, params.problems).digits


def trained(params: Params, cell: Cell) -> np.ndarray:
    """Returns (problems,): whether a problem has as many digits as those."""
    (least, most), sizes = trained_digits(params), digits_of(params, cell)
    return (least <= sizes) & (sizes <= most)
