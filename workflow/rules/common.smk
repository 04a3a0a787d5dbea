import os
import sys
import time

# The apr of this tree, also in the copies of it that `dvc exp run --temp` makes.
sys.path.insert(0, workflow.basedir)

from apr.pipeline.record import record
from apr.pipeline.workflow import commit, open_plan, prune
from apr.core.process import OWNER, identity
from apr.evaluation.points import ModelId, points

STARTED = time.time()
PLAN = open_plan(config, job=not workflow.is_main_process)
ROOT = PLAN.root
LAUNCH = "python -m apr"
if PLAN.params.engine.accelerate:
    LAUNCH = f"accelerate launch --config_file {PLAN.params.engine.accelerate} -m apr"
GPU = int(PLAN.params.engine.device.startswith("cuda"))
SERVERS = int(PLAN.params.rl.servers is not None)


wildcard_constraints:
    method="|".join(PLAN.params.traces.methods),
    policy="|".join(PLAN.params.rl.policies),
    stage="sft|rl",
    model="[^/]+",


# A fixed number of threads per process, so that results do not depend on the cores of the machine. Jobs end
# with this process, even if it is killed.
shell.prefix(
    f'export PATH="{os.path.dirname(sys.executable)}:$PATH" HF_HUB_OFFLINE=1 '
    f"OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS={PLAN.params.engine.torch_threads} "
    f'PYTHONPATH="{workflow.basedir}" {OWNER}={identity()}; set -euo pipefail; '
)


def job_inputs(job, **files):
    """Input function: the recipe of `job` and the upstream `files`.

    The input of a fresh job is ancient, so that no file date can rerun it. A stale job reads the marker,
    which is newer than everything.
    """

    def resolve(wildcards):
        name = job.format(**wildcards)
        found = {key: ROOT + file.format(**wildcards) for key, file in files.items()}
        found["recipe"] = PLAN.job_file(name)
        if name in PLAN.stale:
            return found | {"stale": PLAN.marker}
        return {key: ancient(file) for key, file in found.items()}

    return resolve


def sft_priority(wildcards):
    """The number of RL runs that start from this model."""
    return 1 + sum(policy.method == wildcards.method for policy in PLAN.params.rl.policies.values())


def evaluate_priority(wildcards):
    """By points of the sweeps: a long evaluation goes before training that RL does not wait for."""
    return len(points(PLAN.params, ModelId(wildcards.stage, wildcards.model))) / 10


def rl_inputs(wildcards):
    method = PLAN.params.rl.policies[wildcards.policy].method
    files = {
        "problems": "data/problems/train.parquet",
        "validation": "data/problems/validation.parquet",
        "checkpoint": f"data/models/sft/{method}/recipe.json",
    }
    return job_inputs("rl/{policy}", **files)(wildcards)


def results_inputs(job):
    """Input function of a job that reads whatever the sweeps made."""
    seals = [PLAN.jobs[other].seal.removeprefix(ROOT) for other in PLAN.nodes[job].upstream]
    return job_inputs(job, **{f"seal{index}": seal for index, seal in enumerate(seals)})
