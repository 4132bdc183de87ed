"""Every algorithm is a few fields on any preset, and sets what it is named for (test_matrix.py trains it)."""

import importlib

import pytest

from dqn_jax.algorithms import ALGORITHMS, DQN, fields_of
from dqn_jax.commands.__main__ import TRAIN
from dqn_jax.config import DataParallelExperiment, InputError
from dqn_jax.runner.command_line import parse
from dqn_jax.runner.config_file import config_dict, flatten

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
        config = parse(JOBS[job], "Text.", flags)
        before, after = flatten(config_dict(preset)), flatten(config_dict(config))
        assert after == before | fields(algorithm)


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


def test_what_a_preset_adds_to_dqn_is_left_out():
    assert JOBS["actor-learner"]["apex"].agent.n_step == 3
    agent = parse(JOBS["actor-learner"], "Text.", ["--algorithm", "dqn"]).agent
    assert (agent.n_step, agent.double_q) == (1, False)
