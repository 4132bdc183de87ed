"""Every algorithm is a few fields on any preset, and sets what it is named for (test_matrix.py trains it)."""

import dataclasses
import importlib
import json

import pytest

from dqn_jax.algorithms import ALGORITHMS, DQN, fields_of
from dqn_jax.commands.__main__ import TRAIN
from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError
from dqn_jax.runner.command_line import parse
from dqn_jax.runner.config_file import config_dict, flatten
from dqn_jax.tuned import tuned_fields

JOBS = {
    job: module.PRESETS
    for job in TRAIN
    if hasattr(module := importlib.import_module(f"dqn_jax.commands.{job.replace('-', '_')}"), "PRESETS")
}


def fields(algorithm, env="CartPole-v1"):
    return fields_of(algorithm, env)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("job", JOBS)
def test_it_sets_its_fields_on_any_preset_and_no_others(job, algorithm):
    for name, preset in JOBS[job].items():
        flags = ["--preset", name, "--algorithm", algorithm]
        if name == "model" and fields(algorithm)["agent.memory"] == "prioritised":
            # The model keeps the replays of its workers in one ring.
            with pytest.raises(InputError, match=r"take --server\.replay 'shared' or another backend"):
                parse(JOBS[job], "Text.", flags)
            continue
        if job == "parameter-server" and algorithm == "pqn":
            with pytest.raises(InputError, match=r"updates-per-step is 32 and --server\.push 'gradient'"):
                parse(JOBS[job], "Text.", flags)
            flags += ["--server.push", "delta"]
            preset = dataclasses.replace(preset, server=dataclasses.replace(preset.server, push="delta"))
        config = parse(JOBS[job], "Text.", flags)
        before, after = flatten(config_dict(preset)), flatten(config_dict(config))
        assert after == before | fields(algorithm, preset.env)


def test_rainbow_is_the_sum_of_the_others():
    parts = ("double", "dueling", "n_step", "prioritised", "noisy", "c51")
    together = {name: value for part in parts for name, value in ALGORITHMS[part].items()}
    assert ALGORITHMS["rainbow"] == together | {"network.head": "dueling-categorical"}
    changed = {name for name, value in fields("rainbow").items() if value != DQN[name]}
    assert changed == DQN.keys() - {"agent.return_lambda"}


def test_the_support_is_of_the_environment_and_flags_come_last():
    presets = {"a": DataParallelExperiment()}
    heads = {
        (): "categorical:0:100:51",
        ("--env", "Acrobot-v1"): "categorical:-100:0:51",
        ("--env=Breakout-MinAtar",): "categorical:-10:10:51",
        ("--network.head", "categorical:0:1:3"): "categorical:0:1:3",
    }
    for flags, head in heads.items():
        assert parse(presets, "Text.", ["--algorithm", "c51", *flags]).network.head == head


@pytest.mark.parametrize("job", JOBS)
def test_tuned_settings_compose_with_any_preset(job):
    for name, preset in JOBS[job].items():
        flags = ["--preset", name, "--env", "CartPole-v1", "--algorithm", "double", "--tuned"]
        if job == "parameter-server":
            # Workers that push gradients make one update a step.
            with pytest.raises(InputError, match=r"updates-per-step is 2 and --server\.push 'gradient'"):
                parse(JOBS[job], "Text.", flags)
            continue
        before, after = (flatten(config_dict(config)) for config in (preset, parse(JOBS[job], "Text.", flags)))
        tuned = json.loads(json.dumps(tuned_fields("double", "CartPole-v1")))
        assert after == before | tuned | {"env": "CartPole-v1"}


def test_tuned_settings_come_after_the_algorithm_and_before_files_and_flags(tmp_path):
    presets = {"a": DataParallelExperiment()}
    tuned = ["--algorithm", "no_target", "--tuned"]
    agent = parse(presets, "Text.", tuned).agent
    assert (
        (agent.target_period, agent.batch_size) == (1, 64) != (presets["a"].agent.target_period, presets["a"].agent.batch_size)
    )
    assert agent.learning_rate == tuned_fields("no_target", "CartPole-v1")["agent.learning_rate"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"agent": {"batch_size": 16, "num_envs": 4}}))
    agent = parse(presets, "Text.", [*tuned, "--config", str(file), "--agent.num-envs", "2"]).agent
    assert (agent.batch_size, agent.num_envs, agent.replay_capacity) == (16, 2, 50_000)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tuned"], "--tuned has no --algorithm beside it: name one"),
        (["--tuned", "--algorithm", "dqn", "--env", "Pong-misc"], "--env is 'Pong-misc', for which nothing is tuned"),
    ],
)
def test_what_is_not_tuned_is_one_sentence(flags, said):
    with pytest.raises(InputError, match=said):
        parse({"a": DataParallelExperiment()}, "Text.", flags)


def test_what_a_preset_adds_to_dqn_is_left_out():
    assert JOBS["actor-learner"]["apex"].agent.n_step == 3
    agent = parse(JOBS["actor-learner"], "Text.", ["--algorithm", "dqn"]).agent
    assert (agent.n_step, agent.double_q) == (1, False)
    presets = {"a": DataParallelExperiment(agent=AgentConfig(n_step=3, return_lambda=0.5))}
    assert parse(presets, "Text.", ["--algorithm", "rainbow"]).agent.return_lambda is None
