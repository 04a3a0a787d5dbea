"""The table of claims as Markdown and CSV, and whether the README claims more than was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apr.core.errors import DataError
from apr.core.files import write_text
from apr.core.params import Params
from apr.results.claims.claims import CLAIMS, STATUSES, Claim
from apr.results.evidence import Evidence, Row, csv_text, pool, read_evidence

START, END = "<!-- claims -->\n", "<!-- /claims -->\n"
COLUMNS = ("claim", "sentence", "measured [95 %]", "threshold", "paper", "problems x samples", "seeds",
           "note", "status")  # fmt: skip
FOLDERS = ("eval", "latency", "teacher")
FORMATS = {"points": (100, "+.1f"), "ratio": (1, ".2f"), "Spearman": (1, ".2f"), "%": (100, ".1f"),
           "children": (1, "+.2f")}  # fmt: skip
"""By unit: the factor and the format in which it is printed."""


def make_claims(params: Params, evaluations: Path, latencies: Path, teachers: Path, out: Path,
                readme: Path | None = None, update_readme: Path | None = None,
                others: Mapping[Path, Params] | None = None) -> None:
    """Writes the table of claims to `out`, and in full digits, as fractions, beside it as CSV.

    `others` are runs with other seeds, by the folder that holds their `data`: their problems count too.
    Then puts the table between the lines `START` and `END` of `update_readme`, and checks that in `readme`.
    Raises `DataError` if an evaluation is missing or broken, or if `readme` says more than was measured.
    """
    evidence = read_evidence(params, evaluations, latencies, teachers)
    runs = [evidence, *(read_evidence(other, *(root / "data" / name for name in FOLDERS))
                        for root, other in (others or {}).items())]
    pooled = pool(runs)
    rows = [claim_row(claim, pooled, runs) for claim in CLAIMS]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(printed_cells, rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(out, text)
    write_text(out.with_suffix(".csv"), csv_text(rows))
    if update_readme is not None:
        before, _, after = _split(update_readme)
        write_text(update_readme, f"{before}{START}{text}{END}{after}")
    if readme is not None:
        check_readme(readme, {row["claim"]: row["status"] for row in rows})


def claim_row(claim: Claim, evidence: Evidence, runs: Sequence[Evidence] = ()) -> Row:
    """What is printed of a claim, and its unit; also each value of the `runs` that `evidence` pools."""
    own = evidence.fresh()
    measured = claim.measure(own)
    value, low, high = measured.found if measured else (None, None, None)
    cells = measured.cells if measured else ()
    samples = "/".join(dict.fromkeys(str(cell.samples) for cell in cells))
    note = measured.note if measured else f"missing: {own.lacks()}"
    if measured and len(runs) > 1:
        factor, form = FORMATS[claim.unit]
        each = [claim.measure(run.fresh()) for run in runs]
        by_seed = ", ".join(format(factor * run.found.value, form) if run else "none" for run in each)
        note = f"{note}; by seed: {by_seed}".removeprefix("; ")
    return {"claim": claim.id, "sentence": claim.sentence, "unit": claim.unit, "value": value, "low": low,
            "high": high, "threshold": claim.threshold, "paper": claim.paper,
            "problems": len(cells[0].problems) if cells else 0, "samples": samples,
            "seeds": len(runs or [evidence]) if cells else 0, "note": note,
            "status": claim.status(measured)}  # fmt: skip


def printed_cells(row: Row) -> list[str]:
    """The cells of `COLUMNS`."""
    factor, form = FORMATS[row["unit"]]
    show = {name: "" if row[name] is None else format(factor * row[name], form)
            for name in ("value", "low", "high", "threshold", "paper")}  # fmt: skip
    measured = "{value} [{low}, {high}]".format(**show) if show["value"] else ""
    return [row["claim"], f"{row['sentence']} ({row['unit']})", measured, show["threshold"], show["paper"],
            f"{row['problems']} x {row['samples']}" if measured else "", str(row["seeds"]), row["note"],
            row["status"]]  # fmt: skip


def check_readme(readme: Path, measured: dict[str, str]) -> None:
    """Compares statuses, not digits: another seed measures slightly different values.

    Raises `DataError`, naming the claim, if a line's status says more than `measured` (by claim), or if the
    line is not of a claim.
    """
    for line in _split(readme)[1].split("\n"):
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        claim, printed = cells[0], cells[-1]
        if claim in ("", "---", COLUMNS[0]):
            continue
        if claim not in measured or printed not in STATUSES:
            raise DataError(f"{readme}: not a line of the table of claims: {line}")
        least = min(STATUSES.index(measured[claim]), STATUSES.index("not supported"))
        if STATUSES.index(printed) < least:
            raise DataError(f"{readme}: {claim} is printed as {printed!r}, but is {measured[claim]!r}")


def _split(readme: Path) -> tuple[str, str, str]:
    """What comes before `START`, between it and `END`, and after; a file without them has an empty block."""
    if not readme.is_file():
        raise DataError(f"{readme}: no such file")
    before, start, rest = readme.read_text().partition(START)
    block, end, after = rest.partition(END)
    if start and not end:
        raise DataError(f"{readme}: {START.strip()} without {END.strip()}")
    return before, block, after
