"""The server: its optimizer steps along the mean update. Not here: how updates are made and averaged."""

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

So moments are bias-corrected, tau is under Adagrad's root instead of beside it, and Yogi's moments start at 1e-6.
"""


class ServerState(flax.struct.PyTreeNode):
    """The state of the server; it holds no client's experience."""

    params: Params
    opt_state: optax.OptState
    learning_rate: jax.Array
    """[] float32."""
    control: Params
    """SCAFFOLD's c; empty without it."""
    moments: Tree
    """Average of the clients' optimizer states; empty unless they are averaged."""
    target_params: Params
    """Average of the clients' targets; empty unless they are averaged."""
    aggregator: Tree = ()
    """State of the aggregator; empty for one without state."""


def make_server_rule(spec: str) -> ServerRule:
    """Builds the server's optimizer of a config; a user's own maps a learning rate, and its numbers, to an optax optimizer.

    Raises:
      InputError: for a name without meaning.
    """
    argument = "federated.server_optimizer"
    return optax_rule(argument, spec, lookup(argument, spec, SERVER_RULES))


def init_server(
    config: FederatedConfig, rule: ServerRule, params: Params, opt_state: optax.OptState, aggregator: Tree = ()
) -> ServerState:
    """Builds the server's first state.

    Args:
      config: says what the server has to hold.
      rule: its optimizer.
      params: the initial shared parameters.
      opt_state: a client's first optimizer state, for the shared parameters.
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
    """Makes a step of the server's optimizer along a delta: x <- rule(x, -delta)."""
    grads = jax.tree.map(jnp.negative, delta)
    params, opt_state, _ = descend(rule(state.learning_rate), state.params, grads, state.opt_state)
    return state.replace(params=params, opt_state=opt_state)
