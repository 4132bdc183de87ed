"""Games of pgx for one player, inside the program. The only module that needs pgx (extra "pgx").

There are no action masks: an action that the rules forbid ends the game with pgx's own penalty, a reward of -1.
"""

from collections.abc import Mapping
from typing import Any

import jax

from dqn_jax.config import InputError, not_installed, require
from dqn_jax.envs.environment import Environment, EnvParams
from dqn_jax.envs.users import Functions, from_functions

PREFIX = "pgx:"
"""Prefix of the names of games."""


def make_pgx(name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> Environment:
    """Builds a game.

    Args:
      name: "pgx:" and a game, as 2048.
      max_episode_steps: time limit in steps; pgx has none.
      kwargs: arguments of `pgx.make`.

    Raises:
      InputError: where pgx is not installed, has no such game or one for several players, or there is no limit.
    """
    try:
        import pgx
    except ImportError:
        raise not_installed(f"env is {name!r}", "pgx", "pgx") from None
    game: Any = name.removeprefix(PREFIX)
    games = sorted(pgx.available_envs())
    require(game in games, f"env is {name!r}, which pgx does not know: its games are {', '.join(games)}")
    try:
        env = pgx.make(game, **kwargs)
    except (ImportError, TypeError) as error:
        raise InputError(f"env is {name!r} with env_kwargs {dict(kwargs)}, which pgx cannot make: {error}") from None
    require(env.num_players == 1, f"env is {name!r}, a game for {env.num_players} players: take one for one, as pgx:2048")

    def reset(key: jax.Array, params: EnvParams) -> tuple[Any, jax.Array]:
        state = env.init(key)
        return state, state.observation

    def step(key: jax.Array, state: Any, action: jax.Array, params: EnvParams) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        state = env.step(state, action, key)
        return state, state.observation, state.rewards[0], state.terminated

    return from_functions(name, Functions(reset, step, env.num_actions), max_episode_steps)
