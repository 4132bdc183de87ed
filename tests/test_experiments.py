"""The experiment scripts measure and compare what they say."""

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path

import federated_table
import jax
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY, load_experiment

from dqn_jax.agent import hyperparams_of
from dqn_jax.commands.reference import mean_of_last
from dqn_jax.config import AgentConfig, InputError, RunnerConfig
from dqn_jax.federated import driver, pooled
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment, MergeConfig, PooledExperiment
from dqn_jax.learner import make_learner
from dqn_jax.runner import loop
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.records import Records

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.fixture(scope="module")
def benchmark():
    return load_experiment("benchmarks/benchmark")


def made_up_turns(benchmark):
    """{side: {contestant: seconds of two turns}}, the other checkout half as fast."""
    names = (
        "iteration",
        "pmap",
        "floor",
        *(f"compile_{env}{end}" for env in ("cartpole", "breakout") for end in ("", "_floor")),
    )
    here = {name: [1.0 + number, 2.0 + number] for number, name in enumerate((*names, *benchmark.cells(False)))}
    return {"here": here, "there": {name: [2 * x for x in turns] for name, turns in here.items()}}


def test_benchmark_reports_ratios_within_turns(benchmark):
    seconds = made_up_turns(benchmark)["here"]
    del seconds["cartpole_4_devices"]
    results = benchmark.ratios(seconds, quick=False)
    # iteration, pmap and floor take (1, 2), (2, 3) and (3, 4) seconds for 1,000 iterations.
    assert results["iteration_over_floor"] == np.median([1 / 3, 2 / 4])
    assert results["pmap_over_jit"] == np.median([2, 3 / 2])
    assert results["iteration_microseconds"] == 1_500
    assert results["compile_cartpole_over_floor"] == np.median([4 / 5, 5 / 6])
    assert results["compile_seconds_breakout"] == 6.5
    # 300 steps of 16 environments, of 8 seeds, in (8, 9) seconds; and where there were too few devices, nothing.
    assert results["frames_per_second_cartpole_1_devices"] == 300 * 16 * 8 / 8.5
    assert results["frames_per_second_cartpole_4_devices"] is None
    assert results["frames_per_second_breakout_2_devices"] == 50 * 16 * 2 / 12.5
    assert results["sixteen_seeds_over_one"] == 16 * np.median([14 / 16, 15 / 17])
    # What README's table is made of.
    kept = json.loads((RESULTS / "benchmark-cpu.json").read_text())
    assert results.keys() <= kept.keys()


@pytest.mark.parametrize(
    ("targets", "sentences"),
    [
        ({}, ["iteration_over_floor is 1.300, and should be at most 1.25"]),
        ({"pmap_against": 0.4}, ["iteration_over_floor is 1.300, ", "pmap_against is 0.500, and should be at most 0.4"]),
        ({"speed": 1.0}, ["speed was not measured: choose from ", "iteration_over_floor is 1.300, "]),
    ],
)
def test_benchmark_checks_its_targets(benchmark, monkeypatch, tmp_path, capsys, targets, sentences):
    monkeypatch.setattr(benchmark.runtime, "setup", lambda count: None)
    monkeypatch.setattr(benchmark, "describe_machine", lambda: {})
    turns = made_up_turns(benchmark)
    mine = {(side, name): seconds for side, part in turns.items() for name, seconds in part.items()}
    monkeypatch.setattr(benchmark, "turns_of", lambda group, options: mine if group == "one-core" else {})
    good = dict.fromkeys(benchmark.AT_MOST, 1.0) | {"sixteen_seeds_over_one": 2.0}
    monkeypatch.setattr(benchmark, "ratios", lambda seconds, quick: good | {"iteration_over_floor": 1.3})
    out = tmp_path / "results" / "benchmark.json"
    options = benchmark.Options(out=out, check=True, against=Path("elsewhere"), targets=targets)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(options)
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(sentence) for line, sentence in zip(said, sentences, strict=True)] == [True] * len(sentences)
    assert json.loads(out.read_text())["floor_against"] == 0.5
    # Unless it is asked to check, it only says so.
    benchmark.main(dataclasses.replace(options, check=False))
    assert capsys.readouterr().err.splitlines() == said
    # Where nothing is missed, it is silent and ends well.
    monkeypatch.setattr(benchmark, "ratios", lambda seconds, quick: good)
    benchmark.main(dataclasses.replace(options, targets={}))
    assert capsys.readouterr().err == ""


def test_benchmark_takes_both_checkouts_in_turns(benchmark, monkeypatch):
    calls = []

    class Fake:
        def __init__(self, *name):
            self.name = name

        def turn(self):
            calls.append(self.name)
            return float(len(calls))

    @contextlib.contextmanager
    def served(checkout, script, *args):
        assert (script, args) == ("benchmark.py", ("--serve", "compiling", "--quick"))
        yield {name: Fake(checkout.name, name) for name in ("one", "two")}

    monkeypatch.setattr(benchmark, "served", served)
    options = benchmark.Options(quick=True, against=Path("before"))
    seconds = benchmark.turns_of("compiling", options)
    here = Path(benchmark.__file__).parents[2].name
    assert calls == [(here, "one"), ("before", "one"), (here, "two"), ("before", "two")] * 2
    # The first turns compile.
    assert seconds == {("here", "one"): [5.0], ("there", "one"): [6.0], ("here", "two"): [7.0], ("there", "two"): [8.0]}


