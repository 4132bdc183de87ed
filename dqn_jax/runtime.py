"""Settings that must be made before jax starts: virtual CPU devices and CPU threads. Imports no jax at the top.

Importing gymnax starts jax's backend, so scripts parse their flags, call `setup`, and only then import the rest.
"""

import os

from dqn_jax.config import InputError

DEFAULT_CPU_DEVICES = 2
"""Virtual devices on a machine that has only a CPU."""
MAX_CPU_DEVICES = 64
"""More virtual devices than this only wait for each other's collectives."""


def setup(num_devices: int | None = None) -> None:
    """Prepares this process for `num_devices` devices. Call it once, before anything imports gymnax or uses jax.

    Where jax runs on a CPU, that many virtual devices are made (two if None), each working on one thread: XLA's own thread
    pool slows small networks down. Accelerators are used as they are.

    Args:
      num_devices: devices wanted; None for all local ones.

    Raises:
      InputError: for more virtual devices than make sense, or where jax has already started with fewer.
    """
    wanted = DEFAULT_CPU_DEVICES if num_devices is None else num_devices
    if wanted > MAX_CPU_DEVICES:
        raise InputError(f"num_devices is {num_devices}: ask for at most {MAX_CPU_DEVICES}")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()

    import jax

    from dqn_jax.threefry import compile_without_loops

    compile_without_loops()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        if num_devices is not None and num_devices > jax.local_device_count():
            raise InputError(
                f"num_devices is {num_devices}, and jax has already started with {jax.local_device_count()}: "
                "call runtime.setup before anything else uses jax"
            ) from None
