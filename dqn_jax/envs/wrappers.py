"""Wrappers of an environment by name, as in `--wrappers frame-stack:4 sticky:0.25`: pure functions of an environment.

Not here: wrappers of Gymnasium's environments, which are Gymnasium's own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import require
from dqn_jax.envs.environment import Environment, EnvParams, EnvState, TimeStep, check_environment
from dqn_jax.lookup import blamed_on, check_kind, function_of, is_users, lookup

REWARD_CLIP, LIFE_LOSS = "reward-clip", "life-loss"
"""The wrappers that evaluations leave out by default: returns are those of the game."""
VIEW = "view"
_COIN, _RESET = np.uint32(2**32 - 2), np.uint32(2**32 - 3)
"""For `fold_in`; not those of a `split`, which the environment's own step uses, nor of `reset_key`."""


class Sticky(NamedTuple):
    """State of an environment whose actions stick."""

    own: EnvState
    last: jax.Array
    """[] int32 action that was carried out last, -1 at the start of an episode."""


class Stacked(NamedTuple):
    """State of an environment whose observations are stacked."""

    own: EnvState
    frames: jax.Array
    """[...] the last observations as one."""


class View(NamedTuple):
    """Parameters of an environment that is shown in a way of its own."""

    own: EnvParams
    mirrored: jax.Array
    """[] float32: above 0.5, left and right of the image are swapped, and the actions are not."""
    dimmed: jax.Array
    """[] float32 share of its brightness that the image loses, from 0 to 1."""
    sticky: jax.Array
    """[] float32 probability that the last action is repeated."""


class Timed(NamedTuple):
    """State of an environment with a time limit that is not its own."""

    own: EnvState
    time: jax.Array
    """[] int32 steps of the running episode."""


def frame_stack(env: Environment, number: float) -> Environment:
    """Joins the last `number` observations, oldest first; an episode's first is repeated for those before it.

    Observations [H, W] become [H, W, number]; others are joined along their last axis (Mnih et al. 2015 take 4 frames).
    """
    count = int(number)

    def first(obs: jax.Array) -> jax.Array:
        return joined([obs] * count)

    def init(key: jax.Array, params: EnvParams) -> tuple[Stacked, jax.Array]:
        own, obs = env.init(key, params)
        return Stacked(own, first(obs)), first(obs)

    def step(key: jax.Array, state: Stacked, action: jax.Array, params: EnvParams) -> tuple[Stacked, TimeStep]:
        own, time_step = env.step(key, state.own, action, params)
        newest = joined([time_step.final_obs])
        final = jnp.concatenate([state.frames[..., newest.shape[-1] :], newest], axis=-1)
        obs = jnp.where(time_step.terminated | time_step.truncated, first(time_step.obs), final)
        return Stacked(own, obs), time_step._replace(obs=obs, final_obs=final)

    shape = jax.eval_shape(first, jax.ShapeDtypeStruct(env.spec.obs_shape, env.spec.obs_dtype)).shape
    return env._replace(spec=env.spec._replace(obs_shape=shape, stack=count), init=init, step=step)


def joined(frames: Sequence[Any]) -> Any:
    """Joins observations along their last axis; [H, W] ones and scalars along a new last axis."""
    xp = np if isinstance(frames[0], np.ndarray) else jnp
    return (xp.stack if frames[0].ndim in (0, 2) else xp.concatenate)(frames, axis=-1)


