"""Every setting of a parameter server that cannot be used is refused in one sentence: the field, its value and the remedy."""

import dataclasses
import math
import re

import pytest
from federated.helpers import refusal

from dqn_jax.config import MAX_COUNT, AgentConfig, RunnerConfig
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.distributed.presets import CLASSIC_SERVER, SERVER_MODEL

BAD_COUNTS = (0, -1, True, 8.0, math.nan, "8", None, 2**31)
CHOICES = {
    "mode": ("barrier", "asynchronous", "bounded"),
    "push": ("gradient", "delta"),
    "replay": ("local", "shared"),
    "service_time": ("constant", "uniform", "exponential", "lognormal"),
}
COUNTS = {"num_workers": 1, "local_steps": 1, "pull_period": 1, "staleness_bound": 0, "lag_limit": 0}
"""And the least that each may be."""


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in COUNTS for value in BAD_COUNTS])
def test_a_bad_count_is_refused_by_name(name, value):
    if value == COUNTS[name] == 0 or (name == "lag_limit" and value is None):
        ServerConfig(**{name: value})
        return
    message = refusal(lambda: ServerConfig(**{name: value}))
    assert message.startswith(f"server.{name} is {value}: give a whole number from {COUNTS[name]} to {MAX_COUNT}")


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["zzz", "", None, 1, "Barrier"])
def test_a_bad_word_is_refused_with_the_good_ones(name, value):
    words = ", ".join(map(repr, CHOICES[name]))
    assert refusal(lambda: ServerConfig(**{name: value})) == f"server.{name} is {value!r}: give one of {words}"


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_a_bad_flag_is_refused(value):
    message = refusal(lambda: ServerConfig(lag_scaling=value))
    assert message == f"server.lag_scaling is {value!r}: give one of True, False"


def test_every_field_is_tested():
    assert {field.name for field in dataclasses.fields(ServerConfig)} == {*COUNTS, *CHOICES, "lag_scaling"}


def experiment(server=None, agent=None, runner=None, **settings):
    return ServerExperiment(
        server=ServerConfig(**(server or {})),
        agent=AgentConfig(**(agent or {})),
        runner=runner or RunnerConfig(),
        **settings,
    )


WORKERS = {"num_seeds": 1}
COMBINATIONS = [
    (lambda: ServerConfig(local_steps=3), "server.local_steps is 3 and server.push 'gradient': .* push 'delta'"),
    (lambda: ServerConfig(mode="barrier", lag_limit=0), "server.mode is 'barrier', with server.lag_limit .* leave those out"),
    (
        lambda: ServerConfig(mode="barrier", lag_scaling=True),
        "server.mode is 'barrier', with .*lag_scaling: .* leave those out",
    ),
    (
        lambda: experiment(agent={"updates_per_step": 2}),
        "agent.updates_per_step is 2 and server.push 'gradient': .* push 'delta'",
    ),
    *(
        (
            lambda backend=backend: experiment(backend=backend, num_seeds=2),
            f"num_seeds is 2 and backend '{backend}': .* its own",
        )
        for backend in ("in-process", "threads", "ray")
    ),
    *(
        (
            lambda backend=backend: experiment({"replay": "shared"}, backend=backend, **WORKERS),
            f"server.replay is 'shared' and backend '{backend}': .* train on 'device'",
        )
        for backend in ("in-process", "threads", "ray")
    ),
    (
        lambda: experiment({"push": "delta"}, {"learning_rate_decay_updates": 9}, backend="threads", **WORKERS),
        "agent.learning_rate_decay_updates is 9 with server.push 'delta' and backend 'threads': .* leave it out",
    ),
    *(
        (
            lambda mode=mode: experiment({"mode": mode}, {"memory": "prioritised"}),
            "agent.memory is 'prioritised' with server.replay 'local': .* take server.replay 'shared' or another backend",
        )
        for mode in ("asynchronous", "bounded")
    ),
    (
        lambda: experiment({"push": "delta", "local_steps": 2**30}),
        "server.local_steps is 1073741824, so one push has .* frames, above total_frames .*: push more often or train",
    ),
    # A thousand acts of one environment, of each of four workers.
    (
        lambda: experiment(agent={"num_envs": 1}, total_frames=4_000, runner=RunnerConfig(log_every=100)),
        "total_frames is 4000, .* takes 4000, 1000 of each worker: train for longer or lower agent.learning_starts",
    ),
    (lambda: experiment(backend="gpu"), "backend is 'gpu': give one of 'device', 'in-process', 'threads', 'ray'"),
    (lambda: experiment(backend="threads", ray_address="here", **WORKERS), "ray_address is 'here' .* add --backend ray"),
    *((lambda value=value: experiment(patience=value), f"patience is {value}: give") for value in (0, -1.0, math.inf, "1")),
]


@pytest.mark.parametrize(("build", "words"), COMBINATIONS)
def test_what_does_not_go_together_is_refused(build, words):
    message = refusal(build)
    assert re.match(words, message), message


@pytest.mark.parametrize(
    "build",
    [
        lambda: ServerConfig(local_steps=3, push="delta"),
        lambda: ServerConfig(mode="bounded", staleness_bound=0, lag_limit=0, lag_scaling=True),
        lambda: experiment({"push": "delta"}, {"updates_per_step": 2}),
        lambda: experiment({"replay": "shared"}, {"memory": "prioritised"}),
        lambda: experiment({"mode": "barrier"}, {"memory": "prioritised"}),
        lambda: experiment(agent={"memory": "prioritised"}, backend="threads", **WORKERS),
        lambda: experiment(backend="ray", ray_address="here", **WORKERS),
        lambda: experiment(agent={"num_envs": 1}, total_frames=4_001, runner=RunnerConfig(log_every=100)),
    ],
)
def test_what_goes_together_is_not(build):
    build()


def test_counts_are_of_all_workers():
    config = experiment(
        {"num_workers": 3, "local_steps": 5, "push": "delta"},
        {"num_envs": 2, "acts_per_step": 2, "learning_starts": 33, "n_step": 2},
        RunnerConfig(log_every=210),
    )
    # Each worker: 17 acts of two environments, and one more for a transition of two steps.
    assert config.warm_up_frames == 3 * 18 * 2
    assert config.frames_per_push == 5 * 2 * 2
    assert config.pushes_per_chunk == 10
    barrier = dataclasses.replace(config, server=dataclasses.replace(config.server, mode="barrier"))
    assert barrier.pushes_per_chunk == 12
    rare = dataclasses.replace(config, runner=RunnerConfig(log_every=1))
    assert rare.pushes_per_chunk == 1


def test_the_presets_are_the_same_run_but_for_where_it_runs():
    places = {"backend": "device", "num_seeds": 4, "num_devices": None, "run_dir": SERVER_MODEL.run_dir}
    assert dataclasses.replace(CLASSIC_SERVER, **places) == SERVER_MODEL
