"""`params.yaml` as typed, validated values: one class per section, one section per stage.

`load_params` is the only reader. A preset (`presets/NAME.yaml`) overlays the default scale key by
key, or another preset (`over`); one that names a `task` replaces what is a task's own (`OF_TASK`).
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from apr.core.errors import ParamsError, quoted
from apr.core.settings import (
    MOST,
    Distinct,
    Entries,
    FilePath,
    Natural,
    Positive,
    PositiveReal,
    Real,
    Section,
    Seed,
    Share,
    Temperature,
    Text,
    Url,
    is_name,
    overlay,
    read_yaml,
    refusal,
)

Join = Literal["all", "any"]
"""What a parent waits for: all its children, or the first that returns something."""
Unit = Literal["tokens", "children", "devices"]
"""What a condition counts."""
Devices = Literal[1, 2, 4, 8, 16]
DEVICES: tuple[int, ...] = get_args(Devices)
"""What a prompt can ask for of them, and how many a rollout is replayed on (`apr.rollouts.replay`)."""
OF_TASK = ("problems", "methods", "tokens", "policies", "sweeps")
"""What a preset that names a `task` says anew, whole."""
LABELLED = ("own", "difference", "oracle")
"""Credits that ask the task what is known of single children (`Task.label`)."""
PRETRAINED = "pretrained"
"""Where the models are that `sft.base` may name."""


class Problems(Section):
    """Sizes of the splits; what else there is to say of problems is the task's (`apr.tasks`)."""

    train: Positive
    validation: Positive
    test: Positive


class Grammar(Section):
    """The thread language and its token budget."""

    number_tokens: Annotated[Positive, Field(le=10**6)] = 100
    """Numbers 0..number_tokens are one token each; larger ones are written by digits."""
    window: Annotated[Positive, Field(ge=16)] = 256
    """Largest number of tokens in one thread, prompt included (paper: 4096)."""
    token_step: Positive = 32
    """SoS+ token budgets are multiples of this (paper: 512)."""
    max_children: Annotated[Positive, Field(le=10**4)] = 10
    """Largest number of children of one spawn, and that a prompt can ask for (paper: 10)."""
    devices: bool = False
    """Whether a prompt can ask for devices: there is a word for it then, and evaluations have the time of
    each rollout on 1 to 16 of them, in steps of one thread."""


class TraceMethod(Section):
    """How one set of demonstrations is made; what else its solver can be told is the task's (`apr.tasks`)."""

    candidates: Positive = 1
    """Traces drawn per problem; the shortest that solves it is kept (rejection sampling if > 1)."""
    only_solved: bool = False
    """Drop problems that no candidate solves."""
    condition_share: Share = 0.5
    """Share of root prompts that carry the budget condition."""
    cut_share: Share = 0.75
    """Serial methods: share of the conditioned traces that are asked for fewer tokens than they need, and
    give up there."""
    devices_share: Share = 0.0
    """Methods that spawn: share of root prompts that ask for a number of devices instead, at random, which
    says nothing of the trace: the word is known then, and RL gives it a meaning."""

    @property
    def spawns(self) -> int:
        """Threads that are spawned at a time, at most; 0 where the solver is serial."""
        raise NotImplementedError

    @property
    def deepest(self) -> int:
        """How deep threads nest, at most: 1 where only the root spawns."""
        return int(self.spawns > 0)

    @property
    def counts(self) -> Unit:
        """What a condition on its traces counts."""
        return "children" if self.spawns else "tokens"


class Mixture(Section):
    """Demonstrations of several methods, each problem's by one of them: one model that knows all their forms.

    A condition says which is asked for: children up to `grammar.max_children`, or tokens, if it is more.
    """

    shares: Annotated[dict[str, Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2)]
    """By method: the share of the problems that it demonstrates. They add up to 1."""


def _mixes(entry: Any) -> str:
    mixture = isinstance(entry, Mixture) or (isinstance(entry, Mapping) and "shares" in entry)
    return "[mixture]" if mixture else "[method]"


def methods_of(kind: Any) -> Any:
    """Returns the type of `traces.methods` where `kind` is a solver's settings."""
    either = Annotated[Annotated[kind, Tag("[method]")] | Annotated[Mixture, Tag("[mixture]")],
                       Discriminator(_mixes)]  # fmt: skip
    return Annotated[Entries[either], Field(min_length=1)]


