"""Heads equal numbers worked by hand, and what they learn of a return with two peaks is both of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import spec_of

from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig, InputError, NetworkConfig
from dqn_jax.heads import CategoricalHead, ImplicitQuantileHead, NoisyDense, middles
from dqn_jax.learner import make_learner
from dqn_jax.losses import make_loss
from dqn_jax.networks import make_network
from dqn_jax.types import Sample, Transition

KEY = jax.random.key(0)
SPEC = spec_of((2,), 2)


def network_of(head, **fields):
    return make_network(NetworkConfig(head=head, hidden_sizes=(8,), **fields), SPEC)


def test_a_noisy_layer_by_hand():
    layer, x = NoisyDense(3, sigma=0.5), jnp.float32([1, -2, 3, 0.5])
    params = layer.init(KEY, x)["params"]
    assert {name: values.shape for name, values in params.items()} == {
        "kernel": (4, 3),
        "bias": (3,),
        "kernel_sigma": (4, 3),
        "bias_sigma": (3,),
    }
    # 0.5 / sqrt(4), and within 1 / sqrt(4).
    assert set(np.ravel(params["kernel_sigma"])) == set(np.ravel(params["bias_sigma"])) == {0.25}
    assert np.abs(params["kernel"]).max() <= 0.5
    plain = layer.apply({"params": params}, x)
    np.testing.assert_allclose(plain, x @ params["kernel"] + params["bias"], rtol=1e-6)
    # Weights that differ, so that the noise of each can be told apart.
    params = params | {"kernel_sigma": jnp.arange(12.0).reshape(4, 3), "bias_sigma": jnp.float32([1, 2, 3])}

    def noisy(x, key=KEY):
        return np.asarray(layer.apply({"params": params}, x, rngs={"noise": key}) - layer.apply({"params": params}, x))

    # The bias alone gives the noise of the outputs, one input more that of this input.
    of_outputs = noisy(jnp.zeros(4)) / [1, 2, 3]
    of_inputs = [(noisy(jnp.eye(4)[i]) - noisy(jnp.zeros(4)))[2] / (of_outputs[2] * (3 * i + 2)) for i in range(4)]
    expected = (np.outer(of_inputs, of_outputs) * params["kernel_sigma"]).T @ x + of_outputs * [1, 2, 3]
    np.testing.assert_allclose(noisy(x), expected, rtol=1e-3)
    assert not np.allclose(noisy(x), noisy(x, jax.random.key(1)))


def test_factorised_noise_has_the_square_root_of_normal_draws():
    """f(e) = sgn(e) sqrt|e| has mean 0 and mean square E|e| = sqrt(2 / pi)."""
    params = {"kernel": jnp.zeros((1, 5000)), "bias": jnp.zeros(5000), "kernel_sigma": jnp.zeros((1, 5000))}
    params |= {"bias_sigma": jnp.ones(5000)}
    noise = NoisyDense(5000).apply({"params": params}, jnp.ones(1), rngs={"noise": KEY})
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(jnp.square(noise).mean()) - np.sqrt(2 / np.pi)) < 0.05


def test_a_dueling_categorical_head_by_hand():
    head = CategoricalHead(num_actions=2, low=0.0, high=2.0, num_atoms=3, dueling=True)
    features = jnp.ones(1)
    advantage = jnp.float32([[0, 1, 2, 4, 3, 0]])
    params = {
        "logits": {"kernel": advantage, "bias": jnp.zeros(6)},
        "value": {"kernel": jnp.float32([[1, 0, 5]]), "bias": jnp.zeros(3)},
    }
    found = head.apply({"params": params}, features)
    # The mean advantage is [2, 2, 1].
    np.testing.assert_allclose(found.logits, [[1 + 0 - 2, 0 + 1 - 2, 5 + 2 - 1], [1 + 4 - 2, 0 + 3 - 2, 5 + 0 - 1]])
    np.testing.assert_array_equal(found.atoms, [0, 1, 2])
    weights = np.exp(found.logits)
    np.testing.assert_allclose(found.q_values, (weights @ [0, 1, 2]) / weights.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", "dueling", "categorical:-1:1:5", "dueling-categorical:-1:1:5", "quantile:4"])
def test_noise_is_drawn_from_the_key_and_left_out_without_one(head):
    noisy, plain = network_of(head, noisy=True), network_of(head)
    params, obs = noisy.init(KEY), jnp.float32([1, 2])
    values = [noisy.apply(params, obs, key).q_values for key in (None, None, KEY, jax.random.key(1))]
    np.testing.assert_array_equal(values[0], values[1])
    assert len({tuple(np.asarray(value).tolist()) for value in values}) == 3
    np.testing.assert_array_equal(
        plain.apply(plain.init(KEY), obs, None).q_values, plain.apply(plain.init(KEY), obs, KEY).q_values
    )


def test_implicit_quantiles_by_hand():
    head, features = ImplicitQuantileHead(num_actions=2, num_quantiles=64, num_cosines=3), jnp.float32([1, -2])
    params = head.init(KEY, features)["params"]
    greedy, drawn = head.apply({"params": params}, features), head.apply({"params": params}, features, rngs={"noise": KEY})
    np.testing.assert_allclose(greedy.taus, (np.arange(64) + 0.5) / 64, rtol=1e-6)
    assert 0 <= float(drawn.taus.min()) < 0.1 < 0.9 < float(drawn.taus.max()) <= 1
    for found in (greedy, drawn):
        cosines = np.cos(np.pi * np.array([0, 1, 2]) * np.asarray(found.taus)[:, None])
        embedding = np.maximum(cosines @ params["embedding"]["kernel"] + params["embedding"]["bias"], 0)
        expected = (features * embedding) @ params["quantiles"]["kernel"] + params["quantiles"]["bias"]
        np.testing.assert_allclose(found.quantiles, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.q_values, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("categorical", "do not fit it"),
        ("categorical:1:0", "give a range LOW:HIGH and at least 2 atoms"),
        ("categorical:0:1:1", "give a range LOW:HIGH and at least 2 atoms"),
        ("categorical:0:1:2.5", "give a whole number of atoms or quantiles"),
        ("quantile:0", "give a whole number of atoms or quantiles"),
        ("implicit-quantile:1.5", "give a whole number of atoms or quantiles"),
    ],
)
def test_bad_numbers_of_a_head_are_refused(head, words):
    with pytest.raises(InputError, match=f"^network.head is '{head}'.*{words}"):
        network_of(head)


def test_a_loss_without_its_head_is_refused_and_munchausen_has_no_maximum():
    batch = Transition(jnp.ones((1, 2)), jnp.int32([0]), jnp.ones(1), jnp.ones(1), jnp.ones((1, 2)))
    network = network_of("linear")
    params = network.init(KEY)
    for name in ("categorical", "quantile"):
        loss = make_loss(network, AgentConfig(loss=name), None)
        with pytest.raises(InputError, match=rf"agent\.loss is '{name}', and network\.head has no .*: take a {name} head"):
            loss(params, params, batch, KEY, {"kappa": 1.0})
    with pytest.raises(InputError, match=r"agent\.loss is 'munchausen' with agent\.double_q"):
        make_loss(network, AgentConfig(loss="munchausen", double_q=True))


TWO_PEAKS = Transition(
    s_tm1=jnp.ones((64, 2)),
    a_tm1=jnp.zeros(64, jnp.int32),
    r_t=jnp.tile(jnp.float32([-1, 1]), 32),
    discount_t=jnp.zeros(64),
    s_t=jnp.ones((64, 2)),
)
KINDS = {"categorical:-2:2:9": "categorical", "quantile:8": "quantile:0.05", "implicit-quantile:8": "quantile:0.05"}


def learnt(head, rate):
    """The outputs of a network that has learnt, or not, from a return that is -1 or 1, each half of the time."""
    config = AgentConfig(loss=KINDS[head], learning_rate=rate, target_period=1)
    network = network_of(head)
    learner = make_learner(network, config)
    numbers = hyperparams_of(config)
    ones = jnp.ones(64)

    def update(state, key):
        return learner.step(state, Sample(TWO_PEAKS, indices=ones, weights=ones, age=ones), key)[0], None

    state = learner.init(KEY, numbers.learner, numbers.loss)
    state, _ = jax.jit(lambda state: jax.lax.scan(update, state, jax.random.split(KEY, 600)))(state)
    return network.apply(state.params, jnp.ones(2), None)


@pytest.mark.long
@pytest.mark.parametrize("head", KINDS)
def test_a_return_with_two_peaks_is_learnt(head):
    """And with a step size of 1e-9 it is not."""

    def of_peaks(found):
        """Shares of the distribution within 0.3 of -1 and of 1."""
        if head.startswith("categorical"):
            values, weights = found.atoms, jax.nn.softmax(found.logits[0])
        else:
            values, weights = found.quantiles[:, 0], jnp.full(8, 1 / 8)
        return [float(jnp.sum(weights * (jnp.abs(values - peak) < 0.3))) for peak in (-1, 1)]

    found = learnt(head, 1e-2)
    assert min(of_peaks(found)) >= 0.45, found
    assert abs(float(found.q_values[0])) < 0.2
    assert min(of_peaks(learnt(head, 1e-9))) < 0.3
    np.testing.assert_allclose(middles(2), [0.25, 0.75])


def test_the_noise_of_a_kernel_is_the_product_of_one_of_inputs_and_one_of_outputs():
    """Fortunato et al. (2018), equation 10: a matrix of rank one, in which neither rows nor columns are alike."""
    layer = NoisyDense(3)
    params = layer.init(jax.random.key(0), jnp.zeros(4))

    def noise_at(x):
        return layer.apply(params, x, rngs={"noise": jax.random.key(1)}) - layer.apply(params, x)

    kernel = np.asarray(jax.vmap(noise_at)(jnp.eye(4)) - noise_at(jnp.zeros(4)))
    first, second, *_ = np.linalg.svd(kernel)[1]
    assert second < 1e-5 * first
    assert np.ptp(kernel, axis=0).min() > 0.01
    assert np.ptp(kernel, axis=1).min() > 0.01
