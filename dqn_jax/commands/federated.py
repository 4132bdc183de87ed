"""The main of federated training (examples: experiments/federated.py)."""

from dqn_jax import runtime
from dqn_jax.federated.presets import CLASSIC, HETEROGENEOUS, SMOKE
from dqn_jax.runner.command_line import exit_code_of, parse
from dqn_jax.runner.compiled import keep_compiled

PRESETS = {"heterogeneous": HETEROGENEOUS, "classic": CLASSIC, "smoke": SMOKE}


def train() -> None:
    """Parses flags, then starts jax on the devices they ask for, then trains."""
    config = parse(PRESETS, "Trains federated DQN.")
    keep_compiled(config.runner.compilation_cache)
    runtime.setup(config.num_devices)
    # Not at the top: these start jax.
    from dqn_jax.federated.driver import from_config
    from dqn_jax.runner.loop import run

    driver, evaluator = from_config(config)
    run(driver, config, evaluator)


def main() -> int:
    """Runs the job and returns its exit status."""
    return exit_code_of(train, PRESETS)