class Traces(Section):
    problems: Positive
    """Training problems that are demonstrated, by each method."""
    methods: Annotated[Entries[TraceMethod | Mixture], Field(min_length=1)]

    def parts(self, name: str) -> dict[str, TraceMethod]:
        """Returns the methods that a method is a mixture of, or itself."""
        method = self.methods[name]
        parts = method.shares if isinstance(method, Mixture) else [name]
        return {part: cast(TraceMethod, self.methods[part]) for part in parts}

    def spawns(self, name: str) -> int:
        """Returns how many threads a method spawns at a time, at most."""
        return max(part.spawns for part in self.parts(name).values())


class Model(Section):
    """Sizes of a model that is trained from scratch (paper: 18 layers, hidden 1024, 16 heads, FFN 2752)."""

    architecture: Literal["llama", "qwen3"] = "qwen3"
    """Qwen3's is Llama's (the paper's) with norms on queries and keys: it learns as much from half the
    tokens."""
    layers: Positive = 4
    hidden: Positive = 128
    heads: Positive = 4
    kv_heads: Positive = 4
    ffn: Positive = 344
    tie_embeddings: bool = True


class Lora(Section):
    rank: Positive = 16
    alpha: Positive = 32


ReportTo = Literal["none", "tensorboard"]
"""What shows the curves of a training while it runs, besides its `log.jsonl`."""


class Sft(Section):
    """Supervised training (paper: AdamW, lr 5e-5, batch 256, 19k steps)."""

    base: Annotated[Text, AfterValidator(os.path.normpath)] | None = None
    """Directory in `pretrained/` of the causal LM to start from: a checkpoint of this project, or any of
    `transformers` with its own tokenizer, which gets the words that it lacks. Null trains from scratch."""
    lora: Lora | None = None
    """Train low-rank adapters, and the rows of new words, instead of all weights."""
    tokens: Annotated[Entries[Annotated[int, Field(ge=1, le=10**15)]], Field(min_length=1)]
    """Training tokens of each method (packed, prompt included)."""
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: PositiveReal = 3e-3
    """Of AdamW; under Muon, of embeddings and norms."""
    matrix_learning_rate: PositiveReal = 0.015
    """Of the layers' weight matrices under Muon."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rates fall to 0 after the warm-up."""
    warmup_share: Share = 0.05
    weight_decay: Real = 0.01
    row_tokens: Positive = 4096
    """Tokens of one packed row: the micro-batch."""
    rows_per_step: Positive = 2
    child_share: Share = 0.4
    """Share of unsuccessful child threads that are kept, so that parents are seen more often."""
    number_waves: Share = 0.0
    """Of a new model: how much of the variance of numbers' embeddings are waves of their value to begin
    with (`apr/training/sft/base.py`), by which sums and differences are learnt sooner."""
    checkpoint_steps: Positive = 200
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the operands of matrix products; weights are float32. `auto` is bfloat16 on GPUs, and on processors
    that have units for it."""
    report_to: ReportTo = "none"


class Policy(Section):
    """One RL run: which SFT model it starts from, and what its prompts ask for."""

    method: str
    children: Natural | None = None
    """Condition on this number of children in every prompt; null leaves prompts unconditioned."""
    tokens: Positive | None = None
    """Condition on this budget of tokens instead, where the method has serial demonstrations."""
    devices: Distinct[Devices] | None = None
    """Condition on one of these numbers of devices instead, drawn for each problem of a step, where the
    method has a `devices_share`."""
    kl: Real = 0.001
    """KL coefficient (paper: 0.001 APR, 0.01 SoS+)."""
    steps: Positive | None = None
    """Steps of this policy; null for `rl.steps`."""
    reward: Literal["outcome", "critical_path", "latency", "parallel"] = "outcome"
    """What a rollout is worth: a file of `apr/training/rl/rewards`."""
    reward_weight: Share = 0.2
    """How much of a solved problem's worth `critical_path`, `latency` and `parallel` give to the shape of a
    rollout."""
    anneal_share: Share = 1.0
    """Share of the steps over which the bonus of `parallel` falls to nothing."""
    credit: Literal["broadcast", "centred", "own", "difference", "oracle"] = "broadcast"
    """What of it each thread is given: a file of `apr/training/rl/credit`."""

    @property
    def amount(self) -> int | None:
        """What all its prompts ask for, of children or of tokens."""
        return self.tokens if self.children is None else self.children


class RolloutServers(Section):
    """Servers that decode the rollouts of RL, and take the policy's weights before every step."""

    backend: Literal["vllm", "sglang"]
    """`apr serve` is one of `sglang`. All of them read weights from a directory that they see."""
    endpoints: Distinct[Url]
    """Base URLs of the servers, several of them if there are replicas."""
    served_model: Text = "apr"
    """vLLM: the name that the model is served under."""


