"""What more children bring, from the evaluations of a run: accuracy with its interval, and tokens.

    python examples/read_evaluations.py data/eval/sft/apr.parquet
"""

import sys
from pathlib import Path

from apr.evaluation.results import read_cells
from apr.evaluation.statistics import interval

print("temperature  children   solved [95 %]           total tokens  sequential")
cells = read_cells([Path(sys.argv[1])])
for key in sorted(cells, key=lambda key: (key.temperature, -1 if key.condition is None else key.condition)):
    if key.join == "all":
        cell = cells[key]
        solved = cell.strict.mean(axis=1)  # (problems, samples) -> (problems,)
        value, low, high = interval(solved, resamples=1000, seed=0)
        asked = "free" if key.condition is None else key.condition
        print(f"{key.temperature:11g}  {asked!s:>8}  {value:7.1%} [{low:.1%}, {high:.1%}]".ljust(46)
              + f"{cell.total.mean():14.0f} {cell.sequential.mean():11.0f}")
