rule problems:
    input:
        recipe=recipe("problems"),
    output:
        "<data>/problems/train.parquet",
        "<data>/problems/validation.parquet",
        "<data>/problems/test.parquet",
        "<data>/problems/recipe.json",
    log:
        "<logs>/problems.log",
    benchmark:
        "<logs>/problems.tsv"
    shell:
        "python -m apr run problems --recipe {input.recipe:q} > {log:q} 2>&1"


rule tokenizer:
    input:
        recipe=recipe("tokenizer"),
    output:
        "<data>/tokenizer/recipe.json",
    log:
        "<logs>/tokenizer.log",
    benchmark:
        "<logs>/tokenizer.tsv"
    shell:
        "python -m apr run tokenizer --recipe {input.recipe:q} > {log:q} 2>&1"


rule traces:
    input:
        made("traces/{method}", "<data>/problems/train.parquet", "<data>/tokenizer/recipe.json"),
        recipe=recipe("traces/{method}"),
    output:
        "<data>/traces/{method}.parquet",
        "<data>/traces/{method}.parquet.recipe",
    log:
        "<logs>/traces/{method}.log",
    benchmark:
        "<logs>/traces/{method}.tsv"
    # All cores at once, so before any job that would hold one of them for long; but the one of training on a GPU.
    priority: 20
    threads: max(1, workflow.cores - GPU)
    shell:
        "python -m apr run traces/{wildcards.method} --recipe {input.recipe:q} --workers {threads} > {log:q} 2>&1"
