"""Heads of Q-networks: features [F] of one observation to action values [A], or to distributions of returns and their means.

Not here: trunks and names (networks), losses.

Shapes: A actions, F features, K atoms, N quantiles.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Dense = Callable[..., nn.Module]
"""Makes a dense layer of so many features, with noise or without."""


class Categorical(NamedTuple):
    """Distributions of returns on fixed atoms."""

    q_values: jax.Array
    """[A] their means."""
    logits: jax.Array
    """[A, K]."""
    atoms: jax.Array
    """[K] increasing."""


class Quantiles(NamedTuple):
    """Quantiles of the distributions of returns."""

    q_values: jax.Array
    """[A] their means."""
    quantiles: jax.Array
    """[N, A]."""
    taus: jax.Array
    """[N] their probabilities."""


class NoisyDense(nn.Module):
    """A dense layer whose weights have factorised Gaussian noise of a scale that is learnt.

    Noise is drawn from the rng "noise"; without it the means are used. Source: Fortunato et al. (2018), section 3.1.
    """

    features: int
    sigma: float = 0.5
    """Initial scale of the noise, times 1 / sqrt(number of inputs)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs [I] to [features]."""
        inputs = x.shape[-1]
        bound = inputs**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        scale = nn.initializers.constant(self.sigma * bound)
        kernel, bias = self.param("kernel", uniform, (inputs, self.features)), self.param("bias", uniform, (self.features,))
        kernel_sigma = self.param("kernel_sigma", scale, (inputs, self.features))
        bias_sigma = self.param("bias_sigma", scale, (self.features,))
        if not self.has_rng("noise"):
            return x @ kernel + bias
        draws = jax.random.normal(self.make_rng("noise"), (inputs + self.features,))
        # The root with the draw's sign: written as sign times root, a compiler draws again for each element of the kernel.
        noise = jnp.sqrt(nn.relu(draws)) - jnp.sqrt(nn.relu(-draws))
        of_inputs, of_outputs = noise[:inputs], noise[inputs:]
        # One matrix for the whole batch, which has one noise: two products of the batch would take longer.
        return x @ (kernel + kernel_sigma * jnp.outer(of_inputs, of_outputs)) + bias + bias_sigma * of_outputs


class DuelingHead(nn.Module):
    """A state value and advantages, each linear in the features: Q(a) = V + A(a) - mean A (Wang et al. 2016, equation 9)."""

    num_actions: int
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps features [F] to action values [A]."""
        value, advantage = self.dense(1, name="value")(features), self.dense(self.num_actions, name="advantage")(features)
        return value + advantage - jnp.mean(advantage)


class CategoricalHead(nn.Module):
    """Distributions on K atoms from `low` to `high` (Bellemare et al. 2017); dueling as in Rainbow (Hessel et al. 2018)."""

    num_actions: int
    low: float
    high: float
    num_atoms: int = 51
    dueling: bool = False
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, features: jax.Array) -> Categorical:
        """Maps features [F] to distributions of each action."""
        logits = self.dense(self.num_actions * self.num_atoms, name="logits")(features).reshape(self.num_actions, -1)
        if self.dueling:
            logits = self.dense(self.num_atoms, name="value")(features) + logits - jnp.mean(logits, axis=0)
        atoms = jnp.linspace(self.low, self.high, self.num_atoms)
        return Categorical(jax.nn.softmax(logits) @ atoms, logits, atoms)


class QuantileHead(nn.Module):
    """N quantiles of each action, at the middles of N equal shares of probability (Dabney et al. 2018b, section 3)."""

    num_actions: int
    num_quantiles: int = 51
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, features: jax.Array) -> Quantiles:
        """Maps features [F] to quantiles of each action."""
        quantiles = self.dense(self.num_quantiles * self.num_actions)(features).reshape(self.num_quantiles, -1)
        return Quantiles(jnp.mean(quantiles, axis=0), quantiles, middles(self.num_quantiles))


class ImplicitQuantileHead(nn.Module):
    """Quantiles at N probabilities drawn from the rng "noise", or at the middles of equal shares (Dabney et al. 2018a)."""

    num_actions: int
    num_quantiles: int = 32
    num_cosines: int = 64
    dense: Dense = nn.Dense

    @nn.compact
    def __call__(self, features: jax.Array) -> Quantiles:
        """Maps features [F] to quantiles of each action."""
        number = self.num_quantiles
        taus = jax.random.uniform(self.make_rng("noise"), (number,)) if self.has_rng("noise") else middles(number)
        # Equation 4.
        cosines = jnp.cos(jnp.pi * jnp.arange(self.num_cosines) * taus[:, None])
        embedding = nn.relu(self.dense(features.shape[-1], name="embedding")(cosines))
        quantiles = self.dense(self.num_actions, name="quantiles")(features * embedding)
        return Quantiles(jnp.mean(quantiles, axis=0), quantiles, taus)


def middles(number: int) -> jax.Array:
    """Returns the middles [N] of N equal shares of [0, 1]."""
    return (jnp.arange(number) + 0.5) / number
