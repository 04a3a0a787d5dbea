"""The verbs of `python -m apr`: `run` for the rules of the workflow, and others for people.

Heavy packages are imported inside a verb, so that `--help` answers at once.
"""

import argparse
import errno
import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr.cli import inspect
from apr.cli.publish import add_demo_arguments, add_publish_arguments, demo, publish
from apr.cli.serve import serve
from apr.cli.solve import add_arguments, solve
from apr.core.arguments import Parser, typed
from apr.core.errors import AprError
from apr.core.process import OWNER, end_with
from apr.core.settings import Workers
from apr.pipeline import chunk
from apr.pipeline.plan import DEFAULT_SCALE, Plan, load_scale

Args = argparse.Namespace
FULL = os.strerror(errno.ENOSPC)


def run(args: Args) -> None:
    """Make the artefact of a job, such as sft/apr, with the settings of params.yaml, and seal it.

    What a job reads has to be there, made from the same settings; that the artefact is fresh does not matter.
    """
    from apr.pipeline.run import run

    root = args.root and f"{args.root}/"
    run(args.recipe or Plan(args.scale, root=root).write_job(args.job), args.workers)


def claims(args: Args) -> None:
    """Measure what the paper claims; with --readme, fail where that file claims more."""
    from apr.results.claims import make_claims

    paths = {key: Path(path) for key, path in Plan(args.scale).jobs["claims"].paths.items()}
    if args.out:
        paths["out"] = args.out
    make_claims(load_scale(args.scale), **paths, readme=args.readme, update_readme=args.update_readme,
                others={Path(f"scales/{scale}"): load_scale(scale) for scale in args.with_scale},
                partial=args.partial)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="apr", description="Adaptive Parallel Reasoning, from params.yaml to the figures.",
        epilog="`make run` runs all jobs in order, where settings, code or inputs have changed.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    verb = add_verb(verbs, run)
    verb.add_argument("job", help="as `apr status` names it")
    verb.add_argument("--recipe", type=Path, metavar="FILE",
                      help="job file of the workflow: its settings are used instead of params.yaml's")
    verb.add_argument("--root", type=Path, metavar="DIR", help="where data and results are, if not here")
    verb.add_argument("--workers", type=typed(Workers), default=1,
                      help="processes that a job may use (traces); they do not change a byte")
    verb = add_verb(verbs, claims)
    verb.add_argument("--out", type=Path, metavar="FILE", help="what to write (default: the scale's claims)")
    verb.add_argument("--readme", type=Path, metavar="FILE", help="file whose claims are checked")
    verb.add_argument("--update-readme", type=Path, metavar="FILE", help="file to put the table into")
    verb.add_argument("--with-scale", action="append", default=[], metavar="SCALE",
                      help="a scale of another seed whose problems count too; may be repeated")
    verb.add_argument("--partial", action="store_true",
                      help="where not all models were evaluated: leave out the claims that need the others")
    for function in (inspect.params, inspect.status, inspect.commit):
        add_verb(verbs, function)
    verb = add_verb(verbs, inspect.prune)
    verb.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    verb = add_verb(verbs, inspect.plan)
    verb.add_argument("--measured", type=Path, metavar="RUN.JSON",
                      help="recorded run that gives the hours here (default: results/run.json, if it exists)")
    verb.add_argument("--rate", action="append", default=[], metavar="STAGE=NUMBER",
                      help="work a second of a stage, as the last line has it; may be repeated")
    verb = verbs.add_parser("why", **describe(inspect.why))
    verb.add_argument("artefact", help="a file or directory below data, results or scales/NAME")
    verb.set_defaults(run=inspect.why)
    verb = add_verb(verbs, serve)
    verb.add_argument("--checkpoint", required=True, type=Path, metavar="PATH", help="checkpoint directory")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    verb.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    chunk.add_arguments(add_verb(verbs, chunk.chunk))
    add_arguments(add_verb(verbs, solve))
    add_publish_arguments(add_verb(verbs, publish))
    verb = verbs.add_parser("demo", **describe(demo))
    verb.set_defaults(run=demo)
    add_demo_arguments(verb)
    return parser


def add_verb(verbs, function: Callable) -> argparse.ArgumentParser:
    verb = verbs.add_parser(function.__name__, **describe(function))
    verb.add_argument("--scale", default=DEFAULT_SCALE,
                      help="a preset of presets/, put over params.yaml (default: params.yaml alone)")
    verb.set_defaults(run=function)
    return verb


def describe(function: Callable) -> dict[str, Any]:
    """Help from the docstring."""
    text = " ".join((function.__doc__ or "").split())
    return {"help": text.split(". ")[0].rstrip("."), "description": text}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2, after one line on stderr, for every error that the user can mend; 130 after Ctrl-C and 141
    if nobody reads the output any more, as for programs that these signals end."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to those who call them
    gc.set_threshold(10_000)  # importing makes objects by the million, that stay: half a second of 4.5
    try:
        args = build_parser().parse_args(argv)
        if owner := os.environ.get(OWNER):
            end_with(owner)
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141
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
