"""Algorithms by name: a few fields of agent and network, which `--algorithm` sets on the preset of any job.

Each is DQN with what its paper adds; settings that the papers tune (rates, sizes, schedules) stay those of the preset.
Not here: what the names in the fields stand for (losses, heads, replay, exploration).
"""

from typing import Any

DQN: dict[str, Any] = {
    "agent.loss": "squared",
    "agent.double_q": False,
    "agent.n_step": 1,
    "agent.return_lambda": None,
    "agent.memory": "uniform",
    "agent.exploration": "epsilon-greedy",
    "network.head": "linear",
    "network.noisy": False,
}
"""Mnih et al. (2015), without any of what the others add."""

SUPPORTS: dict[str, tuple[float, float]] = {
    "CartPole-v1": (0, 100),
    "Acrobot-v1": (-100, 0),
    "MountainCar-v0": (-100, 0),
    "Catch-bsuite": (-1, 1),
    "DeepSea-bsuite": (-1, 1),
    "FourRooms-misc": (0, 1),
}
"""Least and largest discounted return of an environment, between which C51's atoms lie; that of others is `OTHERS`."""
OTHERS = (-10, 10)
"""As in Bellemare et al. (2017)."""

_EXPLORES_BY_NOISE = {"network.noisy": True, "agent.exploration": "greedy"}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {},
    "double": {"agent.double_q": True},
    "dueling": {"network.head": "dueling"},
    "n_step": {"agent.n_step": 3},
    "prioritised": {"agent.memory": "prioritised"},
    "noisy": _EXPLORES_BY_NOISE,
    "c51": {"agent.loss": "categorical", "network.head": "categorical"},
    "qr_dqn": {"agent.loss": "quantile", "network.head": "quantile:51"},
    "iqn": {"agent.loss": "quantile", "network.head": "implicit-quantile:8"},
    "munchausen": {"agent.loss": "munchausen"},
    "rainbow": {
        "agent.loss": "categorical",
        "agent.double_q": True,
        "agent.n_step": 3,
        "agent.memory": "prioritised",
        "network.head": "dueling-categorical",
        **_EXPLORES_BY_NOISE,
    },
    "pqn": {
        "agent.memory": "rollout",
        "agent.return_lambda": 0.95,
        "agent.num_envs": 16,
        "agent.acts_per_step": 32,
        "agent.batch_size": 64,
        "agent.updates_per_step": 32,
        "agent.learning_starts": 0,
        "agent.optimizer": "radam",
        "agent.max_grad_norm": 10.0,
        "network.layer_norm": True,
    },
    "no_replay": {"agent.memory": "newest"},
    "no_target": {"agent.target_period": 1},
}
"""What each adds to DQN, by the fields' dotted names; the last two are DQN without one of its two ideas.

PQN's sizes belong together, and come with it: four epochs of eight minibatches."""


def fields_of(algorithm: str, env: str) -> dict[str, Any]:
    """Returns the fields that an algorithm sets, by dotted name: those of DQN, its own, and C51's support in an environment."""
    fields = DQN | ALGORITHMS[algorithm]
    if fields["agent.loss"] == "categorical":
        low, high = SUPPORTS.get(env, OTHERS)
        fields["network.head"] += f":{low}:{high}:51"
    return fields
