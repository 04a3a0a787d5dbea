"""Decodes one problem as a tree of threads, with any causal LM of `transformers` that has learnt to spawn.

    python examples/decode_tree.py data/models/rl/apr "3 5 9 12 -> 27"
"""

import sys

from transformers import AutoModelForCausalLM

from apr.core.params import load_params
from apr.engine.slots import SlotEngine
from apr.language import Condition
from apr.language.tokenizer import load_language
from apr.rollouts.decoding import orchestrate, prompt_of
from apr.rollouts.rollout import Request
from apr.rollouts.verdict import judge
from apr.tasks import open_task

checkpoint, text = sys.argv[1:]
params, language = load_params("params.yaml"), load_language(checkpoint)
task = open_task(params, language)
problem = task.read(text)
prompt = prompt_of(task, problem, Condition("children", params.grammar.max_children))

model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
engine = SlotEngine(model, language.syntax.stop_ids, params.engine.slots, params.grammar.window)
(rollout,) = orchestrate(params, language, engine).run([Request("example", prompt, temperature=0.0, seed=0)])

for thread in rollout.threads:
    print("  " * thread.depth + f"{thread.status}: {language.vocabulary.decode(thread.ids)}")
usage = rollout.usage
print(f"{judge(task, problem, rollout).reason}; {usage.total} tokens, {usage.sequential} one after another")
