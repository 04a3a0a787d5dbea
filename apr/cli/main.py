"""The verbs of `python -m apr`: one for each rule of the workflow, and a few to look at what is planned.

Heavy packages are imported inside a verb, so that `--help` answers at once.
"""

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr.cli import inspect
from apr.cli.serve import serve
from apr.cli.solve import add_arguments, solve
from apr.core.arguments import Parser, typed
from apr.core.errors import AprError, ParamsError, quoted
from apr.core.params import Params, partial_params
from apr.core.process import OWNER, end_with, share
from apr.core.recipe import make, read_job
from apr.core.settings import Workers
from apr.pipeline import chunk
from apr.pipeline.plan import DEFAULT_SCALE, load_scale

Args = argparse.Namespace
FULL = os.strerror(errno.ENOSPC)


def problems(params: Params, args: Args) -> None:
    """Draw the problems of the task: train, validation and test, disjoint and solvable."""
    from apr.tasks.problems import make_problems

    make_problems(params, out=args.out)


def tokenizer(params: Params, args: Args) -> None:
    """Build the tokenizer from the task's words, the grammar, and the model of `sft.base`."""
    from apr.tasks import make_tokenizer

    make_tokenizer(params, out=args.out)


def traces(params: Params, args: Args) -> None:
    """Write a solver's demonstrations of the training problems as Parquet, one row per thread."""
    from apr.training.traces import make_traces

    make_traces(params, method=args.method, problems=args.problems, tokenizer=args.tokenizer, out=args.out,
                workers=args.workers)


def sft(params: Params, args: Args) -> None:
    """Train a model on a method's traces; goes on from the last checkpoint of a run that was stopped."""
    from apr.training.sft.train import train_sft

    train_sft(params, method=args.method, traces=args.traces, tokenizer=args.tokenizer, out=args.out)


def rl(params: Params, args: Args) -> None:
    """Train a policy by GRPO from an SFT checkpoint; goes on from its last step if it was stopped."""
    from apr.training.rl.train import train_rl

    train_rl(params, policy=args.policy, problems=args.problems, validation=args.validation,
             checkpoint=args.checkpoint, out=args.out)


def evaluate(params: Params, args: Args) -> None:
    """Decode the test problems at every point of the sweeps that name this model."""
    from apr.evaluation.sweep import evaluate

    evaluate(params, model=args.model, stage=args.stage, problems=args.problems, checkpoint=args.checkpoint,
             out=args.out)


def latency(params: Params, args: Args) -> None:
    """Time a model on one problem after another. Run it alone on the machine."""
    from apr.evaluation.latency import measure_latency

    measure_latency(params, model=args.model, stage=args.stage, problems=args.problems,
                    checkpoint=args.checkpoint, out=args.out)


def figures(params: Params, args: Args) -> None:
    """Draw every figure and table of the paper, with the CSV it shows, and collect the metrics."""
    from apr.results.figures import make_figures

    make_figures(params, evaluations=args.evaluations, latencies=args.latencies, models=args.models,
                 out=args.out, metrics=args.metrics)


def teacher(params: Params, args: Args) -> None:
    """Run a method's own solver on the test problems, as a bound for the model that learns from it."""
    from apr.evaluation.teacher import evaluate_teacher

    evaluate_teacher(params, method=args.method, problems=args.problems, tokenizer=args.tokenizer,
                     out=args.out)


def claims(params: Params, args: Args) -> None:
    """Measure what the paper claims; with --readme, fail where that file claims more."""
    from apr.results.claims import make_claims

    make_claims(params, evaluations=args.evaluations, latencies=args.latencies, teachers=args.teachers,
                out=args.out, readme=args.readme, update_readme=args.update_readme,
                others={Path(f"scales/{scale}"): load_scale(scale) for scale in args.with_scale})


def checks(params: Params, args: Args) -> None:
    """Check that the files of a run add up: ids, splits, verdicts, tokens, and the figures' numbers."""
    from apr.results.checks import check_results

    check_results(params, root=args.root, out=args.out)


def report(params: Params, args: Args) -> None:
    """Put claims, threads, figures, training curves and token counts of a run into one HTML file."""
    from apr.results.report import make_report

    make_report(params, root=args.root, out=args.out)


