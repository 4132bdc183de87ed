"""What an environment is: pure functions and a description. Not here: where environments come from, batches of them."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.types import Tree

EnvState: TypeAlias = Tree
EnvParams: TypeAlias = Tree


class TimeStep(NamedTuple):
    """What one step of one environment gave."""

    obs: jax.Array
    """[...] observation to act on next: after an end, the first of the next episode."""
    final_obs: jax.Array
    """[...] observation this step led to, even at an end."""
    reward: jax.Array
    """[] float32."""
    terminated: jax.Array
    """[] bool, the episode ended by its own rules."""
    truncated: jax.Array
    """[] bool, the time limit cut the episode; never true together with `terminated`."""


class Environment(NamedTuple):
    """One environment as pure functions; it resets itself after an episode's end."""

    name: str
    init: Callable[[jax.Array, EnvParams], tuple[EnvState, jax.Array]]
    """(key, params) -> (state, first observation)."""
    step: Callable[[jax.Array, EnvState, jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    """(key, state, action, params) -> (state, time step)."""
    params: EnvParams
    """Default parameters as arrays; they can differ from one environment to the next."""
    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype
    """Of observations, which networks cast to float32; bool where the replay may store eight entries to a byte."""
    num_actions: int
    max_episode_steps: int


def reset_key(stream: jax.Array) -> jax.Array:
    """The key that a random stream's first reset draws from; step t draws from `fold_in(stream, t)`, t from 0."""
    return jax.random.fold_in(stream, jnp.uint32(2**32 - 1))


def strong(x: Tree) -> jax.Array:
    """Drops the weak type that Python numbers leave behind: where reset and step differ in it, a loop is traced twice."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)
