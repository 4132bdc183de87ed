"""The type checker finds a function of the agent that is called with the wrong arguments, and lets the right ones pass."""

import re
from pathlib import Path

import pytest
from mypy import api

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
GIVEN = """
import jax
from dqn_jax.agent import Agent, AgentState
from dqn_jax.envs import Environment
from dqn_jax.exploration import Exploration
from dqn_jax.federated.aggregation import Aggregator
from dqn_jax.learner import Learner, LearnerState
from dqn_jax.losses import Loss
from dqn_jax.networks import Network
from dqn_jax.replay import Memory, ReplayState
from dqn_jax.types import ActorHyperparams, Sample, Transition

def f(agent: Agent, state: AgentState, learner: Learner, learner_state: LearnerState, sample: Sample, key: jax.Array,
      memory: Memory, replay: ReplayState, loss: Loss, batch: Transition, network: Network, rule: Exploration,
      numbers: ActorHyperparams, aggregator: Aggregator) -> None:
"""
# What is right, and a slip of the same line.
LINES = [
    ("agent.step(state, active=False)", 'agent.step("not a state", 3, 4)'),
    ("agent.learn(state, correction=None)", "agent.learn(state, corection=None)"),
    ("agent.act(state, True)", "agent.act(key)"),
    ("agent.add(state, batch, valid=True)", "agent.add(state, sample)"),
    ("agent.init(key, shard=1)", 'agent.init(key, shard="1")'),
    ("agent.prepare(state)", "agent.prepare(learner_state)"),
    ("learner.grad(learner_state, sample, key)", "learner.grad(state, sample, key)"),
    ("learner.apply(learner_state, {})", "learner.apply(learner_state)"),
    ("learner.step(learner_state, sample, key)", "learner.step(learner_state, batch, key)"),
    ("memory.update(replay, key, key, valid=True)", "memory.update(replay, key, key, vald=True)"),
    ("memory.prepare(replay, {}, key)", "memory.prepare(replay, {})"),
    ("loss({}, {}, batch, key, {}).priority", "loss({}, {}, batch, key, {}).td_abs"),
    ("network.apply({}, key, None).q_values", "network.apply({}, key, None).q_value"),
    ("rule.choose(key, key, key, numbers)", "rule.choose(key, key, key, 3)"),
    ("aggregator.combine({}, key, axis_name=None)", "aggregator.combine({}, key, axis=None)"),
]


def test_slips_are_found(tmp_path):
    code = GIVEN + "".join(f"    {right}\n    {wrong}\n" for right, wrong in LINES)
    # A config without files of its own; the cache is that of the lint.
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nignore_missing_imports = true\n")
    report, errors, _ = api.run(["--config-file", str(settings), "--cache-dir", str(ROOT / ".mypy_cache"), "-c", code])
    assert errors == ""
    found = {int(number) for number in re.findall(r"<string>:(\d+): error", report)}
    first = GIVEN.count("\n") + 2
    assert found == set(range(first, first + 2 * len(LINES), 2)), report
