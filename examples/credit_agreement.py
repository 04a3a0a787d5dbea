"""Says how far credits agree with what is known for certain of each thread, over rollouts of a model.

    python examples/credit_agreement.py data/models/rl/apr
"""

import sys
from pathlib import Path

from apr.core.params import load_params
from apr.engine.slots import open_engine
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import orchestrate, prompt_of
from apr.rollouts.rollout import Request
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.problems import read_problems
from apr.training.rl.agreement import agreement
from apr.training.rl.algorithm import Group, Step
from apr.training.rl.credit import CREDITS

checkpoint = Path(sys.argv[1])
params, language = load_params("params.yaml"), load_language(checkpoint)
task, policy, size = open_task(params, language), params.rl.policies["apr"], params.rl.group
problems = read_problems(task, "data/problems/validation.parquet")[: params.rl.prompts]
engine = open_engine(params.engine, params.grammar.window, language.syntax.stop_ids, checkpoint)
rollouts = orchestrate(params, language, engine).run(
    Request(f"{problem.id}/{place}", prompt_of(task, problem, None), temperature=1.0, seed=params.seed)
    for problem in problems for place in range(size))  # fmt: skip

groups = []
for number, problem in enumerate(problems):
    tried = rollouts[number * size : (number + 1) * size]
    verdicts = [judge(task, problem, rollout) for rollout in tried]
    groups.append(Group(problem, tried, verdicts, [float(verdict.strict) for verdict in verdicts]))
for name, credit in CREDITS.items():
    for role, (threads, same, opposite) in agreement(credit, groups, Step(0, 1, policy, task)).items():
        print(f"{name:10} {role:5} {same} of {threads} as the oracle, {opposite} against it")
