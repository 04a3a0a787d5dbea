"""Labels beside the marks that they name, where they cover the least of what is drawn."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

SIDES = {(1, 1): ("left", "bottom"), (-1, 1): ("right", "bottom"), (1, -1): ("left", "top"),
         (-1, -1): ("right", "top"), (1, 0): ("left", "center"), (-1, 0): ("right", "center"),
         (0, 1): ("center", "bottom"), (0, -1): ("center", "top")}  # fmt: skip
"""Directions from a mark to its label, the usual first, with the label's alignment."""
DISTANCES = (3.5, 6, 9, 13)
"""Points between a mark and its label, the least first."""
OVERLAP, FAR = 1000, 20
"""What another label below it, and another mark as close to it, cost in pixels."""


def label_mark(axes: Axes, text: object, x: float, y: float, colour: str) -> None:
    axes.annotate(str(text), (x, y), (4, 4), textcoords="offset points", size=7, color=colour)


def place_labels(figure: Figure) -> None:
    """Moves each label, in the order of drawing, to the first of the best places that are left."""
    figure.draw_without_rendering()  # decides where axes and marks are
    for axes in figure.axes:
        drawn, taken = np.concatenate([np.empty((0, 2)), *_drawn(axes)]), list[Bbox]()
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        named = axes.transData.transform(np.array([label.xy for label in labels]).reshape(-1, 2))
        for label, own in zip(labels, named, strict=True):
            costs = {}
            for place in product(DISTANCES, SIDES):
                box = _moved(label, *place).padded(1)
                costs[place] = _covered(box, drawn, taken) + FAR * _strays(box, own, named)
            taken.append(_moved(label, *min(costs, key=costs.__getitem__)))


def _moved(label: Annotation, distance: float, side: tuple[int, int]) -> Bbox:
    across, up = SIDES[side]
    label.set(position=(side[0] * distance, side[1] * distance), ha=across, va=up)
    return label.get_window_extent()


def _covered(box: Bbox, drawn: np.ndarray, taken: list[Bbox]) -> int:
    """Pixels of lines and marks below a label; those of another label count as many."""
    lines = np.count_nonzero(((drawn >= box.min) & (drawn <= box.max)).all(axis=1))
    return int(lines) + OVERLAP * sum(Bbox.intersection(box, other) is not None for other in taken)


def _strays(box: Bbox, own: np.ndarray, named: np.ndarray) -> int:
    """Marks that are nearly as close to a label as its own."""
    away = np.linalg.norm(np.maximum(0, np.maximum(box.min - named, named - box.max)), axis=1)
    mine = np.linalg.norm(np.maximum(0, np.maximum(box.min - own, own - box.max)))
    return int(np.count_nonzero(away < 1.2 * mine)) - 1


def _drawn(axes: Axes) -> Iterator[np.ndarray]:
    """The pixels of all lines, marks and error bars, each (pixels, 2)."""
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        radius = line.get_markersize() / 2 * axes.figure.dpi / 72 * (line.get_marker() != "None")
        yield np.concatenate([corners + radius * np.array(way) for way in product((-1, 0, 1), repeat=2)])
        if line.get_linestyle() != "None":
            yield _dense(corners)
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            yield from (_dense(axes.transData.transform(segment)) for segment in bars.get_segments())


def _dense(corners: np.ndarray) -> np.ndarray:
    """A polyline as one of its points a pixel."""
    pieces = [np.linspace(start, end, 2 + int(np.abs(end - start).max()))
              for start, end in zip(corners[:-1], corners[1:], strict=True)]  # fmt: skip
    return np.concatenate([corners, *pieces])
