"""Law 6 (seeds): seeds sharded over devices are, to the last bit, the same seeds on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from laws import federation
from laws.common import ENV, NETWORK, STEADY, arrays, assert_close, assert_differs, without_clocks

from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.federated.driver import make_federated
from dqn_jax.federated.heterogeneity import draw_all

SEEDS = [2, 3, 5, 7]


def checksums(seeds, device_counts):
    """{number of devices: checksum of the trained state}.

    XLA simplifies expressions, and shares common ones, at other points of its pipeline when a program spans devices, which
    moves last bits. Its arithmetic is the same without these passes, so the law is checked to the bit in a process without.
    """
    tests = Path(__file__).parent.parent
    # Without the fusion emitters that other tests do without, last bits move again.
    flags = "--xla_backend_optimization_level=0 --xla_disable_hlo_passes=cse,algsimp"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(tests)}
    script = [sys.executable, str(tests / "laws" / "sharded_seeds.py"), json.dumps(seeds), json.dumps(device_counts)]
    result = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def reference():
    return checksums(SEEDS, [1, 4])


@pytest.mark.long
def test_sharding_changes_no_bit(reference):
    assert reference["1"] == reference["4"]


@pytest.mark.long
def test_another_seed_changes_the_checksum(reference):
    assert checksums([2, 3, 5, 8], [4])["4"] != reference["4"]


def per_lane(state):
    """Leaves [S, ...] of a state whose lanes are divided over devices, the devices' clocks left out."""
    first = jax.local_devices()[0]
    return jax.tree.map(lambda x: jax.device_put(x, first).reshape(-1, *x.shape[2:]), without_clocks(state))


def train(num_devices):
    devices = jax.local_devices()[:num_devices]
    driver = make_data_parallel(ENV, NETWORK, STEADY, seeds=SEEDS, devices=devices, steps_per_chunk=50, seeds_over_devices=True)
    state, info = driver.step(driver.init())
    return per_lane(state), driver.params(state), info


def test_with_all_passes_only_last_bits_move():
    one, two = train(1), train(2)
    assert_close(two[0], one[0])
    assert_close(two[1], one[1])


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"merge": {"moments": "average", "initial": "per_client"}, "algorithm": "scaffold", "personal": "head"},
        {"participation": "buffered", "num_clients_per_round": 3, "transforms": ("int8",), "aggregator": "centred-clip:0.02"},
    ],
)
def test_clients_sharded_over_devices_are_the_same_clients(options):
    config = federation.config_of(num_clients=8, local_steps=4, heterogeneity="cartpole-length", block_size=3, **options)
    agent = federation.small(STEADY)
    envs = draw_all(ENV, config, 1).seen

    def run(num_devices):
        devices = jax.local_devices()[:num_devices]
        sizes = {"seeds": [3], "devices": devices, "rounds_per_step": 5, "seeds_over_devices": False}
        driver = make_federated(ENV, NETWORK, agent, config, env_params=envs, **sizes)
        state, info = driver.step(driver.init())
        rows = jax.tree.map(lambda x: jax.device_put(x, devices[0])[:, 0], without_clocks(state.clients))
        # Every device has the same of the aggregator.
        driver.check(state)
        kept = jax.tree.map(lambda x: np.asarray(x)[0], state.server.aggregator)
        return jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), rows), (driver.params(state), kept), info

    (clients, params, info), (clients_four, params_four, info_four) = run(1), run(4)
    # What a compression lost is a small difference of large numbers.
    lost, lost_four = (arrays(x.transform) for x in (clients, clients_four))
    assert all(np.allclose(lost[name], lost_four[name], atol=1e-6) for name in lost)
    clients, clients_four = (x.replace(transform=()) for x in (clients, clients_four))
    assert_close(clients_four, clients)
    assert_close(params_four, params)
    assert_close(*({name: found[name] for name in ("loss", "drift")} for found in (info_four, info)))
    assert [info_four[name].tolist() for name in ("frames", "bytes")] == [info[name].tolist() for name in ("frames", "bytes")]
    assert_differs(jax.tree.map(lambda x: x[::-1], clients_four), clients)
