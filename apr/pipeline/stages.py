"""The one table of stages. Jobs, `apr run`, every `dvc.yaml` and the checks of the rules follow from it.

Paths are below the root of a scale. What a job waits for follows from what it reads: the jobs that write it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from apr.core.params import Params, task_class
from apr.core.recipe import seal_of
from apr.evaluation.points import evaluated, teachers, timed

Names = dict[str, str]
"""What tells a job from the others of its stage, by the names in braces of the table."""


def models(params: Params) -> list[Names]:
    """Returns every model that a sweep names, with the method that it learnt."""
    return [{"stage": model.phase, "model": model.name, "method": model.method(params)}
            for model in evaluated(params)]  # fmt: skip


def bases(params: Params) -> list[Names]:
    """Returns the SFT models among them that a policy starts from."""
    return [its for its in models(params) if its["stage"] == "sft" and its["model"] in teachers(params)]


def demos(params: Params) -> list[Names]:
    """Returns one demo, of the default scale's two models, where there are these and a page can hold them."""
    model, small = params.model, 1_000_000
    weights = model.layers * model.hidden * (4 * model.hidden + 3 * model.ffn)
    there = "apr" in params.rl.policies and "sos_plus" in params.traces.methods
    own = params.task == Params.model_fields["task"].default and params.sft.base is None
    return [{}] if there and own and weights <= small else []


class Stage(NamedTuple):
    """`function` is called with the parameters that `settings` declares, the names in `job`, and the paths of
    `inputs` and `outputs`, by argument."""

    description: str
    job: str
    """The id of each job, which begins with the stage's name."""
    function: str
    settings: str
    """Dotted keys of `params.yaml`; {words} and {solver} are those that the task names."""
    outputs: dict[str, str]
    inputs: dict[str, str] = {}
    reads: tuple[str, ...] = ()
    """What is read besides the inputs, or below an input `root`."""
    parts: Callable[[Params], Iterable[str]] | None = None
    """All that is read below inputs that hold more."""
    writes: tuple[str, ...] = ()
    """What is written besides the outputs."""
    each: Callable[[Params], Iterable[Names]] = lambda params: [{}]
    base: str | None = None
    """What is read of `sft.base`: the whole "model", or its "tokenizer"."""
    gpu: bool = False
    """Whether it computes on `engine.device`."""
    trains: bool = False
    """Whether `engine.accelerate` deals it out over processes."""

    @property
    def name(self) -> str:
        return self.job.split("/")[0]

    def keys(self, params: Params) -> list[str]:
        """Returns the dotted keys of what its jobs read of the parameters."""
        task = task_class(params.task)
        return self.settings.format(words=task.word_keys, solver=task.solver_keys).split()

    def modules(self, params: Params) -> list[str]:
        """Returns the modules whose code its jobs run: the function's, and the task's if they know it."""
        task = [task_class(params.task).__module__] if "task" in self.settings.split() else []
        return [self.function.split(":")[0], *task]

    @property
    def paths(self) -> dict[str, str]:
        return self.inputs | self.outputs

    @property
    def written(self) -> tuple[str, ...]:
        return (*self.outputs.values(), *self.writes)

    @property
    def tracked(self) -> list[str]:
        """What DVC tracks: the folder of all its jobs, or files with their seal."""
        first, seal = self.written[0], seal_of(self.written[0])
        if "{" in first:
            return [first.split("/{")[0]]
        return [*self.written, *([] if seal.startswith(f"{first}/") else [seal])]

    def read(self, params: Params) -> list[str]:
        """Returns what its jobs read: instead of an input of which they read parts, these."""
        parts = list(self.parts(params)) if self.parts else []
        wholes = [path for path in (*self.inputs.values(), *self.reads) if path != "."]
        return [*(path for path in wholes if not any(part.startswith(f"{path}/") for part in parts)), *parts]


EVALUATION = {"problems": "data/problems/test.parquet", "checkpoint": "data/models/{stage}/{model}"}
DECODING = "task seed grammar traces.methods rl.policies engine eval.problems eval.sweeps"
MEASURED = ("data/problems", "data/models", "data/eval", "data/latency.json", "data/teacher",
            "results/figures", "results/claims.csv")  # fmt: skip
DRAWN = "task seed problems grammar traces.methods rl.policies eval"

