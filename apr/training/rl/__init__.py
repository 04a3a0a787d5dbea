"""GRPO on whole rollouts, parent and children together. May import everything up to `threads`."""
