"""Tests run on four virtual CPU devices and share compiled programs through jax's persistent cache."""

import gc
import os
import sys
import types
from pathlib import Path

import pytest
from hurry import hurry

hurry()
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


@pytest.fixture
def mine(monkeypatch):
    """A user's module of that name, to be filled."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


# The longest first: else one process is left alone with them at the end.
FIRST = ("04_federated", "test_law6", "test_law9_hosts", "test_law8", "test_cartpole", "03_distributed")


def pytest_collection_modifyitems(items):
    """Orders files, which the two processes take one after the other."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: next((place for name, place in rank.items() if name in item.path.name), len(FIRST)))
