# A checkpoint directory is represented by its seal, recipe.json: it is written last and holds the hash of
# every other file. One thread each, so that two runs share two cores and neither depends on their number.
rule sft:
    input:
        unpack(
            job_inputs(
                "sft/{method}",
                traces="data/traces/{method}.parquet",
                tokenizer="data/tokenizer/recipe.json",
            )
        ),
    output:
        recipe=f"{ROOT}data/models/sft/{{method}}/recipe.json",
    log:
        f"{ROOT}logs/sft/{{method}}.log",
    benchmark:
        f"{ROOT}logs/sft/{{method}}.tsv"
    # What most wait for goes first; short evaluations fill the gaps that training leaves.
    priority: sft_priority
    threads: 1
    resources:
        gpu=GPU,
    params:
        launch=LAUNCH,
        tokenizer=subpath(input.tokenizer, parent=True),
        out=subpath(output.recipe, parent=True),
    shell:
        "{params.launch} sft --recipe {input.recipe} --method {wildcards.method} --traces {input.traces}"
        " --tokenizer {params.tokenizer} --out {params.out} > {log} 2>&1"


rule rl:
    input:
        unpack(rl_inputs),
    output:
        recipe=f"{ROOT}data/models/rl/{{policy}}/recipe.json",
    log:
        f"{ROOT}logs/rl/{{policy}}.log",
    benchmark:
        f"{ROOT}logs/rl/{{policy}}.tsv"
    priority: 10
    threads: 1
    resources:
        gpu=GPU,
        rollout_servers=SERVERS,  # they have one policy's weights at a time
    params:
        launch=LAUNCH,
        checkpoint=subpath(input.checkpoint, parent=True),
        out=subpath(output.recipe, parent=True),
    shell:
        "{params.launch} rl --recipe {input.recipe} --policy {wildcards.policy} --problems {input.problems}"
        " --validation {input.validation}"
        " --checkpoint {params.checkpoint} --out {params.out} > {log} 2>&1"
