"""Labels beside the marks that they name, where they cover the least of what is drawn."""

from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

SIDES = {(1, 1): ("left", "bottom"), (-1, 1): ("right", "bottom"), (1, -1): ("left", "top"),
         (-1, -1): ("right", "top"), (1, 0): ("left", "center"), (-1, 0): ("right", "center"),
         (0, 1): ("center", "bottom"), (0, -1): ("center", "top")}  # fmt: skip
"""Directions from a mark to its label, the usual first, with the label's alignment."""
DISTANCES = (3.5, 6, 9, 13)
"""Points between a mark and its label, the least first."""
OVERLAP, FAR, DARK = 1000, 8, 215
"""What another label below it (or the figure's edge), and another mark as close to it, cost in pixels; the
brightness of a pixel from which on it may be covered, as may the grid."""


def label_mark(axes: Axes, text: object, x: float, y: float, colour: str) -> None:
    label = axes.annotate(str(text), (x, y), (4, 4), textcoords="offset points", size=7, color=colour)
    label.set_in_layout(False)  # else axes would move where labels do


def place_labels(figure: Figure) -> None:
    """Moves each label, in the order of drawing, to the first of the best places that are left."""
    by_axes = [[text for text in axes.texts if isinstance(text, Annotation)] for axes in figure.axes]
    for label in sum(by_axes, []):
        label.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[::-1, :, :3].min(axis=2) < DARK
    taken: list[Bbox] = []
    for axes, labels in zip(figure.axes, by_axes, strict=True):
        marks = [axes.transData.transform(label.xy) for label in labels]
        for label, own in zip(labels, marks, strict=True):
            label.set_visible(True)
            costs = {place: _cost(_moved(label, *place).padded(1), own, marks, drawn, taken)
                     for place in product(DISTANCES, SIDES)}  # fmt: skip
            taken.append(_moved(label, *min(costs, key=costs.__getitem__)))


def _moved(label: Annotation, distance: float, side: tuple[int, int]) -> Bbox:
    across, up = SIDES[side]
    label.set(position=(side[0] * distance, side[1] * distance), ha=across, va=up)
    return label.get_window_extent()


def _cost(
    box: Bbox, own: np.ndarray, marks: list[np.ndarray], drawn: np.ndarray, taken: list[Bbox]
) -> int:
    """Pixels that a label covers; a label below it, and a mark nearly as close as its own, count for many."""
    (left, low), (right, high) = np.floor(box.min).astype(int), np.ceil(box.max).astype(int)
    if min(left, low) < 0 or high > drawn.shape[0] or right > drawn.shape[1]:
        return OVERLAP
    covered = int(np.count_nonzero(drawn[low:high, left:right]))
    away, *others = (np.linalg.norm(np.clip(at, box.min, box.max) - at) for at in (own, *marks))
    strays = sum(other < 1.2 * away and abs(at - own).max() > 4
                 for other, at in zip(others, marks, strict=True))  # fmt: skip
    below = sum(Bbox.intersection(box, other) is not None for other in taken)
    return covered + FAR * strays + OVERLAP * below
