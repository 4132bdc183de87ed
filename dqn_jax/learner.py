"""The learning half of DQN: gradients of the TD loss, the optimizer, the target network.

Not here: where batches come from, or how many devices there are beyond the name of the axis that gradients are averaged over.

Shapes: B batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dqn_jax import td
from dqn_jax.config import AgentConfig
from dqn_jax.networks import Network
from dqn_jax.types import Clock, Correction, Info, LearnerHyperparams, Params, Sample, Transition


class LearnerState(flax.struct.PyTreeNode):
    """All that learning carries from one update to the next."""

    params: Params
    target_params: Params
    opt_state: optax.OptState
    hyperparams: LearnerHyperparams
    updates: Clock
    memory: Any = ()
    """What a correction keeps from one update to the next; nothing without one that does."""


class Learner(NamedTuple):
    """Learning as pure functions: `step` is `apply` after the mean over devices of `grad`."""

    init: Callable[[jax.Array, LearnerHyperparams], LearnerState]
    """(key, hyperparams) -> state, both networks alike."""
    grad: Callable[[Any, Sample, jax.Array], tuple[Params, jax.Array, Info]]
    """(state, sample, key) -> (gradients of the mean weighted loss, |td| [B], info). Reads the state's two networks alone."""
    apply: Callable[..., tuple[LearnerState, Info]]
    """(state, grads, correction=None) -> (state, info): correction, clipping, optimizer, target rule, in that order.

    The info's `grad_norm` is after the correction and before clipping."""
    step: Callable[..., tuple[LearnerState, jax.Array, Info]]
    """(state, sample, key, correction=None) -> (state, |td| [B], info)."""


def make_learner(network: Network, config: AgentConfig, axis_name: str | None = None) -> Learner:
    """Builds the learner of DQN (Mnih et al. 2015).

    Args:
      network: the Q-network.
      config: loss, optimizer, clipping and target rule.
      axis_name: mapped axis over which `step` averages gradients; None where there is one learner.

    Returns:
      The learner.
    """
    loss_of = td.squared_error if config.loss == "squared" else td.huber_loss

    def init(key: jax.Array, hyperparams: LearnerHyperparams) -> LearnerState:
        params = network.init(key)
        return LearnerState(
            params=params,
            # A copy: two leaves that share a buffer cannot be donated.
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=_optimizer(config, hyperparams).init(params),
            hyperparams=hyperparams,
            updates=Clock(jnp.int32(0)),
        )

    def transition_loss(
        params: Params, target_params: Params, transition: Transition, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """([] loss, ([] |td|, [A] online values)) of one transition."""

        def q_values(params: Params, obs: jax.Array, stream: int) -> jax.Array:
            return network.q_values(network.apply(params, obs, jax.random.fold_in(key, stream), True))

        s_tm1, a_tm1, r_t, discount_t, s_t = transition
        q_tm1 = q_values(params, s_tm1, 0)
        q_t = q_values(target_params, s_t, 1)
        if config.double_q:
            td_error = td.double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_values(params, s_t, 2))
        else:
            td_error = td.q_learning(q_tm1, a_tm1, r_t, discount_t, q_t)
        return loss_of(td_error), (jnp.abs(td_error), q_tm1)

    def grad(state: LearnerState, sample: Sample, key: jax.Array) -> tuple[Params, jax.Array, Info]:
        def batch_loss(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            losses, aux = jax.vmap(transition_loss, in_axes=(None, None, 0, None))(
                params, state.target_params, sample.transitions, key
            )
            chex.assert_equal_shape([sample.weights, losses])
            return jnp.mean(sample.weights * losses), aux

        (loss, (td_abs, q_tm1)), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
        info = {"loss": loss, "td_abs": jnp.mean(td_abs), "q_mean": jnp.mean(q_tm1), "q_max": jnp.max(q_tm1)}
        return grads, td_abs, info

    def apply(state: LearnerState, grads: Params, correction: Correction | None = None) -> tuple[LearnerState, Info]:
        memory = state.memory
        if correction is not None:
            grads, memory = correction(grads, state.params, memory)
        optimizer = _optimizer(config, state.hyperparams)
        deltas, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, deltas)
        updates = state.updates.count + 1
        target_params = _update_target(params, state.target_params, updates, state.hyperparams.target_rate)
        info = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(deltas)}
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
        state: LearnerState, sample: Sample, key: jax.Array, correction: Correction | None = None
    ) -> tuple[LearnerState, jax.Array, Info]:
        grads, td_abs, info = grad(state, sample, key)
        if axis_name is not None:
            grads = _fused_mean(grads, axis_name)
        state, apply_info = apply(state, grads, correction)
        return state, td_abs, info | apply_info

    return Learner(init, grad, apply, step)


def _fused_mean(grads: Params, axis_name: str) -> Params:
    """Mean over a mapped axis in one collective: each leaf on its own would be an all-reduce of its own."""
    flat, unravel = ravel_pytree(grads)
    return unravel(jax.lax.pmean(flat, axis_name))


def _optimizer(config: AgentConfig, hyperparams: LearnerHyperparams) -> optax.GradientTransformation:
    """The optimizer, rebuilt from traced numbers wherever it is used: its state does not depend on them."""
    rate = hyperparams.learning_rate
    rule = {
        "adam": lambda: optax.adam(rate, eps=config.optimizer_eps),
        # Centred, as in Mnih et al. (2015).
        "rmsprop": lambda: optax.rmsprop(rate, decay=config.rmsprop_decay, eps=config.optimizer_eps, centered=True),
        "sgd": lambda: optax.sgd(rate),
    }[config.optimizer]()
    if config.max_grad_norm is None:
        return rule
    return optax.chain(optax.clip_by_global_norm(hyperparams.max_grad_norm), rule)
