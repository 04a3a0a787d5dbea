"""Whether children that may spawn solve more in the same window (docs/laboratory.md): claims of a scale."""

from apr.results.claims.claims import POINTS, Claim, of_teacher
from apr.results.claims.laboratory import gained

_NESTED = frozenset({"nested"})
DEPTH = (
    Claim("depth", "Children that may spawn solve more than children that do not, in the same window, greedy",
          POINTS, 0.05, None, gained,
          {"model": "nested", "over": "apr", "stage": "sft", "temperature": 0.0}, _NESTED),
    Claim("teacher_nested", "APR of depth 2 solves what its teacher solves", "ratio", 0.85, None, of_teacher,
          {"method": "nested"}, _NESTED),
)  # fmt: skip
