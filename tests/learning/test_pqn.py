"""PQN ends at CartPole's optimum in 100,000 frames without replay and target; frozen, or with rewards alone, it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.agent import hyperparams_of, make_agent, repeat
from dqn_jax.build import build
from dqn_jax.commands.cells import make_cell
from dqn_jax.evaluation import make_evaluate
from dqn_jax.tuned import tuned_fields

pytestmark = pytest.mark.long

ENV = "CartPole-v1"
# Not those of the scoreboard, of which all ten end at 500.
SEEDS = jnp.arange(100, 104)
FRAMES = 100_000


@functools.cache
def trainer():
    """(learning rate, lambda) -> final greedy returns [S]; one program for all."""
    config = make_cell("pqn", "CartPole", {"env": ENV} | tuned_fields("pqn", ENV)).config
    env, network = build(config)
    agent, numbers = make_agent(env, network, config.agent), hyperparams_of(config.agent)
    steps = FRAMES // config.agent.frames_per_step

    def train(seed, rate, return_lambda):
        given = numbers._replace(
            learner=numbers.learner._replace(learning_rate=rate),
            replay=numbers.replay._replace(return_lambda=return_lambda),
            # Lambda 0 and no discount: an item is its reward alone.
            actor=numbers.actor._replace(discount=jnp.where(return_lambda == 0, 0.0, numbers.actor.discount)),
        )
        state, _ = repeat(agent.step, steps)(agent.init(jax.random.key(seed), hyperparams=given))
        return jnp.mean(make_evaluate(env, network, 16)(jax.random.key(seed), state.learner.params).returns)

    return jax.jit(jax.vmap(train, in_axes=(0, None, None)))


def final_returns(rate=None, return_lambda=0.95):
    rate = tuned_fields("pqn", ENV)["agent.learning_rate"] if rate is None else rate
    return np.asarray(trainer()(SEEDS, jnp.float32(rate), jnp.float32(return_lambda)))


def test_learns():
    returns = final_returns()
    assert np.sum(returns >= 475) >= 3, returns


@pytest.mark.parametrize("changes", [{"rate": 1e-12}, {"return_lambda": 0.0}], ids=["frozen", "rewards alone"])
def test_without_learning_or_returns_it_does_not(changes):
    returns = final_returns(**changes)
    assert returns.max() < 250, returns
