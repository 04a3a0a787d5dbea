"""Texts from templates, each beside the module that fills it; what is put into HTML is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

TEMPLATES = Environment(loader=PackageLoader("apr.results", ""), autoescape=select_autoescape(),
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                        keep_trailing_newline=True)  # fmt: skip


def render(name: str, **values: Any) -> str:
    """Returns the text of a template, named from here; a value that it lacks is an error."""
    return TEMPLATES.get_template(name).render(values)
