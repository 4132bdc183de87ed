"""DQN as one pure agent: an actor, a memory and a learner. Every way of training transforms what is made here.

One step, in order: act, exploring, and store (actor, memory); sample a batch; descend on a loss, as DQN's (y - Q)^2 with
y = r + gamma max Q' (losses); every C updates, copy the target, which began as a copy (learner).

Not here: loops over devices or seeds, files.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import ActorState, make_actor
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.exploration import exploration_numbers
from dqn_jax.frame_ring import SharedBy, make_frame_ring
from dqn_jax.learner import LearnerState, make_learner
from dqn_jax.losses import LossMaker, check_loss, loss_numbers
from dqn_jax.networks import Network
from dqn_jax.replay import Memory, ReplayState, make_memory, make_ring
from dqn_jax.rollout import make_rollout
from dqn_jax.streams import keys_at
from dqn_jax.types import (
    ActorHyperparams,
    Clock,
    Correction,
    Hyperparams,
    Info,
    LearnerHyperparams,
    Params,
    ReplayHyperparams,
    Sample,
    Transition,
)
from dqn_jax.windows import Window, keeps_frames

_MEASURED = ("priority", "q_mean", "q_max", "grad_norm", "update_norm", "replay_age")
"""Measured at every update they would cost a tenth of it: they are of the last one."""

# How the infos of many steps, or many devices, become one. The rest, a loss's own among them, are averaged.
_REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    **dict.fromkeys(("episodes", "return_sum", "terminated", "truncated"), lambda x: x.sum(axis=0)),
    "q_max": lambda x: x.max(axis=0),
    "epsilon": lambda x: x[-1],
    "finite": lambda x: x.all(axis=0),
}


class AgentState(flax.struct.PyTreeNode):
    """The whole agent."""

    actor: ActorState
    learner: LearnerState
    replay: ReplayState
    stream: jax.Array
    """[] key that sampling and learning draw from."""
    clock: Clock
    """Batches sampled. The learner's own count moves with the learner, which may be somebody else's."""


class AgentInit(Protocol):
    """`Agent.init`."""

    def __call__(
        self, key: jax.Array, env_params: EnvParams = ..., hyperparams: Hyperparams = ..., shard: jax.Array | int = 0
    ) -> AgentState:
        """Makes the first state: of the environment's parameters and the config's numbers, if none are given."""


class AgentAdd(Protocol):
    """`Agent.add`."""

    def __call__(
        self,
        state: AgentState,
        transitions: Transition,
        valid: jax.Array | bool = True,
        priorities: jax.Array | None = None,
    ) -> AgentState:
        """Stores transitions [M, ...], as `Memory.add`."""


class Act(Protocol):
    """`Agent.act` (one step of every environment) and `Agent.gather`."""

    def __call__(self, state: AgentState, active: jax.Array | bool = True) -> tuple[AgentState, Info]:
        """Takes exploring steps of every environment, stored where `active` ([] bool) is true."""


class Learn(Protocol):
    """`Agent.learn` and `Agent.step`."""

    def __call__(
        self,
        state: AgentState,
        correction: Correction | None = None,
        active: jax.Array | bool = True,
        measured: jax.Array | bool = True,
    ) -> tuple[AgentState, Info]:
        """Updates the state, gradients being corrected first; what `active` ([] bool) does is said where the function is.

        Where `measured` ([] bool) is false, norms and means of the update are 0 in the info, and cost nothing.
        """


class Agent(NamedTuple):
    """DQN as pure functions of its state."""

    init: AgentInit
    add: AgentAdd
    act: Act
    prepare: Callable[[AgentState], AgentState]
    """state -> state whose memory is ready for the updates of a step; nothing to do for most memories."""
    gather: Act
    """`acts_per_step` acts, then `prepare`: what comes before the updates of a step."""
    grad: Callable[[AgentState], tuple[AgentState, Params, Info]]
    """state -> (state, gradients on a sampled batch, info): what a worker sends to a parameter server."""
    learn: Learn
    """One update on a sampled batch; priorities change where `active` is true."""
    step: Learn
    """`acts_per_step` acts, then `updates_per_step` updates.

    Where `active` ([] bool) is false the state stays as it is; the info is of the step not taken."""
    warm_up: Callable[[AgentState], AgentState]
    """Acts until `learning_starts` frames are stored; `learn` needs it once, before the first update."""
    refill: Callable[[AgentState], AgentState]
    """`warm_up` from an empty replay."""
    memory: Memory
    """What the state's `replay` is a state of."""


