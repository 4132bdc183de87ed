"""The main job, shortened to four seeds and 350,000 frames, ends near CartPole's optimum of 500; a frozen learner does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "experiments" / "data_parallel.py"
LIMIT_SECONDS = 800


# With all of the compiler's passes: it trains for much longer than it compiles.
ALL_PASSES = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def final_returns(run_dir, *flags, env=ALL_PASSES):
    """[S] mean greedy returns of the final parameters."""
    command = [sys.executable, str(SCRIPT), "--num-seeds", "4", "--num-devices", "2", "--run-dir", str(run_dir), *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads((run_dir / "summary.json").read_text())["final_returns"])


def test_learns(tmp_path):
    returns = final_returns(tmp_path / "run", "--total-frames", "350000")
    assert returns.mean() >= 475, returns
    assert np.sum(returns >= 475) >= 3, returns


def test_a_frozen_learner_does_not(tmp_path):
    returns = final_returns(tmp_path / "run", "--agent.learning-rate", "1e-12", "--total-frames", "30000", env=os.environ)
    assert returns.max() < 250, returns
