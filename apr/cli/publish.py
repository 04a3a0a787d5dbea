"""Verbs for what others are to see: `apr publish`, `apr demo`, and the models that come with this project."""

import argparse
import sysconfig
from pathlib import Path

import apr
from apr.core.errors import CheckpointError
from apr.core.params import Params, load_params
from apr.pipeline.plan import load_scale, root_of

PARALLEL, SERIAL = "rl/apr", "sft/sos_plus"
HOMES = (Path(apr.__file__).parents[1] / "models", Path(sysconfig.get_path("data")) / "share/apr/models")
"""Where published models are: in the repository, and where `pip install` puts them."""


def own_model(name: str) -> Path:
    """Returns where a model is that comes with this project. Raises `CheckpointError` if it does not."""
    for home in HOMES:
        if (home / name).is_dir():
            return home / name
    raise CheckpointError(f"{HOMES[0] / name}: no such model; allowed: --model with a checkpoint directory, "
                          f"such as data/models/{name} after `make run`")  # fmt: skip


def own_params(model: Path) -> Params:
    """Returns the parameters that a published model was made with."""
    from apr.results.publish.publish import PARAMS_FILE

    return load_params(model / PARAMS_FILE)


def publish(args: argparse.Namespace) -> None:
    """Lay out models, data and demo of a run, with their cards, as folders that `hf upload` takes.

    Fails where a file is not the one that the results were made of.
    """
    from apr.results.publish import publish

    for path in publish(load_scale(args.scale), Path(root_of(args.scale)), args.to, args.only):
        print(path)


def demo(args: argparse.Namespace) -> None:
    """Write the page on which the models that come with this project decode in a browser."""
    from transformers.utils import logging

    from apr.results.demo import make_demo

    logging.disable_progress_bar()
    models = own_model(PARALLEL), own_model(SERIAL)
    make_demo(own_params(models[0]), *models, args.out)
    print(args.out)


def add_publish_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to put the folders")
    verb.add_argument("--only", action="append", default=[], metavar="NAME",
                      help="data, demo, or a model such as rl/apr; may be repeated (default: everything)")


def add_demo_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", type=Path, default=Path("demo.html"), metavar="FILE", help="what to write")
