"""Whether a task gains by children all of whom it needs (docs/laboratory.md): the claim of multiplication."""

from apr.evaluation.results import Key
from apr.evaluation.statistics import paired_ratio
from apr.results.claims.claims import Claim, Measured, cells_of
from apr.results.claims.laboratory import as_accurate
from apr.results.digits import trained
from apr.results.evidence import Evidence, accuracy, mean

_NEEDS = frozenset({"multiplication", "serial", "parallel"})


def times_fewer(evidence: Evidence) -> Measured:
    """Returns how many times fewer tokens one after another the parallel form needs than the serial one, of
    the problems with as many digits as were trained on; fair if it is as accurate (`as_accurate`)."""
    serial, parallel = cells = cells_of(evidence, *(Key(name, "sft", 0.0) for name in ("serial", "parallel")))
    known = trained(evidence.params, serial)
    note, fair = as_accurate(evidence, accuracy(parallel)[known], accuracy(serial)[known])
    found = paired_ratio(mean(serial, "sequential")[known], mean(parallel, "sequential")[known],
                         *evidence.bootstrap)  # fmt: skip
    return Measured(found, cells, f"{note}, of {known.sum()} problems", fair)


PRODUCTS = (
    Claim("products_sequential", "A child for each digit takes so many times fewer tokens one after another "
          "than long multiplication, at no more than a point of accuracy, greedy", "ratio", 1.26, None,
          times_fewer, {}, _NEEDS),
)  # fmt: skip
