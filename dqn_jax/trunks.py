"""Trunks of Q-networks: one observation to features.

Not here: heads, names (networks).

Shapes: H height, W width, C channels, F features.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dqn_jax.heads import Dense


class Trunk(nn.Module):
    """ReLU layers, after a 3x3 convolution where `channels` is given (the MinAtar network of Young & Tian 2019)."""

    hidden_sizes: Sequence[int]
    channels: int | None = None
    layer_norm: bool = False
    """Normalise each layer before its ReLU (Ba et al. 2016)."""
    dense: Dense = nn.Dense
    """Of the layers after the convolution."""

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Maps an observation [...] to features [F]."""
        if self.channels is not None:
            obs = _activate(nn.Dense(self.channels, name="conv")(_patches(obs)), self.layer_norm)
        features = obs.reshape(-1)
        for size in self.hidden_sizes:
            features = _activate(self.dense(size)(features), self.layer_norm)
        return features


class Nature(nn.Module):
    """Three convolutions and ReLU layers, of 84 x 84 pixels 1.7 million weights with one of 512 (Mnih et al. 2015, Methods)."""

    hidden_sizes: Sequence[int]
    channels: int = 16
    """Half those of the first convolution; the others have four times as many."""
    layer_norm: bool = False
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Maps an image [H, W, C], H and W at least 36, to features [F]."""
        for factor, size, stride in ((2, 8, 4), (4, 4, 2), (4, 3, 1)):
            obs = _activate(Conv(factor * self.channels, size, stride)(obs), self.layer_norm)
        return Trunk(self.hidden_sizes, layer_norm=self.layer_norm, dense=self.dense, name="layers")(obs)


class Impala(nn.Module):
    """Fifteen convolutions in six residual blocks, and ReLU layers (Espeholt et al. 2018, figure 3, without its LSTM)."""

    hidden_sizes: Sequence[int]
    channels: int = 16
    """Of the first two blocks; the others have twice as many."""
    layer_norm: bool = False
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Maps an image [H, W, C] to features [F]."""
        for factor in (1, 2, 2):
            features = factor * self.channels
            obs = max_pool(Conv(features, 3, padding=1)(obs))
            for _ in range(2):
                inner = Conv(features, 3, padding=1)(_activate(obs, self.layer_norm))
                obs = obs + Conv(features, 3, padding=1)(_activate(inner, self.layer_norm))
        obs = _activate(obs, self.layer_norm)
        return Trunk(self.hidden_sizes, layer_norm=self.layer_norm, dense=self.dense, name="layers")(obs)


class Conv(nn.Module):
    """A convolution as a sum of products: of an 84 x 84 network's update XLA's own takes many times as long on a CPU."""

    features: int
    size: int
    """Of the square windows; a multiple of the stride."""
    stride: int = 1
    padding: int = 0
    """Zeros on each side."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps [H, W, C] to [H', W', features], with windows inside the padded image alone."""
        stride, times = self.stride, self.size // self.stride
        shape = (self.size, self.size, image.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        # Blocks of stride x stride pixels become channels, so windows of `times` x `times` blocks are one block apart.
        pixels = jnp.pad(image, ((self.padding,) * 2, (self.padding,) * 2, (0, 0)))
        rows, columns = pixels.shape[0] // stride, pixels.shape[1] // stride
        blocks = pixels[: rows * stride, : columns * stride].reshape(rows, stride, columns, stride, -1)
        blocks = jnp.swapaxes(blocks, 1, 2).reshape(rows, columns, -1)
        weights = jnp.swapaxes(kernel.reshape(times, stride, times, stride, -1), 1, 2).reshape(times, times, -1, self.features)
        below, beside = rows - times + 1, columns - times + 1
        total = self.param("bias", nn.initializers.zeros, (self.features,))
        for i in range(times):
            for j in range(times):
                total = total + blocks[i : i + below, j : j + beside] @ weights[i, j]
        return total


def max_pool(image: jax.Array) -> jax.Array:
    """Takes the maximum of 3 x 3 windows, two apart, of an [H, W, C] image with one pixel of nothing around it."""
    pixels = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    height, width = ((side + 1) // 2 for side in image.shape[:2])
    shifted = [pixels[i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, shifted)


def _activate(x: jax.Array, layer_norm: bool) -> jax.Array:
    return nn.relu(nn.LayerNorm()(x) if layer_norm else x)


def _patches(image: jax.Array, size: int = 3) -> jax.Array:
    """Extracts every size x size window of an [H, W, C] image: [H - size + 1, W - size + 1, size * size * C].

    A dense layer over it is a convolution. XLA's own convolution gradient is 4 to 10 times slower inside a scan on a CPU.
    """
    height, width, _ = image.shape
    rows, columns = height - size + 1, width - size + 1
    return jnp.concatenate([image[i : i + rows, j : j + columns] for i in range(size) for j in range(size)], axis=-1)
