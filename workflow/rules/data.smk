rule problems:
    input:
        unpack(job_inputs("problems")),
    output:
        train=f"{ROOT}data/problems/train.parquet",
        validation=f"{ROOT}data/problems/validation.parquet",
        test=f"{ROOT}data/problems/test.parquet",
        recipe=f"{ROOT}data/problems/recipe.json",
    log:
        f"{ROOT}logs/problems.log",
    benchmark:
        f"{ROOT}logs/problems.tsv"
    params:
        out=subpath(output.recipe, parent=True),
    shell:
        "python -m apr problems --recipe {input.recipe} --out {params.out} > {log} 2>&1"


rule tokenizer:
    input:
        unpack(job_inputs("tokenizer")),
    output:
        recipe=f"{ROOT}data/tokenizer/recipe.json",
    log:
        f"{ROOT}logs/tokenizer.log",
    benchmark:
        f"{ROOT}logs/tokenizer.tsv"
    params:
        out=subpath(output.recipe, parent=True),
    shell:
        "python -m apr tokenizer --recipe {input.recipe} --out {params.out} > {log} 2>&1"


rule traces:
    input:
        unpack(
            job_inputs(
                "traces/{method}",
                problems="data/problems/train.parquet",
                tokenizer="data/tokenizer/recipe.json",
            )
        ),
    output:
        traces=f"{ROOT}data/traces/{{method}}.parquet",
        recipe=f"{ROOT}data/traces/{{method}}.parquet.recipe",
    log:
        f"{ROOT}logs/traces/{{method}}.log",
    benchmark:
        f"{ROOT}logs/traces/{{method}}.tsv"
    # All cores at once, so before any job that would hold one of them for long; but the one of training on a GPU.
    priority: 20
    threads: max(1, workflow.cores - GPU)
    params:
        tokenizer=subpath(input.tokenizer, parent=True),
    shell:
        "python -m apr traces --recipe {input.recipe} --method {wildcards.method}"
        " --problems {input.problems} --tokenizer {params.tokenizer} --out {output.traces}"
        " --workers {threads} > {log} 2>&1"
