"""Tests run on four virtual CPU devices and share compiled programs through jax's persistent cache."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "jax"

# Inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# As in pyproject.toml, for processes that must print nothing.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"
# Compiling takes most of the time of a test, and the programs are run for a moment only. Law 6 and `make train` use all passes.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    # XLA ends the process at a flag that it does not know; these versions were seen to know this one.
    if version("jaxlib").startswith(("0.10.", "0.11.")):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
# Python's part of compiling: where each operation was written is not asked.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Notebooks are for reading with more.
os.environ["DQN_JAX_NOTEBOOK_FRAMES"] = "15000"

import jax  # noqa: E402

from dqn_jax import runtime  # noqa: E402

runtime.setup(4)

# Tracing makes many objects that live on: looking through all of them again and again took a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 50, 100)


# Without this a process holds some memory maps for each compiled program; the kernel gives it 65,530.
MOST_MAPS = 20_000
MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Frees compiled programs after a file where there are many; small ones serve the files that follow."""
    yield
    if not MAPS.exists() or MAPS.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


# The longest first: else one process is left alone with them at the end.
FIRST = ("04_federated", "test_law6", "test_law9_hosts", "test_law8", "test_cartpole", "03_distributed")


def pytest_collection_modifyitems(items):
    """Orders files, which the two processes take one after the other."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: next((place for name, place in rank.items() if name in item.path.name), len(FIRST)))
