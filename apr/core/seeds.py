"""Every random choice of the project derives from names, never from order or from a process."""

import hashlib
import random


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from `keys`, e.g. ``derive_seed(seed, "test-00017", sample_id)``.

    Equal keys give equal seeds on any machine and in any process; the int 1 and the string "1" differ.
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derive_rng(*keys: int | str) -> random.Random:
    """A `random.Random` seeded by `derive_seed`."""
    return random.Random(derive_seed(*keys))
