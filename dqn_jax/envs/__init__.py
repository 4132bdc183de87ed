"""Environments: their interface, where they come from, and wrappers."""

from dqn_jax.envs.by_name import env_of, eval_env_of, make_env, parse_kwargs
from dqn_jax.envs.environment import Environment, EnvParams, EnvState, Running, TimeStep, reset_key, seeds_of
from dqn_jax.envs.gymnax_envs import discrete_environments, from_gymnax
from dqn_jax.envs.users import Functions, from_functions, parameter, with_parameters
from dqn_jax.types import EnvSpec

__all__ = [
    "EnvParams",
    "EnvSpec",
    "EnvState",
    "Environment",
    "Functions",
    "Running",
    "TimeStep",
    "discrete_environments",
    "env_of",
    "eval_env_of",
    "from_functions",
    "from_gymnax",
    "make_env",
    "parameter",
    "parse_kwargs",
    "reset_key",
    "seeds_of",
    "with_parameters",
]