PATHS = {
    "out": "what to write", "problems": "Parquet file of problems",
    "validation": "Parquet file of problems that are only looked at", "traces": "Parquet file of traces",
    "tokenizer": "tokenizer directory", "checkpoint": "checkpoint directory to start from",
    "evaluations": "directory of evaluations", "latencies": "directory of latencies",
    "teachers": "directory of the teachers' evaluations", "models": "directory of checkpoints",
    "metrics": "JSON file of metrics to write", "root": "directory that holds data and results",
}
NAMES = {
    "method": "an entry of traces.methods", "policy": "an entry of rl.policies",
    "model": "a method (stage sft) or policy (stage rl)", "stage": "sft or rl",
}
JOBS: list[tuple[Callable[[Params, Args], None], str]] = [
    (problems, "out"),
    (tokenizer, "out"),
    (traces, "method problems tokenizer out"),
    (sft, "method traces tokenizer out"),
    (rl, "policy problems validation checkpoint out"),
    (evaluate, "model stage problems checkpoint out"),
    (latency, "model stage problems checkpoint out"),
    (teacher, "method problems tokenizer out"),
    (figures, "evaluations latencies models out metrics"),
    (claims, "evaluations latencies teachers out"),
    (checks, "root out"),
    (report, "root out"),
]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="apr", description="Adaptive Parallel Reasoning, from params.yaml to the figures.",
        epilog="`make run` runs the verbs in order, where settings, code or inputs have changed.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for function, options in JOBS:
        verb = add_verb(verbs, function)
        verb.add_argument("--recipe", type=Path, metavar="FILE",
                          help="job file of the workflow: its settings are used instead of params.yaml's, "
                               "and what is made is sealed with it")
        for option in options.split():
            if option in NAMES:
                choices = ["sft", "rl"] if option == "stage" else None
                verb.add_argument(f"--{option}", required=True, choices=choices, help=NAMES[option])
            else:
                verb.add_argument(f"--{option}", required=True, type=Path, metavar="PATH", help=PATHS[option])
        if function is traces:
            verb.add_argument("--workers", type=typed(Workers), default=1,
                              help="processes; they do not change a byte")
        if function is claims:
            verb.add_argument("--readme", type=Path, metavar="FILE", help="file whose claims are checked")
            verb.add_argument("--update-readme", type=Path, metavar="FILE", help="file to put the table into")
            verb.add_argument("--with-scale", action="append", default=[], metavar="SCALE",
                              help="a scale of another seed whose problems count too; may be repeated")
        verb.set_defaults(run=run_job, function=function)
    for look in (inspect.params, inspect.status, inspect.prune, inspect.commit):
        add_verb(verbs, look).set_defaults(run=look)
    verb = add_verb(verbs, inspect.plan)
    verb.add_argument("--measured", type=Path, metavar="RUN.JSON",
                      help="recorded run that gives the hours here (default: results/run.json, if it exists)")
    verb.add_argument("--rate", action="append", default=[], metavar="STAGE=NUMBER",
                      help="work a second of a stage, as the last line has it; may be repeated")
    verb.set_defaults(run=inspect.plan)
    verb = verbs.add_parser("why", **describe(inspect.why))
    verb.add_argument("artefact", help="a file or directory below data, results or scales/NAME")
    verb.set_defaults(run=inspect.why)
    verb = add_verb(verbs, serve)
    verb.add_argument("--checkpoint", required=True, type=Path, metavar="PATH", help=PATHS["checkpoint"])
    verb.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    verb.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    verb.set_defaults(run=serve)
    chunk.add_arguments(add_verb(verbs, chunk.chunk))
    add_arguments(add_verb(verbs, solve))
    return parser


def add_verb(verbs, function: Callable) -> argparse.ArgumentParser:
    verb = verbs.add_parser(function.__name__, **describe(function))
    verb.add_argument("--scale", default=DEFAULT_SCALE,
                      help="a preset of presets/, put over params.yaml (default: params.yaml alone)")
    return verb


def describe(function: Callable) -> dict[str, Any]:
    """Help from the docstring."""
    text = " ".join((function.__doc__ or "").split())
    return {"help": text.split(". ")[0].rstrip("."), "description": text}


def run_job(args: Args) -> None:
    """Runs a job's verb with the settings of its recipe, or by hand with those of `params.yaml`."""
    if args.recipe is None:
        params = load_scale(args.scale)
        check_names(params, args)
        args.function(params, args)
        return
    job = read_job(args.recipe)
    if share()[0] > 0:  # the first of the processes seals what they make
        args.function(partial_params(job.recipe["params"]), args)
        return
    with make(job) as params:
        args.function(params, args)


def check_names(params: Params, args: Args) -> None:
    """Raises `ParamsError` unless methods, policies and models on the command line are those of `params`."""
    methods, policies = list(params.traces.methods), list(params.rl.policies)
    models = policies if getattr(args, "stage", "sft") == "rl" else methods
    for option, known in {"method": methods, "policy": policies, "model": models}.items():
        name = getattr(args, option, None)
        if name is not None and name not in known:
            raise ParamsError(f"--{option}: {quoted(name)} is not allowed; allowed: {', '.join(known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2, after one line on stderr, for every error that the user can mend."""
    gc.set_threshold(10_000)  # importing makes objects by the million, that stay: half a second of 4.5
    try:
        args = build_parser().parse_args(argv)
        if owner := os.environ.get(OWNER):
            end_with(owner)
        return args.run(args) or 0
    except AprError as error:
        print(f"apr: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if FULL in str(error):  # as the system, pyarrow and safetensors all say
            said = f"{FULL}: what was being written is removed ({error})"
        elif isinstance(error, OSError) and error.filename is not None:
            said = f"{error.filename}: {error.strerror}"
        else:
            raise
        print(f"apr: error: {AprError(said)}", file=sys.stderr)
        return 2
