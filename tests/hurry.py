"""Environment variables of processes that run a program for a moment: compile in a hurry, and share what is compiled.

Processes that these start inherit them. Imports no jax, which reads them when it starts.
"""

import os
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "jax"


def hurry() -> None:
    """Sets them, but for those that are set already."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # As in pyproject.toml, for processes that must print nothing.
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"
    # Python's part of compiling: where each operation was written is not asked.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Compiling would take most of the time. Law 6 and `make train` use all passes.
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
        # XLA ends the process at a flag that it does not know; these versions were seen to know this one.
        if version("jaxlib").startswith(("0.10.", "0.11.0")):
            # Without one more part of the compiler, and each program in one piece: the other core has a process of its own.
            flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
        os.environ["XLA_FLAGS"] = " ".join(flags).strip()
