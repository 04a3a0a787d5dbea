"""Decoding and weights, on token ids alone: nothing of tasks, nothing of threads. May import `core`."""
