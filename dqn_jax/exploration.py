"""Rules that choose actions by their values, and the schedules of epsilon. Not here: counting frames, which is the actor's.

Shapes: A actions.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from dqn_jax.config import AgentConfig
from dqn_jax.lookup import Found, check_like, function_of, lookup, named_numbers
from dqn_jax.types import ActorHyperparams


class Choose(Protocol):
    """A rule of exploration, as a function. It may have an attribute `numbers`, {name: default}, as a loss's maker."""

    def __call__(self, key: jax.Array, q_values: jax.Array, frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
        """Chooses the action of one environment.

        Args:
          key: random key.
          q_values: [A] action values.
          frames: [] int32 frames that the agent has taken since exploration began, also before a restart.
          hyperparams: numbers of the acting half; the rule's own are in `hyperparams.exploration`, by name.

        Returns:
          [] int32 action.
        """


class Exploration(NamedTuple):
    """How actions are chosen."""

    choose: Choose
    epsilon: Callable[[jax.Array, ActorHyperparams], jax.Array]
    """(frames [], hyperparams) -> [] float32 probability of an action at random, for the metrics; 0 where the rule has none."""


def greedy(key: jax.Array, q_values: jax.Array, frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Returns the action with the largest value, the first on a tie: for networks with noise."""
    del key, frames, hyperparams
    return jnp.argmax(q_values).astype(jnp.int32)


def boltzmann(key: jax.Array, q_values: jax.Array, frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Samples an action in proportion to exp(Q / T) (Sutton & Barto 2018, equation 13.2 with values for h)."""
    del frames
    return jax.random.categorical(key, q_values / hyperparams.exploration["temperature"]).astype(jnp.int32)


boltzmann.numbers = {"temperature": 1.0}  # type: ignore[attr-defined]

NO_EXPLORATION = Exploration(greedy, lambda frames, hyperparams: jnp.float32(0))
"""For networks with noise, which explore by themselves."""

RULES: dict[str, Choose] = {"greedy": greedy, "boltzmann": boltzmann}


def find_exploration(config: AgentConfig) -> Found:
    """Finds the rule that a config names; for epsilon-greedy, the greedy rule.

    Raises:
      InputError: for a name without meaning.
    """
    return lookup("agent.exploration", config.exploration, {"epsilon-greedy": greedy, **RULES})


def exploration_numbers(config: AgentConfig) -> dict[str, jax.Array]:
    """Returns the numbers of a config's rule by name, as arrays.

    Raises:
      InputError: for a name without meaning, or more numbers than it takes.
    """
    return named_numbers("agent.exploration", config.exploration, find_exploration(config))


def make_exploration(config: AgentConfig, give_way: bool = False) -> Exploration:
    """Builds the rule that a config names.

    Args:
      config: the rule, and the schedule of epsilon.
      give_way: whether any rule's action is replaced by a random one with probability epsilon, as in epsilon-greedy.

    Raises:
      InputError: for a name without meaning.
    """
    argument, spec = "agent.exploration", config.exploration
    function = function_of(argument, spec, find_exploration(config)._replace(numbers=()), 4)

    def rule(key: jax.Array, q_values: jax.Array, frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
        action = function(key, q_values, frames - hyperparams.epsilon_first_frame, hyperparams)
        check_like(argument, spec, action, jnp.int32(0))
        return action.astype(jnp.int32)

    if config.exploration != "epsilon-greedy" and not give_way:
        return Exploration(rule, lambda frames, hyperparams: jnp.float32(0))
    epsilon_of = {"linear": linear_epsilon, "exponential": exponential_epsilon}[config.epsilon_schedule]

    def choose(key: jax.Array, q_values: jax.Array, frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
        # A separate key: the rule's draws must be independent of the draw that decides whether it is used.
        action = rule(jax.random.fold_in(key, 1), q_values, frames, hyperparams)
        return at_random(key, q_values.shape[0], epsilon_of(frames, hyperparams), action)

    return Exploration(choose, epsilon_of)


def at_random(key: jax.Array, num_actions: int, epsilon: jax.Array, action: jax.Array) -> jax.Array:
    """Replaces an action by a random one with probability epsilon; epsilon-greedy if it is the greedy one.

    Args:
      key: random key.
      num_actions: A.
      epsilon: [] probability of exploring.
      action: [] int32.

    Returns:
      [] int32 action.

    Source: Sutton & Barto (2018), section 2.2.
    """
    chex.assert_rank([epsilon, action], 0)
    # Two uniforms of one draw: a randint of its own would cost a fifth of an environment step on a CPU.
    explore, choice = jax.random.uniform(key, (2,))
    return jnp.where(explore < epsilon, jnp.floor(choice * num_actions).astype(jnp.int32), action)


def linear_epsilon(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Computes epsilon after `frames` frames: linear from start to end, then constant (Mnih et al. 2015).

    Args:
      frames: [] int32 frames the agent has taken.
      hyperparams: start, end and length of the decay.

    Returns:
      [] float32 epsilon.
    """
    fraction = _fraction(frames, hyperparams)
    return hyperparams.epsilon_start + fraction * (hyperparams.epsilon_end - hyperparams.epsilon_start)


def exponential_epsilon(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Computes epsilon after `frames` frames: exponential decay, over as many frames as the linear one.

    Both ends must be above 0.

    Args:
      frames: [] int32 frames the agent has taken.
      hyperparams: start, end and length of the decay.

    Returns:
      [] float32 epsilon.
    """
    ratio = hyperparams.epsilon_end / hyperparams.epsilon_start
    return hyperparams.epsilon_start * ratio ** _fraction(frames, hyperparams)


def _fraction(frames: jax.Array, hyperparams: ActorHyperparams) -> jax.Array:
    """Computes the share of the decay that is over, in [0, 1]."""
    chex.assert_rank(frames, 0)
    chex.assert_type(frames, int)
    since = jnp.clip(frames - hyperparams.epsilon_first_frame, 0, hyperparams.epsilon_decay_frames)
    return since / hyperparams.epsilon_decay_frames
