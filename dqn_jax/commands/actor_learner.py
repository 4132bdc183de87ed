"""The main of training with actors and a learner (examples: experiments/actor_learner.py)."""

from dqn_jax.commands.workers import prepare, start
from dqn_jax.distributed.presets import APEX, ATARI_DQN, ATARI_RAINBOW, SMOKE_ACTORS
from dqn_jax.runner.command_line import exit_code_of, parse

PRESETS = {"apex": APEX, "atari-dqn": ATARI_DQN, "atari-rainbow": ATARI_RAINBOW, "smoke": SMOKE_ACTORS}


def train() -> None:
    """Parses flags, starts Ray and then jax, then trains."""
    config = parse(PRESETS, "Trains DQN with actors and a learner.")
    prepare(config, config.actors.num_actors)
    # Not at the top: these start jax.
    from dqn_jax.distributed import actor_learner, actors
    from dqn_jax.runner.loop import run

    engine = start(config, actors.make_job, config.actors.num_actors)
    driver, evaluator = actor_learner.from_config(config, engine)
    run(driver, config, evaluator)


def main() -> int:
    """Runs the job and returns its exit status."""
    return exit_code_of(train, PRESETS)
