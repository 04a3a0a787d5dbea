import sys

# The apr of this tree, also in the copies of it that `dvc exp run --temp` makes.
sys.path.insert(0, workflow.basedir)

from apr.pipeline.stages import STAGES, jobs
from workflow.run import open_run

RUN = open_run(config, workflow.is_main_process)
PLAN = RUN.plan
JOBS = jobs(PLAN.params)
GPU = int(PLAN.params.engine.device.startswith("cuda"))


pathvars:
    data=f"{PLAN.root}data",
    results=f"{PLAN.root}results",
    logs=f"{PLAN.root}logs",


wildcard_constraints:
    method="|".join(PLAN.params.traces.methods),
    policy="|".join(PLAN.params.rl.policies),
    stage="sft|rl",
    model="[^/]+",


# What all rules read: the recipe of their job, dated so that they run if and only if the job is stale.
def recipe(job):
    return lambda wildcards: PLAN.recipe(job.format(**wildcards))


# What `--config first=STAGE` needs, and what all other jobs then wait for.
FIRST = PLAN.needed(RUN.first) if RUN.first else set(PLAN.jobs)


# And what other jobs made, by names of the table. Its dates, which a checkout may set to anything, do not count for a
# job that is fresh.
def made(job, *paths):
    def resolve(wildcards):
        name = job.format(**wildcards)
        found = [path.format(**JOBS[name][1]) for path in paths]
        if name not in PLAN.stale:
            return [ancient(path) for path in found]
        return found + ([] if name in FIRST else PLAN.seals(RUN.first))

    return resolve


# How long an RL run takes, against others: the threads at a time of all its steps.
def rollout_steps(policy):
    settings = PLAN.params.rl.policies[policy]
    return (settings.steps or PLAN.params.rl.steps) * (1 + PLAN.params.traces.spawns(settings.method))
