"""gymnax environments as `Environment`s. The only module that imports gymnax, which starts jax's backend.

Not here: batches of environments (callers `vmap`), time limits as terminations (the actor's choice), rewards' meaning.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import gymnax
import jax
import jax.numpy as jnp

from dqn_jax.config import InputError
from dqn_jax.envs.environment import Environment, EnvParams, EnvState, TimeStep
from dqn_jax.lookup import strong
from dqn_jax.types import EnvSpec

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
ELSEWHERE = "give module:function for one of your own, gymnasium:NAME for one of Gymnasium's"
"""What else an environment's name may be."""


def discrete_environments() -> list[str]:
    """Lists the names of the gymnax environments that `make_env` accepts."""
    return [name for name in gymnax.registered_envs if name != _NEEDS_DOWNLOAD and _num_actions(*gymnax.make(name)) is not None]


def make_gymnax(name: str, max_episode_steps: int | None, kwargs: Mapping[str, object]) -> Environment:
    """Builds a gymnax environment by its registered name.

    Args:
      name: such as "CartPole-v1".
      max_episode_steps: time limit in steps; None keeps the environment's own.
      kwargs: arguments of its constructor.

    Returns:
      The environment, with FrozenLake's scalar observation as a one-hot vector.

    Raises:
      InputError: for an unknown name, continuous actions, an environment that needs a download, or arguments that do not fit.
    """
    if name not in gymnax.registered_envs:
        # A slash is in the names of other suites alone.
        close = [] if "/" in name else difflib.get_close_matches(name, gymnax.registered_envs, n=1, cutoff=0.55)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(discrete_environments())}, or {ELSEWHERE}"
        raise InputError(f"env is {name!r}, which gymnax does not know: {hint}")
    if name == _NEEDS_DOWNLOAD:
        raise InputError(f"env is {name!r}, which downloads a data set when it is built: choose another environment")
    try:
        env, params = gymnax.make(name, **kwargs)
    except TypeError as error:
        raise InputError(f"env_kwargs is {dict(kwargs)}, and {name} cannot be made with it ({error}): correct it") from None
    return from_gymnax(name, env, params, max_episode_steps)


def from_gymnax(name: str, env: Any, params: EnvParams, max_episode_steps: int | None = None) -> Environment:
    """Wraps a gymnax environment, registered or not, as an `Environment`.

    Args:
      name: for messages.
      env: with gymnax's reset, step and spaces.
      params: its parameters, `max_steps_in_episode` among them.
      max_episode_steps: time limit in steps; None keeps the environment's own.

    Raises:
      InputError: for continuous actions.
    """
    num_actions = _num_actions(env, params)
    if num_actions is None:
        raise InputError(f"env is {name!r}, whose actions are continuous: DQN needs discrete ones, as CartPole-v1 has")
    if max_episode_steps is not None:
        # One environment declares its limit as a float, and compares it as one.
        kind = type(params.max_steps_in_episode)
        params = params.replace(max_steps_in_episode=kind(max_episode_steps))
    limit = int(params.max_steps_in_episode)
    params = jax.tree.map(strong, params)

    observe = _observer(name, env, params)
    obs = jax.eval_shape(lambda: observe(env.reset(jax.random.key(0), params)[0]))

    def init(key: jax.Array, params: EnvParams) -> tuple[EnvState, jax.Array]:
        obs, state = env.reset(key, params)
        return jax.tree.map(strong, state), observe(obs)

    def step(key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        time_step = TimeStep(
            obs=observe(obs),
            final_obs=observe(info["final_observation"]),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
        )
        return jax.tree.map(strong, state), time_step

    return Environment(EnvSpec(name, obs.shape, obs.dtype, num_actions, limit), init, step, params)


def _num_actions(env: Any, params: EnvParams) -> int | None:
    return getattr(env.action_space(params), "n", None)


def _observer(name: str, env: Any, params: EnvParams) -> Callable[[jax.Array], jax.Array]:
    """Builds the map from gymnax's observation to ours: a scalar one-hot, 0/1 entries bool, uint8 kept, else float32."""
    space = env.observation_space(params)

    def observe(obs: jax.Array) -> jax.Array:
        obs = jax.nn.one_hot(obs, space.n) if jnp.ndim(obs) == 0 else obs
        small = obs.dtype in (jnp.bool_, jnp.uint8)
        return obs.astype(bool if name in _BOOLEAN_OBSERVATIONS else obs.dtype if small else jnp.float32)

    return observe
