"""Every algorithm is traced in every driver, makes two chunks in one of them, and has its row in the committed matrix."""

import collections
import dataclasses
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from federated.helpers import refusal
from matrix import DRIVERS, config_of, driver_of, two_chunks

from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.losses import own_numbers
from dqn_jax.mapping import place

KEPT = json.loads((Path(__file__).parents[1] / "experiments/results/matrix.json").read_text())
CELLS = list(itertools.product(DRIVERS, ALGORITHMS))
# The workers of the first keep their replays in one ring; those of all of them push gradients.
_RING = ("agent.memory is 'prioritised' with server.replay 'local'", "take server.replay 'shared' or another backend")
_GRADIENT = ("agent.updates_per_step is 32 and server.push 'gradient'", "so push 'delta'")
REFUSED = {("parameter server in virtual time", algorithm): _RING for algorithm in ("prioritised", "rainbow")}
REFUSED |= {(driver, "pqn"): _GRADIENT for driver in DRIVERS if "server" in driver}
# In turn: each driver has two algorithms or more.
ONE_EACH = list(zip(itertools.cycle(DRIVERS), ALGORITHMS, strict=False))


def zeros(shape):
    """An array of zeros, of keys too, without a program that makes it."""
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, shape)
        return jax.random.wrap_key_data(np.zeros(data.shape, data.dtype))
    return np.zeros(shape.shape, shape.dtype)


@pytest.fixture
def traced(monkeypatch):
    """What is to be compiled is traced alone, and gives zeros of its shapes; what the host does around it stays.

    Gives the number of programs that were traced.
    """
    jit, pmap, programs = jax.jit, jax.pmap, []

    def traced_jit(fn, **options):
        compiled = jit(fn, **options)

        def call(*args):
            programs.append(fn)
            return jax.device_put(jax.tree.map(zeros, compiled.eval_shape(*args)))

        return call

    def traced_pmap(fn, *, devices, **options):
        mapped = pmap(fn, devices=devices, **options)

        def call(*args):
            programs.append(fn)
            return place(jax.tree.map(zeros, jax.eval_shape(mapped, *args)), devices)

        return call

    monkeypatch.setattr(jax, "jit", traced_jit)
    monkeypatch.setattr(jax, "pmap", traced_pmap)
    return programs


def shapes_of(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize(("driver", "algorithm"), CELLS)
def test_it_is_traced_or_refused(traced, driver, algorithm):
    """Its start and a chunk, with what workers and actors do, their threads among it."""
    if (driver, algorithm) in REFUSED:
        sentence = refusal(lambda: config_of(driver, algorithm))
        begins, ends = REFUSED[driver, algorithm]
        assert sentence.startswith(begins)
        assert sentence.endswith(ends)
        return
    config = config_of(driver, algorithm)
    made, _ = driver_of(config)
    try:
        state = made.init()
        after, info = made.step(state)
    finally:
        made.close()
    assert len(traced) >= 2
    assert shapes_of(after) == shapes_of(state)
    assert {"frames", "updates", "episodes", "return_sum", "finite"} <= info.keys()
    # The mean return is the run loop's, of episodes.
    assert "return" not in info
    assert info["loss"].shape == (config.num_seeds,)
    assert np.issubdtype(info["loss"].dtype, np.floating)
    # No driver knows of them, and each reports them.
    assert own_numbers(info).keys() == ({"clipped_mass"} if algorithm in ("c51", "rainbow") else set())


@pytest.mark.long
@pytest.mark.parametrize(("driver", "algorithm"), ONE_EACH)
def test_it_makes_two_chunks_with_a_finite_loss(driver, algorithm):
    _, infos, _ = two_chunks(driver_of(config_of(driver, algorithm))[0])
    assert all(np.isfinite(value).all() for info in infos for value in own_numbers(info).values())


@pytest.mark.long
def test_what_learns_nothing_or_breaks_does_not_pass():
    def driver(rate):
        config = config_of("data-parallel", "dqn")
        return driver_of(dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=rate)))[0]

    with pytest.raises(AssertionError, match="a parameter is what it was"):
        two_chunks(driver(1e-30))
    broken = driver(1e38)
    with pytest.raises(AssertionError, match="a loss or parameter is not finite"):
        two_chunks(broken)
    with pytest.raises(AssertionError, match=r"^the loss is \["):
        two_chunks(broken._replace(problem=lambda info: None))


def test_each_driver_makes_them_at_least_twice():
    counts = collections.Counter(driver for driver, _ in ONE_EACH)
    assert counts.keys() == DRIVERS.keys()
    assert min(counts.values()) >= 2
    assert not REFUSED.keys() & set(ONE_EACH)


def test_the_committed_matrix_has_every_cell():
    """An algorithm or a driver without its cells is one for which `make test-matrix` was not run."""
    cells = {(cell["driver"], cell["algorithm"]): cell for cell in KEPT["cells"]}
    assert sorted(cells) == sorted(CELLS)
    assert len(cells) == len(KEPT["cells"])
    for names, cell in cells.items():
        assert ("refused" in cell) == (names in REFUSED)
        if names not in REFUSED:
            assert math.isfinite(cell["loss"])
            assert min(cell["compile_seconds"], cell["chunk_seconds"]) > 0
