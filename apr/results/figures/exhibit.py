"""What a figure or table of the paper is here: rows, which are its CSV, and a picture of these rows alone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from apr.core.files import write_text
from apr.core.params import Params
from apr.results.evidence import Evidence, Row, csv_text, read_csv
from apr.results.figures import style
from apr.results.figures.labels import place_labels


class Exhibit(NamedTuple):
    name: str
    rows: Callable[[Evidence], list[Row]]
    """What was measured; what was not is noted in `Evidence.missing`."""
    draw: Callable[[list[Row], list[str]], Figure]
    """Notes that it adds end up in the caption."""
    caption: str
    needs: Callable[[Params], object] = lambda params: True
    """Whether a scale has the policies that it is about."""


def write_exhibit(exhibit: Exhibit, evidence: Evidence, out: Path) -> None:
    """Writes ``<name>.{csv,svg,png}``; nothing, and says what it lacks, if nothing of it was measured."""
    own = evidence.fresh()
    if not (rows := exhibit.rows(own)):
        said = f"{exhibit.name}: left out, as no sweep has a point of it; missing: {own.lacks()}"
        return print(said, file=sys.stderr, flush=True)
    path = out / f"{exhibit.name}.csv"
    write_text(path, csv_text(rows))
    with matplotlib.rc_context(style.RC):
        style.save(*draw_exhibit(exhibit, read_csv(path), own.lacks()), path)


def draw_exhibit(exhibit: Exhibit, rows: list[Row], lacks: str = "") -> tuple[Figure, str]:
    """Returns the picture of some rows, and its caption; `lacks` says what was not measured."""
    notes = [" ".join(exhibit.caption.split())]
    if "problems" in rows[0]:  # not of training
        problems = min(row["problems"] for row in rows)
        notes.append(f"{problems} test problems; intervals: 95 % bootstrap.")
    figure = exhibit.draw(rows, notes)
    caption = " ".join([*notes, f"Not measured: {lacks}."] if lacks else notes)
    style.add_caption(figure, caption)
    place_labels(figure)
    return figure, caption
