"""Training on thread trees: supervised (`sft`), then by reinforcement (`rl`)."""
