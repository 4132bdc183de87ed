"""The experiment scripts measure and compare what they say."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from laws.common import NETWORK, STEADY, load_experiment

from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig, InputError, RunnerConfig
from dqn_jax.federated import driver
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment, MergeConfig
from dqn_jax.learner import make_learner
from dqn_jax.runner import comparison, loop
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.records import Records, config_dict

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
    assert [driver.per_step for driver in started] == [16] * 4
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


@pytest.fixture(scope="module")
def federated():
    return load_experiment("federated")


CLIENTS = {
    "num_clients": 6,
    "local_steps": 7,
    "heterogeneity": "cartpole-gravity",
    "heterogeneity_level": 0.5,
    "env_seed": 11,
    "unseen_envs": 2,
    "block_size": 3,
}
"""Which clients there are, how long a round is, and what is played."""
REST = {
    "local_episodes": 2,
    "participation": "fixed",
    "num_clients_per_round": 2,
    "service_time": "uniform",
    "drop_out": 0.1,
    "stragglers": 0.2,
    "algorithm": "fedprox",
    "proximal": 0.5,
    "transforms": ("int8",),
    "aggregator": "median",
    "weighting": "samples",
    "server_optimizer": "fedadam",
    "server_learning_rate": 0.1,
    "merge": MergeConfig(moments="reset", target="global", replay="clear", epsilon="restart", initial="per_client"),
    "eval_clients": True,
}


def everything_changed(federated):
    """The preset with no field of the federation as it is by default: what is reset must show."""
    changed = FederatedConfig(**CLIENTS, **REST)
    same = [field.name for field in dataclasses.fields(changed) if getattr(changed, field.name) == field.default]
    # The first is for buffered participation alone, and the second for no federation.
    assert same == ["concurrency", "pooled_batch"]
    return dataclasses.replace(
        federated.PRESETS["heterogeneous"],
        arms=("federated",),
        max_episode_steps=77,
        num_seeds=3,
        rounds=9,
        seed=5,
        run_dir=Path("somewhere"),
        agent=AgentConfig(batch_size=20, learning_rate=0.5),
        runner=RunnerConfig(log_every=3, eval_every=3, checkpoint_every=9),
        federated=changed,
    )


def test_federated_arms_keep_the_clients_and_reset_the_rest(federated):
    whole = everything_changed(federated)
    expected = {
        "federated": whole.federated,
        # Nothing of the server's reaches a client; its average is sent nowhere.
        "independent": FederatedConfig(**CLIENTS, merge=MergeConfig(parameters="keep"), eval_clients=True),
        # 20 is no multiple of six clients; the next one is 24.
        "pooled_updates": FederatedConfig(**CLIENTS, pooled_batch=24),
        "pooled_samples": FederatedConfig(**CLIENTS, pooled_batch=20 * 6),
    }
    assert tuple(expected) == federated.ARMS
    for arm, config in expected.items():
        made = federated.config_of(arm, whole)
        assert type(made) is FederatedExperiment
        assert made.federated == config
        assert made.run_dir == Path("somewhere") / arm
        # The same agent, seeds, environment and rounds; a comparison's arms are not an experiment's.
        for field in dataclasses.fields(FederatedExperiment):
            if field.name not in ("federated", "run_dir"):
                assert getattr(made, field.name) == getattr(whole, field.name), field.name
    quiet = dataclasses.replace(whole, federated=dataclasses.replace(whole.federated, eval_clients=False))
    assert not federated.config_of("independent", quiet).federated.eval_clients


def test_federated_presets_have_all_arms(federated):
    from dqn_jax.federated.presets import CLASSIC, HETEROGENEOUS

    for name, preset in {"heterogeneous": HETEROGENEOUS, "classic": CLASSIC}.items():
        made = federated.PRESETS[name]
        assert made.arms == federated.ARMS
        assert federated.config_of("federated", made) == dataclasses.replace(preset, run_dir=preset.run_dir / "federated")
        for arm in federated.ARMS:
            federated.config_of(arm, made)


@pytest.mark.parametrize(("arms", "shown"), [(("federated", "zzz"), "federated zzz"), ((), "empty")])
def test_an_unknown_arm_is_one_sentence(federated, arms, shown):
    with pytest.raises(InputError) as refused:
        federated.Comparison(arms=arms)
    choices = "federated, independent, pooled_updates, pooled_samples"
    assert str(refused.value) == f"arms is {shown}: choose from {choices}"


@pytest.mark.parametrize(
    "unequal",
    [
        {"participation": "fixed", "num_clients_per_round": 2},
        {"stragglers": 0.5},
        {"local_episodes": 3},
        {"merge": MergeConfig(replay="clear")},
    ],
)
def test_arms_of_unequal_frames_are_refused(federated, unequal):
    config = FederatedConfig(**unequal)
    with pytest.raises(InputError) as refused:
        federated.Comparison(federated=config, arms=("federated", "independent"))
    assert str(refused.value).startswith("arms is federated independent, and with partial participation or a cleared replay ")
    assert str(refused.value).endswith(": give --arms federated")
    federated.Comparison(federated=config, arms=("federated",))


@pytest.fixture
def scripted(federated, monkeypatch):
    """What `main` does for given arguments, with nothing trained: [("run", directory) or ("compare", directory)]."""
    done = []
    monkeypatch.setattr(federated.runtime, "setup", lambda count: None)
    monkeypatch.setattr(driver, "from_config", lambda config: ("driver", "evaluator"))
    monkeypatch.setattr(loop, "run", lambda driver, config, evaluator: done.append(("run", config)))
    # With where the runs come from.
    monkeypatch.setattr(comparison, "compare", lambda directory, origin: done.append(("compare", directory, origin["command"])))

    def main(*args):
        done.clear()
        monkeypatch.setattr(sys, "argv", ["federated.py", *map(str, args)])
        federated.main()
        *runs, (*last, command) = done
        assert "federated.py" in command
        assert [kind for kind, _ in runs] == ["run"] * len(runs)
        return [config for _, config in runs], tuple(last)

    return main


def test_federated_runs_its_arms_in_order_then_compares(federated, scripted, tmp_path):
    configs, last = scripted("--run-dir", tmp_path)
    assert [config.run_dir for config in configs] == [tmp_path / arm for arm in federated.ARMS]
    assert last == ("compare", tmp_path)
    configs, last = scripted("--run-dir", tmp_path, "--arms", "pooled_samples", "federated")
    assert [config.run_dir.name for config in configs] == ["pooled_samples", "federated"]


def finish(config):
    """Leaves behind what a finished run of a config does."""
    records = Records(config.run_dir, resume=True)
    records.write_config(config_dict(config))
    records.write_summary({})


def test_resuming_skips_the_arms_that_are_complete(scripted, tmp_path):
    arms = ("--run-dir", tmp_path, "--arms", "federated", "independent", "pooled_updates")
    federated_arm, independent, _ = scripted(*arms)[0]
    finish(federated_arm)
    # One that was stopped has no summary.
    Records(independent.run_dir, resume=True).write_config(config_dict(independent))

    def trained(*args):
        configs, last = scripted(*args)
        assert last == ("compare", tmp_path)
        return [config.run_dir.name for config in configs]

    everything = ["federated", "independent", "pooled_updates"]
    assert trained(*arms, "--resume") == ["independent", "pooled_updates"]
    # On other devices it is the same run.
    assert trained(*arms, "--resume", "--num-devices", 1) == ["independent", "pooled_updates"]
    # Of more rounds, or another learning rate, it is not; nor is anything skipped unless asked for: `run` refuses then.
    assert trained(*arms, "--resume", "--rounds", 200) == everything
    assert trained(*arms, "--resume", "--agent.learning-rate", 0.1) == everything
    assert trained(*arms) == everything
    finish(independent)
    assert trained(*arms, "--resume") == ["pooled_updates"]
    # What the federation alone is told is nothing to independent clients.
    assert trained(*arms, "--resume", "--federated.server-learning-rate", 0.5) == ["federated", "pooled_updates"]


def test_a_bad_arm_on_the_command_line_ends_with_status_2(federated, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["federated.py", "--arms", "zzz"])
    try:
        status = exit_code_of(federated.main)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert "arms is zzz: choose from federated, independent" in " ".join(capsys.readouterr().err.replace("│", " ").split())