class Rl(Section):
    """GRPO (paper: 64 prompts x 5, temperature 1, lr 1e-5, clip 0.2, 150 steps x 2 updates)."""

    policies: Entries[Policy]
    steps: Positive
    prompts: Positive = 16
    group: Annotated[Positive, Field(ge=2)] = 5
    inner_updates: Positive = 2
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Plain gradient descent leaves alone the tokens that carry no signal; AdamW moves every weight."""
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    learning_rate: PositiveReal = 1e-4
    clip: PositiveReal = 0.2
    warmup_steps: Natural = 0
    """Steps over which the learning rate grows to its value: in some directions the first gradients of an SFT
    model are far longer than all that follow."""
    max_grad_norm: PositiveReal = 1.0
    max_mismatch: PositiveReal = 0.1
    """Largest difference of a log-probability, in nats, between sampler and trainer by the same weights. In
    float32 on a CPU it is 2e-5 to 4e-5; the kernels of servers add to that. By weights that were one update
    old it was 0.26 to 2.5 on the default scale: beyond 0.1 something is wrong, unless a server decodes in
    bfloat16."""
    rows_per_device: Positive = 4
    """Packed rollouts per forward pass of the update."""
    lora: Lora | None = None
    servers: RolloutServers | None = None
    """Null decodes rollouts in the training process."""
    checkpoint_steps: Positive = 5
    report_to: ReportTo = "none"


class Engine(Section):
    """Limits of decoding; see `apr.engine` and `apr.rollouts`."""

    slots: Positive = 256
    """Threads that hold a KV cache at the same time."""
    admission: Literal["started_first", "critical_path"] = "started_first"
    """Which waiting threads get the next slot: those of the oldest rollout, or those nearest to a root."""
    max_depth: Natural = 1
    """Depth of nesting: 0 forbids spawning, 1 lets only the root spawn."""
    max_tokens: Positive = 8192
    """Tokens sampled by all threads of one rollout together."""
    torch_threads: Positive = 1
    """CPU threads of one process: fixed, so that results do not depend on the number of cores."""
    workers: Positive = 1
    """CPU threads that decode together, where models are decoded in C; results do not depend on them."""
    device: Annotated[str, Field(pattern="^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$")] = "auto"
    accelerate: FilePath | None = None
    """Training in several processes: a configuration file of `accelerate launch` (profiles/accelerate)."""
    backend: Literal["slots", "vllm", "sglang"] = "slots"
    """What evaluations decode with: this project's engine, or servers of the model that is evaluated."""
    endpoints: list[Url] = []
    """Base URLs of the servers, several of them if there are replicas."""
    served_model: Text = "apr"
    """vLLM: the name that the model is served under."""
    timeout: Annotated[PositiveReal, Field(le=1e6)] = 120.0
    """Seconds that a server may take to answer."""
    token_cost: Real = 0.5
    """Of replayed rollouts, where prompts ask for devices: what a device's step takes longer for each token
    more, of a further thread or of what is read, in steps of one thread that samples. One core, by the costs
    that `apr.evaluation.latency_model` measures of `models/rl/apr`: 0.5 to 0.6 for a thread, 0.3 to
    0.5 for a token that is read."""


