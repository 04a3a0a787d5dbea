"""The paper's figures and tables from evaluation files, a module for each figure."""

from apr.results.figures.make import make_figures

__all__ = ["make_figures"]
