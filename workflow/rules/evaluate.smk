MEASURED = {
    "problems": "data/problems/test.parquet",
    "checkpoint": "data/models/{stage}/{model}/recipe.json",
}


rule evaluate:
    input:
        unpack(job_inputs("evaluate/{stage}/{model}", **MEASURED)),
    output:
        evaluation=f"{ROOT}data/eval/{{stage}}/{{model}}.parquet",
        recipe=f"{ROOT}data/eval/{{stage}}/{{model}}.parquet.recipe",
    log:
        f"{ROOT}logs/evaluate/{{stage}}/{{model}}.log",
    benchmark:
        f"{ROOT}logs/evaluate/{{stage}}/{{model}}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        checkpoint=subpath(input.checkpoint, parent=True),
    shell:
        "python -m apr evaluate --recipe {input.recipe} --stage {wildcards.stage} --model {wildcards.model}"
        " --problems {input.problems} --checkpoint {params.checkpoint} --out {output.evaluation} > {log} 2>&1"


rule latency:
    input:
        unpack(job_inputs("latency/{stage}/{model}", **MEASURED)),
    output:
        latency=f"{ROOT}data/latency/{{stage}}/{{model}}.json",
        recipe=f"{ROOT}data/latency/{{stage}}/{{model}}.json.recipe",
    log:
        f"{ROOT}logs/latency/{{stage}}/{{model}}.log",
    benchmark:
        f"{ROOT}logs/latency/{{stage}}/{{model}}.tsv"
    # Claims every core so that nothing else runs beside it (it still computes with engine.torch_threads), but
    # at the smoke scale, whose timings mean nothing.
    threads: 1 if PLAN.scale == "smoke" else workflow.cores
    resources:
        gpu=GPU,
    params:
        checkpoint=subpath(input.checkpoint, parent=True),
    shell:
        "python -m apr latency --recipe {input.recipe} --stage {wildcards.stage} --model {wildcards.model}"
        " --problems {input.problems} --checkpoint {params.checkpoint} --out {output.latency} > {log} 2>&1"


rule figures:
    input:
        unpack(figures_inputs),
    output:
        metrics=f"{ROOT}results/metrics.json",
        recipe=f"{ROOT}results/figures/recipe.json",
    log:
        f"{ROOT}logs/figures.log",
    benchmark:
        f"{ROOT}logs/figures.tsv"
    params:
        root=ROOT,
        out=subpath(output.recipe, parent=True),
    shell:
        "python -m apr figures --recipe {input.recipe} --evaluations {params.root}data/eval"
        " --latencies {params.root}data/latency --models {params.root}data/models --out {params.out}"
        " --metrics {output.metrics} > {log} 2>&1"
