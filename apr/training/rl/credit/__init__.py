"""Credits of the threads of a group, a file each; see `apr.training.rl.algorithm`."""

from apr.training.rl.algorithm import Credit
from apr.training.rl.credit import broadcast, centred, difference, oracle, own

CREDITS: dict[str, Credit] = {
    "broadcast": broadcast.credit,
    "centred": centred.credit,
    "own": own.credit,
    "difference": difference.credit,
    "oracle": oracle.credit,
}
