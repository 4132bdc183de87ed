"""Proves that importing the package starts no jax backend, and that `setup` gives the devices it is asked for or refuses."""

import os
import subprocess
import sys

import jax
import pytest

from dqn_jax import runtime
from dqn_jax.config import InputError


def outputs_of(code: str, **env: str) -> list[str]:
    """Words that a new Python process prints."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"} | env
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.long
def test_importing_starts_no_backend():
    code = """
import sys
import dqn_jax, dqn_jax.config, dqn_jax.runner.command_line, dqn_jax.runtime
print([name for name in ("jax", "jaxlib", "gymnax") if name in sys.modules] or "none")
import jax
print(len(jax._src.xla_bridge._backends))
import dqn_jax.envs
print(len(jax._src.xla_bridge._backends))
"""
    # The last number is the control: gymnax does start the backend, so the count before it could have told.
    assert outputs_of(code) == ["none", "0", "1"]


def test_setup_gives_the_devices_and_refuses_more_once_started():
    code = """
import os
from dqn_jax import runtime
from dqn_jax.config import InputError
runtime.setup(3)
runtime.setup(4)
import jax
print(len(jax.local_devices()), jax.default_backend())
runtime.setup(4); runtime.setup(2); runtime.setup()
print(len(jax.local_devices()))
try:
    runtime.setup(5)
except InputError as error:
    print("5" in str(error) and "4" in str(error) and "runtime.setup" in str(error))
print(os.environ["XLA_FLAGS"])
"""
    expected = ["4", "cpu", "4", "True", "--xla_cpu_enable_fast_min_max=true", "--xla_cpu_multi_thread_eigen=false"]
    assert outputs_of(code, XLA_FLAGS="--xla_cpu_enable_fast_min_max=true") == expected


def test_setup_gives_two_devices_by_default_and_keeps_the_users_flag():
    code = """
import os
from dqn_jax import runtime
runtime.setup()
import jax
print(len(jax.local_devices()), os.environ["XLA_FLAGS"])
"""
    flag = "--xla_cpu_multi_thread_eigen=true"
    assert outputs_of(code, XLA_FLAGS=flag) == ["2", flag]


def test_setup_refuses_in_a_started_process():
    """This process has four devices (conftest)."""
    assert len(jax.local_devices()) == 4
    runtime.setup(runtime.MAX_CPU_DEVICES // 16)
    with pytest.raises(InputError, match=r"num_devices is 5, and jax has already started with 4: call runtime\.setup"):
        runtime.setup(5)


def test_setup_refuses_more_virtual_devices_than_make_sense():
    with pytest.raises(InputError, match=r"num_devices is 65: ask for at most 64"):
        runtime.setup(65)
    # 64 is within the limit; what stops it here is that jax has started.
    with pytest.raises(InputError, match="already started"):
        runtime.setup(64)
