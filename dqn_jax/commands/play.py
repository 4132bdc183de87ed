"""The main of playing what was trained: `dqn-jax play RUN_DIR`, or `dqn-jax play FILE` of an exported policy."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from dqn_jax import runtime
from dqn_jax.config import require
from dqn_jax.runner.command_line import exit_code_of, options
from dqn_jax.runner.compiled import keep_compiled


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """What is played, how, and whether it is drawn."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR|FILE")] = Path("runs/latest")
    """Run directory, or a file that dqn-jax export wrote."""
    episodes: int | None = None
    """Episodes of each seed; None takes as many as the run's evaluations: then returns are those of its last one."""
    seeds: tuple[int, ...] = ()
    """Seeds of the run; none takes all."""
    client: int | None = None
    """Client of a federation, whose own parameters are played in its environment; None takes the global ones."""
    env_params: tuple[str, ...] = ()
    """Other parameters of the environment, such as length=0.8."""
    epsilon: float | None = None
    """Probability of an action at random; None takes that of the run's evaluations."""
    gif: Path | None = None
    """File for pictures of the first seed's first episode."""

    def __post_init__(self) -> None:
        require(self.episodes is None or self.episodes > 0, f"episodes is {self.episodes}: give a positive number")
        require(self.epsilon is None or 0 <= self.epsilon <= 1, f"epsilon is {self.epsilon}: give a number from 0 to 1")


def show() -> None:
    """Parses flags, loads, plays, and prints a line for each seed."""
    chosen = options(PlayOptions(), "Plays what was trained.")
    keep_compiled(True)
    runtime.setup(1)
    # Not at the top: these start jax.
    import numpy as np

    from dqn_jax.play.episodes import film, play, with_env_params
    from dqn_jax.play.load import load
    from dqn_jax.runner.gif import write_gif

    seeds = chosen.seeds or load(chosen.source, client=chosen.client).config.seeds
    policies = [with_env_params(load(chosen.source, seed, chosen.client), chosen.env_params) for seed in seeds]
    config = policies[0].config
    epsilon = config.runner.eval_epsilon if chosen.epsilon is None else chosen.epsilon
    result = play(policies, chosen.episodes or config.runner.eval_episodes, epsilon)
    for seed, returns, finished in zip(seeds, np.asarray(result.returns), np.asarray(result.finished), strict=True):
        spread = f"{returns.min():g} to {returns.max():g}"
        cut = "" if finished.all() else f", {np.sum(~finished)} of them cut short"
        print(f"seed {seed}: return {returns.mean():.1f} ({len(returns)} episode(s), {spread}{cut})")
    print(f"{config.env}: return {np.mean(result.returns):.1f} of {len(policies)} seed(s)")
    if chosen.gif is not None:
        pictures, per_second, episode = film(policies[0], epsilon)
        write_gif(chosen.gif, pictures, per_second)
        print(f"{chosen.gif}: {len(pictures)} pictures of seed {seeds[0]}'s first episode, return {episode.returns[0]:g}")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(show)
