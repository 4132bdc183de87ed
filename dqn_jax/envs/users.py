"""Environments of a user's own: by `module:function`, and from functions without auto-reset, final observation or time limit.

Not here: environments that are stepped on the host.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError, require
from dqn_jax.envs.environment import Environment, EnvParams, EnvState, TimeStep, check_environment
from dqn_jax.envs.gymnax_envs import from_gymnax
from dqn_jax.envs.wrappers import time_limit
from dqn_jax.lookup import blamed_on, check_like, lookup, strong
from dqn_jax.types import EnvSpec, Tree

_ARGUMENT = "env"


class Functions(NamedTuple):
    """An environment as a reset and a step alone; `from_functions` adds the rest."""

    reset: Callable[[jax.Array, EnvParams], tuple[EnvState, jax.Array]]
    """(key, params) -> (state, observation)."""
    step: Callable[[jax.Array, EnvState, jax.Array, EnvParams], tuple[EnvState, jax.Array, jax.Array, jax.Array]]
    """(key, state, action, params) -> (state, observation, reward [], terminated [] bool)."""
    num_actions: int
    params: EnvParams = ()
    max_episode_steps: int | None = None
    """Time limit in steps; None for no limit."""


class LimitedParams(flax.struct.PyTreeNode):
    """An environment's own parameters and its time limit."""

    own: EnvParams
    max_steps_in_episode: jax.Array
    """[] int32."""


class LimitedState(flax.struct.PyTreeNode):
    """An environment's own state and the steps of its episode."""

    own: EnvState
    time: jax.Array
    """[] int32."""


def make_users(spec: str, max_episode_steps: int | None, kwargs: Mapping[str, object]) -> Environment:
    """Builds the environment that a user's function returns.

    Args:
      spec: module:function; the function returns an Environment, a gymnax (env, params), or Functions.
      max_episode_steps: time limit in steps; None keeps the environment's own.
      kwargs: arguments of the function.

    Raises:
      InputError: if the function fails or returns something else, or its environment has no time limit or no array as its
        observation, or fails when it is traced.
    """
    found = lookup(_ARGUMENT, spec, {}, callable)
    require(not found.numbers, f"env is {spec!r}: give numbers by name, as --env-kwargs size=12")
    with blamed_on(_ARGUMENT, spec):
        made = found.part(**kwargs)
        if isinstance(made, Functions):
            env = from_functions(spec, made, max_episode_steps)
        elif isinstance(made, Environment):
            env = made if max_episode_steps is None else time_limit(made, max_episode_steps)
        elif isinstance(made, tuple) and len(made) == 2:
            env = from_gymnax(spec, *made, max_episode_steps)
        else:
            raise InputError(
                f"env is {spec!r}, which gives a {type(made).__name__}: return an envs.Environment, a gymnax "
                "environment and its parameters, or envs.Functions"
            )
        check_environment(_ARGUMENT, spec, env)
    return env


def from_functions(name: str, functions: Functions, max_episode_steps: int | None = None) -> Environment:
    """Adds to an environment's rules: automatic reset, the final observation, and a time limit.

    Args:
      name: for messages.
      functions: the rules.
      max_episode_steps: time limit in steps; None takes theirs.

    Raises:
      InputError: where neither gives a time limit, the observation is no array, or a step changes shapes or types.
    """
    limit = functions.max_episode_steps if max_episode_steps is None else max_episode_steps
    if limit is None:
        raise InputError(
            f"env is {name!r}, which has no time limit, and a greedy episode may never end: set --max-episode-steps"
        )
    params = LimitedParams(jax.tree.map(lambda x: strong(jnp.asarray(x)), functions.params), jnp.int32(limit))
    key, action = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    state, first_obs = jax.eval_shape(functions.reset, key, params.own)
    if not isinstance(first_obs, jax.ShapeDtypeStruct):
        raise InputError(f"env is {name!r}, whose observations are a {type(first_obs).__name__}: give arrays")
    after, obs, _, _ = jax.eval_shape(functions.step, key, state, action, params.own)
    begun, stepped = {"state": state, "observation": first_obs}, {"state": after, "observation": obs}
    check_like(_ARGUMENT, name, stepped, begun)
    kinds = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (begun, stepped)]
    require(
        kinds[0] == kinds[1],
        f"env is {name!r}, whose reset gives {kinds[0]}, and its step {kinds[1]}: give the same types",
    )

    def init(key: jax.Array, params: LimitedParams) -> tuple[LimitedState, jax.Array]:
        state, obs = functions.reset(key, params.own)
        return LimitedState(jax.tree.map(strong, state), jnp.int32(0)), strong(obs)

    def step(key: jax.Array, state: LimitedState, action: jax.Array, params: LimitedParams) -> tuple[LimitedState, TimeStep]:
        step_key, reset_key = jax.random.split(key)
        own, obs, reward, terminated = functions.step(step_key, state.own, action, params.own)
        terminated = jnp.asarray(terminated, bool)
        truncated = (state.time + 1 >= params.max_steps_in_episode) & ~terminated
        next_state = LimitedState(jax.tree.map(strong, own), state.time + 1)
        fresh, first_obs = init(reset_key, params)
        ended = terminated | truncated
        next_state, next_obs = jax.tree.map(
            lambda new, old: jnp.where(ended, new, old), (fresh, first_obs), (next_state, strong(obs))
        )
        return next_state, TimeStep(next_obs, strong(obs), jnp.asarray(reward, jnp.float32), terminated, truncated)

    spec = EnvSpec(name, first_obs.shape, np.dtype(first_obs.dtype), functions.num_actions, limit)
    return Environment(spec, init, step, params)


def parameter(params: EnvParams, name: str) -> Tree:
    """Returns the parameter of a name, of a wrapper's or of the environment's own; None where there is none."""
    if hasattr(params, name):
        return getattr(params, name)
    return parameter(params.own, name) if hasattr(params, "own") else None


def with_parameters(params: EnvParams, **fields: jax.Array) -> EnvParams:
    """Replaces some of the parameters: fields of a flax dataclass or of a NamedTuple, or of what their field `own` holds."""
    here = {name: value for name, value in fields.items() if hasattr(params, name)}
    if len(here) < len(fields) and hasattr(params, "own"):
        here["own"] = with_parameters(params.own, **{name: fields[name] for name in fields.keys() - here.keys()})
    else:
        here = fields
    return params._replace(**here) if hasattr(params, "_replace") else params.replace(**here)
