"""Worlds of craftax, inside the program. The only module that needs craftax (extra "craftax").

Losing all health is a termination, and so are lava and the last enemy's defeat; craftax's own limit of steps is a limit.
"""

from collections.abc import Mapping
from typing import Any

import jax

from dqn_jax.config import InputError, not_installed
from dqn_jax.envs.environment import Environment, EnvParams
from dqn_jax.envs.users import Functions, from_functions

PREFIX = "craftax:"
"""Prefix of the names of worlds."""
_NEVER = 2**30


def make_craftax(name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> Environment:
    """Builds a world.

    Args:
      name: "craftax:" and a world, as Craftax-Classic-Symbolic-v1.
      max_episode_steps: time limit in steps; None keeps craftax's own.
      kwargs: parameters of the world, as day_length.

    Raises:
      InputError: where craftax is not installed, has no such world, or the world no such parameter.
    """
    try:
        from craftax.craftax_env import make_craftax_env_from_name
    except ImportError:
        raise not_installed(f"env is {name!r}", "craftax", "craftax") from None
    try:
        env = make_craftax_env_from_name(name.removeprefix(PREFIX), auto_reset=False)
        params = env.default_params.replace(**kwargs)
    except ValueError:
        raise InputError(f"env is {name!r}, which craftax does not know: take one as {PREFIX}Craftax-Symbolic-v1") from None
    except TypeError as error:
        raise InputError(f"env is {name!r} with env_kwargs {dict(kwargs)}, which craftax cannot make: {error}") from None

    def step(key: jax.Array, state: Any, action: jax.Array, params: EnvParams) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return state, obs, reward, terminated

    def reset(key: jax.Array, params: EnvParams) -> tuple[Any, jax.Array]:
        return env.reset_env(key, params)[::-1]

    limit = int(params.max_timesteps)
    rules = Functions(reset, step, env.num_actions, params.replace(max_timesteps=_NEVER), limit)
    return from_functions(name, rules, max_episode_steps)
