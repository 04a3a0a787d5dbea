"""Evaluation: sweeps, latency and their statistics. May import everything up to `threads`."""