def keys_of(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys that an agent's network, actor and learner draw from."""
    network_key, actor_key, learner_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
    return network_key, actor_key, learner_key


def hyperparams_of(config: AgentConfig, loss: LossMaker | None = None) -> Hyperparams:
    """The numbers of a config that a sweep may vary, as arrays: a Python number in their place would be traced again."""
    clip = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    return Hyperparams(
        actor=ActorHyperparams(
            discount=jnp.float32(config.discount),
            epsilon_start=jnp.float32(config.epsilon_start),
            epsilon_end=jnp.float32(config.epsilon_end),
            epsilon_decay_frames=jnp.int32(config.epsilon_decay_frames),
            epsilon_first_frame=jnp.int32(0),
            exploration=exploration_numbers(config),
        ),
        learner=LearnerHyperparams(
            learning_rate=jnp.float32(config.learning_rate),
            target_rate=jnp.float32(config.target_rate),
            max_grad_norm=jnp.float32(clip),
        ),
        replay=ReplayHyperparams(
            priority_exponent=jnp.float32(config.priority_exponent),
            importance_exponent=jnp.float32(config.importance_exponent),
            return_lambda=jnp.float32(config.return_lambda or 0.0),
        ),
        loss=loss_numbers(config, loss),
    )


def make_agent(
    env: Environment,
    network: Network,
    config: AgentConfig,
    axis_name: str | None = None,
    num_shards: int = 1,
    loss: LossMaker | None = None,
    shared_by: SharedBy | None = None,
) -> Agent:
    """Builds DQN (Mnih et al. 2015, algorithm 1).

    Args:
      env: the environment.
      network: the Q-network.
      config: sizes and choices of one whole agent.
      axis_name: mapped axis over which gradients are averaged; None for one learner.
      num_shards: devices that the agent's environments, batch and replay are divided over.
      loss: makes the loss; None takes the one that the config names.
      shared_by: how actors share the memory; None where the agent's own is the only one.

    Returns:
      The agent, or the shard of it that `init`'s argument `shard` numbers.

    Raises:
      InputError: where sizes do not divide over `num_shards`, or a part that is a user's own fails when it is traced.
    """
    config.check_shards(num_shards)
    actor = make_actor(env, network, config, num_shards)
    learner = make_learner(network, config, axis_name, loss)
    example = example_of(env, config)
    memory = _memory_of(env, config, shared_by, num_shards, axis_name)
    defaults = hyperparams_of(config, loss)
    check_loss(network, config, example, config.batch_size // num_shards, loss)

    def init(
        key: jax.Array, env_params: EnvParams = env.params, hyperparams: Hyperparams = defaults, shard: jax.Array | int = 0
    ) -> AgentState:
        network_key, actor_key, learner_key = keys_of(key)
        first_env = shard * (config.num_envs // num_shards)
        return AgentState(
            actor=actor.init(actor_key, env_params, hyperparams.actor, first_env),
            learner=learner.init(network_key, hyperparams.learner, hyperparams.loss),
            replay=memory.init(hyperparams.replay),
            stream=jax.random.fold_in(learner_key, shard),
            clock=Clock(jnp.int32(0)),
        )

    def add(
        state: AgentState, transitions: Transition, valid: jax.Array | bool = True, priorities: jax.Array | None = None
    ) -> AgentState:
        return state.replace(replay=memory.add(state.replay, transitions, valid, priorities))

    def act(state: AgentState, active: jax.Array | bool = True) -> tuple[AgentState, Info]:
        actor_state, transitions, valid, info = actor.act(state.actor, state.learner.params)
        return add(state.replace(actor=actor_state), transitions, valid & active), info

    def keys_of_update(state: AgentState) -> jax.Array:
        """[3] keys that the next update samples with, learns with, and prepares the memory with."""
        return keys_at(state.stream, state.clock.count, 3)

    def prepare(state: AgentState) -> AgentState:
        _, _, key = keys_of_update(state)

        def value(obs: jax.Array) -> jax.Array:
            return jnp.max(network.apply(state.learner.params, obs, None).q_values)

        return state.replace(replay=memory.prepare(state.replay, value, key))

    def gather(state: AgentState, active: jax.Array | bool = True) -> tuple[AgentState, Info]:
        state, info = repeat(lambda state: act(state, active), config.acts_per_step)(state)
        return prepare(state), info

    def draw(state: AgentState) -> tuple[AgentState, Sample, jax.Array]:
        """A batch, and the key to learn from it with."""
        sample_key, grad_key, _ = keys_of_update(state)
        sample = memory.sample(sample_key, state.replay)
        return state.replace(clock=Clock(state.clock.count + 1)), sample, grad_key

    def of_the_whole(info: Info) -> Info:
        """An info with the age in frames of the whole agent, whatever share of them this replay holds."""
        return info | {"replay_age": num_shards * info["replay_age"]}

    def grad(state: AgentState) -> tuple[AgentState, Params, Info]:
        state, sample, key = draw(state)
        grads, priority, info = learner.grad(state.learner, sample, key)
        return state.replace(replay=memory.update(state.replay, sample.indices, priority)), grads, of_the_whole(info)

    def learn(
        state: AgentState,
        correction: Correction | None = None,
        active: jax.Array | bool = True,
        measured: jax.Array | bool = True,
    ) -> tuple[AgentState, Info]:
        state, sample, key = draw(state)
        learner_state, priority, info = learner.step(state.learner, sample, key, correction, measured)
        replay_state = memory.update(state.replay, sample.indices, priority, active)
        return state.replace(learner=learner_state, replay=replay_state), of_the_whole(info)

    def step(
        state: AgentState,
        correction: Correction | None = None,
        active: jax.Array | bool = True,
        measured: jax.Array | bool = True,
    ) -> tuple[AgentState, Info]:
        before = state
        state, act_info = gather(state, active)

        def update(state: AgentState, last: jax.Array | bool) -> tuple[AgentState, Info]:
            return learn(state, correction, active, measured & last)

        state, learn_info = repeat_measuring(update, config.updates_per_step)(state)
        if active is not True:
            replay = memory.select(jnp.asarray(active), state.replay, before.replay)
            rest = jax.tree.map(lambda new, old: jnp.where(active, new, old), *(s.replace(replay=()) for s in (state, before)))
            state = rest.replace(replay=replay)
        return state, act_info | learn_info

    def warm_up(state: AgentState) -> AgentState:
        return repeat(act, config.warm_up_acts)(state)[0] if config.warm_up_acts else state

    def refill(state: AgentState) -> AgentState:
        return warm_up(state.replace(replay=memory.init(defaults.replay)))

    return Agent(init, add, act, prepare, gather, grad, learn, step, warm_up, refill, memory)


def make_chunk(
    agent: Agent, num_steps: int, correction: Correction | None = None
) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """`num_steps` agent steps as one loop: state -> (state, info).

    Norms and means in the info are of its last update; `finite` ([] bool) says whether every parameter and the loss is.
    """

    def step(state: AgentState, last: jax.Array | bool) -> tuple[AgentState, Info]:
        return agent.step(state, correction, True, last)

    def chunk(state: AgentState) -> tuple[AgentState, Info]:
        state, info = repeat_measuring(step, num_steps)(state)
        return state, info | {"finite": _all_finite(state) & jnp.isfinite(info["loss"])}

    return chunk


def diagnose(agent: Agent, state: AgentState) -> Info:
    """Q-values, priorities, norms and replay age of one further update that is thrown away, and `finite`.

    `finite` ([] bool) says whether every parameter is.
    """
    return agent.learn(state)[1] | {"finite": _all_finite(state)}


def _all_finite(state: AgentState) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.learner.params)]))


