"""The learning half of DQN: gradients of the loss, the optimizer, the target network.

Not here: what the loss is (losses), where batches come from, or how many devices there are beyond the name of the axis that
gradients are averaged over.

Shapes: B batch.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol

import chex
import flax
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dqn_jax.config import AgentConfig
from dqn_jax.lookup import Found, check_kind, function_of, is_users, lookup
from dqn_jax.losses import LossMaker, LossOutput, loss_numbers, make_loss
from dqn_jax.networks import Network
from dqn_jax.types import Clock, Correction, Info, LearnerHyperparams, Params, Sample, Tree


class LearnerState(flax.struct.PyTreeNode):
    """All that learning carries from one update to the next."""

    params: Params
    target_params: Params
    opt_state: optax.OptState
    hyperparams: LearnerHyperparams
    loss_hyperparams: dict[str, jax.Array]
    """The loss's numbers, by name, [] float32."""
    updates: Clock
    memory: Tree = ()
    """What a correction keeps from one update to the next; nothing without one that does."""


class HasNetworks(Protocol):
    """What gradients are taken of: a LearnerState, or a worker's copy of it."""

    @property
    def params(self) -> Params:
        """Online parameters."""

    @property
    def target_params(self) -> Params:
        """Those of the target network."""

    @property
    def loss_hyperparams(self) -> dict[str, jax.Array]:
        """The loss's numbers."""


class LearnerInit(Protocol):
    """`Learner.init`."""

    def __call__(
        self, key: jax.Array, hyperparams: LearnerHyperparams, loss_hyperparams: dict[str, jax.Array] = ...
    ) -> LearnerState:
        """Makes the first state, both networks alike, with the config's numbers of the loss if none are given."""


class Grad(Protocol):
    """`Learner.grad`."""

    def __call__(
        self, state: HasNetworks, sample: Sample, key: jax.Array, measured: jax.Array | bool = ...
    ) -> tuple[Params, jax.Array, Info]:
        """Returns gradients of the mean weighted loss, priority [B], info.

        Where `measured` ([] bool) is false, what would cost time to measure is 0 in the info: all but the loss's numbers.
        """


class LearnerApply(Protocol):
    """`Learner.apply`."""

    def __call__(
        self, state: LearnerState, grads: Params, correction: Correction | None = None, measured: jax.Array | bool = ...
    ) -> tuple[LearnerState, Info]:
        """Descends: correction, clipping, optimizer, target rule, in that order.

        The info's `grad_norm` is after the correction and before clipping; it and `update_norm` are 0 where not `measured`.
        """


class Step(Protocol):
    """`Learner.step`."""

    def __call__(
        self,
        state: LearnerState,
        sample: Sample,
        key: jax.Array,
        correction: Correction | None = None,
        measured: jax.Array | bool = ...,
    ) -> tuple[LearnerState, jax.Array, Info]:
        """Returns the state after one update, priority [B], info."""


class Learner(NamedTuple):
    """Learning as pure functions: `step` is `apply` after the mean over devices of `grad`."""

    init: LearnerInit
    grad: Grad
    apply: LearnerApply
    step: Step


def make_learner(network: Network, config: AgentConfig, axis_name: str | None = None, loss: LossMaker | None = None) -> Learner:
    """Builds the learner of DQN (Mnih et al. 2015).

    Args:
      network: the Q-network.
      config: loss, optimizer, clipping and target rule.
      axis_name: mapped axis over which `step` averages gradients; None where there is one learner.
      loss: makes the loss; None takes the one that the config names.

    Returns:
      The learner.
    """
    loss_of = make_loss(network, config, loss)
    defaults = loss_numbers(config, loss)
    optimizer_of = make_optimizer(config)

    def init(
        key: jax.Array, hyperparams: LearnerHyperparams, loss_hyperparams: dict[str, jax.Array] = defaults
    ) -> LearnerState:
        params = network.init(key)
        return LearnerState(
            params=params,
            # A copy: two leaves that share a buffer cannot be donated.
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer_of(hyperparams).init(params),
            hyperparams=hyperparams,
            loss_hyperparams=loss_hyperparams,
            updates=Clock(jnp.int32(0)),
        )

    def grad(
        state: HasNetworks, sample: Sample, key: jax.Array, measured: jax.Array | bool = True
    ) -> tuple[Params, jax.Array, Info]:
        def batch_loss(params: Params) -> tuple[jax.Array, LossOutput]:
            output = loss_of(params, state.target_params, sample.transitions, key, state.loss_hyperparams)
            chex.assert_equal_shape([sample.weights, output.loss, output.priority])
            return jnp.mean(sample.weights * output.loss), output

        (mean_loss, (_, priority, q_tm1, own_info)), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
        info = {name: jnp.mean(value) for name, value in own_info.items()} | {"loss": mean_loss}

        def values() -> Info:
            age = jnp.mean(sample.age.astype(jnp.float32))
            return {"priority": jnp.mean(priority), "q_mean": jnp.mean(q_tm1), "q_max": jnp.max(q_tm1), "replay_age": age}

        return grads, priority, info | measure_if(measured, values)

    def apply(
        state: LearnerState, grads: Params, correction: Correction | None = None, measured: jax.Array | bool = True
    ) -> tuple[LearnerState, Info]:
        memory = state.memory
        if correction is not None:
            grads, memory = correction(grads, state.params, memory)
        optimizer = optimizer_of(_at(config, state))

        def norms() -> Info:
            # Their own descent, of a few numbers: with the next one's all of them would be written to memory at every update.
            _, _, deltas = descend(optimizer, state.params, grads, state.opt_state)
            return {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(deltas)}

        info = measure_if(measured, norms)
        params, opt_state, _ = descend(optimizer, state.params, grads, state.opt_state)
        updates = state.updates.count + 1
        target_params = _update_target(params, state.target_params, updates, state.hyperparams.target_rate)
        state = state.replace(
            params=params, target_params=target_params, opt_state=opt_state, updates=Clock(updates), memory=memory
        )
        return state, info

    def _update_target(params: Params, target_params: Params, updates: jax.Array, rate: jax.Array) -> Params:
        """Every C updates, a step of the target towards the online parameters; with rate 1 a copy."""

        def move() -> Params:
            return optax.incremental_update(params, target_params, rate)

        if config.target_period == 1:
            return move()
        return jax.lax.cond(updates % config.target_period == 0, move, lambda: target_params)

    def step(
        state: LearnerState,
        sample: Sample,
        key: jax.Array,
        correction: Correction | None = None,
        measured: jax.Array | bool = True,
    ) -> tuple[LearnerState, jax.Array, Info]:
        grads, priority, info = grad(state, sample, key, measured)
        if axis_name is not None:
            grads = _fused_mean(grads, axis_name)
        state, apply_info = apply(state, grads, correction, measured)
        return state, priority, info | apply_info

    return Learner(init, grad, apply, step)