class Sweep(Section):
    """Points of the evaluation: the product of its lists (Figures 4 and 8, Tables 1-3)."""

    models: Distinct[str]
    """Methods (stage sft) and policies (stage rl) that this sweep is run on."""
    stages: Distinct[Literal["sft", "rl"]] = ["sft"]
    conditions: Distinct[Natural | None] = [None]
    """Budgets asked for: tokens (serial methods) or children (apr); null leaves prompts unconditioned."""
    temperatures: Distinct[Temperature]
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

    task: str = "countdown"
    """A folder of `apr/tasks`, or a module of one's own: what defines a `TASK`."""
    seed: Annotated[Seed, Field(lt=2**32)] = 0  # as NumPy takes
    problems: Problems
    grammar: Grammar
    traces: Traces
    model: Model
    sft: Sft
    rl: Rl
    engine: Engine
    eval: Eval

    def __reduce__(self) -> Any:
        return partial_params, (self.model_dump(mode="json"),)  # the class of a task's parameters has no name

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        methods = set(self.traces.methods)
        for name, mixture in self.traces.methods.items():
            if isinstance(mixture, Mixture):
                plain = {other for other, its in self.traces.methods.items() if isinstance(its, TraceMethod)}
                _require({*mixture.shares} <= plain and abs(sum(mixture.shares.values()) - 1) < 1e-9,
                         f"traces.methods.{name}.shares", mixture.shares,
                         f"shares of {', '.join(sorted(plain))} that add up to 1")
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
        for name in methods:
            spawns = self.traces.spawns(name)
            _require(spawns <= self.grammar.max_children, f"traces.methods.{name}", spawns,
                     f"to spawn at most grammar.max_children = {self.grammar.max_children} at a time")
            deepest = max(part.deepest for part in self.traces.parts(name).values())
            _require(deepest <= max(1, self.engine.max_depth), f"traces.methods.{name}", deepest,
                     f"threads nested at most engine.max_depth = {self.engine.max_depth} deep")
            share = max(part.devices_share for part in self.traces.parts(name).values())
            _require(share == 0 or (spawns > 0 and self.grammar.devices),
                     f"traces.methods.{name}.devices_share", share,
                     "0, or with a solver that spawns where grammar.devices is true")
        _require(methods == set(self.sft.tokens), "sft.tokens", sorted(self.sft.tokens),
                 f"one entry for each of traces.methods: {sorted(methods)}")
        self._require_policies()
        self._require_sweeps()
        return self

    def _require_policies(self) -> None:
        methods = self.traces.methods
        for name, policy in self.rl.policies.items():
            _require(policy.method in methods, f"rl.policies.{name}.method", policy.method,
                     f"one of {sorted(methods)}")
            most = self.grammar.max_children if self.traces.spawns(policy.method) else -1
            _require(policy.children is None or policy.children <= most, f"rl.policies.{name}.children",
                     policy.children, "null, or with a method that spawns at most grammar.max_children")
            _require(policy.tokens is None or (policy.children is None and self.condition_kind(
                policy.method, policy.tokens) == "tokens"), f"rl.policies.{name}.tokens", policy.tokens,
                "null, or with a method that has serial demonstrations, and without children")  # fmt: skip
            able = any(part.devices_share for part in self.traces.parts(policy.method).values())
            _require(policy.devices is None or (policy.amount is None and able),
                     f"rl.policies.{name}.devices", policy.devices,
                     "null, or with a method that has a devices_share, without children or tokens")
            _require(policy.devices is not None or policy.reward != "latency", f"rl.policies.{name}.reward",
                     policy.reward, "one that needs no devices, or with devices")
            _require(policy.credit not in LABELLED or task_class(self.task).needs,
                     f"rl.policies.{name}.credit", policy.credit,
                     f"one without labels of children, of which the task {self.task} has none")

    def _require_sweeps(self) -> None:
        for name, sweep in self.eval.sweeps.items():
            for stage, model in product(sweep.stages, sweep.models):
                allowed = self.traces.methods if stage == "sft" else self.rl.policies
                _require(model in allowed, f"eval.sweeps.{name}.models", model,
                         f"for stage {stage}: {sorted(allowed)}")
                method = model if stage == "sft" else self.rl.policies[model].method
                for amount in (amount for amount in sweep.conditions if amount is not None):
                    unit = self.condition_kind(method, amount, model if stage == "rl" else None)
                    known: Sequence[int] = {"children": range(self.grammar.max_children + 1),
                                            "tokens": range(1, MOST + 1)}.get(unit, DEVICES)  # fmt: skip
                    said = ", ".join(map(str, known)) if unit == "devices" else f"{known[0]} to {known[-1]}"
                    _require(amount in known, f"eval.sweeps.{name}.conditions", amount,
                             f"for {stage}/{model}: {said} {unit}")

    def condition_kind(self, method: str, amount: int, policy: str | None = None) -> Unit:
        """Returns what so much counts in a prompt for the model of a method, or of a policy after RL."""
        if policy is not None and self.rl.policies[policy].devices:
            return "devices"
        counted = {part.counts for part in self.traces.parts(method).values()}
        if len(counted) == 1:
            return counted.pop()
        return "children" if amount <= self.grammar.max_children else "tokens"


