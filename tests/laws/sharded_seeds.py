"""Trains four seeds on so many devices and prints, for each number, the checksum of all that came out. Run by law 6."""

import hashlib
import json
import sys

from dqn_jax import runtime

runtime.setup(4)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from laws.common import ENV, FREE, NETWORK, arrays  # noqa: E402

from dqn_jax.distributed.data_parallel import make_data_parallel  # noqa: E402


def checksum(num_devices, seeds):
    """Of every per-lane leaf [S, ...] after 200 updates; the devices' clocks are left out."""
    devices = jax.local_devices()[:num_devices]
    driver = make_data_parallel(ENV, NETWORK, FREE, seeds=seeds, devices=devices, steps_per_chunk=100, seeds_over_devices=True)
    state = driver.step(driver.step(driver.init())[0])[0]
    digest = hashlib.sha256()
    for name, values in sorted(arrays(state).items()):
        if values.ndim > 1:
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


seeds = json.loads(sys.argv[1])
print(json.dumps({num_devices: checksum(num_devices, seeds) for num_devices in json.loads(sys.argv[2])}))
