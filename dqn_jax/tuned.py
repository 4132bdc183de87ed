"""Settings tuned by algorithm and environment, which `--tuned` sets after `--algorithm`.

Of each environment, sizes and schedules that all algorithms share, chosen with `dqn` and `n_step`; of each algorithm in it, the
learning rate with the best returns on tuning seeds: `dqn-jax scoreboard --tune`, whose rows a test compares with this table.
C51's supports are with the algorithms. Not here: how rates are tuned (commands.scoreboard).
"""

from typing import Any, NamedTuple

from dqn_jax.algorithms import ALGORITHMS, fields_of
from dqn_jax.config import require


class Tuned(NamedTuple):
    """Settings for one environment."""

    shared: dict[str, Any]
    """Fields of all algorithms, by dotted name; an algorithm's own come first."""
    learning_rates: dict[str, float]
    """By algorithm."""
    own: dict[str, dict[str, Any]] = {}
    """Fields of one algorithm alone, by its name: they come last."""


_SMALL = {
    "agent.num_envs": 8,
    "agent.updates_per_step": 2,
    "agent.batch_size": 64,
    "agent.replay_capacity": 50_000,
    "agent.learning_starts": 1_000,
    "agent.epsilon_end": 0.05,
    "agent.epsilon_decay_frames": 20_000,
    "network.hidden_sizes": (64, 64),
}
"""An update every four frames of a small network; the learning rate falls to 0 with the budget's last updates."""


def _pqn(frames: int, **own: Any) -> dict[str, dict[str, Any]]:
    """Lets PQN's rate fall to 0 with the last of a budget's frames, as others' does."""
    fields = ALGORITHMS["pqn"] | {f"agent.{name}": value for name, value in own.items()}
    steps = frames // (fields["agent.num_envs"] * fields["agent.acts_per_step"])
    decay = {"agent.learning_rate_decay_updates": steps * fields["agent.updates_per_step"]}
    return {"pqn": {f"agent.{name}": value for name, value in own.items()} | decay}


