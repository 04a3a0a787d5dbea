"""`params.yaml` as typed, validated values: one class per section, one section per stage.

`load_params` is the only reader. A preset (`presets/NAME.yaml`) overlays the default scale key by key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from apr.core.errors import ParamsError

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Join = Literal["all", "any"]
"""What a parent waits for: all its children, or the first that returns something."""
T = TypeVar("T")


def _present(entries: Any) -> Any:
    return {k: v for k, v in entries.items() if v is not None} if isinstance(entries, Mapping) else entries


Entries = Annotated[dict[str, T], BeforeValidator(_present)]
"""Values by name; null removes a name, so that a preset can leave out a method, a policy or a sweep."""
Range = tuple[Natural, Natural]
"""Inclusive bounds, low first."""


class Section(BaseModel):
    """A section accepts its own keys only, and numbers only where numbers belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Problems(Section):
    """Countdown problems (paper, section 4.1: numbers 1-99, targets 10-100, 500k / - / 1,000)."""

    numbers: Annotated[int, Field(ge=2, le=6)] = 4
    number_range: Range = (1, 20)
    target_range: Range = (10, 50)
    max_value: Positive | None = 100
    """Largest intermediate value that a solution may use; null for no bound, as in the paper."""
    train: Positive
    validation: Positive
    test: Positive


class Grammar(Section):
    """The thread language and its token budget."""

    number_tokens: Positive = 100
    """Numbers 0..number_tokens are one token each; larger ones are written by digits."""
    window: Annotated[int, Field(ge=16)] = 256
    """Largest number of tokens in one thread, prompt included (paper: 4096)."""
    token_step: Positive = 32
    """SoS+ token budgets are multiples of this (paper: 512)."""
    max_children: Positive = 10
    """Largest number of children of one spawn, and that a prompt can ask for (paper: 10)."""


class TraceMethod(Section):
    """How one set of demonstrations is made."""

    solver: Literal["sos", "sos_plus", "apr"]
    beam: Range
    """Children kept per node, drawn uniformly per problem; of the parent, for `apr`."""
    heuristic: Literal["multiply", "result"] = "multiply"
    """What a beam keeps and a queue takes first: states whose numbers, or whose newest number, are near
    factors of the target."""
    child_beam: Positive = 15
    """`apr`: a child's beam is uniform between the parent's and this."""
    promising: Share = 0.9
    """Probability that a node's children are spawned (apr) or searched at once (sos_plus)."""
    child_promising: Share = 1.0
    """`apr`: `promising` of the serial search inside a child."""
    spawn_depth: Natural = 0
    """`apr`: deepest node (root = 0) whose children may be spawned."""
    candidates: Positive = 1
    """Traces drawn per problem; the shortest that solves it is kept (rejection sampling if > 1)."""
    only_solved: bool = False
    """Drop problems that no candidate solves."""
    condition_share: Share = 0.5
    """Share of root prompts that carry the budget condition."""
    cut_share: Share = 0.5
    """Serial methods: share of the conditioned traces that are asked for fewer tokens than they need, and
    give up there."""


class Traces(Section):
    problems: Positive
    """Training problems that are demonstrated, by each method."""
    methods: Entries[TraceMethod]


class Model(Section):
    """A Llama architecture (paper: 18 layers, hidden 1024, 16 heads, FFN 2752)."""

    layers: Positive = 4
    hidden: Positive = 128
    heads: Positive = 4
    kv_heads: Positive = 4
    ffn: Positive = 344
    tie_embeddings: bool = True


class Lora(Section):
    rank: Positive = 16
    alpha: Positive = 32


class Sft(Section):
    """Supervised training (paper: AdamW, lr 5e-5, batch 256, 19k steps)."""

    base: Annotated[str, Field(min_length=1)] | None = None
    """Directory in `pretrained/` of the causal LM to start from: a checkpoint of this project, or any of
    `transformers` with its own tokenizer, which gets the words that it lacks. Null trains from scratch."""
    lora: Lora | None = None
    """Train low-rank adapters, and the rows of new words, instead of all weights."""
    tokens: Entries[Positive]
    """Training tokens of each method (packed, prompt included)."""
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Of AdamW; under Muon, of embeddings and norms."""
    matrix_learning_rate: Annotated[float, Field(gt=0)] = 0.015
    """Of the layers' weight matrices under Muon."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rates fall to 0 after the warm-up."""
    warmup_share: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    row_tokens: Positive = 4096
    """Tokens of one packed row: the micro-batch."""
    rows_per_step: Positive = 2
    child_share: Share = 0.4
    """Share of unsuccessful child threads that are kept, so that parents are seen more often."""
    token_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Loss weight of a label by its token's text; 1 where absent."""
    checkpoint_steps: Positive = 200
    precision: Literal["float32", "bfloat16"] = "float32"


