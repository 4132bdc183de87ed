"""gymnax environments behind one small contract. The only module that imports gymnax, which starts jax's backend.

Not here: batches of environments (callers `vmap`), time limits as terminations (the actor's choice), rewards' meaning.
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError
from dqn_jax.types import Tree

EnvState: TypeAlias = Tree
EnvParams: TypeAlias = Tree

# Every entry of these observations is 0 or 1 (gymnax declares them as floats, or as one integer for FrozenLake).
_BOOLEAN_OBSERVATIONS = frozenset(
    {
        "Asterix-MinAtar",
        "Breakout-MinAtar",
        "Freeway-MinAtar",
        "Seaquest-MinAtar",
        "SpaceInvaders-MinAtar",
        "Catch-bsuite",
        "DeepSea-bsuite",
        "Pong-misc",
        "FrozenLake-misc",
    }
)
_NEEDS_DOWNLOAD = "MNISTBandit-bsuite"


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
    """float32, or bool where the replay may store eight entries to a byte."""
    num_actions: int
    max_episode_steps: int


def discrete_environments() -> list[str]:
    """Names of the environments that `make_env` accepts."""
    return [name for name in gymnax.registered_envs if name != _NEEDS_DOWNLOAD and _num_actions(*gymnax.make(name)) is not None]


def make_env(name: str, max_episode_steps: int | None = None) -> Environment:
    """Builds a gymnax environment.

    Args:
      name: a registered gymnax name, such as "CartPole-v1".
      max_episode_steps: time limit in steps; None keeps the environment's own.

    Returns:
      The environment, with FrozenLake's scalar observation as a one-hot vector.

    Raises:
      InputError: for an unknown name, continuous actions, or an environment that needs a download.
    """
    if name not in gymnax.registered_envs:
        close = difflib.get_close_matches(name, gymnax.registered_envs, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(discrete_environments())}"
        raise InputError(f"env is {name!r}, which gymnax does not know: {hint}")
    if name == _NEEDS_DOWNLOAD:
        raise InputError(f"env is {name!r}, which downloads a data set when it is built: choose another environment")
    env, params = gymnax.make(name)
    num_actions = _num_actions(env, params)
    if num_actions is None:
        raise InputError(f"env is {name!r}, whose actions are continuous: DQN needs discrete ones, as CartPole-v1 has")
    if max_episode_steps is not None:
        # One environment declares its limit as a float, and compares it as one.
        kind = type(params.max_steps_in_episode)
        params = params.replace(max_steps_in_episode=kind(max_episode_steps))
    limit = int(params.max_steps_in_episode)
    params = jax.tree.map(_strong, params)

    observe = _observer(name, env, params)
    obs = jax.eval_shape(lambda: observe(env.reset(jax.random.key(0), params)[0]))

    def init(key: jax.Array, params: EnvParams) -> tuple[EnvState, jax.Array]:
        obs, state = env.reset(key, params)
        return jax.tree.map(_strong, state), observe(obs)

    def step(key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        time_step = TimeStep(
            obs=observe(obs),
            final_obs=observe(info["final_observation"]),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
        )
        return jax.tree.map(_strong, state), time_step

    return Environment(name, init, step, params, obs.shape, obs.dtype, num_actions, limit)


def reset_key(stream: jax.Array) -> jax.Array:
    """The key that a random stream's first reset draws from; step t draws from `fold_in(stream, t)`, t from 0."""
    return jax.random.fold_in(stream, jnp.uint32(2**32 - 1))


def _num_actions(env: Any, params: EnvParams) -> int | None:
    return getattr(env.action_space(params), "n", None)


def _observer(name: str, env: Any, params: EnvParams) -> Callable[[jax.Array], jax.Array]:
    """The map from gymnax's observation to ours: one-hot for a scalar, bool where declared, else float32."""
    space = env.observation_space(params)
    dtype = bool if name in _BOOLEAN_OBSERVATIONS else jnp.float32

    def observe(obs: jax.Array) -> jax.Array:
        obs = jax.nn.one_hot(obs, space.n) if jnp.ndim(obs) == 0 else obs
        return obs.astype(dtype)

    return observe


def _strong(x: Tree) -> jax.Array:
    """Drops the weak type that Python numbers leave behind: gymnax's reset and step differ in it, which would trace twice."""
    return jax.lax.convert_element_type(x, jnp.result_type(x))
