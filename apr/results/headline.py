"""What the paper is about, before the rest of a run is made: its main figures and their claims."""

from pathlib import Path

from apr.core.files import atomic_path
from apr.core.params import Params
from apr.core.progress import track
from apr.evaluation.points import timed
from apr.results.claims.claims import CLAIMS, UNMEASURED
from apr.results.claims.table import claim_row, write_claims
from apr.results.evidence import read_evidence
from apr.results.figures.exhibit import write_exhibit
from apr.results.figures.make import FIGURES

NAMES = ("fig4a", "fig5", "fig6", "fig7", "table3")


def make_headline(params: Params, evaluations: Path, latencies: Path, teachers: Path, out: Path) -> None:
    """Writes the exhibits `NAMES` into the directory `out`, and ``claims.{md,csv}``, all as in a whole run.

    Reads the evaluations of the models that are timed, which are all that these exhibits show. Claims that
    need others are left out. Raises `DataError` if an evaluation is missing or broken.
    """
    evidence = read_evidence(params, evaluations, latencies, teachers, models=timed(params))
    exhibits = [exhibit for exhibit in FIGURES if exhibit.name in NAMES]
    rows = [claim_row(claim, evidence) for claim in CLAIMS]
    with atomic_path(out) as partial:
        partial.mkdir()
        for exhibit in track(exhibits, "headline", len(exhibits), "figure"):
            write_exhibit(exhibit, evidence, partial)
        if measured := [row for row in rows if row["status"] != UNMEASURED]:
            write_claims(partial / "claims.md", measured)
