"""Losses of a batch: what the learner minimises, and a priority for each transition.

A maker `(network, config) -> Loss`, chosen by `agent.loss`. Not here: weights, means and gradients, which are the learner's.

Shapes: B batch, A actions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dqn_jax import td
from dqn_jax.config import AgentConfig, InputError, require
from dqn_jax.lookup import Found, function_of, is_users, lookup, named_numbers
from dqn_jax.networks import Network
from dqn_jax.types import Info, Params, Transition

Numbers = Mapping[str, jax.Array]
"""A loss's numbers by name, float32 []: arrays, so that a sweep may vary them."""


class LossOutput(NamedTuple):
    """The output of a loss for a batch."""

    loss: jax.Array
    """[B] losses; the learner minimises their weighted mean."""
    priority: jax.Array
    """[B] priorities for a prioritised memory, not negative."""
    q_tm1: jax.Array
    """[B, A] online values of the states acted on."""
    info: Info = {}
    """Further numbers for the metrics, by name; their means are logged."""


class Loss(Protocol):
    """The loss of a batch, as a function."""

    def __call__(
        self, params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers
    ) -> LossOutput:
        """Computes the loss of a batch.

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


def munchausen(network: Network, config: AgentConfig) -> Loss:
    """Makes the squared loss of Munchausen DQN (Vieillard et al. 2020): rewards with the log-probability of the action."""
    _check_no_lambda(config, "munchausen")
    require(not config.double_q, "agent.loss is 'munchausen' with agent.double_q: its target has no maximum, so leave that out")

    def loss(params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers) -> LossOutput:
        def one(transition: Transition) -> LossOutput:
            s_tm1, a_tm1, r_t, discount_t, s_t = transition
            q_tm1 = network.apply(params, s_tm1, _stream(key, 0)).q_values
            q_t = network.apply(target_params, s_t, _stream(key, 1)).q_values
            q_tm1_target = network.apply(target_params, s_tm1, _stream(key, 1)).q_values
            numbers = (hyperparams["temperature"], hyperparams["bonus"], -hyperparams["clip"])
            td_error = td.munchausen_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_tm1_target, *numbers)
            return LossOutput(td.squared_error(td_error), jnp.abs(td_error), q_tm1)

        return jax.vmap(one)(batch)

    return loss


munchausen.numbers = {"temperature": 0.03, "bonus": 0.9, "clip": 1.0}  # type: ignore[attr-defined]


def categorical(network: Network, config: AgentConfig) -> Loss:
    """Makes the cross-entropy of C51 (Bellemare et al. 2017), its own priority, for heads with atoms.

    With `double_q` the online network chooses the next action, as in Rainbow (Hessel et al. 2018). The metrics have
    `clipped_mass`, the share of the target's probability that lies beyond the atoms.
    """
    _check_no_lambda(config, "categorical")

    def loss(params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers) -> LossOutput:
        def one(transition: Transition) -> LossOutput:
            s_tm1, a_tm1, r_t, discount_t, s_t = transition
            now = _with(network.apply(params, s_tm1, _stream(key, 0)), "logits", "categorical")
            then: Any = network.apply(target_params, s_t, _stream(key, 1))
            selector = network.apply(params, s_t, _stream(key, 2)).q_values if config.double_q else then.q_values
            cross_entropy = td.categorical_double_q_learning(
                now.atoms, now.logits, a_tm1, r_t, discount_t, then.atoms, then.logits, selector
            )
            moved = r_t + discount_t * then.atoms
            beyond = (moved < now.atoms[0]) | (moved > now.atoms[-1])
            clipped = jnp.sum(jax.nn.softmax(then.logits[jnp.argmax(selector)]) * beyond)
            return LossOutput(cross_entropy, cross_entropy, now.q_values, {"clipped_mass": clipped})

        return jax.vmap(one)(batch)

    return loss


def quantile(network: Network, config: AgentConfig) -> Loss:
    """Makes the quantile regression of QR-DQN and IQN (Dabney et al. 2018), its own priority, for heads with quantiles.

    Each transition has noise of its own: an implicit head draws its probabilities from it.
    """
    _check_no_lambda(config, "quantile")

    def loss(params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers) -> LossOutput:
        def one(transition: Transition, key: jax.Array) -> LossOutput:
            s_tm1, a_tm1, r_t, discount_t, s_t = transition
            now = _with(network.apply(params, s_tm1, _stream(key, 0)), "quantiles", "quantile")
            then: Any = network.apply(target_params, s_t, _stream(key, 1))
            selector: Any = network.apply(params, s_t, _stream(key, 2)) if config.double_q else then
            error = td.quantile_q_learning(
                *(now.quantiles, now.taus, a_tm1, r_t, discount_t),
                *(selector.quantiles, then.quantiles, hyperparams["kappa"]),
            )
            return LossOutput(error, error, now.q_values)

        return jax.vmap(one)(batch, jax.random.split(key, batch.r_t.shape[0]))

    return loss


quantile.numbers = {"kappa": 1.0}  # type: ignore[attr-defined]

LOSSES: dict[str, LossMaker] = {
    "squared": squared,
    "huber": huber,
    "munchausen": munchausen,
    "categorical": categorical,
    "quantile": quantile,
}

_ARGUMENT = "agent.loss"
_TAKEN = {
    *("loss", "priority", "q_mean", "q_max", "grad_norm", "update_norm", "replay_age"),
    *("epsilon", "episodes", "return_sum", "terminated", "truncated", "finite", "frames", "updates"),
    *("lags", "applied", "duration", "lag", "lag_max", "lag_histogram", "dropped", "virtual_time"),
    *("workers_lost", "results_dropped", "wait_seconds", "samples_per_insert"),
    *("participants", "downloads", "left_out", "staleness", "drift", "delta_norm", "bytes"),
    *("broken", "weightless", "uncounted"),
    *("return", "rounds", "env_steps", "chunk_seconds", "env_steps_per_second", "wall_seconds"),
}
"""Names of metrics that other modules define."""


def find_loss(config: AgentConfig, loss: LossMaker | None = None) -> tuple[str, Found]:
    """Finds (name, maker and the numbers of its name) of a config's loss, or of the one given.

    Raises:
      InputError: for a name without meaning.
    """
    if loss is None:
        return config.loss, lookup(_ARGUMENT, config.loss, LOSSES)
    return f"{loss.__module__}:{getattr(loss, '__qualname__', type(loss).__name__)}", Found(loss, ())


def loss_numbers(config: AgentConfig, loss: LossMaker | None = None) -> dict[str, jax.Array]:
    """Returns the numbers of a config's loss, or of the one given, by name, as arrays; lambda where windows have one.

    Raises:
      InputError: for a name without meaning, or more numbers than it takes.
    """
    numbers = named_numbers(_ARGUMENT, *find_loss(config, loss))
    return numbers if config.window_lambda is None else numbers | {"return_lambda": jnp.float32(config.return_lambda)}


def make_loss(network: Network, config: AgentConfig, loss: LossMaker | None = None) -> Loss:
    """Builds the loss that a config names, or that the given maker makes.

    Raises:
      InputError: for a name without meaning, or where a user's maker fails.
    """
    name, found = find_loss(config, loss)
    # Its numbers are among its arguments, so none stand after them.
    made = function_of(_ARGUMENT, name, Found(found.part, numbers=()), 2)(network, config)
    return function_of(_ARGUMENT, name, Found(made, numbers=()), 5)


def check_loss(
    network: Network, config: AgentConfig, example: Transition, batch_size: int, loss: LossMaker | None = None
) -> None:
    """Traces a user's loss on a batch of the example's shapes, which computes nothing; built-in ones need no check.

    Raises:
      InputError: where it fails, or what it gives has other shapes than a LossOutput or names that are taken.
    """
    name, _ = find_loss(config, loss)
    if not is_users(name):
        return
    made, numbers = make_loss(network, config, loss), loss_numbers(config, loss)

    def trace(key: jax.Array, row: Transition) -> LossOutput:
        params = network.init(key)
        batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), row)
        return made(params, params, batch, key, numbers)

    output = jax.eval_shape(trace, jax.eval_shape(jax.random.key, 0), example)
    if not isinstance(output, LossOutput):
        raise InputError(f"{_ARGUMENT} is {name!r}, which gives something else than a LossOutput: return one")
    for field, shape in (("loss", (batch_size,)), ("priority", (batch_size,)), ("q_tm1", (batch_size, "A"))):
        found = getattr(output, field)
        if len(found.shape) != len(shape) or found.shape[0] != batch_size or not jnp.issubdtype(found.dtype, jnp.floating):
            wanted = f"[{', '.join(map(str, shape))}]"
            raise InputError(
                f"{_ARGUMENT} is {name!r}, whose {field} is {found.dtype}{list(found.shape)}: make it float32{wanted}"
            )
    taken = sorted(_TAKEN & set(output.info))
    require(not taken, f"{_ARGUMENT} is {name!r}, whose info names {', '.join(taken)}, which others measure: rename them")


def own_numbers(info: Info) -> Info:
    """Returns the entries of an agent's info that are its loss's own."""
    return {name: value for name, value in info.items() if name not in _TAKEN}


def _td_loss(network: Network, config: AgentConfig, loss_of: Callable[[jax.Array, Numbers], jax.Array]) -> Loss:
    """Builds the loss of a TD error: of Q-learning or Double Q-learning, or of Q(lambda) with either's values.

    The return of Q(lambda) goes on through exploring actions (Peng & Williams 1996): it is not cut at them, as Watkins' is.
    """

    def loss(params: Params, target_params: Params, batch: Transition, key: jax.Array, hyperparams: Numbers) -> LossOutput:
        def one(transition: Transition) -> LossOutput:
            def q_values(params: Params, obs: jax.Array, stream: int) -> jax.Array:
                return network.apply(params, obs, _stream(key, stream)).q_values

            def best(obs: jax.Array) -> jax.Array:
                q_t = q_values(target_params, obs, 1)
                return q_t[jnp.argmax(q_values(params, obs, 2) if config.double_q else q_t)]

            s_tm1, a_tm1, r_t, discount_t, s_t = transition
            q_tm1 = q_values(params, s_tm1, 0)
            if config.memory == "rollout":
                # Its discounts are 0, so there is no need of the values that would be multiplied by them.
                td_error = td.q_learning(q_tm1, a_tm1, r_t, discount_t, jnp.zeros_like(q_tm1))
            elif config.window_lambda is not None:
                lambda_ = hyperparams["return_lambda"]
                returns = td.lambda_returns(r_t, discount_t, jax.vmap(best)(s_t), lambda_, stop_target_gradients=True)
                td_error = returns[0] - q_tm1[a_tm1]
            elif config.double_q:
                q_t = q_values(target_params, s_t, 1)
                td_error = td.double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_values(params, s_t, 2))
            else:
                td_error = td.q_learning(q_tm1, a_tm1, r_t, discount_t, q_values(target_params, s_t, 1))
            return LossOutput(loss_of(td_error, hyperparams), jnp.abs(td_error), q_tm1)

        return jax.vmap(one)(batch)

    return loss


def _check_no_lambda(config: AgentConfig, loss: str) -> None:
    """Raises InputError where Q(lambda) is asked of a loss whose target is no return."""
    require(
        config.window_lambda is None,
        f"agent.return_lambda is {config.return_lambda} with agent.loss {loss!r}, which bootstraps from one state alone: take "
        "squared or huber, or leave it out",
    )


def _stream(key: jax.Array, number: int) -> jax.Array:
    """Noise of the online network where it learns (0), of the target (1), of the online one where it chooses (2)."""
    return jax.random.fold_in(key, number)


def _with(outputs: Any, field: str, head: str) -> Any:
    """Returns a network's outputs; raises InputError unless they have a field, as those of some heads."""
    require(hasattr(outputs, field), f"agent.loss is {head!r}, and network.head has no {field}: take a {head} head")
    return outputs
