"""Rewards of a rollout, a file each; see `apr.training.rl.algorithm`."""

from apr.training.rl.algorithm import Reward
from apr.training.rl.rewards import critical_path, latency, outcome, parallel

REWARDS: dict[str, Reward] = {
    "outcome": outcome.reward,
    "critical_path": critical_path.reward,
    "latency": latency.reward,
    "parallel": parallel.reward,
}
