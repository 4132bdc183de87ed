"""The pages have what the benchmarks of rollouts and of Atari measured, and PQN's target is met."""

import json
import re
from pathlib import Path

import arcade
import pytest

from dqn_jax.runner.config_file import config_dict
from experiments.benchmarks import atari_benchmark, pqn_benchmark

ROOT = Path(__file__).parent.parent
SPEED = " ".join((ROOT / "docs/results/speed.md").read_text().split())


def measured(name):
    return json.loads((ROOT / f"experiments/results/{name}_benchmark-cpu.json").read_text())


def test_frames_a_second_of_rollouts():
    numbers = measured("pqn")
    paces = ", ".join(f"`{name}` {numbers[f'frames_per_second_{name}']:,.0f}" for name in pqn_benchmark.ALGORITHMS)
    assert f"{paces}. That is {numbers['pqn_over_dqn']:.2f} times DQN's" in SPEED
    assert pqn_benchmark.misses(numbers) == []
    assert pqn_benchmark.misses({"pqn_over_dqn": 1.994}) == ["PQN takes 1.99 times the frames of DQN, and should take 2"]


def test_frames_a_second_of_atari():
    numbers = measured("atari")
    kinds = ("environment", "acting", "learning", "threads", "ray")
    part = SPEED[SPEED.index("## Atari") : SPEED.index("## Clients")]
    assert re.findall(r"\| ([\d,]+) \|", part) == [f"{numbers[f'frames_per_second_{kind}']:,.0f}" for kind in kinds]
    acting, learning = numbers["frames_per_second_acting"], numbers["frames_per_second_learning"]
    assert f"one after the other are {1 / (1 / acting + 1 / learning):,.0f}" in part


@pytest.mark.parametrize("room", ["network", "agent", "env_kwargs", "actors"])
def test_what_is_measured_is_what_the_study_trains(room):
    """But for the sizes that a short measurement has no use for."""
    ours, theirs = (config_dict(config)[room] for config in (atari_benchmark.CONFIG, arcade.GAMES["Boxing"]))
    if room == "agent":
        other = {"replay_capacity", "learning_starts", "learning_rate", "target_period", "loss"}
        other |= {"epsilon_end", "epsilon_decay_frames"}
        ours, theirs = ({name: value for name, value in fields.items() if name not in other} for fields in (ours, theirs))
    assert ours == theirs
