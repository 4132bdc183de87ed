"""Windows of n steps, and the transitions that they make: n-step returns, or all the steps that Q(lambda) learns from.

Not here: who takes the steps (actor), where they are kept (replay, frame_ring).

Shapes: E environments, n the n-step length.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dqn_jax.config import AgentConfig
from dqn_jax.types import EnvSpec, Transition


class SingleStep(NamedTuple):
    """One step of each environment of an actor, for a memory that joins them itself. Leaves [E, ...]."""

    transition: Transition
    """One-step reward and discount; where frames are kept once, the newest frame of stacked observations alone."""
    ended: jax.Array
    """bool, whether an episode ended with the step."""
    age: jax.Array
    """int32 steps of the same episode before this one."""
    time: jax.Array
    """int32 steps that were taken in the environment before, since its actor started."""
    env: jax.Array
    """int32 number of the environment; those of one actor follow each other."""


class Window(NamedTuple):
    """The last n - 1 single steps of each environment, oldest first."""

    steps: Transition
    """Leaves [n - 1, E, ...], one-step rewards and discounts."""
    ended: jax.Array
    """[n - 1, E] bool, whether an episode ended with the step."""


def keeps_frames(spec: EnvSpec, config: AgentConfig) -> bool:
    """Tells whether an agent's memory keeps each frame of stacked observations once."""
    return spec.stack > 1 and config.memory != "rollout"


def takes_single_steps(spec: EnvSpec, config: AgentConfig) -> bool:
    """Tells whether an agent's memory takes SingleSteps, and makes transitions of them itself."""
    return keeps_frames(spec, config) or config.memory == "rollout"


def transition_of(config: AgentConfig) -> Callable[[Window], Transition]:
    """Returns what makes transitions [E, ...] of windows [n, E, ...]: n-step returns, or with `window_lambda` all steps."""
    return n_step_transition if config.window_lambda is None else jax.vmap(whole_window, in_axes=1)


def n_step_transition(window: Window) -> Transition:
    """The n-step transition that begins with a window's oldest step, cut at the first end of an episode.

    R = r_1 + gamma r_2 + ... and the discount gamma^k, for the k <= n steps really taken; 0 after a termination.

    Args:
      window: n single steps, leaves [n, ...], with discounts gamma or, after a termination, 0.

    Returns:
      Transition with leaves [...].

    Source: Sutton (1988); Mnih et al. (2016), section 4, for DQN.
    """
    steps, ended = window
    chex.assert_equal_shape([ended, steps.r_t, steps.discount_t, steps.a_tm1])
    last = len(ended) - 1
    result = jax.tree.map(lambda x: x[last], steps)
    for k in reversed(range(last)):
        first: Transition = jax.tree.map(lambda x, k=k: x[k], steps)
        stop = ended[k]
        result = Transition(
            s_tm1=first.s_tm1,
            a_tm1=first.a_tm1,
            r_t=first.r_t + jnp.where(stop, 0.0, first.discount_t * result.r_t),
            discount_t=jnp.where(stop, first.discount_t, first.discount_t * result.discount_t),
            s_t=jnp.where(stop.reshape(stop.shape + (1,) * (first.s_t.ndim - stop.ndim)), first.s_t, result.s_t),
        )
    return result


def whole_window(window: Window) -> Transition:
    """Returns the transition of a window's oldest step with all the steps that follow, which Q(lambda) learns from.

    After the first end of an episode a step has reward 0, discount 1 and the last observation of that episode, so its return
    is the value there, whatever lambda: a time limit bootstraps fully. A termination's own discount 0 leaves none of it.

    Args:
      window: n single steps of one environment, leaves [n, ...].

    Returns:
      Transition with r_t and discount_t [n], s_t [n, ...].
    """
    steps, ended = window
    place = jnp.arange(len(ended))
    last = jnp.argmax(ended.at[-1].set(True))
    return Transition(
        s_tm1=steps.s_tm1[0],
        a_tm1=steps.a_tm1[0],
        r_t=jnp.where(place <= last, steps.r_t, 0.0),
        discount_t=jnp.where(place <= last, steps.discount_t, 1.0),
        s_t=steps.s_t[jnp.minimum(place, last)],
    )
