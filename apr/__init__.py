"""Adaptive Parallel Reasoning on Countdown: a reproducible pipeline from parameters to figures.

Packages stand in the order in which they may import (each may import those above it):

    core       errors, seeds, parameters, Parquet, recipes: what every layer stands on
    countdown  the task: problems, and the one strict verifier
    grammar    the thread language: text, typed events, token ids, tokenizer
    solvers    symbolic SoS, SoS+ and APR solvers; their traces as Parquet
    engine     token ids in and out of a causal LM: slots, KV caches, sampling, packed attention
    threads    spawn and join: rollouts as trees of threads over an engine
    sft, rl    training
    evaluate   sweeps, token ledgers, statistics
    figures    one module per figure and table of the paper
    cli        one verb per rule of the workflow
"""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps 20 MiB of what is freed
