"""Q-networks compute what their formulas say: the convolution as XLA's own, the layers as matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import spec_of

from dqn_jax.config import InputError, NetworkConfig
from dqn_jax.networks import make_network

KEY = jax.random.key(0)
TINY = (8, 6)
IMAGE = (6, 5, 3)


def q_values(network, params, obs, key=None):
    return network.apply(params, obs, key).q_values


def shapes(params):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in jax.tree.leaves_with_path(params)}


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def conv_reference(params, image):
    """The same network with XLA's convolution in place of patches."""
    conv = params["trunk"]["conv"]
    kernel = conv["kernel"].reshape(3, 3, image.shape[-1], -1)
    features = jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    hidden = jax.nn.relu(features + conv["bias"]).reshape(-1)
    return dense(params["head"], jax.nn.relu(dense(params["trunk"]["Dense_0"], hidden)))


@pytest.fixture(scope="module")
def conv():
    network = make_network(NetworkConfig(trunk="conv", hidden_sizes=(8,), channels=4), spec_of(IMAGE, 3))
    params = jax.jit(network.init)(KEY)
    # Biases start at 0, where a forgotten one would not show.
    noise = iter(jax.random.split(jax.random.key(1), 100))
    return network, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)


def test_convolution_is_xlas(conv):
    network, params = conv
    image = jax.random.normal(jax.random.key(2), IMAGE)

    def square_sum(fn):
        return jax.jit(
            jax.value_and_grad(lambda params, image: (jnp.sum(jnp.square(q := fn(params, image))), q), (0, 1), has_aux=True)
        )

    actual = square_sum(lambda params, image: q_values(network, params, image))(params, image)
    expected = square_sum(conv_reference)(params, image)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), actual, expected)


def test_mlp_is_matrix_products():
    network = make_network(NetworkConfig(hidden_sizes=TINY), spec_of((4,), 2))
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1, network.init(KEY))
    obs = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    hidden = obs
    for layer in ("Dense_0", "Dense_1"):
        hidden = np.maximum(dense(params["trunk"][layer], hidden), 0)
    assert (hidden == 0).any()  # A ReLU is seen at work.
    np.testing.assert_allclose(q_values(network, params, obs), dense(params["head"], hidden), rtol=1e-5)


@pytest.mark.parametrize(
    ("trunk", "obs_shape", "first_layer"),
    [
        ("auto", (4,), {"trunk/Dense_0/kernel": (4, 8)}),
        ("auto", (10, 5), {"trunk/Dense_0/kernel": (50, 8)}),
        ("auto", (2, 10, 3), {"trunk/Dense_0/kernel": (60, 8)}),
        ("auto", (6, 5, 3), {"trunk/conv/kernel": (27, 4), "trunk/Dense_0/kernel": (4 * 3 * 4, 8)}),
        ("auto", (3, 3, 1), {"trunk/conv/kernel": (9, 4), "trunk/Dense_0/kernel": (4, 8)}),
        ("conv", (6, 5, 3), {"trunk/conv/kernel": (27, 4), "trunk/Dense_0/kernel": (4 * 3 * 4, 8)}),
        ("mlp", (6, 5, 3), {"trunk/Dense_0/kernel": (90, 8)}),
    ],
)
def test_trunk(trunk, obs_shape, first_layer):
    network = make_network(NetworkConfig(trunk=trunk, hidden_sizes=TINY, channels=4), spec_of(obs_shape, 3))
    params = jax.eval_shape(network.init, KEY)
    assert params.keys() == {"trunk", "head"}
    found = shapes(params)
    assert first_layer.items() <= found.items()
    assert ("trunk/conv/kernel" in found) == ("trunk/conv/kernel" in first_layer)
    assert found["trunk/Dense_1/kernel"] == TINY
    assert found["head/kernel"] == (TINY[-1], 3)
    out = jax.eval_shape(
        lambda params, obs: q_values(network, params, obs), params, jax.ShapeDtypeStruct(obs_shape, jnp.float32)
    )
    assert (out.shape, out.dtype) == ((3,), jnp.float32)


def test_large_images_are_seen_by_the_network_of_nature():
    network = make_network(NetworkConfig(hidden_sizes=TINY, channels=4), spec_of((36, 44, 1), 3))
    found = shapes(jax.eval_shape(network.init, KEY))
    # 8 x 10 windows, of which 3 x 4, of which one row of two is left.
    first = {"trunk/Conv_0/kernel": (8, 8, 1, 8), "trunk/layers/Dense_0/kernel": (1 * 2 * 16, 8)}
    assert first.items() <= found.items()


