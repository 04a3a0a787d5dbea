"""Models, data and demo as folders that `hf upload` takes as they are, each with its card."""

from apr.results.publish.publish import publish

__all__ = ["publish"]
