"""Problems and traces per second, and memory, at any number of problems; a plain solver as the yardstick.

    python -m benchmarks.traces --problems 500000 --scale gpu

draws that many problems of a scale, then writes the traces of each method on them, all through the verbs'
own code, each in a process of its own: rate per core, and the peak memory of the process and of its workers.
The yardstick is a recursive search of all expressions in plain Python, timed in the same run on a core.
"""

import argparse
import resource
import tempfile
import time
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pyarrow.parquet as pq

from apr.cli.plan import load_scale
from apr.core.params import Params
from apr.countdown import Problem, read_problems
from apr.countdown.generate import make_problems
from apr.grammar.tokenizer import make_tokenizer
from apr.solvers.traces import make_traces
from benchmarks.apart import apart


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
    """Seconds, and peak MiB of the process and of its largest worker."""
    if verb == "problems":
        make_tokenizer(params, root / "tokenizer")
    started = time.perf_counter()
    if verb == "problems":
        make_problems(params, root / "problems")
    else:
        problems, out = root / "problems/train.parquet", root / f"{verb}.parquet"
        make_traces(params, verb, problems, root / "tokenizer", out, workers)
    seconds = time.perf_counter() - started
    own, largest = (resource.getrusage(who).ru_maxrss / 1024
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
    return seconds, own, largest


def yardstick(problems: list[Problem]) -> float:
    started = time.perf_counter()
    solved = [plain_solver([Fraction(number) for number in problem.numbers], problem.target)
              for problem in problems]  # fmt: skip
    assert all(solved)
    return len(problems) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--scale", default="default")
    parser.add_argument("--methods", nargs="+", default=["apr", "sos_plus"])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    params, count = load_scale(args.scale), args.problems
    params = params.model_copy(update={
        "problems": params.problems.model_copy(update={"train": count}),
        "traces": params.traces.model_copy(update={"problems": count}),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds, own, _ = apart(measure, "problems", params, 1, root)
        plain = yardstick(read_problems(root / "problems/test.parquet")[:100])
        rate = count / seconds
        print(f"plain solver: {plain:.1f} problems/s")
        times = f"{rate / plain:.1f} x the plain solver"
        print(f"problems: {rate:.0f} problems/s ({times}), {own:.0f} MiB", flush=True)
        for method in args.methods:
            seconds, own, largest = apart(measure, method, params, args.workers, root)
            found = pq.ParquetFile(root / f"{method}.parquet").metadata
            rate = count / seconds / args.workers
            memory = f"{own:.0f} MiB and {largest:.0f} MiB per worker"
            print(f"traces {method}: {rate:.0f} problems/s per core ({rate / plain:.1f} x the plain solver), "
                  f"{found.num_rows} threads, {memory}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
