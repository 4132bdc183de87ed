"""The benchmark of the algorithms measures each of them, names the targets that are missed, and is what its page says."""

import json
import re
from pathlib import Path

import pytest

from dqn_jax.algorithms import fields_of
from experiments.benchmarks import algorithms_benchmark
from experiments.benchmarks.algorithms_benchmark import AT_MOST, NAMES, configs_of, misses

ROOT = Path(__file__).parent.parent


def test_a_target_that_is_missed_is_named():
    kept = {f"update_{name}_over_dqn": most for name, most in AT_MOST.items()}
    assert misses(kept) == []
    assert misses(kept | {"update_c51_over_dqn": 2.501}) == [
        "an update of c51 takes 2.501 times one of dqn, and should take at most 2.5"
    ]


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_contestant_has_the_fields_of_its_algorithm(algorithm):
    agent, network = configs_of(algorithm)
    for name, value in fields_of(algorithm, algorithms_benchmark.ENV).items():
        section, field = name.split(".")
        assert getattr({"agent": agent, "network": network}[section], field) == value
    assert (agent.replay_capacity, agent.learning_starts, agent.batch_size) == (100_000, 100_000, 128)


def test_the_page_has_what_was_measured():
    measured = json.loads((ROOT / "experiments/results/algorithms_benchmark-cpu.json").read_text())
    text = (ROOT / "docs/results/speed.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+)x \| (?:([\d.]+)x)? ?\| ([\d.]+)x \|$", text, re.M)
    assert [row[0] for row in rows] == [name for name in NAMES if name != "dqn"]
    for name, update, target, iteration in rows:
        assert update == f"{measured[f'update_{name}_over_dqn']:.2f}"
        assert iteration == f"{measured[f'iteration_{name}_over_dqn']:.2f}"
        assert target == (f"{AT_MOST[name]:g}" if name in AT_MOST else "")
    assert [f"({measured[f'{kind}_microseconds_dqn']:.0f} us)" in text for kind in ("update", "iteration")] == [True, True]
    missed = re.findall(r"`(\w+)` misses its target", text)
    assert missed == [name for name in AT_MOST if measured[f"update_{name}_over_dqn"] > AT_MOST[name]]
