"""Actors: how each explores, the blocks of transitions it sends, and how blocks are joined.

Not here: where actors run (`engines`), how environments are stepped (`acting`), learning (`actor_learner`).

Shapes: N actors, E environments of an actor, T environment steps in a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import ActorState, make_actor
from dqn_jax.agent import hyperparams_of, keys_of, reduce_info
from dqn_jax.build import build
from dqn_jax.distributed.acting import make_acting
from dqn_jax.distributed.config import ActorLearnerExperiment
from dqn_jax.distributed.engines.tasks import Job, Task
from dqn_jax.distributed.roles import Copy
from dqn_jax.exploration import NO_EXPLORATION, make_exploration
from dqn_jax.learner import make_learner
from dqn_jax.mapping import stream_key
from dqn_jax.types import ActorHyperparams, Info, Params, Sample, Transition, Tree

_LADDER_BASE, _LADDER_STEP = 0.4, 7.0


class Policy(NamedTuple):
    """Parameters sent to an actor."""

    params: Params
    loss_hyperparams: dict[str, jax.Array]
    """The learner's, for the priorities of new transitions."""


class Block(NamedTuple):
    """Transitions sent by an actor."""

    transitions: Transition
    """Leaves [T, E, ...]."""
    valid: Tree
    """[T] bool."""
    priorities: Tree
    """[T, E] by the actor's own parameters; None where the replay has no priorities."""


def epsilon_ladder(num_actors: int) -> np.ndarray:
    """Computes the epsilon of each actor [N]: 0.4^(1 + 7 i / (N - 1)), 0.4 if N is 1 (Horgan et al. 2018, section 4)."""
    return _LADDER_BASE ** (1.0 + _LADDER_STEP * np.arange(num_actors) / max(1, num_actors - 1))


def actor_hyperparams(config: ActorLearnerExperiment, actor: int, frames: int) -> ActorHyperparams:
    """Returns the numbers of an actor that took `frames` frames before its latest start."""
    numbers = hyperparams_of(config.agent).actor
    numbers = numbers._replace(epsilon_first_frame=jnp.int32(-frames * config.actors.num_actors))
    if config.actors.exploration == "ladder":
        epsilon = jnp.float32(epsilon_ladder(config.actors.num_actors)[actor])
        return numbers._replace(epsilon_start=epsilon, epsilon_end=epsilon)
    return numbers


def make_job(config: ActorLearnerExperiment) -> Job:
    """Makes an actor's job, for any engine."""
    env, network = build(config, on_host=True, trial=False)
    exploration = {
        "ladder": make_exploration(config.agent, give_way=True),
        "shared": make_exploration(config.agent),
        "none": NO_EXPLORATION,
    }[config.actors.exploration]
    actor = make_actor(env, network, config.agent, num_shards=config.actors.num_actors, exploration=exploration)
    acting = make_acting(env, actor)
    learner = make_learner(network, config.agent)
    _, actor_key, learner_key = keys_of(stream_key(config.seed))

    @jax.jit
    def init(stream: jax.Array, numbers: ActorHyperparams) -> ActorState:
        return actor.init(actor_key, env.params, numbers, first_env=stream * config.envs_per_actor)

    @jax.jit
    def priorities(transitions: Transition, policy: Policy, version: jax.Array) -> jax.Array:
        copy = Copy(policy.params, policy.params, policy.loss_hyperparams)

        def of_moment(transitions: Transition) -> jax.Array:
            ones = jnp.ones(transitions.a_tm1.shape)
            sample = Sample(transitions, indices=ones, weights=ones, age=ones)
            # The compiler leaves out the gradient, which is not used.
            return learner.grad(copy, sample, jax.random.fold_in(learner_key, version))[1]

        return jax.vmap(of_moment)(transitions)

    def begin(task: Task) -> tuple[Tree, Policy]:
        numbers = actor_hyperparams(config, task.stream % config.actors.num_actors, task.frames)
        return acting.begin(init(jnp.int32(task.stream), numbers)), task.params

    def work(state: tuple[Tree, Policy], task: Task) -> tuple[tuple[Tree, Policy], Block, Info]:
        actor_state, policy = state
        policy = policy if task.params is None else task.params
        actor_state, (transitions, valid, infos) = acting.play(actor_state, policy.params, config.acts_per_block)
        known = priorities(transitions, policy, jnp.int32(task.version)) if config.agent.memory == "prioritised" else None
        return (actor_state, policy), Block(transitions, valid, known), reduce_info(infos)

    return Job(begin, work)


def side_by_side(blocks: list[Block]) -> Block:
    """Joins blocks of several actors, environments in the actors' order; a step is valid if it is in all."""
    if len(blocks) == 1:
        return blocks[0]
    transitions, priorities = jax.tree.map(
        lambda *parts: np.concatenate(parts, axis=1), *((block.transitions, block.priorities) for block in blocks)
    )
    return Block(transitions, np.logical_and.reduce([block.valid for block in blocks]), priorities)
