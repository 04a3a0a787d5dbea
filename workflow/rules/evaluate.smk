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
    priority: evaluate_priority
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


rule teacher:
    input:
        unpack(
            job_inputs(
                "teacher/{method}",
                problems=MEASURED["problems"],
                tokenizer="data/tokenizer/recipe.json",
            )
        ),
    output:
        evaluation=f"{ROOT}data/teacher/{{method}}.parquet",
        recipe=f"{ROOT}data/teacher/{{method}}.parquet.recipe",
    log:
        f"{ROOT}logs/teacher/{{method}}.log",
    benchmark:
        f"{ROOT}logs/teacher/{{method}}.tsv"
    params:
        tokenizer=subpath(input.tokenizer, parent=True),
    shell:
        "python -m apr teacher --recipe {input.recipe} --method {wildcards.method}"
        " --problems {input.problems} --tokenizer {params.tokenizer} --out {output.evaluation} > {log} 2>&1"


rule figures:
    input:
        unpack(results_inputs("figures")),
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


# Whether the README says more than the table is for `make claims` to check: an ablation may support less.
rule claims:
    input:
        unpack(results_inputs("claims")),
    output:
        table=f"{ROOT}results/claims.md",
        numbers=f"{ROOT}results/claims.csv",
        recipe=f"{ROOT}results/claims.md.recipe",
    log:
        f"{ROOT}logs/claims.log",
    benchmark:
        f"{ROOT}logs/claims.tsv"
    params:
        root=ROOT,
    shell:
        "python -m apr claims --recipe {input.recipe} --evaluations {params.root}data/eval"
        " --latencies {params.root}data/latency --teachers {params.root}data/teacher"
        " --out {output.table} > {log} 2>&1"


rule checks:
    input:
        unpack(results_inputs("checks")),
    output:
        counts=f"{ROOT}results/checks.json",
        recipe=f"{ROOT}results/checks.json.recipe",
    log:
        f"{ROOT}logs/checks.log",
    benchmark:
        f"{ROOT}logs/checks.tsv"
    params:
        root=ROOT or ".",
    shell:
        "python -m apr checks --recipe {input.recipe} --root {params.root} --out {output.counts} > {log} 2>&1"


rule report:
    input:
        unpack(results_inputs("report")),
    output:
        page=f"{ROOT}results/report.html",
        recipe=f"{ROOT}results/report.html.recipe",
    log:
        f"{ROOT}logs/report.log",
    benchmark:
        f"{ROOT}logs/report.tsv"
    resources:
        gpu=GPU,
    params:
        root=ROOT or ".",
    shell:
        "python -m apr report --recipe {input.recipe} --root {params.root} --out {output.page} > {log} 2>&1"
