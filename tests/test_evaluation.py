"""Evaluation plays the first episode of each environment greedily, once, to its end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.build import build
from dqn_jax.config import DataParallelExperiment, RunnerConfig
from dqn_jax.envs import Environment, EnvSpec, TimeStep, make_env
from dqn_jax.evaluation import evaluator_of, make_evaluate, one_environment
from dqn_jax.federated.config import FederatedExperiment
from dqn_jax.federated.driver import from_config
from dqn_jax.networks import Network, QValues

NUM_EPISODES = 64
LONGEST = 6


def script_init(key, params):
    length = 1 + jnp.int32(jax.random.uniform(key) * LONGEST)
    return (length, jnp.int32(0), jnp.int32(0)), jnp.array([1.0, 0.0])


def script_step(key, state, action, params):
    """An episode of 1 to 6 steps with rewards 1, 2, 3 ... (less a half for action 0); odd lengths terminate, even ones are cut.

    Whatever comes after the first episode pays 1000 a step.
    """
    length, time, episode = state
    reward = jnp.where(episode == 0, time + 1 - 0.5 * (action == 0), 1000.0) * params
    ended = time + 1 == length
    odd = length % 2 == 1
    state = (jnp.where(ended, 1, length), jnp.where(ended, 0, time + 1), episode + ended)
    obs = jnp.array([1.0, 0.0])
    return state, TimeStep(obs, obs, reward, ended & odd, ended & ~odd)


SCRIPT = Environment(EnvSpec("script", (2,), np.dtype(np.float32), 2, LONGEST), script_init, script_step, jnp.float32(1))
# Q(s, a) = w[a] . s.
LINEAR = Network(lambda key: jnp.eye(2), lambda params, obs, key: QValues(params @ obs))
PREFERS_0, PREFERS_1 = jnp.array([[1.0, 0], [0, 0]]), jnp.array([[0.0, 0], [1, 0]])


@pytest.fixture(scope="module")
def evaluate():
    return jax.jit(make_evaluate(SCRIPT, LINEAR, NUM_EPISODES))


def test_first_episodes_only_once_each(evaluate):
    result = evaluate(jax.random.key(0), PREFERS_1)
    lengths = np.asarray(result.lengths)
    # Every length there is; an episode that is over waits for the others and earns nothing more.
    assert set(lengths) == set(range(1, LONGEST + 1))
    np.testing.assert_array_equal(result.returns, lengths * (lengths + 1) / 2)
    assert result.finished.all()
    assert (result.returns.dtype, result.lengths.dtype, result.finished.dtype) == (jnp.float32, jnp.int32, jnp.bool_)


def test_returns_may_be_discounted():
    result = jax.jit(make_evaluate(SCRIPT, LINEAR, NUM_EPISODES, discount=0.5))(jax.random.key(0), PREFERS_1)
    # 1 + 2 / 2 + 3 / 4 + ...
    sums = np.cumsum([(time + 1) * 0.5**time for time in range(LONGEST)])
    np.testing.assert_allclose(result.returns, sums[np.asarray(result.lengths) - 1])


def test_actions_are_greedy(evaluate):
    best, worst = (evaluate(jax.random.key(0), params) for params in (PREFERS_1, PREFERS_0))
    np.testing.assert_array_equal(best.lengths, worst.lengths)
    np.testing.assert_array_equal(best.returns - worst.returns, best.lengths / 2)


@pytest.mark.parametrize("epsilon", [0.4, 1.0])
def test_with_epsilon_some_actions_are_at_random(evaluate, epsilon):
    """Half of those are action 0, which costs a half; what the environment draws is the same."""
    greedy = evaluate(jax.random.key(0), PREFERS_1)
    result = jax.jit(make_evaluate(SCRIPT, LINEAR, NUM_EPISODES, epsilon=epsilon))(jax.random.key(0), PREFERS_1)
    np.testing.assert_array_equal(result.lengths, greedy.lengths)
    lost = 2 * np.sum(greedy.returns - result.returns) / np.sum(greedy.lengths)
    assert abs(lost - epsilon / 2) < 0.1


@pytest.mark.parametrize("max_steps", [1, 3])
def test_unfinished_episodes_are_reported(evaluate, max_steps):
    whole = evaluate(jax.random.key(0), PREFERS_1)
    result = jax.jit(make_evaluate(SCRIPT, LINEAR, NUM_EPISODES, max_steps))(jax.random.key(0), PREFERS_1)
    lengths = np.minimum(whole.lengths, max_steps)
    np.testing.assert_array_equal(result.finished, whole.lengths <= max_steps)
    np.testing.assert_array_equal(result.lengths, lengths)
    np.testing.assert_array_equal(result.returns, lengths * (lengths + 1) / 2)


def test_environment_parameters_are_an_argument(evaluate):
    plain, double = evaluate(jax.random.key(0), PREFERS_1), evaluate(jax.random.key(0), PREFERS_1, jnp.float32(2))
    np.testing.assert_array_equal(double.returns, 2 * plain.returns)


def test_an_episode_depends_on_its_number_not_on_how_many_there_are(evaluate):
    few = jax.jit(make_evaluate(SCRIPT, LINEAR, 5))(jax.random.key(0), PREFERS_1)
    many, other = evaluate(jax.random.key(0), PREFERS_1), evaluate(jax.random.key(1), PREFERS_1)
    np.testing.assert_array_equal(few.lengths, many.lengths[:5])
    assert not np.array_equal(many.lengths, other.lengths)


def test_one_environment_is_each_seeds_mean_and_what_was_cut_short():
    """Seeds with parameters and keys of their own; episodes of more than three steps are cut."""
    cut = make_evaluate(SCRIPT, LINEAR, NUM_EPISODES, max_steps=3)
    evaluator = one_environment(cut, seeds=[5, 8], fields={"gravity": 3.0})
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    returns, unfinished = evaluator.play(keys, jnp.stack([PREFERS_1, PREFERS_0]))
    lengths = [np.asarray(jax.jit(cut)(key, PREFERS_1).lengths) for key in keys]
    whole = [np.asarray(jax.jit(make_evaluate(SCRIPT, LINEAR, NUM_EPISODES))(key, PREFERS_1).lengths) for key in keys]
    assert not np.array_equal(*lengths)
    # Rewards 1, 2, 3; less a half each for the second, which prefers action 0.
    by_hand = [(n * (n + 1) / 2 - lost * n).mean() for n, lost in zip(lengths, (0, 0.5), strict=True)]
    np.testing.assert_allclose(returns, np.array(by_hand)[:, None], rtol=1e-6)
    assert unfinished.tolist() == [np.sum(n > 3) for n in whole]
    column = {"env_params": {"gravity": 3.0}}
    assert evaluator.columns == [[column], [column]]
    described = evaluator.describe(np.array([[2.0], [7.0]]))
    assert {name: values.tolist() for name, values in described.items()} == {"eval_return": [2.0, 7.0]}


def test_random_cartpole():
    """The mean length of a random episode is 22.27, from 200,000 episodes of a simulation in plain numpy.

    Its standard deviation is 11.94, so 3000 episodes tell it to 0.22.
    """

    def hashed(params, obs, key):
        """Evaluation draws nothing: two numbers that the bits of the observation decide."""
        assert key is None
        seed = jax.lax.bitcast_convert_type(jnp.sum(obs), jnp.int32)
        return QValues(jax.random.uniform(jax.random.key(seed), (2,)))

    noise = Network(lambda key: {}, hashed)
    result = jax.jit(make_evaluate(make_env("CartPole-v1"), noise, 3000))(jax.random.key(0), {})
    returns = np.asarray(result.returns)
    assert result.finished.all()
    np.testing.assert_array_equal(returns, result.lengths)
    assert abs(returns.mean() - 22.27) < 0.9
    assert abs(returns.std() - 11.94) < 1.2
    # Common mistakes that the bound tells apart: a window of 15 steps, only what ends in it, the best or the first of 8.
    eights = returns.reshape(-1, 8)
    for mistake in (np.minimum(returns, 15), returns[returns <= 15], eights.max(axis=1), eights.min(axis=1)):
        assert abs(mistake.mean() - 22.27) > 5


@pytest.mark.parametrize("of_config", ["a run's", "a federation's"])
def test_an_evaluation_acts_at_random_as_often_as_the_config_says(of_config):
    """Always the same action ends CartPole after ten steps or so; at random episodes are longer, and scatter."""
    returns = []
    for epsilon in (0.0, 1.0):
        runner = RunnerConfig(log_every=100, eval_episodes=32, eval_epsilon=epsilon)
        if of_config == "a run's":
            config = DataParallelExperiment(num_seeds=1, runner=runner)
            env, network = build(config)
            evaluator, played = evaluator_of(config, env, network), network.init(jax.random.key(0))
        else:
            config = FederatedExperiment(num_seeds=1, num_devices=1, runner=runner)
            config = dataclasses.replace(config, federated=dataclasses.replace(config.federated, num_clients=2, unseen_envs=0))
            _, evaluator = from_config(config)
            _, network = build(config)
            played = {"global": network.init(jax.random.key(0))}
        rows = jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), played)
        returns.append(float(np.mean(evaluator.play(jax.random.key(0)[None], rows)[0])))
    greedy, random = returns
    assert greedy < 12
    assert 15 < random < 35
