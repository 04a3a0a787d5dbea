"""Two of the kills of `tests.faults.kills`, which does as many as one likes."""

import pytest

from apr.pipeline.plan import Plan
from tests.faults.kills import check, hashes, kill_once


@pytest.mark.parametrize("stage, target, delay", [("evaluate", "snakemake", 3.0), ("figures", "dvc", 0.5)])
def test_after_a_kill_one_command_finishes_with_the_same_bytes(made, stage, target, delay):
    expected = hashes(made.path)
    assert len(expected) > 30
    assert kill_once(made, Plan("default", made.path), stage, target, delay)
    assert Plan("default", made.path).stale, "it was killed before it had finished"
    check(made, expected)
    made.run("git", "add", "-A")  # the seals of what was made again name another commit
    made.run("git", "commit", "-q", "-m", "made again")
