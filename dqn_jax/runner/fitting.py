"""A short first try: what a short run has no room for is shortened with it. Not here: reading flags."""

from typing import TypeVar

from dqn_jax.config import Experiment, Record
from dqn_jax.runner.config_file import config_dict, flatten, nest, with_values

Config = TypeVar("Config", bound=Experiment)

SHARES = {"agent.epsilon_decay_frames": 2, "runner.log_every": 10, "runner.eval_every": 5, "runner.checkpoint_every": 2}
"""Fields that count frames: each is at most total_frames divided by this."""
FITTED = ("agent.learning_starts", *SHARES)


def fitted(config: Config, given: Record) -> Config:
    """Shortens what a run has no room for, if it would end before a line of metrics or before its first update.

    Args:
      config: what the run starts from.
      given: values of flags, by the field's dotted name. What they say is not fitted; it may be refused.

    Returns:
      A config with the whole numbers among the flags; the same one where there is room enough, or length is counted in rounds.

    Raises:
      InputError: where the numbers that are given do not fit one another.
    """
    before = flatten(config_dict(config))
    numbers = {name: value for name, value in given.items() if _is_count(value) and _is_count(before[name])}
    wanted = before | numbers
    if "total_frames" not in wanted:
        return config
    length, envs, workers = wanted["total_frames"], wanted["agent.num_envs"], wanted.get("server.num_workers", 1)
    starts = wanted["agent.learning_starts"]
    gathering = workers * envs * (-(-starts // max(1, envs)) + wanted["agent.n_step"] - 1)
    if length > gathering and length >= wanted["runner.log_every"]:
        return config
    room = {name: max(1, length // share) for name, share in SHARES.items()}
    room["agent.learning_starts"] = max(wanted["agent.batch_size"], length // 10 // max(1, workers))
    shorter = {name: min(most, wanted[name]) for name, most in room.items()}
    return with_values(config, nest(shorter | numbers))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
