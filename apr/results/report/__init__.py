"""The report of a run: claims, threads, figures, training and tokens in one HTML file."""

from apr.results.report.page import make_report

__all__ = ["make_report"]
