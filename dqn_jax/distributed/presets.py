"""Whole experiments with a parameter server, or with actors and a learner, by name. Not here: how they are trained."""

import dataclasses
from pathlib import Path

from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.presets import QUICKSTART, SMOKE

CLASSIC_SERVER = ServerExperiment(
    max_episode_steps=200,
    num_seeds=1,
    num_devices=1,
    total_frames=100_000,
    backend="in-process",
    run_dir=Path("runs/parameter-server"),
    agent=AgentConfig(num_envs=1, batch_size=32, replay_capacity=10_000, discount=0.99),
    network=NetworkConfig(hidden_sizes=(64, 64)),
    runner=RunnerConfig(log_every=2_000, eval_every=10_000, checkpoint_every=20_000),
)
"""Four workers with one environment each, that push gradients as textbooks have it."""

SERVER_MODEL = dataclasses.replace(
    CLASSIC_SERVER, backend="device", num_seeds=4, num_devices=None, run_dir=Path("runs/parameter-server-model")
)
"""The same in virtual time, four seeds at once."""

# Steadier where gradients or actors are late: a few rewards at once (Mnih et al. 2016), and van Hasselt's target.
_STEADY = dataclasses.replace(QUICKSTART.agent, n_step=3, double_q=True)

CARTPOLE_SERVER = ServerExperiment(
    num_seeds=1,
    num_devices=1,
    total_frames=400_000,
    backend="threads",
    run_dir=Path("runs/parameter-server-cartpole"),
    agent=dataclasses.replace(
        _STEADY,
        replay_capacity=4_992,
        learning_starts=_STEADY.learning_starts // 4,
        epsilon_decay_frames=_STEADY.epsilon_decay_frames // 4,
    ),
    network=QUICKSTART.network,
)
"""Four workers on threads that together have the replay, the warm-up and the exploration of the agent `make train` trains.

Tuned on seeds 3000 to 3007, on the model.
"""

APEX = ActorLearnerExperiment(
    total_frames=400_000,
    run_dir=Path("runs/actor-learner"),
    agent=_STEADY,
    network=QUICKSTART.network,
)
"""Four actors with an epsilon each, that feed the same agent."""

SMOKE_SERVER = ServerExperiment(
    num_seeds=1,
    num_devices=1,
    total_frames=SMOKE.total_frames,
    backend="in-process",
    run_dir=Path("runs/smoke-server"),
    agent=dataclasses.replace(SMOKE.agent, learning_starts=200),
    network=SMOKE.network,
    runner=SMOKE.runner,
    server=ServerConfig(num_workers=2),
)
"""A few seconds to see that everything works; nothing is learnt."""

SMOKE_ACTORS = ActorLearnerExperiment(
    total_frames=SMOKE.total_frames,
    run_dir=Path("runs/smoke-actors"),
    agent=SMOKE.agent,
    network=SMOKE.network,
    runner=SMOKE.runner,
    actors=ActorLearnerConfig(num_actors=2),
)
"""As SMOKE_SERVER."""

ATARI_DQN = ActorLearnerExperiment(
    env="atari:Pong",
    total_frames=50_000_000,
    run_dir=Path("runs/atari"),
    agent=AgentConfig(
        num_envs=8,
        updates_per_step=2,
        batch_size=32,
        replay_capacity=1_000_000,
        learning_starts=50_000,
        target_period=10_000,
        loss="huber:1",
        optimizer="rmsprop",
        learning_rate=2.5e-4,
        optimizer_eps=0.01,
        epsilon_end=0.1,
        epsilon_decay_frames=1_000_000,
    ),
    network=NetworkConfig(trunk="nature", hidden_sizes=(512,)),
    runner=RunnerConfig(
        log_every=50_000, eval_every=10_000_000, eval_episodes=10, eval_epsilon=0.01, checkpoint_every=1_000_000
    ),
    actors=ActorLearnerConfig(exploration="shared"),
)
"""DQN with the settings of Mnih et al. (2015), table 1. A frame is a step of the agent, four of the game."""

ATARI_RAINBOW = dataclasses.replace(
    ATARI_DQN,
    run_dir=Path("runs/atari-rainbow"),
    agent=dataclasses.replace(
        ATARI_DQN.agent,
        learning_starts=20_000,
        target_period=2_000,
        loss="categorical",
        double_q=True,
        n_step=3,
        memory="prioritised",
        priority_exponent=0.5,
        importance_exponent=0.4,
        importance_anneal_frames=50_000_000,
        optimizer="adam",
        learning_rate=6.25e-5,
        optimizer_eps=1.5e-4,
        exploration="greedy",
    ),
    network=dataclasses.replace(ATARI_DQN.network, head="dueling-categorical:-10:10:51", noisy=True),
)
"""Rainbow with the settings of Hessel et al. (2018), table 1."""
