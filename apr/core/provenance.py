"""By which code, versions and machine something is made, and at what cost."""

import csv
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apr.core.ranks import world_size

VERSIONED = ("torch", "transformers", "trl", "peft", "pyarrow", "numpy", "snakemake", "dvc")


def provenance() -> dict[str, Any]:
    """Returns `commit`, `versions` (None of a package that is not here), `machine`, and how many `processes`
    shared the work, as JSON."""
    return {"commit": _commit(), "machine": _machine(), "processes": world_size(),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a job needs few of them
        return None


def cost(benchmark: Path) -> dict[str, Any]:
    """`seconds` and `peak_mib` of a job, from Snakemake's benchmark of it. Nothing for one that was pulled
    instead of run; no memory for one too short to be measured."""
    if not benchmark.is_file():
        return {}
    (row,) = csv.DictReader(benchmark.read_text().splitlines(), delimiter="\t")
    memory = row["max_rss"]
    return {"seconds": float(row["s"]), "peak_mib": None if memory in ("NA", "-") else float(memory)}


def _commit() -> str | None:
    """The commit checked out, with `+` where tracked files are edited; None outside git, or without it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1)}  # fmt: skip


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
