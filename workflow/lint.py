"""`snakemake --lint`, but for one complaint.

Left out: "Specify a conda environment or container for each rule". Every rule runs `python -m apr` in the one
environment that `make` builds from requirements.lock; a second description of it per rule could only differ.
"""

import json
import subprocess
import sys

EXCUSED = "Specify a conda environment or container for each rule."


def main() -> int:
    run = subprocess.run(["snakemake", "--lint", "json"], capture_output=True, text=True, check=False)
    found = json.loads(run.stdout) if run.stdout.strip() else None
    if found is None:
        print(run.stderr, file=sys.stderr)
        return run.returncode
    lints = [lint | {"of": entry.get("rule", "")} for entries in found.values() for entry in entries
             for lint in entry["lints"] if lint["title"] != EXCUSED]
    for lint in lints:
        print(f"{lint['of']} {lint['title']}: {lint['body']}", file=sys.stderr)
    return bool(lints)


if __name__ == "__main__":
    sys.exit(main())
