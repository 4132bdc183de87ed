"""Calls with a slip in each, which the type checker must find: an ignore that it does not need fails the lint.

Not run. Beside each stands what is right.
"""

import jax

from dqn_jax.agent import Agent, AgentState
from dqn_jax.exploration import Exploration
from dqn_jax.federated.aggregation import Aggregator
from dqn_jax.learner import Learner, LearnerState
from dqn_jax.losses import Loss
from dqn_jax.networks import Network
from dqn_jax.replay import Memory, ReplayState
from dqn_jax.types import ActorHyperparams, Sample, Transition


def of_the_agent(agent: Agent, state: AgentState, batch: Transition, sample: Sample, key: jax.Array) -> None:
    """Its functions, as drivers call them."""
    agent.step(state, active=False)
    agent.step("not a state", 3, 4)  # type: ignore[arg-type]
    agent.learn(state, correction=None)
    agent.learn(state, corection=None)  # type: ignore[call-arg]
    agent.act(state, True)
    agent.act(key)  # type: ignore[arg-type]
    agent.add(state, batch, valid=True)
    agent.add(state, sample)  # type: ignore[arg-type]
    agent.init(key, shard=1)
    agent.init(key, shard="1")  # type: ignore[arg-type]
    agent.prepare(state)
    agent.prepare(state.learner)  # type: ignore[arg-type]


def of_the_learner(learner: Learner, state: LearnerState, sample: Sample, batch: Transition, key: jax.Array) -> None:
    """Its functions, as agents and servers call them."""
    learner.grad(state, sample, key)
    learner.grad(sample, state, key)  # type: ignore[arg-type]
    learner.apply(state, {})
    learner.apply(state)  # type: ignore[call-arg]
    learner.step(state, sample, key)
    learner.step(state, batch, key)  # type: ignore[arg-type]


def of_parts(memory: Memory, replay: ReplayState, loss: Loss, batch: Transition, network: Network, key: jax.Array) -> None:
    """A memory's, a loss's and a network's."""
    memory.update(replay, key, key, valid=True)
    memory.update(replay, key, key, vald=True)  # type: ignore[call-arg]
    memory.prepare(replay, jax.numpy.max, key)
    memory.prepare(replay, jax.numpy.max)  # type: ignore[call-arg]
    print(loss({}, {}, batch, key, {}).priority)
    print(loss({}, {}, batch, key, {}).td_abs)  # type: ignore[attr-defined]
    print(network.apply({}, key, None).q_values)
    print(network.apply({}, key, None).q_value)  # type: ignore[attr-defined]


def of_rules(rule: Exploration, numbers: ActorHyperparams, aggregator: Aggregator, key: jax.Array) -> None:
    """A rule's of exploration, and an aggregator's."""
    rule.choose(key, key, key, numbers)
    rule.choose(key, key, key, 3)  # type: ignore[arg-type]
    aggregator.combine((), {}, key, axis_name=None)
    aggregator.combine((), {}, key, axis=None)  # type: ignore[call-arg]
