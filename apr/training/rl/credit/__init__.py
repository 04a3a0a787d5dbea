"""Credits of the threads of a group, a file each; see `apr.training.rl.algorithm`."""

from apr.training.rl.algorithm import Credit
from apr.training.rl.credit import broadcast

CREDITS: dict[str, Credit] = {"broadcast": broadcast.credit}
