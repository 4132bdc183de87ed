"""Distributions of durations in virtual time, each with mean 1, by name. Not here: what takes that time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dqn_jax.config import ServiceTime

SERVICE_TIMES: dict[ServiceTime, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    "constant": lambda key, shape: jnp.ones(shape),
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=0.5, maxval=1.5),
    "exponential": jax.random.exponential,
    # Mean 1 with standard deviation 1 of the logarithm.
    "lognormal": lambda key, shape: jnp.exp(jax.random.normal(key, shape) - 0.5),
}
"""(key, shape) -> float32 times."""
