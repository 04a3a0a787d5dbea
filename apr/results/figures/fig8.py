"""Fig 8: Fig 4a at three temperatures."""

from matplotlib.figure import Figure

from apr.results.evidence import Evidence, Row
from apr.results.figures import style
from apr.results.figures.fig4a import draw_scaling, scaling

CAPTION = ("As Fig 4a, by temperature of sampling: APR asked for 0 to 10 children, SoS+ with n samples, "
           "after SFT.")
TEMPERATURES = (0.1, 0.5, 1.0)


def rows(evidence: Evidence) -> list[Row]:
    return [row for temperature in TEMPERATURES for row in scaling(evidence, temperature)]


def draw(rows: list[Row], notes: list[str]) -> Figure:
    figure, panels = style.new_figure(len(TEMPERATURES), width=9.0, height=3.3)
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        draw_scaling(axes, [row for row in rows if row["temperature"] == temperature])
        axes.set_title(f"T = {temperature:g}")
        axes.sharey(panels[0])
    top = max(axes.dataLim.y1 for axes in panels)
    panels[0].update_datalim([(0, top)])
    style.percent_axis(panels[0])
    handles = [panel.get_legend_handles_labels() for panel in panels]
    figure.legend(*max(handles, key=lambda found: len(found[0])), loc="outside upper center", ncols=3)
    return figure