def repeat(fn: Callable[[AgentState], tuple[AgentState, Info]], times: int) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """`fn` applied `times` times to a state in one loop; its infos are reduced to one."""
    if times == 1:
        return fn

    def repeated(state: AgentState) -> tuple[AgentState, Info]:
        state, infos = jax.lax.scan(lambda state, _: fn(state), state, length=times)
        return state, reduce_info(infos)

    return repeated


def repeat_measuring(
    fn: Callable[[AgentState, jax.Array | bool], tuple[AgentState, Info]], times: int
) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """As `repeat`, of a function that is told whether this is its last call: what costs time is measured then."""
    if times == 1:
        return lambda state: fn(state, True)

    def one(carry: tuple[AgentState, Info], last: jax.Array) -> tuple[tuple[AgentState, Info], Info]:
        state, info = fn(carry[0], last)
        return (state, {name: info[name] for name in _MEASURED}), every_step(info)

    def repeated(state: AgentState) -> tuple[AgentState, Info]:
        nothing = {name: jnp.float32(0) for name in _MEASURED}
        (state, measures), infos = jax.lax.scan(one, (state, nothing), jnp.arange(times) == times - 1)
        return state, measures | reduce_info(infos)

    return repeated


def reduce_info(infos: Info) -> Info:
    """Infos [T, ...] of T calls (or devices) as one.

    Counts are added, flags must all hold, epsilon is the last, q_max the largest; the rest are means.
    """
    return {name: _REDUCTIONS.get(name, _mean)(values) for name, values in infos.items()}


