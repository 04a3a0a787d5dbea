"""Supervised training on traces. May import everything up to `threads`."""
