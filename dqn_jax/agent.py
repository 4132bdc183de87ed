"""DQN as one pure agent: an actor, a replay memory and a learner. Every way of training transforms what is made here.

The algorithm, in the order it is written below: initialise both networks alike; explore with epsilon-greedy and store;
sample a batch, form y = r + gamma max Q', minimise the squared error, copy the target every C updates.

Not here: loops over time, devices, seeds, files.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.actor import ActorState, make_actor
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment
from dqn_jax.learner import LearnerState, make_learner
from dqn_jax.networks import Network
from dqn_jax.replay import ReplayState, make_uniform_replay
from dqn_jax.types import ActorHyperparams, Correction, Hyperparams, Info, LearnerHyperparams, Transition

_EVERY_STEP = ("loss", "epsilon", "episodes", "return_sum", "terminated", "truncated")
_SUMS = ("episodes", "return_sum", "terminated", "truncated")
_FLAGS = ("finite",)
_LAST = ("epsilon",)
_MAXIMA = ("q_max",)


class AgentState(flax.struct.PyTreeNode):
    """The whole agent."""

    actor: ActorState
    learner: LearnerState
    replay: ReplayState
    stream: jax.Array
    """[] key that sampling and learning draw from."""


class Agent(NamedTuple):
    """DQN as pure functions of its state."""

    init: Callable[..., AgentState]
    """(key, env_params=the environment's, hyperparams=the config's, shard=0) -> state."""
    act: Callable[[AgentState], tuple[AgentState, Info]]
    """One epsilon-greedy step of every environment, stored."""
    learn: Callable[..., tuple[AgentState, Info]]
    """(state, correction=None): one update on a sampled batch."""
    step: Callable[..., tuple[AgentState, Info]]
    """(state, correction=None): `acts_per_step` acts, then `updates_per_step` updates."""
    warm_up: Callable[[AgentState], AgentState]
    """Acts until `learning_starts` frames are stored; `learn` needs it once, before the first update."""


def hyperparams_of(config: AgentConfig) -> Hyperparams:
    """The numbers of a config that a sweep may vary, as arrays: a Python number in their place would trace anew."""
    clip = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    return Hyperparams(
        actor=ActorHyperparams(
            discount=jnp.float32(config.discount),
            epsilon_start=jnp.float32(config.epsilon_start),
            epsilon_end=jnp.float32(config.epsilon_end),
            epsilon_decay_frames=jnp.int32(config.epsilon_decay_frames),
        ),
        learner=LearnerHyperparams(
            learning_rate=jnp.float32(config.learning_rate),
            target_rate=jnp.float32(config.target_rate),
            max_grad_norm=jnp.float32(clip),
        ),
    )


def make_agent(
    env: Environment, network: Network, config: AgentConfig, axis_name: str | None = None, num_shards: int = 1
) -> Agent:
    """Builds DQN (Mnih et al. 2015, algorithm 1).

    Args:
      env: the environment.
      network: the Q-network.
      config: sizes and choices of one whole agent.
      axis_name: mapped axis over which gradients are averaged; None for one learner.
      num_shards: devices that the agent's environments, batch and replay are divided over.

    Returns:
      The agent, or the shard of it that `init`'s argument `shard` numbers.

    Raises:
      InputError: where sizes do not divide over `num_shards`.
    """
    config.check_shards(num_shards)
    actor = make_actor(env, network, config, num_shards)
    learner = make_learner(network, config, axis_name)
    replay = make_uniform_replay(
        _example(env), capacity=config.replay_capacity // num_shards, batch_size=config.batch_size // num_shards
    )
    defaults = hyperparams_of(config)

    def init(
        key: jax.Array, env_params=env.params, hyperparams: Hyperparams = defaults, shard: jax.Array | int = 0
    ) -> AgentState:
        network_key, actor_key, learner_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
        first_env = shard * (config.num_envs // num_shards)
        return AgentState(
            actor=actor.init(actor_key, env_params, hyperparams.actor, first_env),
            learner=learner.init(network_key, hyperparams.learner),
            replay=replay.init(),
            stream=jax.random.fold_in(learner_key, shard),
        )

    def act(state: AgentState) -> tuple[AgentState, Info]:
        actor_state, transitions, valid, info = actor.act(state.actor, state.learner.params)
        return state.replace(actor=actor_state, replay=replay.add(state.replay, transitions, valid)), info

    def learn(state: AgentState, correction: Correction | None = None) -> tuple[AgentState, Info]:
        sample_key, grad_key = jax.random.split(jax.random.fold_in(state.stream, state.learner.updates.count))
        sample = replay.sample(sample_key, state.replay)
        learner_state, _, info = learner.step(state.learner, sample, grad_key, correction)
        return state.replace(learner=learner_state), info | {"replay_age": jnp.mean(sample.age.astype(jnp.float32))}

    def step(state: AgentState, correction: Correction | None = None) -> tuple[AgentState, Info]:
        state, act_info = repeat(act, config.acts_per_step)(state)
        state, learn_info = repeat(lambda state: learn(state, correction), config.updates_per_step)(state)
        return state, act_info | learn_info

    def warm_up(state: AgentState) -> AgentState:
        return repeat(act, config.warm_up_acts)(state)[0]

    return Agent(init, act, learn, step, warm_up)


def make_chunk(agent: Agent, num_steps: int) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """`num_steps` agent steps as one loop: state -> (state, info).

    The loss and the counts cover every step. Q-values, |td|, norms and replay age describe one further update that is thrown
    away: measured at every update they would cost a tenth of it. `finite` ([] bool) says whether no loss and no parameter is
    infinite or NaN.
    """

    def step(state: AgentState) -> tuple[AgentState, Info]:
        state, info = agent.step(state)
        return state, {name: info[name] for name in _EVERY_STEP}

    def chunk(state: AgentState) -> tuple[AgentState, Info]:
        state, info = repeat(step, num_steps)(state)
        _, next_update = agent.learn(state)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((state.learner.params, info["loss"]))]
        return state, next_update | info | {"finite": jnp.all(jnp.stack(finite))}

    return chunk


def repeat(fn: Callable[[AgentState], tuple[AgentState, Info]], times: int) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """`fn` applied `times` times to a state in one loop; its infos are reduced to one."""
    if times == 1:
        return fn

    def repeated(state: AgentState) -> tuple[AgentState, Info]:
        state, infos = jax.lax.scan(lambda state, _: fn(state), state, length=times)
        return state, reduce_info(infos)

    return repeated


def reduce_info(infos: Info) -> Info:
    """Infos [T, ...] of T calls (or devices) as one.

    Counts are added, flags must all hold, epsilon is the last, q_max the largest; the rest are means.
    """

    def reduce(name: str, values: jax.Array) -> jax.Array:
        if name in _SUMS:
            return values.sum(axis=0)
        if name in _FLAGS:
            return values.all(axis=0)
        if name in _LAST:
            return values[-1]
        return values.max(axis=0) if name in _MAXIMA else values.mean(axis=0)

    return {name: reduce(name, values) for name, values in infos.items()}


def _example(env: Environment) -> Transition:
    obs = jnp.zeros(env.obs_shape, env.obs_dtype)
    return Transition(s_tm1=obs, a_tm1=jnp.int32(0), r_t=jnp.float32(0), discount_t=jnp.float32(0), s_t=obs)
