"""Curves of a training while it runs, for TensorBoard, beside the log that it leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr.core.errors import ParamsError
from apr.core.files import remove
from apr.core.ranks import rank


class Curves:
    """Writes the numbers of each line of a log to `<out>.curves`, which is no artefact, if `report_to` says
    "tensorboard"; nothing if it says "none", and nothing in other processes than the first.

    Raises `ParamsError` if TensorBoard is not installed.
    """

    def __init__(self, report_to: str, out: Path):
        self._folder = out.with_name(f"{out.name}.curves")
        self._open: Any = None
        if report_to == "tensorboard" and rank() == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ParamsError("report_to: 'tensorboard' is not allowed; allowed: 'none', or after "
                                  "`pip install tensorboard`") from None  # fmt: skip
            self._open = SummaryWriter
        self._writer: Any = None

    def begin(self, done: int) -> None:
        """A run begins, or goes on after `done` steps: what was written of later ones is forgotten."""
        if self._open:
            if not done:
                remove(self._folder)
            self._writer = self._open(str(self._folder), purge_step=done + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a point at `step` to the curve of every other number of the line."""
        if self._writer:
            for name, value in line.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()
