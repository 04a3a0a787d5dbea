"""The demo: two models that decode in the browser, in one HTML file. May be opened without a server."""

from apr.results.demo.page import make_demo

__all__ = ["make_demo"]
