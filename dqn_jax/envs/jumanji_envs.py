"""Games of jumanji, inside the program. The only module that needs jumanji (extra "jumanji").

Its observations are structures: `--env-kwargs field=grid` names the part that is learnt from. There are no action masks: an
action that the rules forbid does what the game says, as in Snake, where it ends the game, or 2048, where nothing moves. The
game's own limit of steps is a limit, though jumanji ends many games with it as with a loss.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from dqn_jax.config import InputError, not_installed, require
from dqn_jax.envs.environment import Environment, EnvParams
from dqn_jax.envs.users import Functions, from_functions

PREFIX = "jumanji:"
"""Prefix of the names of games."""


def make_jumanji(name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> Environment:
    """Builds a game.

    Args:
      name: "jumanji:" and a game, as Snake-v1.
      max_episode_steps: time limit in steps; None keeps the game's own.
      kwargs: `field`, the part of the observation; all else are arguments of the game.

    Raises:
      InputError: where jumanji is not installed, has no such game, or cannot make it with these arguments; and for a game whose
        actions are not one number, or a part of its observations that is not there.
    """
    try:
        import jumanji
    except ImportError:
        raise not_installed(f"env is {name!r}", "jumanji", "jumanji") from None
    game, games = name.removeprefix(PREFIX), jumanji.registered_environments()
    require(game in games, f"env is {name!r}, which jumanji does not know: its games are {', '.join(sorted(games))}")
    arguments = {key: value for key, value in kwargs.items() if key != "field"}
    try:
        env = jumanji.make(game, **arguments)
        limit = max_episode_steps or getattr(env, "time_limit", None)
        if limit and "time_limit" in inspect.signature(type(env)).parameters:
            # One step more, so that the limit that ends an episode is ours.
            env = jumanji.make(game, **arguments | {"time_limit": limit + 1})
    except (TypeError, ValueError) as error:
        raise InputError(f"env is {name!r} with env_kwargs {arguments}, which jumanji cannot make: {error}") from None
    actions, field = getattr(env.action_spec, "num_values", None), str(kwargs.get("field"))
    if not isinstance(actions, int):
        raise InputError(f"env is {name!r}, whose actions are not one number: take another game")
    parts = env.observation_spec.generate_value()._fields
    known = f"with observations of {', '.join(parts)}"
    require(field in parts, f"env is {name!r}, {known}: name one, as --env-kwargs field={parts[0]}")

    def reset(key: jax.Array, params: EnvParams) -> tuple[Any, jax.Array]:
        state, begun = env.reset(jax.random.key_data(key))
        return state, getattr(begun.observation, field)

    def step(key: jax.Array, state: Any, action: jax.Array, params: EnvParams) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        state, after = env.step(state, action)
        return state, getattr(after.observation, field), after.reward, after.last()

    return from_functions(name, Functions(reset, step, actions, max_episode_steps=limit))
