"""Environments by name: gymnax's, and a user's own."""

import ast
from collections.abc import Sequence
from typing import Protocol

from dqn_jax.config import InputError
from dqn_jax.envs.environment import Environment, EnvParams, EnvState, TimeStep, reset_key
from dqn_jax.envs.gymnax_envs import discrete_environments, from_gymnax, make_gymnax
from dqn_jax.envs.users import Functions, from_functions, make_users, parameter, with_parameters
from dqn_jax.lookup import is_users

__all__ = [
    "HOST_PREFIX",
    "EnvParams",
    "EnvState",
    "Environment",
    "Functions",
    "TimeStep",
    "discrete_environments",
    "env_of",
    "from_functions",
    "from_gymnax",
    "is_host",
    "make_env",
    "parameter",
    "parse_kwargs",
    "reset_key",
    "with_parameters",
]

HOST_PREFIX = "gymnasium:"
"""Of names of environments that are stepped on the host."""


def is_host(name: str) -> bool:
    """Whether an environment's name is one of Gymnasium, which is stepped on the host."""
    return name.startswith(HOST_PREFIX)


def make_env(name: str, max_episode_steps: int | None = None, kwargs: Sequence[str] = ()) -> Environment:
    """Builds an environment that is stepped inside a program.

    Args:
      name: a registered gymnax name, such as "CartPole-v1", or module:function of a user's own.
      max_episode_steps: time limit in steps; None keeps the environment's own.
      kwargs: arguments of what makes it, each as "size=12".

    Raises:
      InputError: for a name without meaning, an environment of the host, or one that cannot be made or has no time limit.
    """
    if is_host(name):
        raise InputError(
            f"env is {name!r}, which is stepped on the host: train it with experiments/actor_learner.py, or name one of gymnax"
        )
    arguments = parse_kwargs(kwargs)
    make = make_users if is_users(name) else make_gymnax
    return make(name, max_episode_steps, arguments)


class NamesEnv(Protocol):
    """A config that names an environment."""

    @property
    def env(self) -> str:
        """Its name."""

    @property
    def env_kwargs(self) -> tuple[str, ...]:
        """Arguments of what makes it."""

    @property
    def max_episode_steps(self) -> int | None:
        """Its time limit, if it is not its own."""


def env_of(config: NamesEnv) -> Environment:
    """The environment that a config names, as `make_env`."""
    return make_env(config.env, config.max_episode_steps, config.env_kwargs)


def parse_kwargs(kwargs: Sequence[str]) -> dict[str, object]:
    """Arguments by name, of texts such as "size=12": values as Python writes them, and what is no such value as text.

    Raises:
      InputError: for a text without a name and "=", or a name given twice.
    """
    parsed: dict[str, object] = {}
    for text in kwargs:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()) or name in parsed:
            raise InputError(f"env_kwargs has {text!r}: give each argument once, as size=12")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
