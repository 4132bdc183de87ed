"""Tests run on four virtual CPU devices and share compiled programs through jax's persistent cache."""

import gc
import os
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "jax"

# Inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most of the time of a test is LLVM's; the programs are run for a moment only. Law 6 and `make train` use all passes.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
# Notebooks are for reading with more.
os.environ["DQN_JAX_NOTEBOOK_FRAMES"] = "30000"

import jax  # noqa: E402

from dqn_jax import runtime  # noqa: E402

runtime.setup(4)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Freed after each file: each takes some memory maps, of which the kernel gives a process 65,530."""
    yield
    jax.clear_caches()
    gc.collect()
