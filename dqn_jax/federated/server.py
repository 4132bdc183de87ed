"""The server: it takes the mean update for a gradient. Not here: how updates are averaged, or by whom they were made."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from dqn_jax.federated.config import FederatedConfig
from dqn_jax.learner import descend, optax_rule
from dqn_jax.lookup import lookup
from dqn_jax.types import Params, Tree

ServerRule = Callable[[jax.Array], optax.GradientTransformation]
"""learning rate -> optimizer."""

_TAU = 1e-3
"""Degree of adaptivity, as Reddi et al. (2021) recommend."""

SERVER_RULES: dict[str, ServerRule] = {
    "fedavg": lambda rate: optax.sgd(rate),
    "fedavgm": lambda rate: optax.sgd(rate, momentum=0.9),
    "fedadagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=_TAU**2, eps=0.0),
    "fedadam": lambda rate: optax.adam(rate, b1=0.9, b2=0.99, eps=_TAU),
    "fedyogi": lambda rate: optax.yogi(rate, b1=0.9, b2=0.99, eps=_TAU),
}
"""McMahan et al. (2017); Hsu et al. (2019); Reddi et al. (2021), algorithm 2, as optax writes it.

So moments are corrected for their start, tau is under Adagrad's root instead of beside it, and Yogi's moments start at 1e-6.
"""


class ServerState(flax.struct.PyTreeNode):
    """All that the server knows: nothing in it is anybody's experience."""

    params: Params
    opt_state: optax.OptState
    learning_rate: jax.Array
    """[] float32."""
    control: Params
    """SCAFFOLD's c; nothing without it."""
    moments: Tree
    """Average of the clients' optimizer states; nothing unless they are averaged."""
    target_params: Params
    """Average of the clients' targets; nothing unless they are averaged."""
    aggregator: Tree = ()
    """State of the aggregator; nothing for one that keeps none."""


def make_server_rule(spec: str) -> ServerRule:
    """The server's optimizer that a config names; a user's own maps a learning rate, and its numbers, to an optax optimizer.

    Raises:
      InputError: for a name without meaning.
    """
    argument = "federated.server_optimizer"
    return optax_rule(argument, spec, lookup(argument, spec, SERVER_RULES))


def init_server(
    config: FederatedConfig, rule: ServerRule, params: Params, opt_state: optax.OptState, aggregator: Tree = ()
) -> ServerState:
    """The server before the first round.

    Args:
      config: says what the server has to hold.
      rule: its optimizer.
      params: the initial parameters that are shared.
      opt_state: the optimizer state, of those, of any client before its first update.
      aggregator: the aggregator's first state.
    """
    rate = jnp.float32(config.server_learning_rate)
    return ServerState(
        params=params,
        opt_state=rule(rate).init(params),
        learning_rate=rate,
        control=jax.tree.map(jnp.zeros_like, params) if config.algorithm == "scaffold" else (),
        moments=opt_state if config.merge.moments == "average" else (),
        target_params=jax.tree.map(jnp.copy, params) if config.merge.target == "average" else (),
        aggregator=aggregator,
    )


def apply_delta(rule: ServerRule, state: ServerState, delta: Params) -> ServerState:
    """One step of the server's optimizer along a delta: x <- rule(x, -delta)."""
    grads = jax.tree.map(jnp.negative, delta)
    params, opt_state, _ = descend(rule(state.learning_rate), state.params, grads, state.opt_state)
    return state.replace(params=params, opt_state=opt_state)
