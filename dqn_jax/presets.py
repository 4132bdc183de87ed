"""Whole experiments by name, each a config to start from. Not here: how they are trained."""

from pathlib import Path

from dqn_jax.config import AgentConfig, DataParallelExperiment, NetworkConfig, RunnerConfig

QUICKSTART = DataParallelExperiment(
    run_dir=Path("runs/quickstart"),
    agent=AgentConfig(
        batch_size=128,
        replay_capacity=20_000,
        learning_starts=10_000,
        learning_rate=2.5e-4,
        target_period=20,
        epsilon_end=0.01,
        epsilon_decay_frames=100_000,
    ),
    network=NetworkConfig(hidden_sizes=(120, 84)),
)
"""CartPole to the optimum and staying there: a target copied often, small steps, little exploration at the end.

Tuned on seeds 1000 to 1015.
"""

CLASSIC = DataParallelExperiment(
    max_episode_steps=200,
    num_devices=1,
    total_frames=100_000,
    run_dir=Path("runs/classic"),
    agent=AgentConfig(num_envs=1),
    runner=RunnerConfig(log_every=1_000, eval_every=5_000, checkpoint_every=10_000),
)
"""DQN as textbooks have it: one environment, an update every frame, two layers of 128, CartPole cut at 200 steps."""

SMOKE = DataParallelExperiment(
    num_devices=1,
    num_seeds=2,
    total_frames=4_000,
    run_dir=Path("runs/smoke"),
    agent=AgentConfig(num_envs=8, learning_starts=400, epsilon_decay_frames=2_000),
    network=NetworkConfig(hidden_sizes=(32,)),
    runner=RunnerConfig(log_every=1_000, eval_every=2_000, eval_episodes=4, checkpoint_every=2_000),
)
"""A few seconds to see that everything works; nothing is learnt."""
