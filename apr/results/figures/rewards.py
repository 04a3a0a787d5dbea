"""What RL is paid for: its rollouts by step, and what its policies do afterwards on the test problems."""

from functools import partial

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from apr.results import paper
from apr.results.evidence import Evidence, Row
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.figures.paired import TEMPERATURES, paired_rows, rivals

PANELS = {"children": "children", "accuracy": "accuracy", "sequential_tokens": "sequential tokens"}


def rewards_rows(evidence: Evidence) -> list[Row]:
    """Returns a row per policy and step; `paid_until` is the step in which a bonus is gone."""
    found, policies = [], evidence.params.rl.policies
    for name in (paper.POLICY, *rivals(evidence.params, "reward")):
        if not (lines := evidence.training.get(name, ())):
            evidence.missing.append(f"log of rl/{name}")
        settings = policies[name]
        gone = 1 + settings.anneal_share * (len(lines) - 1) if settings.reward == "parallel" else None
        found += [{"policy": name, "reward": settings.reward, "paid_until": gone, "step": line["step"]}
                  | {column: line[column] for column in (*PANELS, "total_tokens")}
                  for line in lines]  # fmt: skip
    return found


def draw_rewards(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(PANELS), width=8.4, height=3.2)
    for axes, (column, label) in zip(panels, PANELS.items(), strict=True):
        for name in dict.fromkeys(row["policy"] for row in rows):
            colour = style.COLOURS.get(name, style.FAINT)
            series = style.Series(name, {"policy": name}, colour, {"marker": "."})
            style.draw_series(axes, rows, "step", column, series)
        for gone in {row["paid_until"] for row in rows} - {None}:
            axes.axvline(gone, color=style.FAINT, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(label)
        axes.set_xlabel("step of RL")
        axes.set_ylim(bottom=0)
    style.percent_axis(panels[1], "")
    style.legend_above(figure)
    return figure


def draw_rewarded(rows: list[Row], notes: list[str]) -> Figure:
    """Draws a line per policy, and columns for each temperature."""
    figure, (axes,) = style.new_figure(width=8.4, height=1.0 + 0.42 * len({row["policy"] for row in rows}))
    axes.set_axis_off()
    header, lines = [""], {row["policy"]: [row["policy"]] for row in rows}
    columns = ["accuracy", "over the paper's", "children", "sequential", "saved"]
    for temperature, label in TEMPERATURES.items():
        shown = [row for row in rows if row["temperature"] == temperature]
        header += [f"{label}: {columns[0]}", *columns[1:]] if shown else []
        for row in shown:
            gain, saved = ([100 * row[f"{name}{end}"] for end in ("", "_low", "_high")]
                           for name in ("gain", "saved"))  # fmt: skip
            lines[row["policy"]] += [
                f"{100 * row['accuracy']:.1f}", f"{gain[0]:+.1f}\n[{gain[1]:+.1f}, {gain[2]:+.1f}]",
                f"{row['children']:.1f}", f"{row['sequential']:.0f}",
                f"{saved[0]:.1f}\n[{saved[1]:.1f}, {saved[2]:.1f}]",
            ]  # fmt: skip
    widths = [1.6, *([1.2, 1.5, 0.9, 1.1, 1.3] * 2)][: len(header)]
    table = axes.table([line + ["–"] * (len(header) - len(line)) for line in lines.values()], cellLoc="left",
                       colLabels=header, colLoc="left", colWidths=widths, edges="horizontal",
                       bbox=Bbox.unit())  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(6.5)
    return figure


REWARDS = Exhibit("rewards", rewards_rows, draw_rewards, """What the policies of each reward sample while
    they are trained, T = 1: means over the rollouts of a step, of training problems. Dotted: the step from
    which on a bonus for spawning pays nothing.""", partial(rivals, of="reward"))
REWARDED = Exhibit("rewarded", partial(paired_rows, of="reward"), draw_rewarded, """Policies of each reward
    on the test problems, unconditioned. In percentage points over the paper's policy; sequential tokens,
    and how many per cent of its are saved.""", partial(rivals, of="reward"))
