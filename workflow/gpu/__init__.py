"""A GPU for a quarter of an hour: what to carry there, and all that is done there, by one command."""
