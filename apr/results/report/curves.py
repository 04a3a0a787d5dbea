"""The curves of SFT and RL, from the logs beside the models."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from apr.results.evidence import Row
from apr.results.figures import style


class Curves(NamedTuple):
    caption: str
    x: str
    x_label: str
    panels: Mapping[str, str]
    """By column of the log: its label."""


CURVES = {
    "sft": Curves("Loss of supervised training, by method, against the tokens seen, prompts included.",
                  "tokens", "training tokens", {"loss": "loss (nats per token)"}),
    "rl": Curves("Each step of RL, by policy: means over the rollouts that it sampled, before its updates; "
                 "KL to the SFT model per token, where some group of rollouts had an advantage.",
                 "step", "step",
                 {"reward": "reward", "children": "children", "total_tokens": "total tokens",
                  "sequential_tokens": "sequential tokens", "entropy": "entropy (nats)", "kl": "KL (nats)"}),
}  # fmt: skip
"""By stage."""
LINES = ("-", "--", ":", "-.")


def draw_curves(curves: Curves, logs: Mapping[str, Sequence[Row]]) -> Figure:
    """Draws a panel per column, and in it a line per model, from the lines of its log."""
    wide = len(curves.panels) > 1
    figure = Figure(figsize=(9.0, 4.6) if wide else (7.2, 3.4), layout="constrained")
    panels = figure.subplots(2, 3) if wide else figure.subplots(1, 1, squeeze=False)
    for axes, (column, label) in zip(panels.flat, curves.panels.items(), strict=True):
        for place, (model, lines) in enumerate(logs.items()):
            shown = [line for line in lines if line[column] is not None]
            axes.plot([line[curves.x] for line in shown], [line[column] for line in shown], label=model,
                      color=style.COLOURS.get(model, f"C{place}"), linestyle=LINES[place % len(LINES)],
                      marker="." if wide else "")  # fmt: skip
        axes.set_title(label)
        axes.set_xlabel(curves.x_label)
        if column == "loss":
            axes.set_yscale("log")
        elif column == "kl":
            axes.set_yscale("symlog", linthresh=1e-4)
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1e-4))
            axes.yaxis.get_major_locator().set_params(numticks=6)
    figure.axes[0].legend(ncols=1 if wide else 2)
    return figure
