"""Law 1: a learner on D devices with a batch of B/D each is one learner on the batch of B."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from laws.common import NETWORK, STEADY, assert_close, assert_differs

from dqn_jax.agent import hyperparams_of
from dqn_jax.learner import make_learner
from dqn_jax.mapping import over, place
from dqn_jax.types import Sample, Transition

AXIS = "devices"
BATCH = 32


def stream(num_updates):
    """Batches [T, B, ...] of made-up transitions, a tenth of them terminal."""
    keys = jax.random.split(jax.random.key(1), 5)
    shape = (num_updates, BATCH)
    transitions = Transition(
        s_tm1=jax.random.normal(keys[0], (*shape, 4)),
        a_tm1=jax.random.randint(keys[1], shape, 0, 2),
        r_t=jax.random.normal(keys[2], shape),
        discount_t=jnp.where(jax.random.uniform(keys[3], shape) < 0.1, 0.0, 0.99),
        s_t=jax.random.normal(keys[4], (*shape, 4)),
    )
    ones = jnp.ones(shape)
    return Sample(transitions, indices=jnp.zeros(shape, jnp.int32), weights=ones, age=jnp.zeros(shape, jnp.int32))


def train(config, samples, axis_name=None):
    """() -> the learner's state after one update on each batch of `samples`."""
    learner = make_learner(NETWORK, config, axis_name)

    def run(samples):
        state = learner.init(jax.random.key(0), hyperparams_of(config).learner)
        return jax.lax.scan(lambda state, sample: (learner.step(state, sample, jax.random.key(0))[0], None), state, samples)[0]

    return run


def split(samples, num_devices):
    """[T, B, ...] as [D, T, B / D, ...]."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], num_devices, BATCH // num_devices, *x.shape[2:]), 1, 0), samples
    )


def sharded(config, samples, num_devices, use_pmap, axis_name=AXIS):
    devices = jax.local_devices()[:num_devices] if use_pmap else None
    rows = split(samples, num_devices)
    # To the host: each slice of an array on several devices would be a program for all of them.
    return jax.device_get(over(train(config, samples, axis_name), AXIS, devices)(place(rows, devices) if use_pmap else rows))


@pytest.mark.parametrize(
    ("optimizer", "num_updates", "num_devices", "use_pmap"),
    [
        ("sgd", 100, 2, True),
        pytest.param("sgd", 100, 2, False, marks=pytest.mark.long),
        pytest.param("sgd", 100, 4, True, marks=pytest.mark.long),
        pytest.param("adam", 10, 4, True, marks=pytest.mark.long),
    ],
)
def test_sharded_learner_is_one_learner(num_devices, use_pmap, optimizer, num_updates):
    config = dataclasses.replace(STEADY, optimizer=optimizer, learning_rate=1e-3 if optimizer == "adam" else 1e-2)
    samples = stream(num_updates)
    one = jax.jit(train(config, samples))(samples)
    rows = sharded(config, samples, num_devices, use_pmap)
    for device in range(num_devices):
        assert_close(jax.tree.map(lambda x, d=device: x[d], rows), one)


def test_without_the_mean_it_is_not():
    samples = stream(20)
    one = jax.jit(train(STEADY, samples))(samples)
    rows = sharded(STEADY, samples, 2, use_pmap=True, axis_name=None)
    assert_differs(jax.tree.map(lambda x: x[0], rows), one)
