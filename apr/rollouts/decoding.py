"""From parameters to rollouts: prompts, decoders (this project's engine, or servers), orchestrators."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from apr.core.errors import ParamsError
from apr.core.params import Params
from apr.engine.interface import Decoder
from apr.engine.servers.protocols import Wire, wire_of
from apr.engine.servers.remote import RemoteDecoder
from apr.engine.slots import SlotEngine, open_engine
from apr.language import Condition, Language
from apr.rollouts.orchestrator import Orchestrator
from apr.rollouts.rollout import Limits
from apr.tasks.task import Problem, Task


def prompt_of(task: Task, problem: Problem, condition: Condition | None) -> list[int]:
    """Returns the root's prompt. Raises `ParamsError` if the window leaves no room after it."""
    prompt, window = task.prompt(problem, condition), task.params.grammar.window
    if len(prompt) >= window:
        raise ParamsError(f"grammar.window: {window} is not allowed; allowed: more than the "
                          f"{len(prompt)} tokens of the prompt of problem {problem.id!r}")
    return prompt


def open_decoder(
    params: Params, language: Language, checkpoint: Path
) -> AbstractContextManager[SlotEngine | RemoteDecoder]:
    """Opens the model of `checkpoint` in an engine with empty slots, or the servers of `engine.endpoints`.

    Raises `CheckpointError`. That servers have the same model is for their owner to see to.
    """
    engine = params.engine
    if engine.backend == "slots":
        return nullcontext(open_engine(engine, params.grammar.window, language.syntax.stop_ids, checkpoint))
    return connect(params, language, engine.endpoints, wire_of(engine.backend, engine.served_model))


def connect(params: Params, language: Language, endpoints: Iterable[str], wire: Wire) -> RemoteDecoder:
    """Returns a decoder by the servers `endpoints`, to be closed by whoever asked for it."""
    size, engine = language.vocabulary.size, params.engine
    return RemoteDecoder(endpoints, wire, language.syntax.stop_ids, size, engine.slots, engine.timeout)


def orchestrate(params: Params, language: Language, decoder: Decoder) -> Orchestrator:
    """Returns what decodes thread trees on `decoder`, within the limits of `params`."""
    limits = Limits(params.grammar.window, params.engine.max_tokens, params.grammar.max_children,
                    params.engine.max_depth)
    return Orchestrator(decoder, language.syntax, limits, params.engine.admission)