def task_class(name: Any) -> Any:
    """Returns the `TASK` of a module, a subclass of `apr.tasks.task.Task`. Raises `ParamsError`."""
    own = sorted(path.parent.name for path in (Path(__file__).parents[1] / "tasks").glob("*/__init__.py"))
    module = f"apr.tasks.{name}" if name in own else name
    try:
        if isinstance(module, str) and all(map(str.isidentifier, module.split("."))):
            return import_module(module).TASK
    except (ImportError, AttributeError) as error:
        raise ParamsError(f"task: {quoted(name)} is not allowed; allowed: {', '.join(own)}, or a module that "
                          f"has a TASK ({error})") from None
    raise ParamsError(f"task: {quoted(name)} is not allowed; allowed: {', '.join(own)}, or a module")


@cache
def _params_class(own: Any) -> type[Params]:
    """`Params` with the sections that a task has of its own."""
    traces = create_model("Traces", __base__=Traces, methods=(methods_of(own.Method), ...))
    return create_model("Params", __base__=Params, problems=(own.Settings, ...), traces=(traces, ...))


def _class_for(values: Mapping[str, Any]) -> type[Params]:
    return _params_class(task_class(values.get("task", Params.model_fields["task"].default)))


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ParamsError(f"{key}: {quoted(value)} is not allowed; allowed: {allowed}")


def parse_params(values: Mapping[str, Any], source: str = "params") -> Params:
    """Validates raw values. Raises `ParamsError`: one line with key, value and what is allowed."""
    try:
        return _class_for(values).model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{source}: {refusal(error)}") from None
    except ParamsError as error:
        raise ParamsError(f"{source}: {error}") from None


def layers_of(preset: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the presets that one consists of, by their files: that which it says it goes over (`over`), if
    it says so, and itself. Raises `ParamsError`."""
    values = read_yaml(preset)
    if (name := values.pop("over", None)) is None:
        return [(preset, values)]
    below = preset.parent / f"{name}.yaml"
    known = isinstance(name, str) and is_name(name) and below.is_file()
    under = read_yaml(below) if known else {"over": name}
    _require("over" not in under, f"{preset}: over", name, "another preset, which goes over none itself")
    return [(below, under), (preset, values)]


def load_params(path: str | Path, preset: str | Path | None = None) -> Params:
    """The validated parameters of `path`, with the preset file `preset` put over them if given, and before it
    that which this one goes over.

    Files that they name are there, beside `path`. Raises `ParamsError`.
    """
    merged, source = read_yaml(path), str(preset or path)
    try:
        for _, over in layers_of(Path(preset)) if preset else []:
            merged = overlay(merged, over, OF_TASK if "task" in over else ())
    except RecursionError:  # an alias inside its own anchor
        raise ParamsError(f"{source}: a section that holds itself") from None
    params = parse_params(merged, source)
    _require(bool(params.eval.sweeps), f"{source}: eval.sweeps", {}, "at least one")
    base, launcher, folder = params.sft.base, params.engine.accelerate, Path(path).parent
    found = base is None or (base.startswith(f"{PRETRAINED}/") and (folder / base / "config.json").is_file())
    _require(found, f"{source}: sft.base", base, f"null, or a model's directory in {PRETRAINED}/")
    _require(launcher is None or (folder / launcher).is_file(), f"{source}: engine.accelerate", launcher,
             "null, or a file of `accelerate config`")  # fmt: skip
    return params


def partial_params(values: Mapping[str, Any]) -> Params:
    """Validated parameters that hold the given keys only: reading any other is an `AttributeError`.

    This is what a job gets, so that it cannot depend on a setting that it does not declare.
    """
    return _partial(_class_for(values), values)


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
