"""Proves by hand when seeds reached a return, what had been sent by then, and how far they fell from their best."""

import numpy as np
import pytest

from dqn_jax.runner.milestones import milestones
from dqn_jax.runner.records import jsonable

# Two rounds a line; seed 0 rises and falls back, seed 1 gets there at the end, seed 2 never does.
#   rounds            2     4          6     8          10 (the final parameters)
#   returns           -     3, 1, 0    -     9, 4, 2    5, 8, 2
#   bytes of seed 1   10    20         0     30         40
ROUNDS = [
    {
        "rounds": 2 * (1 + i),
        "frames": [16 * (1 + i)] * 3,
        "bytes": [7, (10, 20, 0, 30, 40)[i], 5 * 10**9],
        "eval_return": {1: [3.0, 1.0, 0.0], 3: [9.0, 4.0, 2.0], 4: [5.0, 8.0, 2.0]}.get(i),
    }
    for i in range(5)
]
FINAL = np.array([5.0, 8.0, 2.0])


def test_best_and_decay_are_of_each_seed():
    found = milestones(ROUNDS, FINAL, threshold=None)
    assert jsonable(found) == {"best_returns": [9.0, 8.0, 2.0], "late_decay": [4.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("threshold", "rounds", "sent", "share"),
    [
        (4.0, [8, 8, None], [4 * 7, 60, None], 2 / 3),  # reached is also what is just met
        (4.5, [8, 10, None], [4 * 7, 100, None], 2 / 3),
        (0.0, [4, 4, 4], [2 * 7, 30, 10**10], 1.0),  # more than 32 bits
        (9.5, [None] * 3, [None] * 3, 0.0),
        (-1.0, [4, 4, 4], [2 * 7, 30, 10**10], 1.0),  # not before it was first played
    ],
)
def test_rounds_and_bytes_to_a_threshold(threshold, rounds, sent, share):
    found = milestones(ROUNDS, FINAL, threshold)
    assert (found["threshold"], found["threshold_share"]) == (threshold, share)
    assert found["to_threshold"] == {"rounds": rounds, "bytes": sent}


def test_frames_where_a_run_counts_those():
    lines = [{"frames": 10 * (1 + i), "eval_return": value} for i, value in enumerate(([1.0, 5.0], None, [6.0, 2.0]))]
    found = milestones(lines, np.array([6.0, 2.0]), 5.0)
    assert jsonable(found) == {
        "best_returns": [6.0, 5.0],
        "late_decay": [0.0, 3.0],
        "threshold": 5.0,
        "to_threshold": {"frames": [30, 10]},
        "threshold_share": 1.0,
    }


def test_the_final_parameters_count_wherever_the_run_ends():
    """The last line has no evaluation of its own where the budget ends between two."""
    lines = [{"frames": 10, "eval_return": [1.0, 7.0]}, {"frames": 20, "eval_return": None}]
    found = milestones(lines, np.array([5.0, 3.0]), 5.0)
    assert found["best_returns"].tolist() == [5.0, 7.0]
    assert found["to_threshold"] == {"frames": [20, 10]}
    only_final = milestones(lines[1:], np.array([5.0, 3.0]), 5.0)
    assert (only_final["to_threshold"], only_final["threshold_share"]) == ({"frames": [20, None]}, 0.5)
    assert only_final["late_decay"].tolist() == [0.0, 0.0]
