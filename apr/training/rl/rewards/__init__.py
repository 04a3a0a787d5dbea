"""Rewards of a rollout, a file each; see `apr.training.rl.algorithm`."""

from apr.training.rl.algorithm import Reward
from apr.training.rl.rewards import critical_path, outcome, parallel

REWARDS: dict[str, Reward] = {
    "outcome": outcome.reward,
    "critical_path": critical_path.reward,
    "parallel": parallel.reward,
}
