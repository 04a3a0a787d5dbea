"""Decoding and weights, on token ids alone: nothing of Countdown, nothing of threads. May import `core`."""
