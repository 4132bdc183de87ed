"""The command that lists environments."""

import importlib.util

from dqn_jax import runtime
from dqn_jax.runner.command_line import NoFlags, exit_code_of, options

_OTHERS = (
    ("octax:GAME", "octax", "of octax", ""),
    ("pgx:GAME", "pgx", "of pgx, for one player", ""),
    ("craftax:WORLD", "craftax", "of craftax", ""),
    ("jumanji:GAME", "jumanji", "of jumanji", ""),
    ("gymnasium:NAME", "gymnasium", "of Gymnasium", " (actors and server workers alone)"),
    ("atari:GAME", "ale_py", "of Atari", " (actors and server workers alone)"),
)
"""Names, the package that is needed, whose they are, and who trains in them."""


def show() -> None:
    """Prints each environment of gymnax that DQN can learn: name, observations, actions and time limit."""
    options(NoFlags(), "Lists the environments that --env takes by name.")
    runtime.setup(1)
    # Not at the top: this starts jax.
    from dqn_jax.envs import make_env
    from dqn_jax.envs.gymnax_envs import discrete_environments

    for name in discrete_environments():
        spec = make_env(name).spec
        print(f"{name:28s}{spec.obs_shape!s:14s}{spec.num_actions:3d} actions  {spec.max_episode_steps} steps at most")
    for name, package, words, who in _OTHERS:
        there = "installed" if importlib.util.find_spec(package) else "not installed"
        print(f"{name:29s}{words}, {there}{who}")
    print("module:function              your own (docs/environments.md)")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(show)
