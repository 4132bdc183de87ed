"""Whole federated experiments by name, each a config to start from. Not here: how they are trained."""

import dataclasses
from pathlib import Path

from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.presets import SMOKE as SMOKE_ALONE

HETEROGENEOUS = FederatedExperiment(
    max_episode_steps=200,
    rounds=100,
    run_dir=Path("runs/federated"),
    agent=AgentConfig(
        num_envs=1,
        learning_starts=200,
        learning_rate=5e-4,
        target_period=100,
        epsilon_end=0.1,
        epsilon_decay_frames=3_000,
    ),
    network=NetworkConfig(hidden_sizes=(64, 64)),
    federated=FederatedConfig(local_steps=100, eval_clients=True),
    runner=RunnerConfig(log_every=5, eval_every=10, checkpoint_every=50, threshold=195.0),
)
"""Eight clients whose poles have different lengths (Jin et al. 2022), merged by FedAvg, everything else kept.

Tuned on seeds and environments 1000 to 1005.
"""

CLASSIC = dataclasses.replace(
    HETEROGENEOUS,
    run_dir=Path("runs/federated-classic"),
    federated=FederatedConfig(num_clients=4, local_steps=50, heterogeneity="none", unseen_envs=0),
)
"""Federated DQN as textbooks have it: devices alike train on their own replay and push their parameters, the server averages
and broadcasts them, and each device copies its target every C updates."""

SMOKE = FederatedExperiment(
    num_devices=1,
    num_seeds=1,
    rounds=10,
    run_dir=Path("runs/smoke-federated"),
    agent=AgentConfig(num_envs=1, learning_starts=100, epsilon_decay_frames=500),
    network=SMOKE_ALONE.network,
    federated=FederatedConfig(num_clients=2, local_steps=50, unseen_envs=1),
    runner=RunnerConfig(log_every=2, eval_every=4, eval_episodes=4, checkpoint_every=4),
)
"""A few seconds to see that everything works; nothing is learnt."""