STAGES = {stage.name: stage for stage in (
    Stage(
        "problems of the task, three disjoint splits", "problems",
        "apr.tasks.problems:make_problems", "task seed problems", {"out": "data/problems"},
    ),
    Stage(
        "one token per word and number of the thread language", "tokenizer",
        "apr.tasks:make_tokenizer",
        "task grammar.max_children grammar.number_tokens grammar.devices {words} sft.base",
        {"out": "data/tokenizer"}, base="tokenizer",
    ),
    Stage(
        "the solvers' demonstrations, by method", "traces/{method}", "apr.training.traces:make_traces",
        "task seed {solver} grammar traces",
        {"out": "data/traces/{method}.parquet"},
        {"problems": "data/problems/train.parquet", "tokenizer": "data/tokenizer"},
        each=lambda params: [{"method": method} for method in params.traces.methods],
    ),
    Stage(
        "a model per method, trained on its traces", "sft/{method}", "apr.training.sft.train:train_sft",
        "seed grammar.window model sft engine.device engine.accelerate engine.torch_threads",
        {"out": "data/models/sft/{method}"},
        {"traces": "data/traces/{method}.parquet", "tokenizer": "data/tokenizer"},
        each=lambda params: [{"method": method} for method in params.traces.methods],
        base="model", gpu=True, trains=True,
    ),
    Stage(
        "a model per policy, trained by GRPO from its SFT model", "rl/{policy}",
        "apr.training.rl.train:train_rl", "task seed grammar engine rl", {"out": "data/models/rl/{policy}"},
        {"problems": "data/problems/train.parquet", "validation": "data/problems/validation.parquet",
         "checkpoint": "data/models/sft/{method}"},
        each=lambda params: [{"policy": policy, "method": settings.method}
                             for policy, settings in params.rl.policies.items()],
        gpu=True, trains=True,
    ),
    Stage(
        "rollouts on the test problems, for each model, at every point of the sweeps",
        "evaluate/{stage}/{model}", "apr.evaluation.sweep:evaluate", DECODING,
        {"out": "data/eval/{stage}/{model}.parquet"}, EVALUATION, each=models, gpu=True,
    ),
    Stage(
        "prefill and decode seconds of the models, one problem at a time", "latency",
        "apr.evaluation.latency:measure_latency", f"{DECODING} eval.latency_problems",
        {"out": "data/latency.json"}, {"problems": "data/problems/test.parquet", "models": "data/models"},
        parts=lambda params: [f"data/models/{model}" for model in timed(params)], gpu=True,
    ),
    Stage(
        "each method's own solver on the test problems, counted as its model is", "teacher/{method}",
        "apr.evaluation.teacher:evaluate_teacher",
        "task seed {solver} grammar traces.methods eval.problems eval.sweeps",
        {"out": "data/teacher/{method}.parquet"},
        {"problems": "data/problems/test.parquet", "tokenizer": "data/tokenizer"}, each=bases,
    ),
    Stage(
        "Figures 4a, 5, 6 and 7, Table 3 and their claims, from the models that are timed", "headline",
        "apr.results.headline:make_headline", DRAWN, {"out": "data/headline"},
        {"evaluations": "data/eval", "latencies": "data/latency.json", "teachers": "data/teacher"},
        parts=lambda params: [f"data/eval/{model}.parquet" for model in timed(params)],
    ),
    Stage(
        "the paper's figures and tables", "figures", "apr.results.figures:make_figures", DRAWN,
        {"out": "results/figures", "metrics": "results/metrics.json"},
        {"evaluations": "data/eval", "latencies": "data/latency.json", "models": "data/models"},
        reads=("data/problems",),
    ),
    Stage(
        "what the paper claims, measured", "claims", "apr.results.claims:make_claims", DRAWN,
        {"out": "results/claims.md"},
        {"evaluations": "data/eval", "latencies": "data/latency.json", "teachers": "data/teacher"},
        writes=("results/claims.csv",),
    ),
    Stage(
        "whether the files of the run add up", "checks", "apr.results.checks:check_results",
        "task seed problems grammar engine.max_tokens traces.methods rl.policies eval",
        {"out": "results/checks.json"}, {"root": "."}, (*MEASURED, "results/metrics.json"),
    ),
    Stage(
        "claims, threads, figures, training and tokens of the run in one HTML file", "report",
        "apr.results.report:make_report", "task seed problems grammar traces model sft rl engine eval",
        {"out": "results/report.html"}, {"root": "."}, MEASURED, gpu=True,
    ),
    Stage(
        "two models that decode in the browser, in one HTML file", "demo", "apr.results.demo:make_demo",
        "task problems.numbers problems.number_range problems.target_range problems.max_value grammar.window "
        "grammar.max_children engine.max_depth engine.max_tokens",
        {"out": "data/demo.html"},
        {"parallel": "data/models/rl/apr", "serial": "data/models/sft/sos_plus"}, each=demos,
    ),
)}  # fmt: skip
"""By name, upstream first."""


def jobs(params: Params) -> dict[str, tuple[Stage, Names]]:
    """Returns every job by its id, upstream first."""
    return {stage.job.format(**names): (stage, names)
            for stage in STAGES.values() for names in stage.each(params)}  # fmt: skip


def writers_of(read: Iterable[str], writers: dict[str, str]) -> list[str]:
    """Returns who writes what is read: the same path, one above it, or one below it; each once, in order."""
    return list(dict.fromkeys(
        writer for written, writer in writers.items()
        if any(f"{path}/".startswith(f"{written}/") or f"{written}/".startswith(f"{path}/") for path in read)
    ))  # fmt: skip


def keys_of(params: Params, names: Names) -> dict[str, set[str]]:
    """Returns the entries of mappings of parameters that concern a job, by the mapping's dotted key."""
    if not names:
        return {}
    model, phase = names.get("model", names["method"]), names.get("stage", "sft")
    policy = names.get("policy", model if phase == "rl" else None)
    sweeps = params.eval.sweeps.items()
    return {
        "traces.methods": {names["method"], *params.traces.parts(names["method"])},
        "sft.tokens": {names["method"]},
        "rl.policies": {policy} if policy else set(),
        "eval.sweeps": {name for name, sweep in sweeps if model in sweep.models and phase in sweep.stages},
    }
