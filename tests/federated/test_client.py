"""FedProx, SCAFFOLD and FedNova on two quadratics worked by hand, and clients whose numbers break."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.quadratics import RATE, SGD, by_hand, planned, quadratic
from laws.common import ENV, FREE, NETWORK
from laws.federation import config_of, many, small, train

from dqn_jax.federated.aggregation import mean_of, stateless
from dqn_jax.federated.driver import named_parts

pytestmark = pytest.mark.long

OPTIMUM = 5.5 / 2.5
"""Of the sum of the two quadratics."""


def test_plain_averaging_by_hand():
    weights, _, _ = quadratic(config_of(num_clients=2, local_steps=2), 1)
    # 0 -> 0.1 -> 0.19 and 0 -> 0.45 -> 0.8325.
    np.testing.assert_allclose(weights, [(0.19 + 0.8325) / 2], rtol=1e-6)


def test_fedprox_by_hand_and_its_pull():
    config = config_of(num_clients=2, local_steps=2, algorithm="fedprox", proximal=2.0)
    weights, _, _ = quadratic(config, 3)
    # The pull is nothing in the first step: 0.1, then 0.19 - 0.1 * 2 * 0.1; and 0.45, then 0.8325 - 0.1 * 2 * 0.45.
    np.testing.assert_allclose(weights[0], (0.17 + 0.7425) / 2, rtol=1e-6)
    np.testing.assert_allclose(weights, by_hand((2, 2), 3, mu=2.0)[0], rtol=1e-5)


def test_scaffold_by_hand_and_where_it_goes():
    config = config_of(num_clients=2, local_steps=2, algorithm="scaffold")
    weights, state, _ = quadratic(config, 3)
    # First round as without it; then c_1 = -(1 + 0.9) / 2, c_2 = -(4.5 + 3.825) / 2, c their mean.
    np.testing.assert_allclose(weights[0], (0.19 + 0.8325) / 2, rtol=1e-6)
    expected, controls, control = by_hand((2, 2), 3, scaffold=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.clients.control["w"], controls, rtol=1e-5)
    np.testing.assert_allclose(state.server.control["w"], control, rtol=1e-5)
    # Option II of the paper is the same control under SGD: c_i - c + (x - y_i) / (K rate).
    _, before, all_before = by_hand((2, 2), 2, scaffold=True)
    ends = state.clients.agent.learner.params["w"]
    np.testing.assert_allclose(before - all_before + (expected[1] - ends) / (2 * RATE), controls, rtol=1e-4)
    # Averaging alone settles beside the optimum, because clients drift; with controls it does not.
    plain, _, _ = quadratic(config_of(num_clients=2, local_steps=8), 60)
    corrected, _, _ = quadratic(config_of(num_clients=2, local_steps=8, algorithm="scaffold"), 60)
    assert abs(plain[-1] - OPTIMUM) > 0.02
    np.testing.assert_allclose(corrected[-1], OPTIMUM, atol=1e-4)


def test_fednova_by_hand():
    config = config_of(num_clients=2, local_steps=4, stragglers=0.5, algorithm="fednova")
    weights, _, infos = quadratic(config, 1, planned(steps=[1, 4]))
    # 0 -> 0.1 in one step, and 3 (1 - 0.85^4) in four; the mean step per update times the mean number of updates, 2.5.
    per_update = (0.1 / 1 + 3 * (1 - 0.85**4) / 4) / 2
    np.testing.assert_allclose(weights, [2.5 * per_update], rtol=1e-6)
    assert infos["updates"].tolist() == [5]
    # Alike clients are plainly averaged.
    alike, _, _ = quadratic(config, 3, planned(steps=[4, 4]))
    np.testing.assert_allclose(alike, by_hand((4, 4), 3)[0], rtol=1e-5)


def test_plain_averaging_of_stragglers_favours_the_fast():
    config = config_of(num_clients=2, local_steps=4, stragglers=0.5)
    weights, _, _ = quadratic(config, 3, planned(steps=[1, 4]))
    np.testing.assert_allclose(weights, by_hand((1, 4), 3)[0], rtol=1e-5)


def test_a_client_that_breaks_is_left_out_and_counted():
    weights, state, infos = quadratic(config_of(num_clients=2, local_steps=2), 3, poison={1: 2})
    start = weights[0]
    # Round 1 merges client 0 alone; round 2 merges both again, from there.
    alone = 1 + (start - 1) * 0.9**2
    both = np.mean([1 + (alone - 1) * 0.9**2, 3 + (alone - 3) * 0.85**2])
    np.testing.assert_allclose(weights[1:], [alone, both], rtol=1e-6)
    assert infos["left_out"].tolist() == [0, 1, 0]
    assert infos["broken"].tolist() == [[False, False], [False, True], [False, False]]
    assert infos["finite"].all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.clients.agent.learner.params))


def test_an_aggregator_that_promises_nothing_is_told_on():
    def change(parts):
        return parts._replace(aggregator=stateless(mean_of))

    weights, _, infos = quadratic(config_of(num_clients=2, local_steps=2), 2, change, poison={1: 2})
    assert np.isnan(weights[1])
    assert infos["finite"].tolist() == [True, False]
    assert infos["broken"].tolist() == [[False, False], [False, True]]


def test_a_broken_learner_starts_again_and_keeps_its_experience():
    """With Adam on the real agent: parameters that it began with, zero moments, its own replay."""
    agent_config = dataclasses.replace(small(FREE), n_step=1)
    config = config_of(num_clients=2, local_steps=3, transforms=("int8",))

    # A learning rate of infinity in client 1's own hyperparameters.
    def infinite(parts):
        def init(key, env_params, params):
            state = parts.client.init(key, env_params, params)
            bad = env_params.max_steps_in_episode == 1
            hyperparams = state.agent.learner.hyperparams
            rate = jnp.where(bad, jnp.inf, hyperparams.learning_rate)
            learner = state.agent.learner.replace(hyperparams=hyperparams._replace(learning_rate=rate))
            return state.replace(agent=state.agent.replace(learner=learner))

        return parts._replace(client=parts.client._replace(init=init))

    env_params = many(ENV.params, 2).replace(max_steps_in_episode=jnp.array([500, 1]))
    state, infos = train(agent_config, config, 1, network=NETWORK, env_params=env_params, change=infinite)
    learner = state.clients.agent.learner
    assert infos["left_out"].tolist() == [1]
    assert infos["participants"].tolist() == [2]
    count = lambda i: [int(x[i]) for x in jax.tree.leaves(learner.opt_state) if x.dtype == jnp.int32]  # noqa: E731
    assert set(count(0)) == {3}
    assert set(count(1)) == {0}
    assert all((leaf[1] == 0).all() for leaf in jax.tree.leaves(state.clients.transform))
    assert any((leaf[0] != 0).any() for leaf in jax.tree.leaves(state.clients.transform))
    # It trains on from what it was sent, with all that it has seen.
    assert int(state.clients.agent.replay.added.count) == agent_config.warm_up_frames + 3 * agent_config.num_envs
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((learner.params, state.server.params)))


def test_the_server_sees_no_experience():
    """What a client sends has the shapes of parameters and of five numbers, whatever it has stored."""
    for replay_capacity in (128, 256):
        agent_config = dataclasses.replace(small(FREE), replay_capacity=replay_capacity)
        config = config_of(num_clients=1, local_steps=1, algorithm="scaffold")
        client = named_parts(ENV, NETWORK, agent_config, config).client
        state = jax.eval_shape(lambda: client.init(jax.random.key(0), ENV.params, None))  # noqa: B023
        num_params = sum(leaf.size for leaf in jax.tree.leaves(state.agent.learner.params))
        assert client.num_bytes(state) == (8 * num_params, 8 * num_params + 20)


@pytest.mark.parametrize(
    ("options", "extra_down", "extra_up"),
    [
        ({}, 0, 0),
        ({"algorithm": "scaffold"}, 1, 1),
        ({"merge": {"target": "average"}}, 1, 1),
        # Adam's two moments and its count.
        ({"merge": {"moments": "average"}}, 2, 2),
    ],
)
def test_bytes_by_hand(options, extra_down, extra_up):
    agent_config = small(FREE)
    client = named_parts(ENV, NETWORK, agent_config, config_of(num_clients=1, **options)).client
    state = jax.eval_shape(lambda: client.init(jax.random.key(0), ENV.params, None))
    # 4-16-16-2 with biases.
    size = 4 * (4 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2)
    count = 4 if options.get("merge") == {"moments": "average"} else 0
    assert client.num_bytes(state) == ((1 + extra_down) * size + count, (1 + extra_up) * size + count + 20)


def test_clients_on_their_own_send_nothing():
    client = named_parts(ENV, NETWORK, small(FREE), config_of(num_clients=1, merge={"parameters": "keep"})).client
    assert client.num_bytes(jax.eval_shape(lambda: client.init(jax.random.key(0), ENV.params, None))) == (0, 0)


def test_scaffold_controls_stay_together_when_a_client_breaks():
    """The server's is the mean of the clients' before and after."""
    config = config_of(num_clients=2, local_steps=2, algorithm="scaffold")
    # The NaN is in the second of four rounds.
    _, state, infos = quadratic(config, 4, poison={1: 2})
    assert infos["left_out"].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(state.server.control["w"], state.clients.control["w"].mean(), rtol=1e-5)


def test_a_client_that_broke_begins_as_the_optimizer_does():
    """Client 1's second step breaks; in the next round it steps as with sums of squares of 0.1, not of 0."""
    config = config_of(num_clients=2, local_steps=1)
    agent_config = dataclasses.replace(SGD, optimizer="adagrad")
    weights, _, infos = quadratic(config, 3, poison={1: 1}, agent_config=agent_config)
    assert infos["left_out"].tolist() == [0, 1, 0]
    slopes = (lambda w: w - 1), (lambda w: 1.5 * (w - 3))
    squares = [0.1, 0.1]

    def step(client, w):
        squares[client] += slopes[client](w) ** 2
        return w - RATE * slopes[client](w) / np.sqrt(squares[client])

    first = (step(0, 0.0) + step(1, 0.0)) / 2
    second = step(0, first)
    squares[1] = 0.1
    np.testing.assert_allclose(weights, [first, second, (step(0, second) + step(1, second)) / 2], rtol=1e-5)


def test_moments_that_are_reset_begin_as_the_optimizer_does():
    """Adagrad's sums of squares begin at 0.1 in optax: from zeros every first step of a round would be of length 0.1."""
    agent_config = dataclasses.replace(SGD, optimizer="adagrad")
    config = config_of(num_clients=1, local_steps=1, merge={"moments": "reset"})
    weights, _, _ = quadratic(config, 2, agent_config=agent_config)
    first = RATE / np.sqrt(0.1 + 1)
    slope = first - 1
    np.testing.assert_allclose(weights, [first, first - RATE * slope / np.sqrt(0.1 + slope**2)], rtol=1e-5)