class Policy(Section):
    """One RL run: which SFT model it starts from, and what its prompts ask for."""

    method: str
    children: Natural | None = None
    """Condition on this number of children in every prompt; null leaves prompts unconditioned."""
    kl: Annotated[float, Field(ge=0)] = 0.001
    """KL coefficient (paper: 0.001 APR, 0.01 SoS+)."""
    steps: Positive | None = None
    """Steps of this policy; null for `rl.steps`."""


class RolloutServers(Section):
    """Servers that decode the rollouts of RL, and take the policy's weights before every step."""

    backend: Literal["vllm", "sglang"]
    """`vllm` is sent weights by TRL, over NCCL; `sglang` reads them from disk, as does `apr serve`."""
    endpoints: Annotated[list[str], Field(min_length=1)]
    """Base URLs: one of vLLM, as TRL sends to one; as many as there are of SGLang."""
    served_model: str = "apr"
    """vLLM: the name that the model is served under."""
    group_port: Positive = 51216
    """vLLM: port of the trainer's host that weights are sent through."""


class Rl(Section):
    """GRPO (paper: 64 prompts x 5, temperature 1, lr 1e-5, clip 0.2, 150 steps x 2 updates)."""

    policies: Entries[Policy]
    steps: Positive
    prompts: Positive = 16
    group: Annotated[int, Field(ge=2)] = 5
    inner_updates: Positive = 2
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Plain gradient descent leaves alone the tokens that carry no signal; AdamW moves every weight."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    clip: Annotated[float, Field(gt=0)] = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    rows_per_device: Positive = 4
    """Packed rollouts per forward pass of the update."""
    lora: Lora | None = None
    servers: RolloutServers | None = None
    """Null decodes rollouts in the training process."""
    checkpoint_steps: Positive = 5


class Engine(Section):
    """Limits of decoding; see `apr.engine` and `apr.rollouts`."""

    slots: Positive = 256
    """Threads that hold a KV cache at the same time."""
    policy: Literal["started_first", "critical_path"] = "started_first"
    """Which waiting threads get the next slot: those of the oldest rollout, or those nearest to a root."""
    max_depth: Natural = 1
    """Depth of nesting: 0 forbids spawning, 1 lets only the root spawn."""
    max_tokens: Positive = 8192
    """Tokens sampled by all threads of one rollout together."""
    torch_threads: Positive = 1
    """CPU threads of one process: fixed, so that results do not depend on the number of cores."""
    device: str = "auto"
    accelerate: str | None = None
    """Training in several processes: a configuration file of `accelerate launch` (profiles/accelerate)."""
    backend: Literal["slots", "vllm", "sglang"] = "slots"
    """What evaluations decode with: this project's engine, or servers of the model that is evaluated."""
    endpoints: list[str] = []
    """Base URLs of the servers, several of them if there are replicas."""
    served_model: str = "apr"
    """vLLM: the name that the model is served under."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that a server may take to answer."""


class Sweep(Section):
    """Points of the evaluation: the product of its lists (Figures 4 and 8, Tables 1-3)."""

    models: list[str]
    """Methods (stage sft) and policies (stage rl) that this sweep is run on."""
    stages: list[Literal["sft", "rl"]] = ["sft"]
    conditions: list[Natural | None] = [None]
    """Budgets asked for: tokens (serial methods) or children (apr); null leaves prompts unconditioned."""
    temperatures: list[Annotated[float, Field(ge=0)]]
    samples: Positive = 1
    join: Join = "all"
    """apr; with `any`, the siblings of the first child that returns a solution are cancelled."""


class Eval(Section):
    problems: Positive
    """Test problems used, from the first."""
    sweeps: Entries[Sweep]
    latency_problems: Positive
    """Problems decoded one at a time to measure latency (Figure 6)."""
    bootstrap: Positive = 2000
    """Bootstrap resamples over problems for every 95 % interval."""