def reduce_infos(infos: Sequence[Info]) -> Info:
    """Infos of several calls, on the host, as one; see `reduce_info`."""
    return reduce_info({name: np.stack([info[name] for info in infos]) for name in infos[0]})


def every_step(info: Info) -> Info:
    """What is kept of the info of every step; the rest is measured once a chunk."""
    return {name: value for name, value in info.items() if name not in _MEASURED}


def _mean(values: jax.Array) -> jax.Array:
    return values.mean(axis=0)


def not_finite(info: Info, seeds: Sequence[int]) -> str | None:
    """Names the seeds of a chunk whose `finite` [S] is false, and a remedy; None where all is well."""
    broken = [seed for seed, finite in zip(seeds, info["finite"], strict=True) if not finite]
    if not broken:
        return None
    return f"seed(s) {broken}: a loss or parameter is not finite: lower agent.learning_rate or set agent.max_grad_norm"


def replay_bytes(env: Environment, config: AgentConfig) -> int:
    """Returns the bytes of the replay of one whole agent."""
    state = jax.eval_shape(_memory_of(env, config).init, hyperparams_of(config).replay)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _memory_of(
    env: Environment, config: AgentConfig, shared_by: SharedBy | None = None, num_shards: int = 1, axis_name: str | None = None
) -> Memory:
    example, ring = example_of(env, config), None
    if config.memory == "rollout":
        steps = make_ring(Window(example, jnp.bool_(False)), config.frames_per_step // num_shards)
        return make_rollout(steps, config, num_shards)
    if keeps_frames(env.spec, config):
        num_envs, turn = shared_by or (config.num_envs // num_shards, None)
        ring = make_frame_ring(env.spec, config, config.replay_capacity // num_shards, num_envs, turn)
    return make_memory(example, config, num_shards, axis_name, ring)


def example_of(env: Environment, config: AgentConfig) -> Transition:
    """Returns a transition with the shapes and dtypes of those that an agent stores."""
    steps = () if config.window_lambda is None else (config.n_step,)
    obs, number = jnp.zeros(env.spec.obs_shape, env.spec.obs_dtype), jnp.zeros(steps)
    return Transition(obs, a_tm1=jnp.int32(0), r_t=number, discount_t=number, s_t=jnp.broadcast_to(obs, (*steps, *obs.shape)))
