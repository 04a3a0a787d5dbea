"""The table of claims as Markdown and CSV, and whether a document claims more than was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apr.core.errors import DataError
from apr.core.files import write_text
from apr.core.params import Params
from apr.results.claims.claims import CLAIMS, STATUSES, UNMEASURED, Claim
from apr.results.claims.depth import DEPTH
from apr.results.claims.laboratory import LABORATORY
from apr.results.claims.products import PRODUCTS
from apr.results.evidence import Evidence, Row, csv_text, pool, read_evidence
from apr.results.render import render

START, END = "<!-- claims -->\n", "<!-- /claims -->\n"
NUMBERS = ("value", "low", "high", "threshold", "paper")
FOLDERS = ("eval", "latency.json", "teacher")
FORMATS = {"percentage points": (100, "+.1f"), "ratio": (1, ".2f"), "Spearman": (1, ".2f"),
           "%": (100, ".1f"), "children": (1, "+.2f")}  # fmt: skip
"""By unit: the factor and the format in which it is printed."""


def claims_of(params: Params) -> list[Claim]:
    """Returns the paper's claims, and those of the laboratory that a scale is for."""
    there = {params.task, *params.traces.methods, *params.rl.policies}
    return [*CLAIMS, *(claim for claim in (*LABORATORY, *DEPTH, *PRODUCTS) if claim.needs <= there)]


def make_claims(params: Params, evaluations: Path, latencies: Path, teachers: Path, out: Path,
                readme: Path | None = None, update_readme: Path | None = None,
                others: Mapping[Path, Params] | None = None, partial: bool = False) -> None:
    """Writes the table of claims to `out`, and in full digits, as fractions, beside it as CSV.

    `others` are runs with other seeds, by the folder that holds their `data`: their problems count too. With
    `partial` some models need not be evaluated yet, and claims that need them are left out.
    Then puts the table between the lines `START` and `END` of `update_readme`, and checks that in `readme`.
    Raises `DataError` if an evaluation is missing or broken, or if `readme` says more than was measured.
    """
    runs = [read_evidence(params, evaluations, latencies, teachers, partial=partial),
            *(read_evidence(other, *(root / "data" / name for name in FOLDERS), partial=partial)
              for root, other in (others or {}).items())]  # fmt: skip
    pooled = pool(runs)
    rows = [claim_row(claim, pooled, runs) for claim in claims_of(params)]
    rows = [row for row in rows if not partial or row["status"] != UNMEASURED]
    if not rows:
        raise DataError(f"{evaluations}: no claim can be measured from what was evaluated")
    text = write_claims(out, rows)
    if update_readme is not None:
        before, _, after = _split(update_readme)
        write_text(update_readme, f"{before}{START}{text}{END}{after}")
    if readme is not None:
        check_readme(readme, {row["claim"]: row["status"] for row in rows})


def write_claims(out: Path, rows: Sequence[Row]) -> str:
    """Writes the table to `out` and its CSV beside it; returns the table."""
    write_text(out, text := render("claims/table.md", rows=[row | printed(row) for row in rows]))
    write_text(out.with_suffix(".csv"), csv_text(rows))
    return text


def claim_row(claim: Claim, evidence: Evidence, runs: Sequence[Evidence] = ()) -> Row:
    """Returns what is printed of a claim; its note has each value of the `runs` that `evidence` pools."""
    own = evidence.fresh()
    measured = claim.measure(own)
    cells = measured.cells if measured else ()
    row: Row = {"claim": claim.id, "sentence": claim.sentence, "unit": claim.unit}
    row |= dict(zip(("value", "low", "high"), measured.found if measured else (None,) * 3, strict=True))
    row |= {"threshold": claim.threshold, "paper": claim.paper,
            "problems": len(cells[0].problems) if cells else 0,
            "samples": "/".join(dict.fromkeys(str(cell.samples) for cell in cells)),
            "seeds": len(runs or [evidence]) if cells else 0,
            "note": measured.note if measured else f"missing: {own.lacks()}",
            "status": claim.status(measured)}  # fmt: skip
    if measured and len(runs) > 1:
        each = [claim.measure(run.fresh()) for run in runs]
        values = (_printed(claim.unit, run.found.value) if run else "none" for run in each)
        row["note"] = f"{row['note']}; by seed: {', '.join(values)}".removeprefix("; ")
    return row


def _printed(unit: str, value: float | None) -> str:
    factor, form = FORMATS[unit]
    return "" if value is None else format(factor * value, form)


def printed(row: Row) -> dict[str, str]:
    """Returns the numbers of a claim as texts; also `measured`, the value with its interval, and `n`."""
    text = {name: _printed(row["unit"], row[name]) for name in NUMBERS}
    found = row["value"] is not None
    return text | {"measured": f"{text['value']} [{text['low']}, {text['high']}]" if found else "",
                   "n": f"{row['problems']} x {row['samples']}" if found else ""}  # fmt: skip


def check_readme(readme: Path, measured: Mapping[str, str]) -> None:
    """Compares statuses, not digits: another seed measures slightly different values.

    Raises `DataError`, naming the claim, if a line's status says more than `measured` (by claim), or if the
    line is not of a claim.
    """
    for line in _split(readme)[1].splitlines():
        claim, *_, printed = [cell.strip() for cell in line.strip("| ").split("|")]
        if claim in ("", "---", "claim"):
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
