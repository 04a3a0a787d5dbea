"""Slurm's commands as far as Snakemake's executor calls them, on this machine and at once.

    python slurm.py FOLDER sbatch|srun|sacct|sinfo|scancel OPTIONS

`install` puts them on a path. A submission is a file of FOLDER with its options, beside one with its
state once it runs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "sinfo", "scancel")
OPTIONS = ("--job-name", "--output", "--export", "--comment", "--mem", "--ntasks", "--cpus-per-task",
           "--gpus", "-A", "-p", "-t", "-D", "--wrap")  # fmt: skip


def install(folder: Path) -> str:
    """Makes FOLDER; the directory of the commands in it."""
    (folder / "bin").mkdir(parents=True)
    for command in COMMANDS:
        path = folder / "bin" / command
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}" {command} "$@"\n')
        path.chmod(0o755)
    return str(folder / "bin")


def submissions(folder: Path) -> list[dict[str, str]]:
    """The options of every `sbatch`, in order."""
    paths = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def sbatch(folder: Path, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("--parsable", "--exclusive"):
        parser.add_argument(flag, action="store_true")
    for option in OPTIONS:
        parser.add_argument(option)
    options = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    number, submission = 1, folder / f"submission-{os.getpid()}"
    submission.write_text(json.dumps(options))
    while not linked(submission, folder / f"{number}.json"):
        number += 1
    nowhere = {stream: subprocess.DEVNULL for stream in ("stdin", "stdout", "stderr")}
    command = [sys.executable, __file__, folder, "run", str(number)]
    subprocess.Popen(command, start_new_session=True, **nowhere)
    print(number)


def linked(source: Path, path: Path) -> bool:
    """Whether a whole file is there now by this name, which another had not taken at the same time."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    return True


def run(folder: Path, arguments: list[str]) -> None:
    """What a node does with a submission: the script in its directory, with the environment of `sbatch`."""
    number, state = arguments[0], folder / f"{arguments[0]}.state"
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    options = json.loads((folder / f"{number}.json").read_text())
    state.write_text("RUNNING")
    with Path(options["output"].replace("%j", number)).open("w") as output:
        code = subprocess.run(["sh", "-c", options["wrap"]], cwd=options["D"], stdout=output, stderr=output,
                              env=os.environ | {"SLURM_JOB_ID": number}, check=False).returncode  # fmt: skip
    state.write_text("FAILED" if code else "COMPLETED")


def srun(folder: Path, arguments: list[str]) -> None:
    command = next(index for index, argument in enumerate(arguments) if not argument.startswith("-"))
    os.execvp(arguments[command], arguments[command:])


def sacct(folder: Path, arguments: list[str]) -> None:
    if "--name" not in arguments:  # asked for accounts
        return
    name = arguments[arguments.index("--name") + 1]
    for number, options in enumerate(submissions(folder), start=1):
        if options["job_name"] == name:
            state = folder / f"{number}.state"
            print(f"{number}|{(state.read_text() if state.exists() else '') or 'PENDING'}")


def sinfo(folder: Path, arguments: list[str]) -> None:
    print("PARTITION\nall*")


def scancel(folder: Path, arguments: list[str]) -> None:
    for number in arguments:
        os.killpg(int((folder / f"{number}.pid").read_text()), signal.SIGKILL)
        (folder / f"{number}.state").write_text("CANCELLED")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
