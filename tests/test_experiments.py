"""The experiment scripts measure and compare what they say."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from laws.common import NETWORK, STEADY, load_experiment

from dqn_jax.agent import hyperparams_of
from dqn_jax.learner import make_learner

# The keys that results files are read by.
BENCHMARK_KEYS = {
    "device",
    "iteration_over_floor",
    "pmap_over_jit",
    "compile_seconds_cartpole",
    "compile_seconds_breakout",
    "bytes_per_transition_breakout",
    *(f"frames_per_second_{env}_{count}_devices" for env in ("cartpole", "breakout") for count in (1, 2, 4)),
    *(f"frames_per_second_{count}_seeds" for count in (1, 4, 16)),
}


@pytest.fixture(scope="module")
def benchmark():
    return load_experiment("benchmark")


def test_benchmark_writes_every_key(benchmark, tmp_path, monkeypatch):
    """Shortened to what must compile anyway: one environment is enough to see that the parts fit together."""
    monkeypatch.setattr(benchmark, "on_one_core", lambda measure, *args: {"iteration_over_floor": 1.0, "pmap_over_jit": 1.0})
    monkeypatch.setattr(benchmark, "BREAKOUT", dataclasses.replace(benchmark.BREAKOUT, replay_capacity=1_600))
    started = []
    monkeypatch.setattr(benchmark, "start_and_step", started.append)
    rates = {name: float(len(str(name))) for name in (1, 2, 4, 16)}
    monkeypatch.setattr(benchmark, "frames_per_second", lambda drivers, turns: {name: rates[name] for name in drivers})
    out = tmp_path / "results" / "benchmark.json"
    results = benchmark.main(benchmark.Options(out=out, quick=True))
    written = json.loads(out.read_text())
    assert written == results
    # Each driver twice: with compilation and without.
    assert [driver.frames_per_step for driver in started] == [16] * 4
    assert started[0] is started[1]
    assert started[2] is started[3]
    assert written.keys() >= BENCHMARK_KEYS
    assert all(isinstance(value, (str, int, float)) for value in written.values())
    # 50 bytes an observation, twice, and four each for action, reward and discount.
    assert written["bytes_per_transition_breakout"] == 112


def test_ratios_come_from_real_turns(benchmark):
    ratios = benchmark.iteration_ratios(steps=2, turns=1)
    assert ratios["iteration_over_floor"] == ratios["iteration_microseconds"] / ratios["floor_microseconds"] > 0
    assert ratios["pmap_over_jit"] > 0


def test_the_floor_learns_at_every_step(benchmark):
    """What is left out of the loop, because it never changes, would make the floor too low."""
    config = dataclasses.replace(STEADY, optimizer="adam", learning_rate=1e-3)
    learner = make_learner(NETWORK, config)
    state = learner.init(jax.random.key(0), hyperparams_of(config).learner)
    after, losses = jax.jit(benchmark.bare_arithmetic(NETWORK, config, steps=5))(state)
    assert len(set(np.asarray(losses).tolist())) == 5
    assert int(after.opt_state[0].count) == 5
    # The target is the parameters before the last update: it moved too.
    assert not np.array_equal(after.target_params["head"]["kernel"], state.params["head"]["kernel"])
    assert not np.array_equal(after.target_params["head"]["kernel"], after.params["head"]["kernel"])


def test_turns_alternate_and_compile_first(benchmark):
    calls = []

    def step(name):
        return lambda state: (calls.append((name, state)) or state + 1, None)

    seconds = benchmark.take_turns({name: benchmark.Contestant(0, step(name)) for name in "ab"}, turns=3)
    assert calls == [(name, state) for state in range(4) for name in "ab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_the_median_within_turns(benchmark):
    assert benchmark.median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 1.0]) == 3.0


def test_reference_averages_the_last_hundred_episodes():
    reference = load_experiment("reference")
    # 60 early episodes of 10, then 99 of 20 and a last step in which one of 50 ends: the last hundred are 99 * 20 + 50.
    episodes = np.array([1] * 60 + [1] * 99 + [0, 1])
    return_sums = np.array([10.0] * 60 + [20.0] * 99 + [0.0, 50.0])
    assert reference.mean_of_last(episodes, return_sums) == (99 * 20 + 50) / 100
    # Two ends in the step that completes the hundred both count.
    assert reference.mean_of_last(np.array([2] * 60), np.array([6.0] * 60)) == 3.0


def test_scaling_arms_keep_fixed_what_they_say():
    scaling = load_experiment("scaling")
    for arm in scaling.arms():
        wide = arm.name.startswith("batch a device fixed")
        factor = arm.devices if wide else 1
        for name in ("num_envs", "batch_size", "replay_capacity"):
            assert getattr(arm.config, name) == factor * getattr(scaling.BASE, name)
        rate = {"1": 1.0, "sqrt D": math.sqrt(arm.devices), "D": arm.devices}[arm.name.split(" x ")[1]] if wide else 1.0
        assert arm.config.learning_rate == pytest.approx(rate * scaling.BASE.learning_rate)
    assert [arm.devices for arm in scaling.arms()] == [1, 2, 4, 2, 2, 2, 4, 4, 4]
