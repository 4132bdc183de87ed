"""Proves what a terminal of some width, and a pipe, show of a run: the most important first."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dqn_jax.runner.progress import Display, describe_end


def line_of(frames, wall_seconds, **changes):
    """A line of two seeds."""
    line = {"frames": frames, "return": np.array([10.0, 11.0]), "loss": np.array([0.5, 1.5]), "epsilon": np.array([0.25, 0.25])}
    return line | {"env_steps_per_second": 12345.6, "wall_seconds": wall_seconds, "eval_return": None} | changes


# 1000 frames in 100 s once all is compiled, so 600 s for the last 6000; the first line waited for it.
LINES = [
    line_of(1000, 50.0, env_steps_per_second=None, **{"return": np.array([np.nan, np.nan])}),
    line_of(3000, 250.0, eval_return=np.array([100.0, 200.0])),
    line_of(4000, 350.0),
]
ALL = "greedy return 150.0  0:10:00 left  12,346 frames/s  return 10.5  4,000/10,000 frames  loss 1.000  epsilon 0.25"


def live(width, lines, unit="frames"):
    """What stands beside the bar after the last line, and how wide the bar is."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    display = Display(10_000, 0, unit, console)
    for line in lines:
        display.update(line)
    (row,) = console.render_lines(display._progress.get_renderable(), pad=False)
    text = "".join(segment.text for segment in row)
    assert len(text) <= width
    bar = width // 8
    return text[:bar].strip(), text[bar + 1 :].rstrip()


@pytest.mark.parametrize(
    ("width", "bar", "text"),
    [
        (40, "━━", "greedy return 150.0  0:10:00 left"),
        (80, "━━━━", "greedy return 150.0  0:10:00 left  12,346 frames/s  return 10.5"),
        (120, "━━━━━━", "greedy return 150.0  0:10:00 left  12,346 frames/s  return 10.5  4,000/10,000 frames  loss 1.000"),
        (160, "━━━━━━━━", ALL),
    ],
)
def test_a_terminal_shows_what_it_has_room_for(width, bar, text):
    assert live(width, LINES) == (bar, text)


def test_before_the_first_evaluation_the_training_return_comes_first():
    assert live(80, LINES[:1])[1] == "return -  -:--:-- left  compiled  1,000/10,000 frames  loss 1.000"
    assert live(80, [*LINES[:1], line_of(2000, 150.0)])[1].startswith("return 10.5  0:13:20 left  12,346 frames/s")


def test_updates_that_were_left_out_are_shown_early():
    assert (
        "return 10.5  left out 3 update(s)  4,000/10,000" in live(160, [*LINES, LINES[2] | {"left_out": np.array([1, 2])}])[1]
    )


def test_a_pipe_gets_a_line_for_each_evaluation():
    file = io.StringIO()
    with Display(10_000, 0, "frames", Console(file=file, width=40)) as display:
        for line in [*LINES, line_of(10_100, 950.0, eval_return=np.array([1.0, 2.0]))]:
            display.update(line)
    first, last = file.getvalue().splitlines()
    assert first == ALL.replace("0:10:00", "0:11:40").replace("4,000/", "3,000/")
    assert last.startswith("greedy return 1.5  0:00:00 left  12,346 frames/s  return 10.5  10,100/10,000 frames")


def test_the_end_says_what_came_out_and_where_it_is():
    summary = {"final_return_mean": 150.0, "final_return_ci95": [100.04, 199.96], "final_returns": [100.0, 200.0]}
    assert describe_end(summary, Path("runs/a")) == (
        "final greedy return 150.0, 95% interval [100.0, 200.0], 2 seed(s)\nfiles: runs/a\nwatch it: dqn-jax play runs/a"
    )
    alone = {"final_return_mean": 150.0, "final_return_ci95": [None, None], "final_returns": [150.0]}
    assert describe_end(alone, Path("runs/a")).startswith("final greedy return 150.0, 1 seed(s)\n")
