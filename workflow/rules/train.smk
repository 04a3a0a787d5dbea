# A checkpoint directory is represented by its seal, recipe.json: it is written last and holds the hash of
# every other file. One thread each, so that two runs share two cores and neither depends on their number.
rule sft:
    input:
        made("sft/{method}", "<data>/traces/{method}.parquet", "<data>/tokenizer/recipe.json"),
        recipe=recipe("sft/{method}"),
    output:
        "<data>/models/sft/{method}/recipe.json",
    log:
        "<logs>/sft/{method}.log",
    benchmark:
        "<logs>/sft/{method}.tsv"
    # What most wait for goes first: RL runs start from this model.
    priority: lambda wildcards: 1 + sum(its.method == wildcards.method for its in PLAN.params.rl.policies.values())
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "python -m apr run sft/{wildcards.method} --recipe {input.recipe:q} > {log:q} 2>&1"


rule rl:
    input:
        made(
            "rl/{policy}",
            "<data>/problems/train.parquet",
            "<data>/problems/validation.parquet",
            "<data>/models/sft/{method}/recipe.json",
        ),
        recipe=recipe("rl/{policy}"),
    output:
        "<data>/models/rl/{policy}/recipe.json",
    log:
        "<logs>/rl/{policy}.log",
    benchmark:
        "<logs>/rl/{policy}.tsv"
    # The longest first: of many steps, and of threads that spawn.
    priority: lambda wildcards: 10 + rollout_steps(wildcards.policy) / 100
    threads: 1  # of which it is sure: engine.workers take what other jobs leave
    resources:
        gpu=GPU,
        rollout_servers=int(PLAN.params.rl.servers is not None),  # they have one policy's weights at a time
    shell:
        "python -m apr run rl/{wildcards.policy} --recipe {input.recipe:q} > {log:q} 2>&1"
