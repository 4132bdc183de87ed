"""Q-networks on ONE observation (callers `vmap`). Not here: losses, exploration.

Shapes: A actions, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dqn_jax.config import InputError, NetworkConfig
from dqn_jax.types import Params


class Network(NamedTuple):
    """A Q-network as pure functions."""

    init: Callable[[jax.Array], Params]
    """key -> parameters, with the top-level groups `trunk` and `head`."""
    apply: Callable[[Params, jax.Array, jax.Array, bool], Any]
    """(params, obs [...], key, train) -> outputs. A deterministic network ignores the key and the flag."""
    q_values: Callable[[Any], jax.Array]
    """outputs -> [A] float32 action values, all that acting and evaluation look at."""


def make_network(config: NetworkConfig, obs_shape: tuple[int, ...], num_actions: int) -> Network:
    """Builds the Q-network of a config for one observation shape.

    Args:
      config: trunk and widths.
      obs_shape: shape of one observation.
      num_actions: A.

    Returns:
      The network; its outputs are the action values themselves.

    Raises:
      InputError: for a convolution over observations that are not [H, W, C] with H and W of at least 3.
    """
    image = len(obs_shape) == 3 and min(obs_shape[:2]) >= 3
    if config.kind == "conv" and not image:
        raise InputError(f"network.kind is 'conv', and observations have shape {obs_shape}, not [H, W, C]: use 'mlp'")
    conv = config.kind == "conv" or (config.kind == "auto" and image)
    trunk = _Trunk(hidden_sizes=config.hidden_sizes, channels=config.channels if conv else None)
    module = _QNetwork(trunk=trunk, head=nn.Dense(num_actions))

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros(obs_shape))["params"]

    def apply(params: Params, obs: jax.Array, key: jax.Array, train: bool) -> Any:
        del key, train
        return module.apply({"params": params}, obs.astype(jnp.float32))

    return Network(init, apply, q_values=lambda outputs: outputs)


class _QNetwork(nn.Module):
    trunk: nn.Module
    head: nn.Module

    def __call__(self, obs: jax.Array) -> jax.Array:
        return self.head(self.trunk(obs))


class _Trunk(nn.Module):
    """ReLU layers, after a 3x3 convolution where `channels` is given (the MinAtar network of Young & Tian 2019)."""

    hidden_sizes: Sequence[int]
    channels: int | None

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        if self.channels is not None:
            obs = nn.relu(nn.Dense(self.channels, name="conv")(_patches(obs)))
        features = obs.reshape(-1)
        for size in self.hidden_sizes:
            features = nn.relu(nn.Dense(size)(features))
        return features


def _patches(image: jax.Array, size: int = 3) -> jax.Array:
    """Every size x size window of an [H, W, C] image as a row: [H - size + 1, W - size + 1, size * size * C].

    A dense layer over it is a convolution. XLA's own convolution gradient is 4 to 10 times slower inside a scan on a CPU.
    """
    height, width, _ = image.shape
    rows, columns = height - size + 1, width - size + 1
    return jnp.concatenate([image[i : i + rows, j : j + columns] for i in range(size) for j in range(size)], axis=-1)
