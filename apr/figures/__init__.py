"""The paper's figures and tables from evaluation files, one module each. May import `core` to `eval`."""

from apr.figures.make import make_figures

__all__ = ["make_figures"]
