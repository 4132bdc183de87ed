"""Epsilon-greedy and the schedules of epsilon. Not here: counting frames, which is the actor's.

Shapes: A actions, E environments.
"""

import chex
import jax
import jax.numpy as jnp

from dqn_jax.types import ActorHyperparams


def epsilon_greedy(key: jax.Array, q_values: jax.Array, epsilon: jax.Array) -> jax.Array:
    """A random action with probability epsilon, else the first of the greedy ones.

    Args:
      key: random key.
      q_values: [A] action values.
      epsilon: [] probability of exploring.

    Returns:
      [] int32 action.

    Source: Sutton & Barto (2018), section 2.2.
    """
    chex.assert_rank([q_values, epsilon], [1, 0])
    # Two uniforms of one draw: a randint of its own would cost a fifth of an environment step on a CPU.
    explore, choice = jax.random.uniform(key, (2,))
    random_action = jnp.floor(choice * q_values.shape[0])
    return jnp.where(explore < epsilon, random_action, jnp.argmax(q_values)).astype(jnp.int32)


def linear_epsilon(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Epsilon after `frames` frames: a straight line from start to end, then the end (Mnih et al. 2015).

    Args:
      frames: [] int32 frames the agent has taken.
      hyperparams: start, end and length of the decay.

    Returns:
      [] float32 epsilon, or [E] where the hyperparameters have one for each environment.
    """
    fraction = _fraction(frames, hyperparams)
    return hyperparams.epsilon_start + fraction * (hyperparams.epsilon_end - hyperparams.epsilon_start)


def exponential_epsilon(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Epsilon after `frames` frames: the same factor every frame, reaching the end where the linear schedule does.

    Both ends must be above 0.

    Args:
      frames: [] int32 frames the agent has taken.
      hyperparams: start, end and length of the decay.

    Returns:
      [] float32 epsilon, or [E] where the hyperparameters have one for each environment.
    """
    ratio = hyperparams.epsilon_end / hyperparams.epsilon_start
    return hyperparams.epsilon_start * ratio ** _fraction(frames, hyperparams)


def _fraction(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Share of the decay that is over, in [0, 1]."""
    chex.assert_rank(frames, 0)
    chex.assert_type(frames, int)
    since = jnp.clip(frames - hyperparams.epsilon_first_frame, 0, hyperparams.epsilon_decay_frames)
    return since / hyperparams.epsilon_decay_frames
