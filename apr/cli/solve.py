"""`apr solve`: one problem, its threads shown while they decode."""

import argparse
import time

from apr.cli.publish import PARALLEL, own_model, own_params
from apr.core.arguments import typed
from apr.core.errors import ParamsError
from apr.core.settings import Natural, Positive, Seed, Temperature
from apr.pipeline.plan import DEFAULT_SCALE, load_scale

COLOURS = {"running": "yellow", "waiting": "blue", "done": "green"}
EVERY = 0.05
"""Seconds between two pictures."""


def solve(args: argparse.Namespace) -> int:
    """Decode one problem, such as "3 5 9 12 -> 27": its threads live, then the answer and the verdict.

    Exit code 0 if the strict verifier accepts the answer, 1 if not.
    """
    from rich.console import Console
    from rich.live import Live
    from transformers.utils import logging

    from apr.language import Condition
    from apr.language.tokenizer import load_language
    from apr.rollouts.decoding import open_decoder, orchestrate, prompt_of
    from apr.rollouts.rollout import Request
    from apr.rollouts.verdict import judge
    from apr.tasks import open_task

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    checkpoint = own_model(PARALLEL) if args.model is None else args.model
    own = args.model is None and args.scale == DEFAULT_SCALE
    params, language = own_params(checkpoint) if own else load_scale(args.scale), load_language(checkpoint)
    task = open_task(params, language)
    problem = task.read(args.problem)
    if args.children is not None and args.tokens is not None:
        raise ParamsError("--children and --tokens: only one of them is allowed")
    most, condition = min(params.grammar.max_children, language.vocabulary.messages), None
    if args.children is not None:
        if args.children > most:
            raise ParamsError(f"--children: {args.children} is not allowed; allowed: at most {most}")
        condition = Condition("children", args.children)
    elif args.tokens is not None:
        condition = Condition("tokens", args.tokens)
    prompt = prompt_of(task, problem, condition)
    request = Request("solve/0", prompt, args.temperature, args.seed, args.join)
    console = Console()
    with open_decoder(params, language, checkpoint) as decoder:
        orchestrator = orchestrate(params, language, decoder)
        with Live(console=console, auto_refresh=False, transient=False) as live:
            drawn = 0.0

            def draw(*_: object, force: bool = False) -> None:
                nonlocal drawn
                if force or (console.is_terminal and time.monotonic() - drawn > EVERY):
                    live.update(picture(orchestrator.threads(), language, console.width), refresh=True)
                    drawn = time.monotonic()

            started = time.perf_counter()
            (rollout,) = orchestrator.run([request], draw)
            seconds = time.perf_counter() - started
            draw(force=True)
    judged = judge(task, problem, rollout)
    usage = rollout.usage
    judgement = "right" if judged.strict else f"wrong ({judged.reason})"
    if not console.is_terminal:
        console.print()  # Live ends its last picture with none
    console.print(f"answer: {judged.answer or judged.status}", f"verdict: {judgement}", sep="\n",
                  markup=False)
    console.print(f"{usage.total} tokens sampled, {usage.sequential} of them one after another, "
                  f"{usage.children} children, {seconds:.2f} s", highlight=False)  # fmt: skip
    return 0 if judged.strict else 1


def picture(threads, language, width: int):
    """A tree with a line per thread: its state, its tokens, and the end of its text."""
    from rich.text import Text
    from rich.tree import Tree

    trees: dict[tuple[int, ...], Tree] = {}
    for path, thread, now in threads:
        ids = [*thread.ids, *now]
        sampled = sum(thread.sampled) + len(now)
        colour = COLOURS.get(str(thread.status), "red")
        room = max(20, width - 4 * len(path) - 26)
        text = language.vocabulary.decode(ids[thread.prompt_length :] if sampled else ids)
        line = Text.assemble(
            ("root " if not path else f"#{path[-1] + 1:<4}"), (f"{thread.status!s:<10}", colour),
            (f"{sampled:>4} ", "bold"), "..." + text[-room + 3 :] if len(text) > room else text,
        )  # fmt: skip
        trees[path] = trees[path[:-1]].add(line) if path else Tree(line)
    return trees.get((), Text(""))


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("problem", help='numbers, an arrow, and a target: "3 5 9 12 -> 27"')
    verb.add_argument("--model", metavar="PATH",
                      help=f"checkpoint directory (default: {PARALLEL}, which comes with this project)")
    verb.add_argument("--children", type=typed(Natural),
                      help="ask for this many children (a model trained on apr)")
    verb.add_argument("--tokens", type=typed(Positive), help="ask for this budget of tokens (a serial model)")
    verb.add_argument("--temperature", type=typed(Temperature), default=0.0, help="0, the default, is greedy")
    verb.add_argument("--seed", type=typed(Seed), default=0, help="of sampling")
    verb.add_argument("--join", choices=["all", "any"], default="all", help="what parents wait for")
    verb.set_defaults(run=solve)

