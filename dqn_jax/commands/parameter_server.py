"""The main of training with a parameter server (examples: experiments/parameter_server.py)."""

from dqn_jax.commands.workers import prepare, start
from dqn_jax.distributed.presets import CARTPOLE_SERVER, CLASSIC_SERVER, SERVER_MODEL, SMOKE_SERVER
from dqn_jax.runner.command_line import exit_code_of, parse

PRESETS = {"classic": CLASSIC_SERVER, "model": SERVER_MODEL, "cartpole": CARTPOLE_SERVER, "smoke": SMOKE_SERVER}


def train() -> None:
    """Parses flags, starts Ray and then jax, then trains."""
    config = parse(PRESETS, "Trains DQN with a parameter server.")
    prepare(config, config.server.num_workers)
    # Not at the top: these start jax.
    from dqn_jax.distributed import parameter_server, server_on_workers, workers
    from dqn_jax.runner.loop import run

    if config.backend == "device":
        driver, evaluator = parameter_server.from_config(config)
    else:
        engine = start(config, workers.make_job, config.server.num_workers)
        driver, evaluator = server_on_workers.from_config(config, engine)
    run(driver, config, evaluator)


def main() -> int:
    """Runs the job and returns its exit status."""
    return exit_code_of(train, PRESETS)
