from apr.evaluation.points import ModelId, points


rule evaluate:
    input:
        made(
            "evaluate/{stage}/{model}",
            "<data>/problems/test.parquet",
            "<data>/models/{stage}/{model}/recipe.json",
        ),
        recipe=recipe("evaluate/{stage}/{model}"),
    output:
        "<data>/eval/{stage}/{model}.parquet",
        "<data>/eval/{stage}/{model}.parquet.recipe",
    log:
        "<logs>/evaluate/{stage}/{model}.log",
    benchmark:
        "<logs>/evaluate/{stage}/{model}.tsv"
    # A long evaluation goes before training that RL does not wait for; short ones fill the gaps that it leaves.
    priority: lambda wildcards: len(points(PLAN.params, ModelId(wildcards.stage, wildcards.model))) / 10
    threads: 1  # of which it is sure: engine.workers take what other jobs leave
    resources:
        gpu=GPU,
    shell:
        "python -m apr run evaluate/{wildcards.stage}/{wildcards.model} --recipe {input.recipe:q} > {log:q} 2>&1"


rule latency:
    input:
        made("latency", *PLAN.jobs["latency"].upstream.values()),
        recipe=recipe("latency"),
    output:
        "<data>/latency.json",
        "<data>/latency.json.recipe",
    log:
        "<logs>/latency.log",
    benchmark:
        "<logs>/latency.tsv"
    # Claims every core so that nothing else runs beside it (it still computes with engine.workers), but at the smoke
    # scale, whose timings mean nothing.
    threads: 1 if PLAN.scale == "smoke" else workflow.cores
    resources:
        gpu=GPU,
    shell:
        "python -m apr run latency --recipe {input.recipe:q} > {log:q} 2>&1"


rule teacher:
    input:
        made("teacher/{method}", "<data>/problems/test.parquet", "<data>/tokenizer/recipe.json"),
        recipe=recipe("teacher/{method}"),
    output:
        "<data>/teacher/{method}.parquet",
        "<data>/teacher/{method}.parquet.recipe",
    log:
        "<logs>/teacher/{method}.log",
    benchmark:
        "<logs>/teacher/{method}.tsv"
    shell:
        "python -m apr run teacher/{wildcards.method} --recipe {input.recipe:q} > {log:q} 2>&1"
