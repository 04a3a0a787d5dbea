"""Which number of children is best for how many devices, and whether a policy that is told them finds it."""

from matplotlib.figure import Figure

from apr.core.params import DEVICES, Params
from apr.evaluation.results import Key
from apr.results.evidence import Evidence, Row, accuracy, mean
from apr.results.figures import style
from apr.results.figures.exhibit import Exhibit
from apr.results.worth import POLICY, fixed_keys, worths


def devices_rows(evidence: Evidence) -> list[Row]:
    """Returns rows for each number of devices: the policy that is asked for them, and the model that is asked
    for a number of children (`asked`), of which the one that is worth the most there is `best`."""
    found: list[Row] = []
    for devices in DEVICES:
        keys = {None: Key(POLICY, "rl", 0.0, devices)} | {key.condition: key for key in fixed_keys(evidence)}
        cells = {asked: cell for asked, key in keys.items() if (cell := evidence.cell(key))}
        worth = {asked: worths(evidence, cell, devices) for asked, cell in cells.items()}
        fixed = [asked for asked in cells if asked is not None]
        best = max(fixed, key=lambda asked: worth[asked].mean(), default=None)
        found += [{"devices": devices, "asked": asked, "best": int(asked is not None and asked == best)}
                  | evidence.measured(children=mean(cell, "children"), accuracy=accuracy(cell),
                                      steps=mean(cell, f"steps_{devices}"), worth=worth[asked])
                  for asked, cell in cells.items()]  # fmt: skip
    return found


def draw_devices(rows: list[Row], notes: list[str]) -> Figure:
    figure, (axes,) = style.new_figure(width=6.4, height=4.0)
    for place, devices in enumerate(DEVICES):
        own = [row for row in rows if row["devices"] == devices]
        fixed, told = ([row for row in own if (row["asked"] is None) == none] for none in (False, True))
        colour, named = list(style.COLOURS.values())[place], f"{devices} device{'s' * (devices > 1)}"
        series = style.Series(named, {}, colour, {"marker": "."})
        style.draw_series(axes, fixed, "children", "worth", series)
        star = series._replace(label="_", look={"marker": "*", "markersize": 11, "linestyle": "none"})
        style.draw_series(axes, told, "children", "worth", star)
        said = [f"{row['asked']} children ({row['worth']:.3f})" for row in fixed if row["best"]]
        said += [f"the policy spawns {row['children']:.1f} ({row['worth']:.3f})" for row in told]
        notes.append(f"{named.capitalize()}: {'; '.join(said)}.")
    axes.set_xlabel("children")
    axes.set_ylabel("worth")
    axes.set_ylim(bottom=0)
    style.legend_above(figure, columns=5)
    return figure


def asks_for_devices(params: Params) -> bool:
    """Whether a scale has the policy."""
    return POLICY in params.rl.policies and bool(params.rl.policies[POLICY].devices)


DEVICES_ASKED = Exhibit("devices_asked", devices_rows, draw_devices, """Worth of a rollout, greedy: 1
    where the problem is solved, less by the steps that it takes on so many devices; else 0. Lines: APR after
    SFT, asked for so many children. Stars: the policy that is asked for so many devices, and paid the worth.
    The best number of children by devices, chosen on these problems, and the policy's:""", asks_for_devices)
