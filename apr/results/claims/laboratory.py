"""What the laboratory asks (docs/laboratory.md), as claims with thresholds that were set before any run.

A scale has those for which it has policies.
"""

import numpy as np

from apr.core.params import DEVICES
from apr.evaluation.results import Key
from apr.evaluation.statistics import Interval, cons_at, paired_difference, paired_ratio
from apr.results import paper
from apr.results.claims.claims import POINTS, Claim, Measured, NotMeasured, cells_of
from apr.results.evidence import Evidence, accuracy, mean
from apr.results.worth import POLICY, fixed_keys, worths

MOST_LOST = 0.01
"""Accuracy that a saving may cost: what is more than that has to lie outside of the interval."""


def as_accurate(evidence: Evidence, own: np.ndarray, base: np.ndarray) -> tuple[str, bool]:
    """Returns what a saving costs in accuracy, by problem (problems,), and whether that is no more than
    `MOST_LOST`."""
    lost = paired_difference(own, base, *evidence.bootstrap)
    value, low, high = (f"{100 * number:+.1f}" for number in lost)
    return f"accuracy {value} [{low}, {high}]", lost.low > -MOST_LOST


def saved(evidence: Evidence, policy: str, temperature: float) -> Measured:
    """Returns the share of its sequential tokens that a policy does without, against the paper's; fair if it
    is no more than `MOST_LOST` less accurate."""
    base, own = cells = cells_of(evidence, *(Key(name, "rl", temperature) for name in (paper.POLICY, policy)))
    ratio = paired_ratio(mean(own, "sequential"), mean(base, "sequential"), *evidence.bootstrap)
    note, fair = as_accurate(evidence, accuracy(own), accuracy(base))
    return Measured(Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low), cells, note, fair)


def gained(
    evidence: Evidence, model: str, over: str = paper.POLICY, stage: str = "rl", column: str = "strict",
    temperature: float = 1.0, condition: int | None = None,
) -> Measured:  # fmt: skip
    """Returns a column of a model less that of another one, on the same problems."""
    cells = cells_of(evidence, *(Key(name, stage, temperature, condition) for name in (model, over)))
    own, other = (mean(cell, column) for cell in cells)
    note = f"{own.mean():.1%} against {other.mean():.1%}" if column == "strict" else ""
    return Measured(paired_difference(own, other, *evidence.bootstrap), cells, note)


def at_window(evidence: Evidence, model: str, over: str, stage: str, temperature: float) -> Measured:
    """Returns the accuracy of a model less that of another, both asked for all tokens of the window."""
    window = evidence.params.grammar.window
    return gained(evidence, model, over, stage, temperature=temperature, condition=window)


def as_well(evidence: Evidence) -> Measured:
    """Returns the accuracy of the model of both forms over APR's, both asked for the most children."""
    most = evidence.params.grammar.max_children
    cells = cells_of(evidence, *(Key(name, "sft", 0.0, most) for name in ("mixed", "apr")))
    both, alone = map(accuracy, cells)
    return Measured(paired_ratio(both, alone, *evidence.bootstrap), cells,
                    f"{both.mean():.1%} of APR's {alone.mean():.1%}")


def over_votes(evidence: Evidence) -> Measured:
    """Returns the accuracy of the paper's policy, greedy and unconditioned, less that of the best vote over
    samples of SoS+: as many at most as decode no fewer tokens than it."""
    own, serial = cells_of(evidence, Key(paper.POLICY, "rl", 0.0), Key("sos_plus", "sft", 1.0))
    most = mean(own, "total").mean() / mean(serial, "total").mean() + 1
    if serial.samples < int(most):
        evidence.missing.append(f"sft/sos_plus T=1 samples {serial.samples + 1} to {int(most)}")
        raise NotMeasured
    voted = {n: cons_at(n, serial.votes, serial.strict) for n in range(1, int(most) + 1)}
    best = max(voted, key=lambda n: voted[n].mean())
    found = paired_difference(accuracy(own), voted[best], *evidence.bootstrap)
    return Measured(found, (own, serial), f"{accuracy(own).mean():.1%} against cons@{best} "
                                          f"{voted[best].mean():.1%}")


