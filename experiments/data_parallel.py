"""Trains DQN on a gymnax environment with gradients averaged over devices: the main job of this code base.

python experiments/data_parallel.py                                  # CartPole, 8 seeds, all local devices
python experiments/data_parallel.py --num-devices 4 --num-seeds 16   # four devices, virtual ones on a laptop
python experiments/data_parallel.py --preset classic                 # textbook DQN
python -m dqn_jax.runner.launch --num-processes 2 experiments/data_parallel.py --num-devices 2   # two processes of two devices
"""

import sys

from dqn_jax import runtime
from dqn_jax.presets import CLASSIC, QUICKSTART
from dqn_jax.runner.command_line import exit_code_of, parse
from dqn_jax.runner.hosts import FLAGS, join, parse_hosts

PRESETS = {"quickstart": QUICKSTART, "classic": CLASSIC}


def main() -> None:
    """Parses flags, then starts jax on the devices they ask for, then trains."""
    hosts, flags = parse_hosts()
    config = parse(PRESETS, f"Trains DQN with gradients averaged over devices.\n\n{FLAGS}.", flags)
    runtime.setup(config.num_devices)
    join(hosts)
    # Not at the top: these start jax.
    from dqn_jax.distributed.data_parallel import from_config
    from dqn_jax.runner.loop import run

    driver, evaluator = from_config(config)
    run(driver, config, evaluator)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
