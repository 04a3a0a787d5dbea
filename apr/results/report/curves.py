"""The curves of SFT and RL, from the logs beside the models."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from apr.results.evidence import Row
from apr.results.figures import style

SFT_CAPTION = "Loss of supervised training, by method, against the tokens seen, prompts included."
RL_CAPTION = ("Each step of RL, by policy: means over the rollouts that it sampled, before its updates; KL "
              "to the SFT model per token, where some group of rollouts had signal.")
RL_PANELS = {"reward": "reward", "children": "children", "total_tokens": "total tokens",
             "sequential_tokens": "sequential tokens", "entropy": "entropy (nats)",
             "kl": "KL (nats)"}  # fmt: skip
LINES = ("-", "--", ":", "-.")


def sft_curves(logs: Mapping[str, Sequence[Row]]) -> Figure:
    figure, (axes,) = style.new_figure(width=7.2, height=3.4)
    for place, (method, lines) in enumerate(logs.items()):
        axes.plot([line["tokens"] for line in lines], [line["loss"] for line in lines], label=method,
                  color=style.COLOURS.get(method, f"C{place}"), linestyle=LINES[place % len(LINES)])
    axes.set_yscale("log")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(ncols=2)
    return figure


def rl_curves(logs: Mapping[str, Sequence[Row]]) -> Figure:
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (name, label) in zip(panels, RL_PANELS.items(), strict=True):
        for policy, lines in logs.items():
            _draw(axes, policy, [(line["step"], line[name]) for line in lines if line[name] is not None])
        axes.set_title(label)
        axes.set_xlabel("step")
    figure.axes[-1].set_yscale("symlog", linthresh=1e-4)
    decades = SymmetricalLogLocator(base=10, linthresh=1e-4)
    decades.set_params(numticks=6)
    figure.axes[-1].yaxis.set_major_locator(decades)
    figure.axes[0].legend()
    return figure


def _draw(axes: Axes, policy: str, points: Sequence[tuple[int, float]]) -> None:
    axes.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", label=policy,
              color=style.COLOURS.get(policy))


CURVES = {"sft": (sft_curves, SFT_CAPTION), "rl": (rl_curves, RL_CAPTION)}
"""By stage: from the lines of the log of each model to the figure, and its caption."""