def more_children(evidence: Evidence) -> Measured:
    """Returns the children of the policy that is asked for the most devices, less its children where it is
    asked for one, T = 1."""
    cells = cells_of(evidence, *(Key(POLICY, "rl", 1.0, devices) for devices in (DEVICES[-1], DEVICES[0])))
    most, one = (mean(cell, "children") for cell in cells)
    return Measured(paired_difference(most, one, *evidence.bootstrap), cells,
                    f"{most.mean():.1f} against {one.mean():.1f}")


def worth_as_fixed(evidence: Evidence) -> Measured:
    """Returns the worth of the policy that is asked for devices over that of APR after SFT, asked for the
    number of children that is worth the most on so many devices: the reward `latency`, greedy, means over the
    numbers of devices that the policy was trained on. These numbers of children are the best on the problems
    that they are measured on, which favours them."""
    trained = sorted(evidence.params.rl.policies[POLICY].devices or ())
    keys = fixed_keys(evidence)
    cells = cells_of(evidence, *(Key(POLICY, "rl", 0.0, devices) for devices in trained), *keys)
    told, fixed = cells[: len(trained)], dict(zip(keys, cells[len(trained) :], strict=True))
    if not fixed:
        raise NotMeasured
    own, others, said = [], [], []
    for devices, cell in zip(trained, told, strict=True):
        own.append(worths(evidence, cell, devices))
        rivals = {key: worths(evidence, cell, devices) for key, cell in fixed.items()}
        best = max(rivals, key=lambda key: rivals[key].mean())
        others.append(rivals[best])
        said.append(f"{devices}: {own[-1].mean():.3f}, {others[-1].mean():.3f} by {best.condition} children")
    found = paired_ratio(np.mean(own, 0), np.mean(others, 0), *evidence.bootstrap)
    return Measured(found, cells, f"by devices {'; '.join(said)}")


def _of(*policies: str) -> frozenset[str]:
    return frozenset({paper.POLICY, *policies})


BOTH = _of("serial", "mixed_serial")
LABORATORY = (
    *(Claim(f"critical_path{tail}", f"A reward for short critical paths saves tokens one after another, at "
            f"no more than a point of accuracy, {said}", "%", 0.15, None, saved,
            {"policy": "critical_path", "temperature": at}, _of("critical_path"))
      for tail, said, at in (("", "T = 1", 1.0), ("_greedy", "greedy", 0.0))),
    Claim("parallel_children", "A bonus for spawning leaves more children when it has gone, T = 1",
          "children", 0.5, None, gained, {"model": "parallel", "column": "children"}, _of("parallel")),
    Claim("parallel_accuracy", "A bonus for spawning that goes makes APR more accurate, T = 1", POINTS, 0.02,
          None, gained, {"model": "parallel"}, _of("parallel")),
    *(Claim(f"credit_{name}", f"RL with {said} beats the paper's, after as many rollouts, T = 1", POINTS, 0.0,
            None, gained, {"model": name}, _of(name))
      for name, said in (("own", "a thread's credit for its own outcome"),
                         ("difference", "a child's credit for the difference that it makes"),
                         ("oracle", "credit for what is known for certain"))),
    Claim("mixed_serial", "Having learnt to spawn too makes the serial form better, greedy, all tokens of "
          "the window asked for", POINTS, 0.0, None, at_window,
          {"model": "mixed", "over": "sos_plus", "stage": "sft", "temperature": 0.0}, BOTH),
    Claim("mixed_serial_rl", "Having learnt to spawn too makes the serial form better after RL of it, T = 1, "
          "all tokens of the window asked for", POINTS, 0.0, None, at_window,
          {"model": "mixed_serial", "over": "serial", "stage": "rl", "temperature": 1.0}, BOTH),
    Claim("mixed_parallel", "One model of both forms solves with the most children what APR does", "ratio",
          0.95, None, as_well, {}, BOTH),
    Claim("adaptive_over_votes", "APR after RL, which decides itself, beats every vote over samples of SoS+ "
          "at equal total tokens", POINTS, 0.10, None, over_votes, {}, _of("critical_path")),
    Claim("devices_children", "A policy that is paid for latency spawns more where it is told of 16 devices "
          "than where of one, T = 1", "children", 1.0, None, more_children, {}, _of(POLICY)),
    Claim("devices_worth", "A policy that is told of devices is worth no less than the best number of "
          "children on as many", "ratio", 1.0, None, worth_as_fixed, {}, _of(POLICY)),
)  # fmt: skip
