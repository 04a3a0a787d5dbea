"""The jobs of a run: what they read and make, what is stale, what a run costs, how it is recorded."""
