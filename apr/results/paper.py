"""The paper's own numbers (arXiv 2504.15466), for reference marks: accuracies as shares."""

POLICY = "apr"
"""The entry of `rl.policies` that is the paper's APR: paid for the outcome, broadcast to all threads."""

TEMPERATURES = (0.0, 0.1, 0.5, 1.0)

FIG4A = {"APR at 20k tokens": 0.801, "SoS+ cons@7 at 20k": 0.666, "SoS+ pass@8 at 24k": 0.684}
FIG5 = {"accuracy": (0.755, 0.834), "total tokens": (10964, 16720), "tokens per sequence": (1471, 1796),
        "children": (6.1, 8.2)}  # fmt: skip
"""Before and after RL."""
FIG6 = {"APR at 5 s": 0.752, "SoS+ at 5 s": 0.573}
FIG7 = {"SoS+": (0.573, 0.600), "APR": (0.755, 0.834), "APR held": (0.832, 0.833)}
"""Before and after RL."""

TABLE1 = {("SoS", 0.0): 0.495, ("SoS+", 0.0): 0.573}
TABLE2 = {("SoS+", 0.0): 0.573, ("SoS+, beam up to 15", 0.0): 0.509, ("SoS+, rejection-sampled", 0.0): 0.565}
TABLE3 = {
    ("SoS+", 0.0): 0.573,
    ("APR", 0.0): 0.755,
    **{("SoS+ + RL", t): value for t, value in zip(TEMPERATURES, (0.600, 0.593, 0.591, 0.581), strict=True)},
    **{("APR + RL", t): value for t, value in zip(TEMPERATURES, (0.834, 0.829, 0.813, 0.764), strict=True)},
}
