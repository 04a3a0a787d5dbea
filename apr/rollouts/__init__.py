"""Rollouts: trees of threads, grown by spawn and join over any decoder. May import `core` to `engine`;
knows token ids and nothing of tensors."""
