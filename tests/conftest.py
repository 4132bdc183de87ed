"""Tests run on four virtual CPU devices and share compiled programs through jax's persistent cache."""

import os
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "jax"

# Inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Notebooks are for reading with more.
os.environ["DQN_JAX_NOTEBOOK_FRAMES"] = "30000"

from dqn_jax import runtime  # noqa: E402

runtime.setup(4)
