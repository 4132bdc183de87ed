"""The main of data-parallel training, the main job of this code base (examples: experiments/data_parallel.py)."""

from dqn_jax import runtime
from dqn_jax.presets import CLASSIC, QUICKSTART, SMOKE
from dqn_jax.runner.command_line import exit_code_of, parse
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.hosts import FLAGS, join, parse_hosts

PRESETS = {"quickstart": QUICKSTART, "classic": CLASSIC, "smoke": SMOKE}


def train() -> None:
    """Parses flags, then starts jax on the devices they ask for, then trains."""
    hosts, flags = parse_hosts()
    config = parse(PRESETS, f"Trains DQN with gradients averaged over devices.\n\n{FLAGS}.", flags)
    keep_compiled(config.runner.compilation_cache)
    runtime.setup(config.num_devices)
    join(hosts)
    # Not at the top: these start jax.
    from dqn_jax.distributed.data_parallel import from_config
    from dqn_jax.runner.loop import run

    driver, evaluator = from_config(config)
    run(driver, config, evaluator)


def main() -> int:
    """Runs the job and returns its exit status."""
    return exit_code_of(train, PRESETS)
