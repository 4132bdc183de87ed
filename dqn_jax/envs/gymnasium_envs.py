"""Environments of Gymnasium, which are stepped on the host. The only module that needs Gymnasium (extra "gymnasium").

Not here: choosing actions and making transitions, which is the actor's.

Shapes: E environments.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError, not_installed, require
from dqn_jax.envs.environment import Environment, Running, TimeStep, on_host
from dqn_jax.envs.wrappers import REWARD_CLIP, joined, wrapper_of
from dqn_jax.types import EnvSpec

PREFIX = "gymnasium:"
"""Prefix of the names of Gymnasium's environments."""


class _Copies:
    """E copies of an environment that reset themselves in the step that ends an episode."""

    def __init__(self, make: Callable[[], Any], seeds: Sequence[int], dtype: np.dtype) -> None:
        import gymnasium

        same_step = gymnasium.vector.AutoresetMode.SAME_STEP
        self._envs: Any = gymnasium.vector.SyncVectorEnv([make] * len(seeds), autoreset_mode=same_step)
        self._dtype = dtype
        self.obs: np.ndarray = self._envs.reset(seed=list(seeds))[0].astype(dtype)

    def step(self, actions: np.ndarray) -> TimeStep:
        obs, rewards, terminated, truncated, info = self._envs.step(actions)
        # Copies: Gymnasium writes the next observations where these are.
        self.obs = obs.astype(self._dtype)
        return TimeStep(
            obs=jnp.asarray(self.obs),
            final_obs=jnp.asarray(final_observations(self.obs, info)),
            reward=jnp.asarray(rewards, jnp.float32),
            terminated=jnp.asarray(terminated),
            truncated=jnp.asarray(truncated & ~terminated),
        )

    def pictures(self) -> list[np.ndarray]:
        return list(self._envs.envs[0].render())

    def close(self) -> None:
        self._envs.close()


def make_gymnasium(
    name: str, max_episode_steps: int | None, kwargs: Mapping[str, Any], wrappers: Sequence[str] = ()
) -> Environment:
    """Builds an environment of Gymnasium's, which is stepped on the host and cannot be traced.

    Args:
      name: "gymnasium:" and its registered name.
      max_episode_steps: time limit in steps; None keeps the environment's own.
      kwargs: arguments of its constructor.
      wrappers: wrappers of it, by the names of `wrappers.WRAPPERS`; a user's own maps a Gymnasium environment to another.

    Raises:
      InputError: where Gymnasium is not installed or cannot make it, its actions are not discrete, its observations are not one
        array, or it has no time limit.
    """
    try:
        import gymnasium
    except ImportError:
        raise not_installed(f"env is {name!r}", "Gymnasium", "gymnasium") from None
    changes = [wrapper_of(spec, _wrappers()) for spec in wrappers]
    draws = kwargs.get("render_mode") == "rgb_array"
    if draws:
        # A reset keeps them: the last picture of an episode and the first of the next are taken in one step.
        changes.append(lambda env: gymnasium.wrappers.RenderCollection(env, pop_frames=False, reset_clean=False))

    def make() -> Any:
        env: Any = gymnasium.make(name.removeprefix(PREFIX), max_episode_steps=max_episode_steps, **kwargs)
        for change in changes:
            env = change(env)
        return env

    try:
        one = make()
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise InputError(f"env is {name!r}, which Gymnasium cannot make: {str(error).splitlines()[0]}") from None
    modes = one.metadata.get("render_modes", [])
    require(
        not draws or "rgb_array" in modes,
        f"env is {name!r}, which does not draw itself (render modes {modes}): leave out pictures",
    )
    spec = _describe(name, one)
    one.close()

    def start(seeds: Sequence[int]) -> Running:
        try:
            return _Copies(make, seeds, spec.obs_dtype)
        except gymnasium.error.DependencyNotInstalled as error:
            raise InputError(f"env is {name!r}, which cannot start: {str(error).splitlines()[0]}") from None

    return on_host(spec, start)


def _describe(name: str, env: Any) -> EnvSpec:
    observations, actions, limit = env.observation_space, env.action_space, env.spec.max_episode_steps
    if not hasattr(actions, "n") or actions.start != 0:
        raise InputError(f"env is {name!r}, whose actions are {actions}: DQN needs discrete ones from 0, as CartPole-v1 has")
    if not observations.shape:
        raise InputError(f"env is {name!r}, whose observations are {observations}: give one whose observations are arrays")
    if limit is None:
        raise InputError(
            f"env is {name!r}, which has no time limit, and a greedy episode may never end: set --max-episode-steps"
        )
    dtype = observations.dtype if observations.dtype in (np.uint8, np.bool_) else np.dtype(np.float32)
    return EnvSpec(name, observations.shape, dtype, int(actions.n), limit)


def final_observations(obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """Returns the observations [E, ...] that a step led to; `obs` may have the next episode's first."""
    if "final_obs" not in info:
        return obs
    ended = info["_final_obs"]
    final = obs.copy()
    final[ended] = np.stack(list(info["final_obs"][ended]))
    return final


def _wrappers() -> dict[str, Callable[..., Any]]:
    """Maps the names of `wrappers.WRAPPERS` to Gymnasium's wrappers."""
    from gymnasium import spaces, wrappers

    def frame_stack(env: Any, number: float) -> Any:
        stacked: Any = wrappers.FrameStackObservation(env, int(number), padding_type="reset")
        space = stacked.observation_space
        low, high = (joined(list(bounds)) for bounds in (space.low, space.high))
        return wrappers.TransformObservation(
            stacked, lambda obs: joined(list(obs)), spaces.Box(low, high, low.shape, space.dtype)
        )

    return {
        "frame-stack": frame_stack,
        REWARD_CLIP: lambda env, bound=1.0: wrappers.ClipReward(env, -bound, bound),
        "sticky": wrappers.StickyAction,
        "time-limit": lambda env, limit: wrappers.TimeLimit(env, int(limit)),
    }
