"""CHIP-8 arcade games of octax, inside the program. The only module that needs octax (extra "octax").

An observation is the screen after each of the four frames that an action is held for: [32, 64, 4], on or off. The end of a game
is a termination; octax's limit, 4,500 steps, is a limit.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dqn_jax.config import InputError, not_installed
from dqn_jax.envs.environment import Environment, EnvParams
from dqn_jax.envs.users import Functions, from_functions

PREFIX = "octax:"
"""Prefix of the names of games; a number after a name is a level."""


def make_octax(name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> Environment:
    """Builds a game.

    Args:
      name: "octax:" and a game, as brix or cavern2.
      max_episode_steps: time limit in steps; None keeps octax's own.
      kwargs: arguments of its `create_environment`.

    Raises:
      InputError: where octax is not installed, has no such game, or cannot make it with these arguments.
    """
    try:
        from octax import environments
    except ImportError:
        raise not_installed(f"env is {name!r}", "octax", "octax") from None
    game, games = name.removeprefix(PREFIX), sorted(module.name for module in pkgutil.iter_modules(environments.__path__))
    if game.rstrip("0123456789") not in games:
        raise InputError(f"env is {name!r}, which octax does not know: choose one of {', '.join(games)}")
    try:
        env = environments.create_environment(game, **kwargs)[0]
    except (AttributeError, FileNotFoundError, TypeError) as error:
        raise InputError(f"env is {name!r} with env_kwargs {dict(kwargs)}, which octax cannot make: {error}") from None

    def reset(key: jax.Array, params: EnvParams) -> tuple[Any, jax.Array]:
        # octax takes keys without a type.
        state, frames, _ = env.reset(jax.random.key_data(key))
        return state, observed(frames)

    def step(key: jax.Array, state: Any, action: jax.Array, params: EnvParams) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        state, frames, reward, terminated, _, _ = env.step(state, action)
        return state, observed(frames), reward, terminated

    rules = Functions(reset, step, env.num_actions, max_episode_steps=env.max_num_steps_per_episodes)
    return from_functions(name, rules, max_episode_steps)


def observed(frames: jax.Array) -> jax.Array:
    """Turns octax's frames [K, W, H] into an observation [H, W, K]."""
    return jnp.transpose(frames, (2, 1, 0)) > 0
