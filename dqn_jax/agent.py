"""DQN as one pure agent: an actor, a replay memory and a learner. Every way of training transforms what is made here.

One step, in order: act epsilon-greedily and store (actor, replay); sample a batch; descend on (y - Q)^2 with
y = r + gamma max Q'; every C updates, copy the target, which began as a copy (learner).

Not here: loops over devices or seeds, files.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.actor import ActorState, make_actor
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.learner import LearnerState, make_learner
from dqn_jax.networks import Network
from dqn_jax.replay import ReplayState, make_replay
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

_EVERY_STEP = ("loss", "epsilon", "episodes", "return_sum", "terminated", "truncated")

# How the infos of many steps, or many devices, become one.
_REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("episodes", "return_sum", "terminated", "truncated"), lambda x: x.sum(axis=0)),
    **dict.fromkeys(("loss", "td_abs", "q_mean", "grad_norm", "update_norm", "replay_age"), lambda x: x.mean(axis=0)),
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


class Agent(NamedTuple):
    """DQN as pure functions of its state."""

    init: Callable[..., AgentState]
    """(key, env_params=the environment's, hyperparams=the config's, shard=0) -> state."""
    add: Callable[..., AgentState]
    """(state, transitions [M, ...], valid=True, priorities=None) -> state with them in its replay, as `Replay.add`."""
    act: Callable[..., tuple[AgentState, Info]]
    """(state, active=True): one epsilon-greedy step of every environment, stored where `active` ([] bool) is true."""
    grad: Callable[[AgentState], tuple[AgentState, Params, Info]]
    """state -> (state, gradients on a sampled batch, info): what a worker sends to a parameter server."""
    learn: Callable[..., tuple[AgentState, Info]]
    """(state, correction=None, active=True): one update on a sampled batch; priorities change where `active` is true."""
    step: Callable[..., tuple[AgentState, Info]]
    """(state, correction=None, active=True): `acts_per_step` acts, then `updates_per_step` updates.

    Where `active` ([] bool) is false the state stays as it is; the info is of the step not taken."""
    warm_up: Callable[[AgentState], AgentState]
    """Acts until `learning_starts` frames are stored; `learn` needs it once, before the first update."""


def keys_of(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys that an agent's network, actor and learner draw from."""
    network_key, actor_key, learner_key = (jax.random.fold_in(key, purpose) for purpose in range(3))
    return network_key, actor_key, learner_key


