"""Proves that every value that cannot be used is refused when a config is built, in words that say which, what and how."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from dqn_jax.config import MAX_COUNT, AgentConfig, DataParallelExperiment, InputError, NetworkConfig, RunnerConfig
from dqn_jax.federated.config import FederatedExperiment

AGENT_COUNTS = (
    *("num_envs", "acts_per_step", "updates_per_step", "batch_size", "replay_capacity"),
    *("learning_starts", "n_step", "target_period", "epsilon_decay_frames"),
)
RUNNER_COUNTS = ("log_every", "eval_every", "eval_episodes", "checkpoint_every", "keep_checkpoints")
SHARES = ("discount", "epsilon_start", "epsilon_end", "priority_exponent", "importance_exponent", "return_lambda")
POSITIVE_SHARES = ("target_rate", "rmsprop_decay")
POSITIVE = ("learning_rate", "optimizer_eps", "max_grad_norm")

BAD_COUNTS = (0, -1, True, 16.0, 0.5, math.nan, math.inf, "16", None, 2**31)
BAD_NUMBERS = (-0.1, math.nan, math.inf, -math.inf, "1e-4", [0.5])

REFUSED = [
    *((AgentConfig, "agent.", name, value, "whole number from 1") for name in AGENT_COUNTS for value in BAD_COUNTS),
    *((RunnerConfig, "runner.", name, value, "whole number from") for name in RUNNER_COUNTS for value in BAD_COUNTS),
    *((DataParallelExperiment, "", name, value, "from 1") for name in ("num_seeds", "total_frames") for value in BAD_COUNTS),
    *(
        (DataParallelExperiment, "", name, value, "whole number from 1")
        for name in ("num_devices", "max_episode_steps")
        for value in BAD_COUNTS
        if value is not None
    ),
    *((DataParallelExperiment, "", "seed", value, "whole number from 0") for value in BAD_COUNTS if value != 0),
    *((AgentConfig, "agent.", name, value, "finite number") for name in (*SHARES, *POSITIVE_SHARES) for value in BAD_NUMBERS),
    *((AgentConfig, "agent.", name, 1.01, "at most 1") for name in (*SHARES, "target_rate")),
    # At 1 its moments would never move.
    (AgentConfig, "agent.", "rmsprop_decay", 1.0, "at most 0.9999"),
    *((AgentConfig, "agent.", name, 0.0, "above 0") for name in (*POSITIVE_SHARES, *POSITIVE)),
    *((AgentConfig, "agent.", name, value, "finite number above 0") for name in POSITIVE for value in BAD_NUMBERS),
    # A return may well be negative: Acrobot's and MountainCar's all are.
    *((RunnerConfig, "runner.", "threshold", value, "finite number") for value in (*BAD_NUMBERS[1:], True, -1e10)),
    *((NetworkConfig, "network.", "channels", value, "whole number from 1") for value in BAD_COUNTS),
    *((NetworkConfig, "network.", "hidden_sizes", value, "at least one width") for value in ((), (0,), (8, -1), (8.0,))),
]


@pytest.mark.parametrize(("kind", "section", "name", "value", "remedy"), REFUSED)
def test_a_bad_value_is_refused_by_name(kind, section, name, value, remedy):
    with pytest.raises(InputError) as refused:
        kind(**{name: value})
    message = str(refused.value)
    assert message.startswith(f"{section}{name} is {value}: give ")
    assert remedy in message
    assert "\n" not in message


COMBINATIONS = [
    (
        lambda: AgentConfig(batch_size=64, replay_capacity=48),
        ("agent.batch_size is 64", "agent.replay_capacity 48", "shrink the batch"),
    ),
    (
        lambda: AgentConfig(num_envs=16, replay_capacity=10_001),
        ("agent.replay_capacity is 10001", "agent.num_envs 16", "take 10016"),
    ),
    (
        lambda: AgentConfig(batch_size=32, learning_starts=31),
        ("agent.learning_starts is 31", "agent.batch_size 32", "gather at least one batch"),
    ),
    (
        lambda: AgentConfig(epsilon_schedule="exponential", epsilon_end=0.0),
        ("agent.epsilon_start is 1.0", "agent.epsilon_end 0.0", "above 0"),
    ),
    (
        lambda: AgentConfig(epsilon_schedule="exponential", epsilon_start=0.0),
        ("agent.epsilon_start is 0.0", "agent.epsilon_end 0.05", "above 0"),
    ),
    (
        lambda: AgentConfig(return_lambda=0.5),
        ("agent.return_lambda is 0.5", "agent.n_step 1", "raise agent.n_step"),
    ),
    (lambda: AgentConfig().check_shards(3), ("agent.num_envs is 16", "3 devices", "multiple of 3")),
    (
        lambda: AgentConfig(num_envs=6, batch_size=32, replay_capacity=9_996).check_shards(3),
        ("agent.batch_size is 32", "3 devices", "multiple of 3"),
    ),
    (
        lambda: AgentConfig(num_envs=4, batch_size=32, replay_capacity=100).check_shards(8),
        ("agent.num_envs is 4", "8 devices", "multiple of 8"),
    ),
    (
        lambda: DataParallelExperiment(total_frames=MAX_COUNT - 1000),
        (f"total_frames is {MAX_COUNT - 1000}", "wrap", "fewer frames"),
    ),
    (
        lambda: DataParallelExperiment(total_frames=2**30, runner=RunnerConfig(log_every=2**30)),
        (f"total_frames is {2**30}", "wrap", "fewer frames"),
    ),
    (
        lambda: DataParallelExperiment(total_frames=9_999),
        ("runner.log_every is 10000", "total_frames 9999", "make it shorter"),
    ),
    (
        # 63 steps of 16 environments are the first to give 1000 frames.
        lambda: DataParallelExperiment(total_frames=1008, runner=RunnerConfig(log_every=100)),
        ("total_frames is 1008", "takes 1008", "train for longer or lower agent.learning_starts"),
    ),
    (
        lambda: DataParallelExperiment(seed=MAX_COUNT - 1, num_seeds=2),
        (f"seed is {MAX_COUNT - 1}", "2 seeds", "start lower"),
    ),
]


def test_a_threshold_may_be_any_return_and_the_budget_is_of_frames():
    assert RunnerConfig().threshold is None
    assert [RunnerConfig(threshold=value).threshold for value in (-200.0, 0.0, 475)] == [-200.0, 0.0, 475]
    assert DataParallelExperiment(total_frames=12_345).budget == 12_345


@pytest.mark.parametrize(("build", "words"), COMBINATIONS)
def test_a_bad_combination_is_refused_with_both_values(build, words):
    with pytest.raises(InputError) as refused:
        build()
    assert [word for word in words if word not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: AgentConfig(batch_size=32, replay_capacity=32, learning_starts=32),
        lambda: AgentConfig(discount=0.0, epsilon_start=0.0, epsilon_end=0.0, target_rate=1.0, max_grad_norm=None),
        lambda: AgentConfig(discount=1, epsilon_start=1, epsilon_end=1, max_grad_norm=1e-9),
        lambda: AgentConfig(epsilon_schedule="exponential", epsilon_end=1e-3),
        lambda: AgentConfig(num_envs=1, learning_starts=32, n_step=10),
        lambda: AgentConfig(n_step=2, return_lambda=0.0),
        lambda: AgentConfig(n_step=2, return_lambda=1),
        lambda: AgentConfig(num_envs=8, batch_size=16, replay_capacity=1000).check_shards(8),
        lambda: RunnerConfig(log_every=1, eval_every=1, eval_episodes=32, checkpoint_every=1, keep_checkpoints=1),
        lambda: DataParallelExperiment(
            seed=0, num_seeds=1, num_devices=None, max_episode_steps=1, total_frames=1009, runner=RunnerConfig(log_every=1009)
        ),
        lambda: DataParallelExperiment(seed=MAX_COUNT - 2, num_seeds=2),
        lambda: DataParallelExperiment(total_frames=2_000_000_000),
    ],
)
def test_values_on_the_border_are_accepted(build):
    build()


def test_configs_are_values():
    one, same = (DataParallelExperiment(agent=AgentConfig(n_step=3), run_dir=Path("a")) for _ in range(2))
    other = dataclasses.replace(one, agent=AgentConfig(n_step=4))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    for config, field in ((one, "seed"), (one.agent, "n_step"), (one.network, "kind"), (one.runner, "log_every")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field, 1)
    with pytest.raises(InputError):
        dataclasses.replace(one.agent, num_envs=0)


@pytest.mark.parametrize(
    ("kind", "section", "name", "value"),
    [
        (AgentConfig, "agent.", "memory", "newset"),
        (AgentConfig, "agent.", "epsilon_schedule", "cosine"),
        (AgentConfig, "agent.", "time_limit", "stop"),
        # Names of parts are looked up where the parts are built.
        (AgentConfig, "agent.", "loss", None),
        (AgentConfig, "agent.", "optimizer", 3),
        (AgentConfig, "agent.", "exploration", ()),
        (NetworkConfig, "network.", "trunk", 1.5),
        (NetworkConfig, "network.", "head", None),
    ],
)
def test_an_unknown_choice_is_refused_by_name(kind, section, name, value):
    with pytest.raises(InputError, match=re.escape(f"{section}{name} is {value!r}")):
        kind(**{name: value})


def test_an_update_counter_that_could_wrap_is_refused():
    agent = AgentConfig(num_envs=1, updates_per_step=100)
    with pytest.raises(InputError, match="wrap"):
        DataParallelExperiment(total_frames=100_000_000, agent=agent)


@pytest.mark.parametrize("fields", [{"learning_rate": True}, {"learning_rate": 10**400}, {"double_q": "no"}])
def test_values_of_another_kind_are_refused(fields):
    (name,) = fields
    with pytest.raises(InputError, match=f"agent.{name} is"):
        AgentConfig(**fields)


def built_or_refused(kind, **fields):
    """The config, or the words it is refused in."""
    try:
        return kind(**fields)
    except InputError as refused:
        return str(refused)


@pytest.mark.parametrize("value", [[64, 64], (True,), 64])
def test_hidden_sizes_that_are_not_a_tuple_of_whole_numbers_are_refused_or_made_one(value):
    result = built_or_refused(NetworkConfig, hidden_sizes=value)
    if isinstance(result, str):
        assert "network.hidden_sizes is" in result
    else:
        hash(result)
        assert all(type(size) is int for size in result.hidden_sizes)


def test_a_run_dir_given_as_a_string_is_refused_or_made_a_path():
    result = built_or_refused(DataParallelExperiment, run_dir="runs/x")
    if isinstance(result, str):
        assert "run_dir is" in result
    else:
        assert result.run_dir / "config.json" == Path("runs/x/config.json")


@pytest.mark.parametrize("texts", ["size=3", ["size=3"], ("size=3", 4), None])
def test_arguments_and_wrappers_are_tuples_of_texts(texts):
    for name in ("env_kwargs", "wrappers"):
        for kind in (DataParallelExperiment, FederatedExperiment):
            with pytest.raises(InputError, match=rf"^{name} is .*: give a tuple of strings, even of one$"):
                kind(**{name: texts})
    if texts is None:
        assert RunnerConfig(eval_wrappers=texts).eval_wrappers is None
    else:
        with pytest.raises(InputError, match=r"^runner.eval_wrappers is .*: give a tuple of strings, even of one$"):
            RunnerConfig(eval_wrappers=texts)
    with pytest.raises(InputError, match=r"^runner.loggers is .*: give a tuple of strings, even of one$"):
        RunnerConfig(loggers=texts)


def test_a_logger_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match=r"^runner.loggers has tensorbord, neptune: give some of tensorboard, wandb$"):
        RunnerConfig(loggers=("tensorbord", "wandb", "neptune"))
