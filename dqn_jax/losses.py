"""Losses of a batch: what the learner descends on, and how surprising each transition was.

A maker `(network, config) -> Loss`, chosen by `agent.loss`. Not here: weights, means and gradients, which are the learner's.

Shapes: B batch, A actions.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dqn_jax import td
from dqn_jax.config import AgentConfig, InputError
from dqn_jax.lookup import Found, blamed_on, function_of, lookup, named_numbers
from dqn_jax.networks import Network
from dqn_jax.types import Info, Params, Transition

Numbers = Mapping[str, jax.Array]
"""A loss's numbers by name, float32 []: arrays, so that a sweep may vary them."""


class LossOutput(NamedTuple):
    """What a loss says of a batch."""

    loss: jax.Array
    """[B] what is weighed, averaged and descended on."""
    priority: jax.Array
    """[B] not negative: by it a prioritised memory draws."""
    q_tm1: jax.Array
    """[B, A] online values of the states acted on."""
    info: Info = {}
    """Further numbers for the metrics, by name; their means are logged."""


class Loss(Protocol):
    """The loss of a batch, as a function."""

    def __call__(
        self, params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers
    ) -> LossOutput:
        """Says what to descend on.

        Args:
          params: online parameters, which are differentiated.
          target_params: those of the target network.
          batch: transitions [B, ...].
          key: random key, for networks with noise.
          hyperparams: the loss's numbers, by the names that its maker lists.
        """


LossMaker = Callable[[Network, AgentConfig], Loss]
"""May have an attribute `numbers`, {name: default}: those that a config gives after its name, in order."""


def squared(network: Network, config: AgentConfig) -> Loss:
    """Makes the loss of Mnih et al. (2015), algorithm 1: (y - Q)^2."""
    return _td_loss(network, config, lambda td_error, numbers: td.squared_error(td_error))


def huber(network: Network, config: AgentConfig) -> Loss:
    """Makes Huber's loss of y - Q, quadratic up to delta: the error clipping of Mnih et al. (2015) where delta is 1."""
    return _td_loss(network, config, lambda td_error, numbers: td.huber_loss(td_error, numbers["delta"]))


huber.numbers = {"delta": 1.0}  # type: ignore[attr-defined]

LOSSES: dict[str, LossMaker] = {"squared": squared, "huber": huber}


def find_loss(config: AgentConfig, loss: LossMaker | None = None) -> Found:
    """The maker of a config's loss, or the one given, and the numbers of its name.

    Raises:
      InputError: for a name without meaning.
    """
    return lookup("agent.loss", config.loss, LOSSES) if loss is None else Found(loss, ())


def loss_numbers(config: AgentConfig, loss: LossMaker | None = None) -> dict[str, jax.Array]:
    """The numbers of a config's loss by name, as arrays.

    Raises:
      InputError: for a name without meaning, or more numbers than it takes.
    """
    numbers = named_numbers("agent.loss", config.loss, find_loss(config, loss))
    return {name: jnp.float32(value) for name, value in numbers.items()}


def make_loss(network: Network, config: AgentConfig, loss: LossMaker | None = None) -> Loss:
    """The loss that a config names, or that a maker given makes.

    Raises:
      InputError: for a name without meaning, or where a user's maker fails.
    """
    # Its numbers are among its arguments, so none stand after them.
    maker = Found(find_loss(config, loss).part, numbers=())
    made = function_of("agent.loss", config.loss, maker, 2)(network, config)
    return function_of("agent.loss", config.loss, Found(made, numbers=()), 5)


def check_loss(loss: Loss, name: str, params: Params, example: Transition, batch_size: int, numbers: Numbers) -> None:
    """Traces a loss on a batch of the example's shapes, which computes nothing.

    Raises:
      InputError: where it fails, or what it gives has other shapes than a LossOutput.
    """

    def trace(params: Params, row: Transition, numbers: Numbers) -> LossOutput:
        batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), row)
        return loss(params, params, batch, jax.random.key(0), numbers)

    with blamed_on("agent.loss", name):
        output = jax.eval_shape(trace, params, example, numbers)
    if not isinstance(output, LossOutput):
        raise InputError(f"agent.loss is {name!r}, which gives something else than a LossOutput: return one")
    for field, shape in (("loss", (batch_size,)), ("priority", (batch_size,)), ("q_tm1", (batch_size, "A"))):
        found = getattr(output, field)
        if len(found.shape) != len(shape) or found.shape[0] != batch_size or not jnp.issubdtype(found.dtype, jnp.floating):
            wanted = f"[{', '.join(map(str, shape))}]"
            raise InputError(
                f"agent.loss is {name!r}, whose {field} is {found.dtype}{list(found.shape)}: make it float32{wanted}"
            )


def _td_loss(network: Network, config: AgentConfig, loss_of: Callable[[jax.Array, Numbers], jax.Array]) -> Loss:
    """The loss of a TD error, with the target of Q-learning or of Double Q-learning."""

    def loss(params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers) -> LossOutput:
        def one(transition: Transition) -> LossOutput:
            def q_values(params: Params, obs: jax.Array, stream: int) -> jax.Array:
                return network.apply(params, obs, jax.random.fold_in(key, stream)).q_values

            s_tm1, a_tm1, r_t, discount_t, s_t = transition
            q_tm1 = q_values(params, s_tm1, 0)
            q_t = q_values(target_params, s_t, 1)
            if config.double_q:
                td_error = td.double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_values(params, s_t, 2))
            else:
                td_error = td.q_learning(q_tm1, a_tm1, r_t, discount_t, q_t)
            return LossOutput(loss_of(td_error, hyperparams), jnp.abs(td_error), q_tm1)

        return jax.vmap(one)(batch)

    return loss
