"""Compiled programs, kept on disk for the next start of a command. Imports no jax, which reads the setting when it starts."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path


def keep_compiled(wanted: bool) -> None:
    """Keeps compiled programs on disk for the next start. Call it before jax is imported; processes started later do the same.

    They are in `$XDG_CACHE_HOME/dqn_jax`, or `~/.cache/dqn_jax`, in a directory of this jaxlib and this CPU: a program that was
    compiled for another may end the process. Where the environment names a directory for jax, that one is taken.

    Args:
      wanted: whether to; else nothing is kept or read.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "dqn_jax" / f"{version('jaxlib')}-{_cpu()}"))
    # Small programs too: there are many.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _cpu() -> str:
    """Returns a short name for this kind of CPU, its features included."""
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        lines = [line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        lines = [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(repr(lines).encode()).hexdigest()[:12]}"
