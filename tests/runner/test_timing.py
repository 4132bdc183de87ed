"""Contestants alternate, in one process or in one for each of two checkouts, and ratios are those within a turn."""

import pytest

from dqn_jax.config import InputError, TrainingError
from dqn_jax.runner.timing import Contestant, median_ratio, served, take_turns

SCRIPT = """
import sys
from dqn_jax.runner.timing import serve
from package import start

class Counter:
    def __init__(self, start):
        self.count = start

    def turn(self):
        self.count += 1
        if self.count == 100:
            sys.exit(3)
        return self.count

serve({"one": lambda: Counter(start), "two": lambda: Counter(int(sys.argv[1])), "never asked": None})
"""


def test_turns_alternate_and_compile_first():
    calls = []

    def step(name):
        return lambda state: (calls.append((name, state)) or state + 1, None)

    seconds = take_turns({name: Contestant(0, step(name)) for name in "ab"}, turns=3)
    assert calls == [(name, state) for state in range(4) for name in "ab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_the_median_within_turns():
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 1.0]) == 3.0


def test_contestants_of_two_checkouts_take_turns(tmp_path):
    """A process each, with its own checkout's package, that goes on where its last turn ended."""
    for number, name in enumerate(("here", "there")):
        (tmp_path / name / "experiments" / "below").mkdir(parents=True)
        (tmp_path / name / "package.py").write_text(f"start = {100 * number}")
        (tmp_path / name / "experiments" / "below" / "script.py").write_text(SCRIPT)
    sides = [served(tmp_path / name, "script.py", first) for name, first in (("here", "50"), ("there", "98"))]
    with sides[0] as here, sides[1] as there:
        assert list(here) == ["one", "two", "never asked"]
        seconds = take_turns({"here": here["two"], "there": there["one"], "again": here["two"]}, turns=2)
        assert seconds == {"here": [53.0, 55.0], "there": [102.0, 103.0], "again": [54.0, 56.0]}
        assert there["two"].turn() == 99.0
        with pytest.raises(TrainingError, match="serves 'two' ended with status 3"):
            there["two"].turn()


def test_a_checkout_that_cannot_take_turns_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match=r"has no benchmark.py: give the directory of a checkout$"),
        served(tmp_path, "benchmark.py"),
    ):
        pass
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "old.py").write_text("print('measured: 3')")
    with (
        pytest.raises(InputError, match="serves no contestants: give a checkout that is not older"),
        served(tmp_path, "old.py"),
    ):
        pass
