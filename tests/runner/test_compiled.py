"""Proves that compiled programs are kept where users expect them, and that a second start finds them all."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dqn_jax.runner.compiled import keep_compiled


def test_compiled_programs_are_kept_where_users_expect_them(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "JAX_ENABLE_COMPILATION_CACHE"):
        # So that what is set here is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled(True)
    place = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert place.parent == tmp_path / "dqn_jax"
    assert place.name.startswith(f"{version('jaxlib')}-{platform.machine()}-")
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    # Another CPU, another directory.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, **_: "model name: another\n\nmodel name: another\n")
        keep_compiled(True)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] != str(place)
    # What users say of jax's cache holds.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "theirs")
    keep_compiled(True)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "theirs"
    assert "JAX_ENABLE_COMPILATION_CACHE" not in os.environ
    keep_compiled(False)
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.long
def test_the_second_start_of_a_command_compiles_nothing(tmp_path):
    """A program that is not in the cache is written there, as the first start shows."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "dqn_jax", "train", "data-parallel", "--preset", "smoke", "--num-seeds", "1"]

    def start(name):
        flags = ["--total-frames", "2000", "--run-dir", str(tmp_path / name)]
        done = subprocess.run([*command, *flags], env=env | {"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("dqn_jax/*/*-cache")}

    kept = start("first")
    assert len(kept) > 5
    assert start("second") == kept
