"""A rollout as a memory: the steps of one agent step, learnt from in shuffled minibatches and then forgotten.

No replay and no target network: PQN (Gallici et al. 2025). Its transitions have lambda returns as rewards and nothing to
bootstrap from, so any loss learns from them. Not here: who takes the steps (actor), where they are kept (replay).

Shapes: T steps of each of E environments, N = T E, B minibatch, K epochs.
"""

import flax
import jax
import jax.numpy as jnp

from dqn_jax import td
from dqn_jax.config import AgentConfig
from dqn_jax.replay import Memory, ReplayState, Ring, Valid, clear, select
from dqn_jax.types import Clock, ReplayHyperparams, Sample, Tree, Value
from dqn_jax.windows import SingleStep, Window


class Rollout(flax.struct.PyTreeNode):
    """What a memory keeps of the steps that it learns from."""

    returns: jax.Array
    """[N] float32 lambda return of each."""
    order: jax.Array
    """[K N] int32 in which they are drawn: all of them in every epoch."""
    drawn: Clock
    """Minibatches drawn so far; an agent step draws as many as `order` has."""
    return_lambda: jax.Array
    """[] float32."""


def make_rollout(ring: Ring, config: AgentConfig, num_shards: int = 1) -> Memory:
    """Builds the memory of PQN, or one of its shards.

    `prepare` computes lambda returns with the parameters that the updates begin with, and shuffles for each epoch; every batch
    is the next of that order. A return ends where its episode does: with a termination it is the reward, at a time limit the
    reward and the value of the final observation, and so at the rollout's end.

    Args:
      ring: keeps the last N steps, in the order in which they are added, as Windows of one step.
      config: sizes, and lambda.
      num_shards: devices that environments and minibatches are divided over.

    Returns:
      The memory. It takes SingleSteps with whole observations.

    Source: Gallici et al. (2025), algorithm 1.
    """
    size, batch_size = ring.capacity, config.batch_size // num_shards
    epochs = config.updates_per_step * batch_size // size

    def init(hyperparams: ReplayHyperparams | None = None) -> ReplayState:
        assert hyperparams is not None
        nothing = Rollout(
            returns=jnp.zeros(size),
            order=jnp.tile(jnp.arange(size), epochs),
            drawn=Clock(jnp.int32(0)),
            return_lambda=hyperparams.return_lambda,
        )
        return ring.init().replace(rollout=nothing)

    def add(state: ReplayState, transitions: Tree, valid: Valid = True, priorities: jax.Array | None = None) -> ReplayState:
        del priorities
        assert isinstance(transitions, SingleStep)
        return ring.add(state, Window(transitions.transition, transitions.ended), valid)

    def read(state: ReplayState, indices: jax.Array) -> tuple[Sample, Window]:
        batch = ring.read(state, indices)
        kept: Tree = batch.transitions
        return batch, kept

    def prepare(state: ReplayState, value: Value, key: jax.Array) -> ReplayState:
        steps, ended = read(state, jnp.arange(size))[1]
        lambda_ = jnp.where(ended, 0.0, state.rollout.return_lambda)
        numbers = (steps.r_t, steps.discount_t, jax.vmap(value)(steps.s_t), lambda_)
        of_each = jax.vmap(lambda numbers: td.lambda_returns(*numbers), in_axes=1, out_axes=1)
        returns = of_each(jax.tree.map(lambda x: x.reshape(config.acts_per_step, -1), numbers))
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
        return state.replace(rollout=state.rollout.replace(returns=returns.reshape(-1), order=order.reshape(-1)))

    def sample(key: jax.Array, state: ReplayState) -> Sample:
        del key
        rollout = state.rollout
        start = rollout.drawn.count % config.updates_per_step * batch_size
        indices = jax.lax.dynamic_slice_in_dim(rollout.order, start, batch_size)
        batch, kept = read(state, indices)
        item = kept.steps._replace(r_t=rollout.returns[indices], discount_t=jnp.zeros(batch_size))
        return batch._replace(transitions=item)

    def update(state: ReplayState, indices: jax.Array, priority: jax.Array, valid: Valid = True) -> ReplayState:
        del indices, priority
        drawn = Clock(state.rollout.drawn.count + jnp.where(valid, 1, 0))
        return state.replace(rollout=state.rollout.replace(drawn=drawn))

    return Memory(init, add, sample, update, prepare, clear, select)