def reward_clip(env: Environment, bound: float = 1.0) -> Environment:
    """Clips rewards to [-bound, bound] (Mnih et al. 2015 take 1)."""

    def step(key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        state, time_step = env.step(key, state, action, params)
        return state, time_step._replace(reward=jnp.clip(time_step.reward, -bound, bound))

    return env._replace(step=step)


def sticky(env: Environment, probability: float | Callable[[EnvParams], jax.Array]) -> Environment:
    """Repeats the last action instead of the one chosen, with a probability (Machado et al. 2018, 5.1).

    The first action of an episode is never replaced. The probability may be read from the environment's parameters.
    """
    probability_of = probability if callable(probability) else lambda params: probability

    def init(key: jax.Array, params: EnvParams) -> tuple[Sticky, jax.Array]:
        own, obs = env.init(key, params)
        return Sticky(own, jnp.int32(-1)), obs

    def step(key: jax.Array, state: Sticky, action: jax.Array, params: EnvParams) -> tuple[Sticky, TimeStep]:
        sticks = jax.random.bernoulli(jax.random.fold_in(key, _COIN), probability_of(params)) & (state.last >= 0)
        action = jnp.where(sticks, state.last, action).astype(jnp.int32)
        own, time_step = env.step(key, state.own, action, params)
        return Sticky(own, jnp.where(time_step.terminated | time_step.truncated, -1, action)), time_step

    return env._replace(init=init, step=step)


def view(env: Environment) -> Environment:
    """Shows images as three parameters say, for clients that see one game differently: `mirrored`, `dimmed`, `sticky`.

    Images [H, W, ...] of uint8, or of bool and then as 0 and 255; they stay uint8. With all three 0, nothing else changes.

    Raises:
      InputError: where observations are no such images.
    """
    shape, dtype = env.spec.obs_shape, env.spec.obs_dtype
    require(
        len(shape) >= 2 and dtype in (np.uint8, np.bool_),
        f"env is {env.spec.name!r}, with observations {shape} of {dtype}: the wrapper view is for images of uint8 or bool",
    )

    def shown(obs: jax.Array, params: View) -> jax.Array:
        image = jnp.where(params.mirrored > 0.5, obs[:, ::-1], obs).astype(jnp.float32)
        brightest = 255 if dtype == np.bool_ else 1
        return jnp.round(image * brightest * (1 - params.dimmed)).astype(jnp.uint8)

    def init(key: jax.Array, params: View) -> tuple[EnvState, jax.Array]:
        state, obs = env.init(key, params.own)
        return state, shown(obs, params)

    def step(key: jax.Array, state: EnvState, action: jax.Array, params: View) -> tuple[EnvState, TimeStep]:
        state, time_step = env.step(key, state, action, params.own)
        seen = {"obs": shown(time_step.obs, params), "final_obs": shown(time_step.final_obs, params)}
        return state, time_step._replace(**seen)

    spec, params = env.spec._replace(obs_dtype=np.dtype(np.uint8)), View(env.params, *(jnp.float32(0),) * 3)
    return sticky(env._replace(spec=spec, init=init, step=step, params=params), lambda params: params.sticky)


def time_limit(env: Environment, limit: float) -> Environment:
    """Cuts episodes after `limit` steps, fewer than the environment's own limit.

    Raises:
      InputError: where the environment would end them before.
    """
    own_limit = env.spec.max_episode_steps
    require(
        limit <= own_limit,
        f"env {env.spec.name!r} ends after {own_limit} steps by itself, before a time limit of {limit:g}: give less",
    )

    def init(key: jax.Array, params: EnvParams) -> tuple[Timed, jax.Array]:
        own, obs = env.init(key, params)
        return Timed(own, jnp.int32(0)), obs

    def step(key: jax.Array, state: Timed, action: jax.Array, params: EnvParams) -> tuple[Timed, TimeStep]:
        own, time_step = env.step(key, state.own, action, params)
        ended = time_step.terminated | time_step.truncated
        cut = (state.time + 1 >= int(limit)) & ~ended
        begun = env.init(jax.random.fold_in(key, _RESET), params)
        own, obs = jax.tree.map(lambda new, old: jnp.where(cut, new, old), begun, (own, time_step.obs))
        time = jnp.where(cut | ended, 0, state.time + 1)
        return Timed(own, time), time_step._replace(obs=obs, truncated=time_step.truncated | cut)

    return env._replace(spec=env.spec._replace(max_episode_steps=int(limit)), init=init, step=step)


def is_whole(number: float) -> bool:
    """Tells whether a number is whole and at least 1."""
    return number >= 1 and number == int(number)


_USABLE: dict[str, tuple[Callable[[float], bool], str]] = {
    "frame-stack": (is_whole, "a whole number of frames, as frame-stack:4"),
    REWARD_CLIP: (lambda number: number > 0, "a bound above 0, as reward-clip:1"),
    "sticky": (lambda number: 0 <= number < 1, "a probability from 0 and below 1, as sticky:0.25"),
    "time-limit": (is_whole, "a whole number of steps, as time-limit:200"),
    "no-op": (is_whole, "a whole number of frames, as no-op:30"),
    LIFE_LOSS: (lambda number: False, "without a number"),
    VIEW: (lambda number: False, "without a number"),
}
"""(whether a number is valid, what to ask for) of each."""

WRAPPERS: dict[str, Callable[..., Environment]] = {
    "frame-stack": frame_stack,
    REWARD_CLIP: reward_clip,
    "sticky": sticky,
    "time-limit": time_limit,
    VIEW: view,
}
"""no-op and life-loss are of Atari alone. A user's own maps an Environment, and the numbers of its name, to another."""


def wrap(env: Environment, specs: Sequence[str]) -> Environment:
    """Applies wrappers to an environment, innermost first.

    Raises:
      InputError: for a name without meaning, a number that cannot be used, or a user's own that makes no environment.
    """
    for spec in specs:
        env = wrapper_of(spec, WRAPPERS)(env)
        if is_users(spec):
            check_kind("wrappers", spec, env, Environment, "an envs.Environment")
            # What it does to observations is not known.
            env = env._replace(spec=env.spec._replace(stack=1))
            with blamed_on("wrappers", spec):
                check_environment("wrappers", spec, env)
    return env


def wrapper_of(spec: str, named: Mapping[str, Callable[..., Any]]) -> Callable[[Any], Any]:
    """Finds the wrapper that a name stands for in `named`, whose names are among those of `_USABLE`.

    Raises:
      InputError: for a name without meaning, or a number that cannot be used.
    """
    found = lookup("wrappers", spec, named)
    if not is_users(spec):
        name = spec.partition(":")[0]
        usable, wanted = _USABLE[name]
        given = len(found.numbers) == 1 and usable(found.numbers[0])
        require(given or spec in (REWARD_CLIP, LIFE_LOSS, VIEW), f"wrappers has {spec!r}: give {name} {wanted}")
    return function_of("wrappers", spec, found, 1)
