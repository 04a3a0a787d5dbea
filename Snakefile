# From params.yaml to the figures. Each rule runs `python -m apr run JOB`; the jobs are those of the table in
# apr/pipeline/stages.py, to which a test holds the rules. Another scale: --config scale=smoke (scales/smoke/).
include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        PLAN.seals(),


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/results.smk"


# The jobs of one stage, as `dvc.yaml` calls them.
for stage in STAGES:

    rule:
        name:
            f"all_{stage}"
        input:
            PLAN.seals(stage),


onstart:
    written = {str(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    names = [name for name, job in PLAN.jobs.items() if job.seal in written]
    RUN.start(names, workflow.cores or 1)


onsuccess:
    RUN.succeed()


onerror:
    RUN.stop()