TUNED: dict[str, Tuned] = {
    "CartPole-v1": Tuned(
        {**_SMALL, "agent.target_period": 20, "agent.learning_rate_decay_updates": 25_000},
        {
            "dqn": 0.03,
            "double": 0.01,
            "dueling": 0.03,
            "n_step": 0.003,
            "prioritised": 0.003,
            "noisy": 0.003,
            "c51": 0.003,
            "qr_dqn": 0.03,
            "iqn": 0.01,
            "munchausen": 0.0003,
            "rainbow": 0.01,
            "pqn": 0.01,
            "no_replay": 0.003,
            "no_target": 0.0003,
        },
        _pqn(100_000, epsilon_end=0.1),
    ),
    "Acrobot-v1": Tuned(
        {**_SMALL, "agent.target_period": 100, "agent.learning_rate_decay_updates": 25_000},
        {
            "dqn": 0.0003,
            "double": 0.003,
            "dueling": 0.003,
            "n_step": 0.001,
            "prioritised": 0.003,
            "noisy": 0.001,
            "c51": 0.001,
            "qr_dqn": 0.003,
            "iqn": 0.001,
            "munchausen": 0.001,
            "rainbow": 0.003,
            "pqn": 0.003,
            "no_replay": 0.001,
            "no_target": 0.003,
        },
        _pqn(100_000),
    ),
    "MountainCar-v0": Tuned(
        {
            **_SMALL,
            "agent.updates_per_step": 4,
            "agent.discount": 0.98,
            "agent.target_period": 200,
            "agent.epsilon_end": 0.1,
            "agent.learning_rate_decay_updates": 75_000,
            "network.hidden_sizes": (128, 128),
        },
        {
            "dqn": 0.003,
            "double": 0.001,
            "dueling": 0.003,
            "n_step": 0.0003,
            "prioritised": 0.003,
            "noisy": 0.001,
            "c51": 0.001,
            "qr_dqn": 0.003,
            "munchausen": 0.003,
            "pqn": 0.03,
            "no_replay": 0.003,
            "no_target": 0.001,
        },
        _pqn(150_000),
    ),
    "Catch-bsuite": Tuned(
        {**_SMALL, "agent.target_period": 50, "agent.learning_rate_decay_updates": 12_500},
        {
            "dqn": 0.001,
            "double": 0.001,
            "dueling": 0.001,
            "n_step": 0.001,
            "prioritised": 0.001,
            "noisy": 0.003,
            "c51": 0.003,
            "qr_dqn": 0.001,
            "iqn": 0.001,
            "munchausen": 0.001,
            "rainbow": 0.003,
            "pqn": 0.003,
            "no_replay": 0.001,
            "no_target": 0.001,
        },
        _pqn(50_000),
    ),
    "DeepSea-bsuite": Tuned(
        {**_SMALL, "agent.target_period": 100, "agent.learning_rate_decay_updates": 25_000},
        {
            "dqn": 0.001,
            "double": 0.001,
            "dueling": 0.001,
            "n_step": 0.001,
            "prioritised": 0.001,
            "noisy": 0.001,
            "c51": 0.01,
            "qr_dqn": 0.0001,
            "munchausen": 0.001,
            "pqn": 0.0001,
            "no_replay": 0.0003,
            "no_target": 0.001,
        },
        _pqn(100_000),
    ),
    "FourRooms-misc": Tuned(
        {**_SMALL, "agent.target_period": 100, "agent.learning_rate_decay_updates": 25_000, "network.trunk": "mlp"},
        {
            "dqn": 0.001,
            "double": 0.0003,
            "dueling": 0.001,
            "n_step": 0.001,
            "prioritised": 0.001,
            "noisy": 0.001,
            "c51": 0.001,
            "qr_dqn": 0.001,
            "munchausen": 0.001,
            "rainbow": 0.003,
            "pqn": 0.001,
            "no_replay": 0.0003,
            "no_target": 0.0003,
        },
        _pqn(100_000),
    ),
    "Breakout-MinAtar": Tuned(
        {
            "agent.num_envs": 16,
            "agent.updates_per_step": 2,
            "agent.batch_size": 32,
            "agent.replay_capacity": 100_000,
            "agent.learning_starts": 5_000,
            "agent.target_period": 500,
            "agent.epsilon_end": 0.05,
            "agent.epsilon_decay_frames": 200_000,
            "network.hidden_sizes": (128,),
        },
        {
            "dqn": 0.003,
            "pqn": 0.03,
        },
        _pqn(2_000_000, num_envs=64, batch_size=256, updates_per_step=16, return_lambda=0.65),
    ),
}
"""By the environment's name. Rates fall over the updates of the scoreboard's budgets, but for Breakout: for other lengths,
change that too."""


def tuned_fields(algorithm: str, env: str) -> dict[str, Any]:
    """Returns the fields that an algorithm sets in an environment, by dotted name, its tuned ones among them.

    Raises:
      InputError: where the table has none.
    """
    fields = shared_fields(algorithm, env)
    rates = TUNED[env].learning_rates
    require(algorithm in rates, f"--algorithm {algorithm} is not tuned for {env}: take one of {', '.join(rates)}")
    return fields | {"agent.learning_rate": rates[algorithm]}


def shared_fields(algorithm: str, env: str) -> dict[str, Any]:
    """Returns `tuned_fields` without the learning rate: what is tuned is the rate of an agent with these.

    Raises:
      InputError: where the table has no such environment.
    """
    known = ", ".join(TUNED)
    require(env in TUNED, f"env is {env!r}, for which nothing is tuned: take one of {known}, or leave out --tuned")
    return TUNED[env].shared | fields_of(algorithm, env) | TUNED[env].own.get(algorithm, {})
