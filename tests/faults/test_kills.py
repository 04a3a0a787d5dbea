"""Two of the kills of `tests.faults.kills`, which does as many as one likes."""

from apr.pipeline.plan import Plan
from tests.faults.kills import check, hashes, kill_once


def test_after_kills_one_command_finishes_with_the_same_bytes(made):
    """Of snakemake, and of the `dvc repro` that has taken the run up again."""
    expected, plan = hashes(made.path), Plan("default", made.path)
    assert len(expected) > 30
    for job, target, delay in (("evaluate/sft/sos", "snakemake", 2.0), ("figures", "dvc", 0.5)):
        assert kill_once(made, [plan.jobs[job]], target, delay)
        assert job in Plan("default", made.path).stale, "it was killed before it had finished"
    check(made, expected)
    made.run("git", "add", "-A")  # the seals of what was made again name another commit
    made.run("git", "commit", "-q", "-m", "made again")
