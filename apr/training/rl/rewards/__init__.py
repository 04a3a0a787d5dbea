"""Rewards of a rollout, a file each; see `apr.training.rl.algorithm`."""

from apr.training.rl.algorithm import Reward
from apr.training.rl.rewards import outcome

REWARDS: dict[str, Reward] = {"outcome": outcome.reward}
