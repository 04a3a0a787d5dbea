"""All that a GPU is wanted for, in order, by one command, in the minutes that there are.

    python3 -m workflow.gpu.quarter gpu-carry --out OUT --seconds 575

Installs the wheels of `gpu-carry` (`workflow.gpu.gather`), then runs the steps of the table below, each as a
fork of one process that has imported PyTorch, which is ended when its time is up. Figures, a JSON line each,
are printed and in OUT/figures.jsonl as soon as they are known; what else is said is in OUT/log.txt. Models
and evaluations are in OUT as soon as they are made. After the first step nothing but the end of the time ends
the script: later steps take what there is. A second command, with --go-on, goes on by RL from what is in
gpu-work, or by the steps that --only names. With --tiny every step is rehearsed at the smallest sizes, with
--device cpu without a GPU.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from workflow.gpu.work import Step, Work, perform

CHECK, TRACES = Step("check", 60), Step("traces", 600)
STEPS = (
    Step("tests", 80),
    Step("try_rl", 45),
    Step("decode", 30),
    Step("rates", 60),
    Step("sft", 200, kept=50),
    Step("evaluate", 40, phase="sft"),
    Step("rl", 250, kept=45),
    Step("evaluate", 60, phase="rl"),
)
AGAIN = STEPS[-2:]
"""Steps of a second command."""


class Quarter:
    def __init__(self, args: argparse.Namespace):
        self.end, self.args, self.work = time.monotonic() + args.seconds, args, Path("gpu-work")
        if not args.go_on:
            shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.work, args.out):
            folder.mkdir(parents=True, exist_ok=True)
        site = str((self.work / "site").absolute())
        sys.path.insert(0, site)
        os.environ |= {
            "PYTHONPATH": os.pathsep.join((site, os.getcwd())), "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # or to ask whether there is a GPU forbids forks to use it
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a kernel or two, beside the workers of the traces
        }  # fmt: skip
        noted = self.work / "kind.txt"
        self.begin(noted.read_text() if noted.is_file() else "forkserver")

    def begin(self, kind: str) -> None:
        """Has processes be forks, or else be started anew, in a second command too."""
        (self.work / "kind.txt").write_text(kind)
        self.processes: Any = get_context(kind)
        self.processes.set_forkserver_preload(["workflow.gpu.steps"])

    def install(self) -> None:
        wheels = [str(path) for path in sorted((self.args.carry / "wheels").glob("*.whl"))]
        options = ("-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target")
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(self.work / "site"), *wheels],
                       check=True)  # fmt: skip

    def test(self) -> None:
        """Notes what did not pass its tests, and so is left out from then on, in a second command too."""
        lines = map(json.loads, (self.args.out / "figures.jsonl").read_text().splitlines())
        outcomes = {line["test"]: line["outcome"] for line in lines if "test" in line}
        left_out = []
        for part in ("flex", "graphs"):
            found = {outcome for test, outcome in outcomes.items() if f"test_{part}_" in test}
            left_out += [part] if found != {"passed"} else []
        (self.work / "without.json").write_text(json.dumps(left_out))

    def start(self, step: Step, seconds: float) -> "Started":
        args, noted = self.args, self.work / "without.json"
        without = json.loads(noted.read_text()) if noted.is_file() else []
        work = Work(step, time.monotonic() + seconds, args.carry, self.work, args.out, args.scale,
                    args.device, args.tiny, without)  # fmt: skip
        return Started(work, self.processes.Process(target=perform, args=(work,)))

    def run(self, step: Step) -> int:
        """Runs a step in the time that there is for it; returns its exit code."""
        left = self.end - time.monotonic() - step.kept
        if (seconds := min(step.most * self.args.patience, left)) < 5:
            return 1
        started = self.start(step, seconds)
        started.process.join(seconds)
        return started.stop()


class Started:
    """A step under way."""

    def __init__(self, work: Work, process: Any):
        self._work, self.process, self._since = work, process, time.monotonic()
        process.start()

    def stop(self) -> int:
        """Ends it if it has not ended; returns its exit code."""
        late = self.process.is_alive()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):  # what it has started, too
                os.killpg(self.process.pid, number)
            self.process.join(5)
        seconds = round(time.monotonic() - self._since, 1)
        self._work.say(exit=self.process.exitcode, seconds=seconds, **({"stopped": True} if late else {}))
        return self.process.exitcode


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("carry", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="until the script has to have ended")
    parser.add_argument("--scale", default="gpu")
    parser.add_argument("--go-on", action="store_true", help="by RL, after an earlier command")
    parser.add_argument("--only", nargs="+", help="of the steps, these")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes")
    parser.add_argument("--device", help="instead of the scale's")
    parser.add_argument("--patience", type=float, default=1, help="times the seconds of each step")
    return parser.parse_args()


def main() -> None:
    args = parse()
    quarter = Quarter(args)
    if not args.go_on:
        quarter.install()
        if quarter.run(CHECK):
            quarter.begin("spawn")
            if quarter.run(CHECK):
                sys.exit("the machine is not as it has to be")
    background = None if args.go_on else quarter.start(TRACES, args.seconds)
    try:
        for step in AGAIN if args.go_on and not args.only else STEPS:
            if args.only is None or step.name in args.only:
                quarter.run(step)
                if step.name == "tests":
                    quarter.test()
    finally:
        if background:
            background.stop()
    sizes = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    left = round(quarter.end - time.monotonic(), 1)
    print(json.dumps({"name": "end", "left": left, "out": sizes}), flush=True)


if __name__ == "__main__":
    main()