class Params(Section):
    """Everything that `params.yaml` may say."""

    seed: Natural = 0
    problems: Problems
    grammar: Grammar
    traces: Traces
    model: Model
    sft: Sft
    rl: Rl
    engine: Engine
    eval: Eval

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        methods, policies = set(self.traces.methods), set(self.rl.policies)
        _require(self.traces.problems <= self.problems.train, "traces.problems", self.traces.problems,
                 f"at most problems.train = {self.problems.train}")
        _require(self.eval.problems <= self.problems.test, "eval.problems", self.eval.problems,
                 f"at most problems.test = {self.problems.test}")
        _require(self.eval.latency_problems <= self.eval.problems, "eval.latency_problems",
                 self.eval.latency_problems, f"at most eval.problems = {self.eval.problems}")
        _require(self.model.hidden % (2 * self.model.heads) == 0, "model.hidden", self.model.hidden,
                 f"a multiple of 2 * model.heads = {2 * self.model.heads}")
        _require(self.model.heads % self.model.kv_heads == 0, "model.kv_heads", self.model.kv_heads,
                 f"a divisor of model.heads = {self.model.heads}")
        _require((self.engine.backend == "slots") == (not self.engine.endpoints), "engine.endpoints",
                 self.engine.endpoints, "URLs where engine.backend is vllm or sglang, and only there")
        servers = self.rl.servers
        _require(not servers or servers.backend == "sglang" or len(servers.endpoints) == 1,
                 "rl.servers.endpoints", servers and servers.endpoints, "one, of vllm")
        for name in ("number_range", "target_range"):
            low, high = getattr(self.problems, name)
            _require(low <= high, f"problems.{name}", [low, high], "low first")
        for name, method in self.traces.methods.items():
            _require(1 <= method.beam[0] <= method.beam[1], f"traces.methods.{name}.beam",
                     list(method.beam), "1 <= low <= high")
            _require(method.solver != "apr" or method.beam[1] <= self.grammar.max_children,
                     f"traces.methods.{name}.beam", list(method.beam),
                     f"at most grammar.max_children = {self.grammar.max_children}")
        _require(methods == set(self.sft.tokens), "sft.tokens", sorted(self.sft.tokens),
                 f"one entry for each of traces.methods: {sorted(methods)}")
        for name, policy in self.rl.policies.items():
            _require(policy.method in methods, f"rl.policies.{name}.method", policy.method,
                     f"one of {sorted(methods)}")
        for name, sweep in self.eval.sweeps.items():
            _require(sweep.join == "all" or self.engine.max_depth <= 1, f"eval.sweeps.{name}.join",
                     sweep.join, "all, where engine.max_depth is more than 1")
            for stage in sweep.stages:
                allowed = methods if stage == "sft" else policies
                for model in sweep.models:
                    _require(model in allowed, f"eval.sweeps.{name}.models", model,
                             f"for stage {stage}: {sorted(allowed)}")
        return self


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ParamsError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def overlay(base: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `preset` put over it, mapping by mapping; lists are replaced whole."""
    merged = dict(base)
    for key, value in preset.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: `1e-05` is a number. Raises `ParamsError`."""
    try:
        value = YAML(typ="safe", pure=True).load(Path(path).read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: expected sections, found {type(value).__name__}")
    return value


def parse_params(values: Mapping[str, Any], source: str = "params") -> Params:
    """Validates raw values. Raises `ParamsError`: one line with key, value and what is allowed."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"{key}: unknown key"
        else:
            message = f"{key}: {first['input']!r} is not allowed; {first['msg']}"
        raise ParamsError(f"{source}: {message}") from None
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}") from None


def load_params(path: str | Path, preset: str | Path | None = None) -> Params:
    """The validated parameters of `path`, with the preset file `preset` put over them if given."""
    values = read_yaml(path)
    return parse_params(overlay(values, read_yaml(preset)) if preset else values, str(preset or path))


def partial_params(values: Mapping[str, Any]) -> Params:
    """Validated parameters that hold the given keys only: reading any other is an `AttributeError`.

    This is what a job gets, so that it cannot depend on a setting that it does not declare.
    """
    return _partial(Params, values)


def _partial(section: type[Section], values: Mapping[str, Any]) -> Any:
    partial = section.model_construct()
    partial.__dict__.clear()
    for key, value in values.items():
        annotation = section.model_fields[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            partial.__dict__[key] = _partial(annotation, value)
        else:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation or Any)
            partial.__dict__[key] = adapter.validate_python(value)
    return partial
