"""The processes of one job over several devices, as `accelerate launch` starts them."""

import os


def rank() -> int:
    """Returns this process's number among those of the job, 0 where it is the only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Returns how many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", 1))
