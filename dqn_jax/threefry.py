"""Compiles jax's random numbers for a CPU in less time than jax does: the numbers are the same, to the last bit.

For a CPU, jax compiles each call of its hash function as a loop over five groups of rounds, about ten small kernels, and
the programs of this package call it dozens of times: that was much of the time that they took to compile. Here the rounds are
written one after the other, as two kernels, which are kept apart from what stands around them: fused into that, they would be
computed again for every number that depends on theirs. Not here: what numbers are drawn (jax.random).
"""

from typing import Any

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""Of even and of odd groups of four rounds (Salmon et al. 2011, table 2)."""
_PARITY = np.uint32(0x1BD11BDA)


def compile_without_loops() -> None:
    """Makes jax compile `threefry2x32` as it stands here, on CPUs; does nothing where jax has no place to say so."""
    try:
        import jax
        from jax.experimental.xla_metadata import set_xla_metadata
        from jax.extend.random import threefry2x32_p
        from jax.interpreters.mlir import lower_fun, register_lowering
    except ImportError:
        return
    apart = jax.jit(threefry2x32)

    def rule(*words: jax.Array) -> tuple[jax.Array, jax.Array]:
        # XLA's name for "do not merge this function into its caller".
        with set_xla_metadata(inlineable="false"):
            return apart(*words)

    register_lowering(threefry2x32_p, lower_fun(rule, multiple_results=True), platform="cpu")


def threefry2x32(key1: Any, key2: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Hashes counters by a key in 20 rounds.

    Args:
      key1: uint32 first word of the key, of any shape that broadcasts with the others; so are the rest.
      key2: its second word.
      x1: first word of the counter.
      x2: its second word.

    Returns:
      Two words of random bits.

    Source: Salmon et al. (2011), section 4.2.
    """
    keys = (key1, key2, key1 ^ key2 ^ _PARITY)
    x1, x2 = x1 + keys[0], x2 + keys[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x1 = x1 + x2
            x2 = x1 ^ (x2 << np.uint32(distance) | x2 >> np.uint32(32 - distance))
        x1 = x1 + keys[(group + 1) % 3]
        x2 = x2 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x1, x2
