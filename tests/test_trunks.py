"""Convolutions and pools are those of XLA, their gradients too, and the papers' networks have the papers' sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import spec_of

from dqn_jax.config import NetworkConfig
from dqn_jax.networks import make_network
from dqn_jax.trunks import Conv, max_pool

KEY = jax.random.key(0)
ATARI = (84, 84, 4)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [(8, 4, 0, (21, 26, 2)), (4, 2, 0, (9, 10, 3)), (3, 1, 0, (5, 7, 3)), (3, 1, 1, (5, 4, 3)), (3, 3, 1, (8, 7, 1))],
)
def test_a_convolution_is_xlas(size, stride, padding, shape):
    conv = Conv(5, size, stride, padding)
    image = jax.random.normal(KEY, shape)
    params = jax.jit(conv.init)(KEY, image)["params"]
    params["bias"] = jnp.arange(5.0)

    def reference(params, image):
        window = ((padding, padding),) * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(image[None], params["kernel"], (stride,) * 2, window, dimension_numbers=numbers)
        return found[0] + params["bias"]

    def with_gradients(function):
        def loss(params, image):
            out = function(params, image)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, image)

    ours = with_gradients(lambda params, image: conv.apply({"params": params}, image))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), ours, with_gradients(reference))


@pytest.mark.parametrize("shape", [(4, 6, 2), (5, 7, 1), (1, 3, 2)])
def test_a_pool_is_xlas(shape):
    image = jax.random.normal(KEY, shape)
    expected = jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), ((1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(max_pool(image), expected)


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def shapes_of(trunk, hidden, **options):
    network = make_network(NetworkConfig(trunk=trunk, hidden_sizes=(hidden,), **options), spec_of(ATARI, 6))
    return jax.eval_shape(network.init, KEY)


def test_the_papers_networks_have_the_papers_sizes():
    nature, impala = shapes_of("nature", 512), shapes_of("impala", 256)
    convolutions = (8 * 8 * 4 + 1) * 32 + (4 * 4 * 32 + 1) * 64 + (3 * 3 * 64 + 1) * 64
    assert count(nature["trunk"]) == convolutions + (7 * 7 * 64 + 1) * 512
    assert count(nature["head"]) == 513 * 6

    def conv(inputs, outputs):
        return (9 * inputs + 1) * outputs

    blocks = conv(4, 16) + 4 * conv(16, 16) + conv(16, 32) + 4 * conv(32, 32) + 5 * conv(32, 32)
    # 84 becomes 42, 21 and 11.
    assert count(impala["trunk"]) == blocks + (11 * 11 * 32 + 1) * 256


@pytest.mark.parametrize(("trunk", "norms"), [("nature", 4), ("impala", 2 * 6 + 1 + 1)])
def test_every_relu_may_have_a_norm_before_it(trunk, norms):
    found = shapes_of(trunk, 8, layer_norm=True)["trunk"]
    scales = [path for path, _ in jax.tree.leaves_with_path(found) if "LayerNorm" in str(path) and "scale" in str(path)]
    assert len(scales) == norms


def test_a_residual_block_whose_convolutions_are_0_changes_nothing():
    """With all but each stage's first convolution at 0, the network is these, their pools and its layer."""
    network = make_network(NetworkConfig(trunk="impala", hidden_sizes=(4,), channels=2), spec_of((9, 8, 3), 2))
    params = jax.jit(network.init)(KEY)
    stages = ("Conv_0", "Conv_5", "Conv_10")
    others = [name for name in params["trunk"] if "Conv" in name and name not in stages]
    assert len(others) == 12
    inner = {name: jax.tree.map(jnp.zeros_like, params["trunk"][name]) for name in others}
    trunk = params["trunk"] | inner
    image = x = jax.random.normal(KEY, (9, 8, 3))
    for name, features in zip(stages, (2, 4, 4), strict=True):
        x = max_pool(Conv(features, 3, padding=1).apply({"params": trunk[name]}, x))
    layer, head = trunk["layers"]["Dense_0"], params["head"]
    hidden = jax.nn.relu(jax.nn.relu(x).reshape(-1) @ layer["kernel"] + layer["bias"])
    expected = hidden @ head["kernel"] + head["bias"]
    found = network.apply({**params, "trunk": trunk}, image, None).q_values
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    whole = network.apply(params, image, None).q_values
    assert not np.allclose(whole, expected, rtol=1e-2)
