"""Random numbers of a stream, a key that is drawn from again and again: as many at once as can be.

Each draw is a few kernels, which take as long to compile as a layer of a network with its gradient. Not here: which
streams there are (mapping, agent).
"""

import jax
import jax.numpy as jnp


def keys_at(stream: jax.Array, time: jax.Array, number: int) -> jax.Array:
    """Returns the keys that a stream has at a time, in one draw.

    Args:
      stream: [] key; all its draws must be of the same number.
      time: [] int32; keys come again after 2^32 / `number`.
      number: how many.

    Returns:
      [number] keys.
    """
    counts = jnp.asarray(time).astype(jnp.uint32) * jnp.uint32(number) + jnp.arange(number, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(stream, counts)


def indices_below(key: jax.Array, size: jax.Array, number: int) -> jax.Array:
    """Draws indices [number] int32 in [0, size) uniformly with replacement.

    The high word of 32 random bits times the size (Lemire 2019, section 3): an index is as likely as another to within
    `size` / 2^32 of it, and no division is needed.
    """
    bits = jax.random.bits(key, (number,), jnp.uint32)
    return _high_word(bits, jnp.asarray(size).astype(jnp.uint32)).astype(jnp.int32)


def _high_word(x: jax.Array, y: jax.Array) -> jax.Array:
    """The upper 32 of the 64 bits of a product, by halves; `jax.lax.mulhi` does not compile over devices (jax 0.10)."""
    (x_high, x_low), (y_high, y_low) = ((z >> 16, z & 0xFFFF) for z in (x, y))
    middle = x_high * y_low + (x_low * y_low >> 16)
    return x_high * y_high + (middle >> 16) + (x_low * y_high + (middle & 0xFFFF) >> 16)