def hyperparams_of(config: AgentConfig) -> Hyperparams:
    """The numbers of a config that a sweep may vary, as arrays: a Python number in their place would be traced again."""
    clip = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    return Hyperparams(
        actor=ActorHyperparams(
            discount=jnp.float32(config.discount),
            epsilon_start=jnp.float32(config.epsilon_start),
            epsilon_end=jnp.float32(config.epsilon_end),
            epsilon_decay_frames=jnp.int32(config.epsilon_decay_frames),
            epsilon_first_frame=jnp.int32(0),
        ),
        learner=LearnerHyperparams(
            learning_rate=jnp.float32(config.learning_rate),
            target_rate=jnp.float32(config.target_rate),
            max_grad_norm=jnp.float32(clip),
        ),
        replay=ReplayHyperparams(jnp.float32(config.priority_exponent), jnp.float32(config.importance_exponent)),
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
    replay = make_replay(_example(env), config, num_shards, axis_name)
    defaults = hyperparams_of(config)

    def init(
        key: jax.Array, env_params: EnvParams = env.params, hyperparams: Hyperparams = defaults, shard: jax.Array | int = 0
    ) -> AgentState:
        network_key, actor_key, learner_key = keys_of(key)
        first_env = shard * (config.num_envs // num_shards)
        return AgentState(
            actor=actor.init(actor_key, env_params, hyperparams.actor, first_env),
            learner=learner.init(network_key, hyperparams.learner),
            replay=replay.init(hyperparams.replay),
            stream=jax.random.fold_in(learner_key, shard),
            clock=Clock(jnp.int32(0)),
        )

    def add(
        state: AgentState, transitions: Transition, valid: jax.Array | bool = True, priorities: jax.Array | None = None
    ) -> AgentState:
        return state.replace(replay=replay.add(state.replay, transitions, valid, priorities))

    def act(state: AgentState, active: jax.Array | bool = True) -> tuple[AgentState, Info]:
        actor_state, transitions, valid, info = actor.act(state.actor, state.learner.params)
        return add(state.replace(actor=actor_state), transitions, valid & active), info

    def draw(state: AgentState) -> tuple[AgentState, Sample, jax.Array, Info]:
        """A batch, the key to learn from it with, and the mean age of its transitions."""
        time = state.clock.count
        sample_key, grad_key = jax.random.split(jax.random.fold_in(state.stream, time))
        sample = replay.sample(sample_key, state.replay)
        # In frames of the whole agent, whatever share of them this replay holds.
        info = {"replay_age": num_shards * jnp.mean(sample.age.astype(jnp.float32))}
        return state.replace(clock=Clock(time + 1)), sample, grad_key, info

    def grad(state: AgentState) -> tuple[AgentState, Params, Info]:
        state, sample, key, info = draw(state)
        grads, td_abs, grad_info = learner.grad(state.learner, sample, key)
        return state.replace(replay=replay.update(state.replay, sample.indices, td_abs)), grads, info | grad_info

    def learn(
        state: AgentState, correction: Correction | None = None, active: jax.Array | bool = True
    ) -> tuple[AgentState, Info]:
        state, sample, key, info = draw(state)
        learner_state, td_abs, learn_info = learner.step(state.learner, sample, key, correction)
        replay_state = replay.update(state.replay, sample.indices, td_abs, active)
        return state.replace(learner=learner_state, replay=replay_state), info | learn_info

    def step(
        state: AgentState, correction: Correction | None = None, active: jax.Array | bool = True
    ) -> tuple[AgentState, Info]:
        before = state
        state, act_info = repeat(lambda state: act(state, active), config.acts_per_step)(state)
        state, learn_info = repeat(lambda state: learn(state, correction, active), config.updates_per_step)(state)
        if active is not True:
            state = _select(jnp.asarray(active), state, before)
        return state, act_info | learn_info

    def warm_up(state: AgentState) -> AgentState:
        return repeat(act, config.warm_up_acts)(state)[0]

    return Agent(init, add, act, grad, learn, step, warm_up)


def make_chunk(
    agent: Agent, num_steps: int, correction: Correction | None = None
) -> Callable[[AgentState], tuple[AgentState, Info]]:
    """`num_steps` agent steps as one loop, and `diagnose` after it: state -> (state, info)."""

    def step(state: AgentState) -> tuple[AgentState, Info]:
        state, info = agent.step(state, correction)
        return state, {name: info[name] for name in _EVERY_STEP}

    def chunk(state: AgentState) -> tuple[AgentState, Info]:
        state, info = repeat(step, num_steps)(state)
        diagnosis = diagnose(agent, state)
        return state, diagnosis | info | {"finite": diagnosis["finite"] & jnp.isfinite(info["loss"])}

    return chunk


def diagnose(agent: Agent, state: AgentState) -> Info:
    """Q-values, |td|, norms and replay age of one further update that is thrown away, and `finite`.

    Measured at every update they would cost a tenth of it. `finite` ([] bool) says whether every parameter is.
    """
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.learner.params)]
    return agent.learn(state)[1] | {"finite": jnp.all(jnp.stack(finite))}


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
    return {name: _REDUCTIONS[name](values) for name, values in infos.items()}


def not_finite(info: Info, seeds: Sequence[int]) -> str | None:
    """A driver's complaint of a chunk, by the `finite` [S] of its info; None where nothing is wrong."""
    broken = [seed for seed, finite in zip(seeds, info["finite"], strict=True) if not finite]
    if not broken:
        return None
    return f"seed(s) {broken}: a loss or parameter is not finite: lower agent.learning_rate or set agent.max_grad_norm"


def _select(active: jax.Array, new: AgentState, old: AgentState) -> AgentState:
    """`new` where `active`, else `old`, leaf by leaf; but what grows with the memory is new's: nothing was written into it."""
    large = {name: getattr(new.replay, name) for name in ("storage", "priorities")}
    new, old = (state.replace(replay=state.replay.replace(**dict.fromkeys(large, ()))) for state in (new, old))
    state = jax.tree.map(lambda x, y: jnp.where(active, x, y), new, old)
    return state.replace(replay=state.replay.replace(**large))


def _example(env: Environment) -> Transition:
    obs = jnp.zeros(env.obs_shape, env.obs_dtype)
    return Transition(s_tm1=obs, a_tm1=jnp.int32(0), r_t=jnp.float32(0), discount_t=jnp.float32(0), s_t=obs)
