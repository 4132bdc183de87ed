"""What tests share: a small CartPole agent whose arithmetic is steady enough to compare, comparisons, experiments."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np

from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.distributed.parameter_server import make_model
from dqn_jax.distributed.roles import make_server, make_worker
from dqn_jax.envs import make_env
from dqn_jax.networks import make_network
from dqn_jax.types import Clock, EnvSpec

ENV = make_env("CartPole-v1")
NETWORK = make_network(NetworkConfig(hidden_sizes=(16, 16)), ENV.spec)

# Trajectories fork at the first flipped argmax, so laws whose arithmetic order differs act at random and descend plainly.
SIZES = {"num_envs": 8, "batch_size": 32, "replay_capacity": 512, "learning_starts": 64}
STEADY = AgentConfig(
    **SIZES, n_step=2, optimizer="sgd", learning_rate=1e-2, target_period=10, epsilon_start=1.0, epsilon_end=1.0
)

# Greedy most of the time and Adam, for laws that hold to the last bit.
FREE = dataclasses.replace(STEADY, optimizer="adam", learning_rate=1e-3, epsilon_end=0.1, epsilon_decay_frames=500)

# Two epochs of two minibatches.
ROLLOUT = dataclasses.replace(
    STEADY, memory="rollout", n_step=1, return_lambda=0.7, acts_per_step=4, batch_size=16, updates_per_step=4, learning_starts=0
)


def spec_of(obs_shape, num_actions):
    """The description of some environment with these shapes."""
    return EnvSpec("some", obs_shape, np.dtype(np.float32), num_actions, 1)


def load_experiment(name):
    """A script of `experiments/`, such as "studies/staleness", as a module."""
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    # Not by its own name, which may be that of a folder of tests.
    spec = importlib.util.spec_from_file_location(f"experiments_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def server_model(network, agent_config, config):
    """(model of a parameter server on CartPole, compiled function (state, number of events) -> state)."""
    worker = make_worker(ENV, network, agent_config, config)
    model = make_model(worker, make_server(network, agent_config, config), config)

    @jax.jit
    def run(state, events):
        return jax.lax.fori_loop(0, events, lambda _, state: model.event(state)[0], state)

    return model, run


def without_clocks(state):
    """A state without the counters that its lanes share."""
    return jax.tree.map(lambda x: None if isinstance(x, Clock) else x, state, is_leaf=lambda x: isinstance(x, Clock))


def clocks(state):
    """The counters that lanes share, in the order they stand in the state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Clock))
    return [leaf.count for leaf in leaves if isinstance(leaf, Clock)]


def arrays(tree):
    """Leaves by name, on the host, random keys as their data."""

    def to_host(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {jax.tree_util.keystr(path): to_host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(actual, expected, rtol=1e-5):
    """Every leaf is equal up to the order of additions; whole numbers, flags and keys exactly."""
    actual, expected = arrays(actual), arrays(expected)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            # Relative to the leaf's largest entry: an entry near 0 keeps only the absolute error of the sums it came from.
            np.testing.assert_allclose(actual[name], values, rtol=rtol, atol=rtol * np.abs(values).max(initial=0), err_msg=name)
        else:
            np.testing.assert_array_equal(actual[name], values, err_msg=name)


def assert_differs(actual, expected, rtol=1e-3):
    """A control: the same leaves, shapes and dtypes, and one that differs by more than `rtol` of its largest entry."""
    actual, expected = arrays(actual), arrays(expected)
    kinds = [{name: (x.shape, x.dtype) for name, x in leaves.items()} for leaves in (actual, expected)]
    assert kinds[0] == kinds[1]

    def difference(name):
        a, b = (np.nan_to_num(leaves[name].astype(float), posinf=1e30, neginf=-1e30) for leaves in (actual, expected))
        return np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)

    largest = max(difference(name) for name in expected)
    assert largest > rtol, largest


def assert_bitwise(actual, expected):
    """Every leaf is equal to the last bit."""
    actual, expected = arrays(actual), arrays(expected)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name].tobytes() == values.tobytes(), name
