"""Adaptive Parallel Reasoning: a reproducible pipeline from parameters to figures.

Packages stand in the order in which they may import (each may import those above it):

    core        errors, seeds, parameters, Parquet, recipes: what every layer stands on
    language    the thread language: text, typed events, token ids, tokenizer
    tasks       a folder each: problems, the one strict verifier, symbolic solvers
    engine      token ids in and out of a causal LM: slots, KV caches, sampling, packed attention
    rollouts    spawn and join: rollouts as trees of threads over an engine
    training    traces as Parquet; supervised (sft), and by reinforcement (rl)
    evaluation  sweeps, token ledgers, statistics
    results     one module per figure and table of the paper; claims, report
    pipeline    the jobs of a run, what is stale, what it costs
    cli         one verb per rule of the workflow
"""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps 20 MiB of what is freed