@pytest.mark.parametrize(
    ("trunk", "obs_shape", "hint"),
    [
        ("nature", (35, 84, 4), "not [H, W, C] with H and W of at least 36: use 'conv'"),
        ("impala", (2, 84, 4), "not [H, W, C]: use 'mlp'"),
        ("nature", (84,), "not [H, W, C]: use 'mlp'"),
    ],
)
def test_a_trunk_for_larger_images_is_refused(trunk, obs_shape, hint):
    with pytest.raises(InputError) as error:
        make_network(NetworkConfig(trunk=trunk), spec_of(obs_shape, 2))
    assert str(error.value) == f"network.trunk is {trunk!r}, and observations have shape {obs_shape}, {hint}"


@pytest.mark.parametrize("obs_shape", [(4,), (10, 5), (2, 10, 3), (10, 2, 3), (4, 4, 4, 4)])
def test_convolution_refuses_what_is_no_image(obs_shape):
    with pytest.raises(InputError, match=r"network\.trunk is 'conv'") as error:
        make_network(NetworkConfig(trunk="conv"), spec_of(obs_shape, 2))
    assert str(obs_shape) in str(error.value)


def test_boolean_observations_count_as_0_and_1(conv):
    network, params = conv
    image = jax.random.bernoulli(jax.random.key(3), 0.5, IMAGE)
    outputs = q_values(network, params, image)
    assert outputs.dtype == jnp.float32
    np.testing.assert_array_equal(outputs, q_values(network, params, image.astype(jnp.float32)))
    assert not np.allclose(outputs, q_values(network, params, ~image))


def test_a_key_changes_nothing_without_noise(conv):
    network, params = conv
    image = jax.random.normal(jax.random.key(2), IMAGE)
    outputs = q_values(network, params, image)
    np.testing.assert_array_equal(outputs, q_values(network, params, image, jax.random.key(9)))


def test_init_follows_its_key():
    network = make_network(NetworkConfig(hidden_sizes=(8,)), spec_of((4,), 2))
    one, same, other = (jax.jit(network.init)(jax.random.key(seed))["trunk"]["Dense_0"]["kernel"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_dueling_head_by_hand():
    """Q = V + A - mean A, of streams that are linear in the features."""
    network = make_network(NetworkConfig(head="dueling", hidden_sizes=(3,)), spec_of((4,), 2))
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1, network.init(KEY))
    obs = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    features = np.maximum(dense(params["trunk"]["Dense_0"], obs), 0)
    value, advantage = dense(params["head"]["value"], features), dense(params["head"]["advantage"], features)
    np.testing.assert_allclose(q_values(network, params, obs), value + advantage - advantage.mean(), rtol=1e-5)


@pytest.mark.parametrize(("trunk", "obs_shape"), [("mlp", (4,)), ("conv", IMAGE)])
def test_layer_normalisation_is_before_every_relu(trunk, obs_shape):
    """Each layer minus its mean, over its standard deviation, by a scale and a bias of its own, then cut at 0."""
    network = make_network(NetworkConfig(trunk=trunk, hidden_sizes=TINY, channels=4, layer_norm=True), spec_of(obs_shape, 3))
    noise = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * jax.random.normal(next(noise), x.shape)), network.init(KEY))
    obs = np.asarray(jax.random.normal(jax.random.key(2), obs_shape))
    norms = iter(range(3))

    def activate(x):
        own = params["trunk"][f"LayerNorm_{next(norms)}"]
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
        return np.maximum(scaled * own["scale"] + own["bias"], 0)

    hidden = obs
    if trunk == "conv":
        windows = [obs[i : i + 4, j : j + 3] for i in range(3) for j in range(3)]
        hidden = activate(dense(params["trunk"]["conv"], np.concatenate(windows, axis=-1))).reshape(-1)
    for layer in ("Dense_0", "Dense_1"):
        hidden = activate(dense(params["trunk"][layer], hidden))
    np.testing.assert_allclose(q_values(network, params, obs), dense(params["head"], hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "name", "words"),
    [
        ("trunk", "mpl", "did you mean mlp?"),
        ("head", "duelling", "did you mean dueling?"),
        ("head", "linear:3", "do not fit it"),
        ("trunk", "auto:3", "do not fit it"),
        ("head", "json:dumps", "do not fit it"),
    ],
)
def test_parts_that_do_not_exist(field, name, words):
    with pytest.raises(InputError) as refused:
        make_network(NetworkConfig(**{field: name}), spec_of((4,), 2))
    assert str(refused.value).startswith(f"network.{field} is {name!r}")
    assert words in str(refused.value)


def test_bytes_are_seen_from_0_to_1_and_all_else_as_it_is():
    spec = spec_of((3,), 2)
    network = make_network(NetworkConfig(hidden_sizes=(4,)), spec)
    params = network.init(jax.random.key(0))
    seen = network.apply(params, jnp.array([0, 51, 255], jnp.uint8), None).q_values
    np.testing.assert_allclose(network.apply(params, jnp.array([0, 0.2, 1]), None).q_values, seen, rtol=1e-5)
    bits = network.apply(params, jnp.array([True, False, True]), None).q_values
    np.testing.assert_array_equal(bits, network.apply(params, jnp.array([1.0, 0.0, 1.0]), None).q_values)
