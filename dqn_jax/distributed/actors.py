"""Actors: how each explores, the blocks of transitions it sends, and how blocks are joined.

Not here: where actors run (`engines`), how environments are stepped (`acting`), learning (`actor_learner`).

Shapes: N actors, E environments of an actor, T environment steps in a block.
"""

import math
from collections.abc import Callable
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
from dqn_jax.envs import Environment
from dqn_jax.exploration import NO_EXPLORATION, make_exploration
from dqn_jax.frame_ring import make_frame_ring
from dqn_jax.learner import make_learner
from dqn_jax.mapping import stream_key
from dqn_jax.types import ActorHyperparams, Info, Params, Sample, Transition, Tree
from dqn_jax.windows import SingleStep, keeps_frames

_LADDER_BASE, _LADDER_STEP = 0.4, 7.0


class Policy(NamedTuple):
    """Parameters sent to an actor."""

    params: Params
    loss_hyperparams: dict[str, jax.Array]
    """The learner's, for the priorities of new transitions."""


class Block(NamedTuple):
    """What an actor sends."""

    transitions: Tree
    """Transitions or SingleSteps, leaves [T, E, ...]; on the way, as `each_frame_once` leaves SingleSteps."""
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
    prioritised = config.agent.memory == "prioritised"
    joining = _make_joining(env, config) if prioritised and keeps_frames(env.spec, config.agent) else _NO_JOINING
    learner = make_learner(network, config.agent)
    _, actor_key, learner_key = keys_of(stream_key(config.seed))

    @jax.jit
    def init(stream: jax.Array, numbers: ActorHyperparams) -> ActorState:
        return actor.init(actor_key, env.params, numbers, first_env=stream * config.envs_per_actor)

    @jax.jit
    def priorities(ring: Tree, steps: Tree, policy: Policy, version: jax.Array) -> tuple[Tree, jax.Array]:
        ring, transitions = joining.join(ring, steps)
        copy = Copy(policy.params, policy.params, policy.loss_hyperparams)

        def of_moment(transitions: Transition) -> jax.Array:
            ones = jnp.ones(transitions.a_tm1.shape)
            sample = Sample(transitions, indices=ones, weights=ones, age=ones)
            # The compiler leaves out the gradient, which is not used.
            return learner.grad(copy, sample, jax.random.fold_in(learner_key, version))[1]

        return ring, jax.vmap(of_moment)(transitions)

    def begin(task: Task) -> tuple[Tree, Tree, Policy]:
        numbers = actor_hyperparams(config, task.stream % config.actors.num_actors, task.frames)
        return acting.begin(init(jnp.int32(task.stream), numbers)), joining.init(), task.params

    def work(state: tuple[Tree, Tree, Policy], task: Task) -> tuple[tuple[Tree, Tree, Policy], Block, Info]:
        actor_state, ring, policy = state
        policy = policy if task.params is None else task.params
        actor_state, (transitions, valid, infos) = acting.play(actor_state, policy.params, config.acts_per_block)
        known = None
        if prioritised:
            ring, known = priorities(ring, transitions, policy, jnp.int32(task.version))
        return (actor_state, ring, policy), each_frame_once(Block(transitions, valid, known)), reduce_info(infos)

    return Job(begin, work)


class _Joining(NamedTuple):
    """How an actor makes transitions of what it sends, to give them priorities."""

    init: Callable[[], Tree]
    join: Callable[[Tree, Tree], tuple[Tree, Transition]]
    """(state, what is sent [T, E, ...]) -> (state, the transitions that it completes [T, E, ...])."""


_NO_JOINING = _Joining(lambda: (), lambda state, transitions: (state, transitions))


def _make_joining(env: Environment, config: ActorLearnerExperiment) -> _Joining:
    """Joins single steps in a ring of frames that a block fills. An actor's first n - 1 complete none: any stands there."""
    shape = (config.acts_per_block, config.envs_per_actor)
    capacity = math.prod(shape)
    ring = make_frame_ring(env.spec, config.agent, capacity, config.envs_per_actor)

    def join(state: Tree, steps: SingleStep) -> tuple[Tree, Transition]:
        state = jax.lax.scan(lambda state, step: (ring.add(state, step, True), None), state, steps)[0]
        newest = ring.read(state, (state.added.count + jnp.arange(capacity)) % capacity).transitions
        return state, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), newest)

    return _Joining(ring.init, join)


def each_frame_once(block: Block) -> Block:
    """Leaves out of a block of steps what they led to, where the block's next step acts on it and so has it.

    What is left is [F, ...]: what the last steps led to, and those that ended an episode.
    """
    steps = block.transitions
    if not isinstance(steps, SingleStep):
        return block
    return _with_reached(block, np.asarray(steps.transition.s_t)[_lead_elsewhere(steps)])


def with_every_frame(block: Block) -> Block:
    """Inverts `each_frame_once`."""
    steps = block.transitions
    if not isinstance(steps, SingleStep):
        return block
    acted_on = np.asarray(steps.transition.s_tm1)
    reached = np.concatenate([acted_on[1:], acted_on[-1:]])
    reached[_lead_elsewhere(steps)] = steps.transition.s_t
    return _with_reached(block, reached)


def _with_reached(block: Block, frames: Tree) -> Block:
    steps = block.transitions
    return block._replace(transitions=steps._replace(transition=steps.transition._replace(s_t=frames)))


def _lead_elsewhere(steps: SingleStep) -> np.ndarray:
    """Which steps [T, E] led to a frame that no step of their block acted on."""
    elsewhere = np.array(steps.ended)
    elsewhere[-1] = True
    return elsewhere


def side_by_side(blocks: list[Block]) -> Block:
    """Joins blocks of several actors, whole, environments in the actors' order; a step is valid if it is in all."""
    if len(blocks) == 1:
        return blocks[0]
    transitions, priorities = jax.tree.map(
        lambda *parts: np.concatenate(parts, axis=1), *((block.transitions, block.priorities) for block in blocks)
    )
    return Block(transitions, np.logical_and.reduce([block.valid for block in blocks]), priorities)
