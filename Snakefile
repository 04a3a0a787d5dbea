# From params.yaml to the figures. Each rule calls one verb of `python -m apr`; what is stale, and why, is
# decided in apr/pipeline/plan.py by comparing recipes (`python -m apr status`), and only run here.
# Another scale than params.yaml's own: --config scale=smoke, below scales/smoke/.
include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        PLAN.seals(),


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"


# The jobs of one stage, as `dvc.yaml` calls them.
for stage in PLAN.stages:

    rule:
        name:
            f"all_{stage}"
        input:
            PLAN.seals(stage),


onstart:
    prune(PLAN)


onsuccess:
    record(PLAN, STARTED)
    commit(PLAN.scale)
