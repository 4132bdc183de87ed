"""Trains DQN with actors that explore, each with its own epsilon, and a learner that learns from what they send.

python experiments/actor_learner.py                                  # four actors on threads
python experiments/actor_learner.py --backend ray --run-dir runs/ray
python experiments/actor_learner.py --actors.exploration shared --run-dir runs/shared   # the agent's epsilon for all
python experiments/actor_learner.py --env gymnasium:CartPole-v1 --run-dir runs/gymnasium
"""

import functools
import sys

from dqn_jax import runtime
from dqn_jax.distributed.presets import APEX
from dqn_jax.runner.command_line import exit_code_of, parse

PRESETS = {"apex": APEX}


def main() -> None:
    """Parses flags, starts Ray and then jax, then trains."""
    config = parse(PRESETS, "Trains DQN with actors and a learner.")
    if config.backend == "ray":
        from dqn_jax.distributed.engines import on_ray

        on_ray.connect(config.ray_address, config.actors.num_actors)
    runtime.setup(config.num_devices)
    # Not at the top: these start jax.
    from dqn_jax.distributed import actor_learner, actors
    from dqn_jax.distributed.engines import start
    from dqn_jax.runner.loop import run

    make_job = functools.partial(actors.make_job, config)
    engine = start(config.backend, make_job, config.actors.num_actors, config.ray_address)
    driver, evaluator = actor_learner.from_config(config, engine)
    run(driver, config, evaluator)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
