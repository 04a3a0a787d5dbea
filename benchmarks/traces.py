"""Problems and traces per second, and memory, at any number of problems; a plain solver as the yardstick.

    python -m benchmarks.traces --problems 500000 --scale gpu

draws a tenth of that many problems of a scale, then that many, and writes the traces of each method on them,
all through the verbs' own code, each in a process of its own: the rate per core (per second of CPU time, of
all processes and from their start), and the peak memory of the process and of its workers, which is to be the
same for ten times as many. The yardstick is a recursive search of all expressions in plain Python, timed in
the same run on a core.
"""

import argparse
import resource
import tempfile
import time
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pyarrow.parquet as pq

from apr.core.params import Params
from apr.pipeline.plan import load_scale
from apr.tasks import make_tokenizer, open_task
from apr.tasks.countdown import Problem
from apr.tasks.problems import make_problems, read_problems
from apr.training.traces import make_traces
from benchmarks.apart import apart

BOTH = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def plain_solver(numbers: list[Fraction], target: int) -> bool:
    """Whether some expression of all numbers is the target; the recursion that comes to mind first."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in combinations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
        results = [a + b, a - b, b - a, a * b]
        results += [x / y for x, y in ((a, b), (b, a)) if y]
        if any(plain_solver([*rest, result], target) for result in results):
            return True
    return False


def measure(verb: str, params: Params, workers: int, root: Path) -> tuple[float, float, float]:
    """CPU seconds of the process and its workers, and peak MiB of the process and of its largest worker."""
    before = sum(sum(resource.getrusage(who)[:2]) for who in BOTH)
    if verb == "problems":
        make_problems(params, root / "problems")
    else:
        problems, out = root / "problems/train.parquet", root / f"{verb}.parquet"
        make_traces(params, verb, problems, root / "tokenizer", out, workers)
    used = [resource.getrusage(who) for who in BOTH]
    own, largest = (usage.ru_maxrss / 1024 for usage in used)
    return sum(sum(usage[:2]) for usage in used) - before, own, largest


def yardstick(problems: list[Problem]) -> float:
    """Problems per CPU second of the plain solver."""
    started = time.process_time()
    solved = [plain_solver([Fraction(number) for number in problem.numbers], problem.target)
              for problem in problems]  # fmt: skip
    assert all(solved)
    return len(problems) / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--scale", default="default")
    parser.add_argument("--methods", nargs="+", default=["apr", "sos_plus"])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    scale, plain = load_scale(args.scale), None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        apart(make_tokenizer, scale, root / "tokenizer")
        for count in (args.problems // 10, args.problems):
            params = scale.model_copy(update={
                "problems": scale.problems.model_copy(update={"train": count}),
                "traces": scale.traces.model_copy(update={"problems": count}),
            })  # fmt: skip
            for verb in ("problems", *args.methods):
                seconds, own, largest = apart(measure, verb, params, args.workers, root)
                if plain is None:
                    plain = yardstick(read_problems(open_task(params), root / "problems/test.parquet")[:100])
                    print(f"plain solver: {plain:.1f} problems/s")
                rate = count / seconds
                memory, what = f"{own:.0f} MiB", "problems"
                if verb != "problems":
                    what = f"traces {verb}"
                    memory += f" and {largest:.0f} MiB per worker"
                    memory += f", {pq.ParquetFile(root / f'{verb}.parquet').metadata.num_rows} threads"
                print(f"{what}, {count} problems: {rate:.0f} problems/s per core "
                      f"({rate / plain:.1f} x the plain solver), {memory}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
