"""Temporal-difference targets and losses, each on ONE transition; callers `vmap`.

Where rlax has the function, its name, argument order and sign are the same. Not here: networks, batches, gradients.

Shapes: A actions.
"""

import chex
import jax
import jax.numpy as jnp


def q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the TD error of Q-learning: y - Q(s, a) with y = r + discount * max_a' Q'(s', a').

    Args:
      q_tm1: [A] online values of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_t: [A] target-network values of the next state.
      stop_target_gradients: whether y is a constant to the gradient, as in DQN.

    Returns:
      [] TD error.

    Source: Mnih et al. (2015), the loss of algorithm 1; Watkins & Dayan (1992).
    """
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t], [1, 0, 0, 0, 1])
    chex.assert_type([q_tm1, a_tm1, r_t, discount_t, q_t], [float, int, float, float, float])
    return _td_error(q_tm1, a_tm1, r_t, discount_t, jnp.max(q_t), stop_target_gradients)


def double_q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t_value: jax.Array,
    q_t_selector: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the TD error of Double Q-learning: the online network chooses the next action, the target network values it.

    Args:
      q_tm1: [A] online values of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_t_value: [A] target-network values of the next state.
      q_t_selector: [A] online values of the next state.
      stop_target_gradients: whether the target is a constant to the gradient.

    Returns:
      [] TD error.

    Source: van Hasselt, Guez & Silver (2016), equation 4 with the target of Double DQN.
    """
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector], [1, 0, 0, 0, 1, 1])
    chex.assert_type([q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector], [float, int, float, float, float, float])
    return _td_error(q_tm1, a_tm1, r_t, discount_t, q_t_value[jnp.argmax(q_t_selector)], stop_target_gradients)


def _td_error(
    q_tm1: jax.Array, a_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, v_t: jax.Array, stop_target_gradients: bool
) -> jax.Array:
    target = r_t + discount_t * v_t
    if stop_target_gradients:
        target = jax.lax.stop_gradient(target)
    return target - q_tm1[a_tm1]


def squared_error(td_error: jax.Array) -> jax.Array:
    """Computes (y - Q)^2 [] of a TD error [], the loss of DQN's algorithm 1 (Mnih et al. 2015): no factor of one half."""
    chex.assert_type(td_error, float)
    return jnp.square(td_error)


def huber_loss(x: jax.Array, delta: jax.Array | float = 1.0) -> jax.Array:
    """Computes the loss [] of an error x []: x^2 / 2 for |x| <= delta, else delta * (|x| - delta / 2).

    Its gradient is x clipped to [-delta, delta].

    Source: Huber (1964); with delta = 1 it is the error clipping of Mnih et al. (2015).
    """
    chex.assert_type(x, float)
    clipped = jnp.minimum(jnp.abs(x), delta)
    return 0.5 * jnp.square(clipped) + delta * (jnp.abs(x) - clipped)
