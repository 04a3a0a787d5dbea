"""The paper's figures, tables and claims from evaluation files. May import `core` to `eval`."""

from apr.results.figures.make import make_figures

__all__ = ["make_figures"]
