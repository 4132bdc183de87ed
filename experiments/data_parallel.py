"""Trains DQN on a gymnax environment with gradients averaged over devices: the main job of this code base.

python experiments/data_parallel.py                                  # CartPole, 8 seeds, all local devices
python experiments/data_parallel.py --num-devices 4 --num-seeds 16   # four devices, virtual ones on a laptop
python experiments/data_parallel.py --preset classic                 # textbook DQN
"""

import sys
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, ExperimentConfig, NetworkConfig, RunnerConfig
from dqn_jax.runner.command_line import exit_code_of, parse

PRESETS = {
    # Tuned on seeds 1000 to 1015: a target copied often, small steps and little exploration at the end keep it at the optimum.
    "quickstart": ExperimentConfig(
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
    ),
    # DQN as the textbooks have it, one environment and an update every frame.
    "classic": ExperimentConfig(
        max_episode_steps=200,
        num_devices=1,
        total_frames=100_000,
        run_dir=Path("runs/classic"),
        agent=AgentConfig(num_envs=1),
        runner=RunnerConfig(log_every=1_000, eval_every=5_000, checkpoint_every=10_000),
    ),
}


def main() -> None:
    """Parses flags, then starts jax on the devices they ask for, then trains."""
    config = parse(PRESETS, "Trains DQN with gradients averaged over devices.")
    runtime.setup(config.num_devices)
    # Not at the top: these start jax.
    from dqn_jax.distributed.data_parallel import from_config
    from dqn_jax.runner.loop import run

    driver, evaluate = from_config(config)
    run(driver, config, evaluate)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
