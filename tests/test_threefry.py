"""Proves that random numbers are jax's own, whichever way they are compiled, and that keys and indices are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats
from test_runtime import outputs_of

from dqn_jax.streams import indices_below, keys_at

# From the known answers that Salmon et al. publish with their code: counter, key, result.
KNOWN = {
    "zeros": ([0, 0], [0, 0], [0x6B200159, 0x99BA4EFE]),
    "ones": ([0xFFFFFFFF] * 2, [0xFFFFFFFF] * 2, [0x1CB996FC, 0xBB002BE7]),
    "pi": ([0x243F6A88, 0x85A308D3], [0x13198A2E, 0x03707344], [0xC4923A9C, 0x483DF7A0]),
}


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN.values(), ids=KNOWN)
def test_known_answers(counter, key, result):
    keys = tuple(jnp.uint32(word) for word in key)
    hashed = jax.jit(threefry_2x32)(keys, jnp.array(counter, jnp.uint32))
    np.testing.assert_array_equal(hashed, np.array(result, np.uint32))


def test_numbers_are_those_of_jax_alone_and_compiled_without_a_loop():
    code = """
if {setup}:
    from dqn_jax import runtime
    runtime.setup(1)
import jax
keys = jax.random.split(jax.random.fold_in(jax.random.key(7), 2**32 - 1), 3)
draw = jax.jit(lambda keys: jax.vmap(lambda key: jax.random.bits(key, (5,)))(keys))
print(*draw(keys).ravel(), "while" in draw.lower(keys).compile().as_text())
"""
    *ours, looped = outputs_of(code.replace("{setup}", "True"))
    *theirs, control = outputs_of(code.replace("{setup}", "False"))
    assert len(ours) == 15
    assert ours == theirs
    assert (looped, control) == ("False", "True")


def test_keys_of_a_stream_never_come_twice_and_are_those_of_its_counts():
    stream = jax.random.key(3)
    times = jnp.arange(50)
    words = np.array(jax.random.key_data(jax.vmap(lambda time: keys_at(stream, time, 3))(times)))
    assert words.shape == (50, 3, 2)
    assert len(np.unique(words.reshape(-1, 2), axis=0)) == 150
    # The second key of the seventh time is number 7 * 3 + 1 of the stream.
    np.testing.assert_array_equal(words[7, 1], jax.random.key_data(jax.random.fold_in(stream, 22)))


@pytest.mark.parametrize("size", [1, 3, 7, 1_000_003, 2**31 - 1])
def test_indices_are_the_high_word_of_bits_times_the_size(size):
    key = jax.random.key(size)
    bits = np.array(jax.random.bits(key, (512,), jnp.uint32))
    expected = [int(word) * size >> 32 for word in bits]
    found = indices_below(key, jnp.int32(size), 512)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_indices_are_uniform():
    found = np.array(jax.jit(lambda: indices_below(jax.random.key(0), jnp.int32(17), 170_000))())
    counts = np.bincount(found, minlength=17)
    assert len(counts) == 17
    assert stats.chisquare(counts).pvalue > 1e-3
    # The control: one index in ten taken for its neighbour.
    biased = np.where((found == 4) & (np.arange(len(found)) % 10 == 0), 5, found)
    assert stats.chisquare(np.bincount(biased)).pvalue < 1e-3
