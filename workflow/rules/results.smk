# These read whatever the sweeps made: the jobs upstream are those of the table.
rule figures:
    input:
        made("figures", *PLAN.jobs["figures"].upstream.values()),
        recipe=recipe("figures"),
    output:
        "<results>/metrics.json",
        "<results>/figures/recipe.json",
    log:
        "<logs>/figures.log",
    benchmark:
        "<logs>/figures.tsv"
    shell:
        "python -m apr run figures --recipe {input.recipe:q} > {log:q} 2>&1"


# What Figures 4a, 5, 6 and 7 and Table 3 need, and no more.
rule headline:
    input:
        made("headline", *PLAN.jobs["headline"].upstream.values()),
        recipe=recipe("headline"),
    output:
        "<data>/headline/recipe.json",
    log:
        "<logs>/headline.log",
    benchmark:
        "<logs>/headline.tsv"
    shell:
        "python -m apr run headline --recipe {input.recipe:q} > {log:q} 2>&1"


# Whether the README says more than the table is for `make claims` to check: an ablation may support less.
rule claims:
    input:
        made("claims", *PLAN.jobs["claims"].upstream.values()),
        recipe=recipe("claims"),
    output:
        "<results>/claims.md",
        "<results>/claims.csv",
        "<results>/claims.md.recipe",
    log:
        "<logs>/claims.log",
    benchmark:
        "<logs>/claims.tsv"
    shell:
        "python -m apr run claims --recipe {input.recipe:q} > {log:q} 2>&1"


rule checks:
    input:
        made("checks", *PLAN.jobs["checks"].upstream.values()),
        recipe=recipe("checks"),
    output:
        "<results>/checks.json",
        "<results>/checks.json.recipe",
    log:
        "<logs>/checks.log",
    benchmark:
        "<logs>/checks.tsv"
    shell:
        "python -m apr run checks --recipe {input.recipe:q} > {log:q} 2>&1"


rule report:
    input:
        made("report", *PLAN.jobs["report"].upstream.values()),
        recipe=recipe("report"),
    output:
        "<results>/report.html",
        "<results>/report.html.recipe",
    log:
        "<logs>/report.log",
    benchmark:
        "<logs>/report.tsv"
    resources:
        gpu=GPU,
    shell:
        "python -m apr run report --recipe {input.recipe:q} > {log:q} 2>&1"


rule demo:
    input:
        made("demo", "<data>/models/rl/apr/recipe.json", "<data>/models/sft/sos_plus/recipe.json"),
        recipe=recipe("demo"),
    output:
        "<data>/demo.html",
        "<data>/demo.html.recipe",
    log:
        "<logs>/demo.log",
    benchmark:
        "<logs>/demo.tsv"
    shell:
        "python -m apr run demo --recipe {input.recipe:q} > {log:q} 2>&1"