def measure_if(measured: jax.Array | bool, measure: Callable[[], Info]) -> Info:
    """Returns what `measure()` returns where `measured` ([] bool) is true; elsewhere zeros, at no cost."""
    if measured is True:
        return measure()
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(measure))
    return jax.lax.cond(measured, measure, lambda: nothing)


def descend(
    optimizer: optax.GradientTransformation, params: Params, grads: Params, opt_state: optax.OptState
) -> tuple[Params, optax.OptState, Params]:
    """One step of an optimizer: (parameters, its state, how far they moved)."""
    deltas, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, deltas), opt_state, deltas


def _at(config: AgentConfig, state: LearnerState) -> LearnerHyperparams:
    """The numbers of the next update: the learning rate falls with the updates made."""
    numbers = state.hyperparams
    if config.learning_rate_decay_updates is None:
        return numbers
    left = jnp.maximum(1 - state.updates.count / config.learning_rate_decay_updates, 0.0)
    return numbers._replace(learning_rate=numbers.learning_rate * left)


def _fused_mean(grads: Params, axis_name: str) -> Params:
    """Mean over a mapped axis in one collective: each leaf on its own would be an all-reduce of its own."""
    flat, unravel = ravel_pytree(grads)
    return unravel(jax.lax.pmean(flat, axis_name))


def make_optimizer(config: AgentConfig) -> Callable[[LearnerHyperparams], optax.GradientTransformation]:
    """The optimizer that a config names, clipping before it, as a function of numbers.

    It is rebuilt from traced numbers wherever it is used: its state does not depend on them.

    Raises:
      InputError: for a name without meaning, or numbers that do not fit.
    """
    argument, spec = "agent.optimizer", config.optimizer
    found = lookup(argument, spec, _OPTAX)
    if found.part in _OURS:
        rule = function_of(argument, spec, found, 2)
        build = lambda rate: rule(rate, config)  # noqa: E731
    else:
        build = optax_rule(argument, spec, found)

    def optimizer(hyperparams: LearnerHyperparams) -> optax.GradientTransformation:
        clips = config.max_grad_norm is not None
        # The state has the same parts with and without: a run may be resumed with clipping.
        clip = optax.clip_by_global_norm(hyperparams.max_grad_norm) if clips else optax.identity()
        return optax.chain(clip, build(hyperparams.learning_rate))

    return optimizer


def optax_rule(argument: str, spec: str, found: Found) -> Callable[[jax.Array], optax.GradientTransformation]:
    """The optimizer of a learning rate that a name stands for; a user's is checked, and blamed for what it raises.

    Raises:
      InputError: where the numbers of the name do not fit; when it is called, where no optimizer is made.
    """
    build = function_of(argument, spec, found, 1)

    def rule(rate: jax.Array) -> optax.GradientTransformation:
        made = build(rate)
        check_kind(argument, spec, made, optax.GradientTransformation, "an optimizer of optax")
        if not is_users(spec):
            return made
        init, update = (function_of(argument, spec, Found(fn, ()), n) for fn, n in zip(made, (1, 3), strict=True))
        return optax.GradientTransformation(init, update)

    return rule


def _adam(rate: jax.Array, config: AgentConfig) -> optax.GradientTransformation:
    return optax.adam(rate, eps=config.optimizer_eps)


def _rmsprop(rate: jax.Array, config: AgentConfig) -> optax.GradientTransformation:
    # Centred, as in Mnih et al. (2015).
    return optax.rmsprop(rate, decay=config.rmsprop_decay, eps=config.optimizer_eps, centered=True)


_OURS = (_adam, _rmsprop)
_OPTAX: dict[str, Callable] = {
    name: rule
    for name, rule in vars(optax).items()
    if inspect.isfunction(rule)
    and [*inspect.signature(rule).parameters][:1] == ["learning_rate"]
    # Parts of optimizers; one that searches along a line; one that reads its rate when it begins, and never again.
    and not name.startswith(("_", "scale_by_"))
    and name not in ("lbfgs", "rprop")
} | {"adam": _adam, "rmsprop": _rmsprop}
"""A user's own maps a learning rate, and the numbers of its name, to an optax optimizer; so do optax's."""