@pytest.mark.long
def test_benchmark_contestants_do_what_they_are_named_for(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "keep_to_one_core", lambda: None)
    monkeypatch.setattr(benchmark, "iterations_of", lambda quick: 2)
    made = {name: make() for name, make in benchmark.one_core(quick=True).items()}
    assert all(contestant.turn() > 0 for contestant in made.values())
    assert int(made["iteration"].state.learner.updates.count) == made["pmap"].state.learner.updates.count[0] == 2
    # 50 bytes an observation, twice, and four each for action, reward and discount: no fewer would do.
    assert benchmark.replay_bytes() == {"bytes_per_transition_breakout": 112, "replay_breakout_over_floor": 1}


@pytest.mark.parametrize(("name", "devices", "frames"), [("cartpole_2_devices", 2, 480), ("4_seeds", 2, 480)])
def test_benchmark_cells_divide_what_they_say(benchmark, monkeypatch, name, devices, frames):
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 2)
    cell = benchmark.cells(quick=True)[name]
    driver = benchmark.make_driver(cell)
    assert (len(driver.devices), driver.per_step) == (devices, frames)
    assert cell.frames == frames * cell.seeds


def test_compilation_is_what_only_the_first_call_takes(benchmark, monkeypatch):
    clock = iter([0.0, 7.0, 10.0, 12.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.Compilation(lambda: lambda: None).turn() == 7.0 - 2.0


def test_the_floor_learns_at_every_step(benchmark):
    """What is left out of the loop, because it never changes, would make the floor too low."""
    config = dataclasses.replace(STEADY, optimizer="adam", learning_rate=1e-3)
    learner = make_learner(NETWORK, config)
    state = learner.init(jax.random.key(0), hyperparams_of(config).learner)
    after, losses = jax.jit(benchmark.bare_arithmetic(NETWORK, config, ENV.spec.obs_shape, steps=5))(state)
    assert len(set(np.asarray(losses).tolist())) == 5
    assert int(after.opt_state[1][0].count) == 5
    # The target is the parameters before the last update: it moved too.
    assert not np.array_equal(after.target_params["head"]["kernel"], state.params["head"]["kernel"])
    assert not np.array_equal(after.target_params["head"]["kernel"], after.params["head"]["kernel"])


def test_reference_averages_the_last_hundred_episodes():
    # 60 early episodes of 10, then 99 of 20 and a last step in which one of 50 ends: the last hundred are 99 * 20 + 50.
    episodes = np.array([1] * 60 + [1] * 99 + [0, 1])
    return_sums = np.array([10.0] * 60 + [20.0] * 99 + [0.0, 50.0])
    assert mean_of_last(episodes, return_sums) == (99 * 20 + 50) / 100
    # Two ends in the step that completes the hundred both count.
    assert mean_of_last(np.array([2] * 60), np.array([6.0] * 60)) == 3.0


def test_scaling_arms_keep_fixed_what_they_say():
    scaling = load_experiment("studies/scaling")
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
    return load_experiment("studies/federated_comparison")


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
    "personal": "head",
    "merge": MergeConfig(moments="reset", target="global", replay="clear", epsilon="restart", initial="per_client"),
    "eval_clients": True,
}


def everything_changed(federated):
    """The preset with no field of the federation as it is by default: what is reset must show."""
    changed = FederatedConfig(**CLIENTS, **REST)
    same = [field.name for field in dataclasses.fields(changed) if getattr(changed, field.name) == field.default]
    # It is for buffered participation alone.
    assert same == ["concurrency"]
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
        "pooled_updates": FederatedConfig(**CLIENTS),
        "pooled_samples": FederatedConfig(**CLIENTS),
    }
    # 20 is no multiple of six clients; the next one is 24.
    batches = {"pooled_updates": 24, "pooled_samples": 20 * 6}
    assert tuple(expected) == federated.ARMS
    for arm, config in expected.items():
        made = federated.config_of(arm, whole)
        assert type(made) is (PooledExperiment if arm in batches else FederatedExperiment)
        assert getattr(made, "batch_size", None) == batches.get(arm)
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
        assert federated.config_of("federated", made) == dataclasses.replace(preset, run_dir=made.run_dir / "federated")
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
    for way in (driver, pooled):
        monkeypatch.setattr(way, "from_config", lambda config: ("driver", "evaluator"))
    monkeypatch.setattr(loop, "run", lambda driver, config, evaluator: done.append(("run", config)))
    # With where the runs come from.
    monkeypatch.setattr(
        federated_table, "compare", lambda directory, origin: done.append(("compare", directory, origin["command"]))
    )

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
