"""Trains a policy whose reward is one's own: a solved problem, less a little for every child.

    python examples/own_reward.py data/models/frugal
"""

import json
import sys
from pathlib import Path

from apr.core.params import load_params
from apr.rollouts.rollout import Rollout
from apr.rollouts.verdict import Judgement
from apr.training.rl.algorithm import Step
from apr.training.rl.rewards import REWARDS
from apr.training.rl.train import train_rl

PRICE = 0.02
"""What a child costs, as a share of a solved problem."""


def frugal(rollout: Rollout, verdict: Judgement, step: Step) -> float:
    return float(verdict.strict) - PRICE * rollout.usage.children


REWARDS["frugal"] = frugal
params, out, data = load_params("params.yaml"), Path(sys.argv[1]), Path("data")
params.rl.policies["frugal"] = params.rl.policies["apr"].model_copy(update={"reward": "frugal"})
train_rl(params, "frugal", data / "problems/train.parquet", data / "problems/validation.parquet",
         data / "models/sft/apr", out)
for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()):
    print("step {step}: reward {reward:.3f}, solved {accuracy:.1%}, {children:.2f} children".format(**line))
