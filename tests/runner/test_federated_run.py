"""Proves what a federated run leaves behind, by hand, and that one stopped, killed or extended is the one that never was.

Two repetitions (seeds 3 and 4) of three clients, of whom two take part in a round, in ten rounds, two a chunk.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from laws import killed_run
from laws.run_files import differences, saved
from runner.helpers import at, run_in

from dqn_jax.config import TrainingError
from dqn_jax.federated.driver import from_config
from dqn_jax.federated.participation import make_participation
from dqn_jax.losses import own_numbers
from dqn_jax.mapping import PLANS, stream_key
from dqn_jax.runner import loop
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.lock import LOCK
from dqn_jax.runner.records import CHECKPOINTS, METRICS, RETURNS, SUMMARY, read_metrics, read_returns
from dqn_jax.runner.signals import Stopped

pytestmark = pytest.mark.long

SCRIPT = killed_run.__file__
config_of = killed_run.federated_config_of

WARM_UP = 3 * 8
"""Frames of the warm-up: of each of three clients, four acts of two environments."""
FRAMES, UPDATES = 2 * 4 * 2, 2 * 4
"""Of a round: two clients, four local steps, two environments; an update a step."""
PARAMETERS = 4 * 16 + 16
SENT = 2 * (4 * PARAMETERS + 4 * PARAMETERS + 4 * 5)
"""Bytes of a round: each of two clients downloads the trunk, and uploads their change and a report of five numbers."""


@pytest.fixture(scope="module")
def driver_and_evaluator():
    return from_config(config_of(Path("unused")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, driver_and_evaluator) -> Path:
    """The run that nothing happens to."""
    return run_in(tmp_path_factory.mktemp("federated"), config_of, driver_and_evaluator)


@pytest.fixture
def no_plot(monkeypatch):
    monkeypatch.setattr(loop, "draw_run", lambda run_dir: None)


def test_a_federated_run_directory_is_complete(whole):
    files = {CONFIG, METRICS, RETURNS, SUMMARY, CHECKPOINTS, "learning_curve.png", "clients.png"}
    assert {path.name for path in whole.iterdir()} == files | {LOCK}
    for name in ("learning_curve.png", "clients.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert saved(whole) == [4, 8, 10]


def test_counts_are_of_each_seeds_clients_together(whole):
    lines = read_metrics(whole)
    assert len({tuple(line) for line in lines}) == 1
    assert [line["rounds"] for line in lines] == [2, 4, 6, 8, 10]
    for line in lines:
        rounds = line["rounds"]
        assert line["frames"] == [WARM_UP + FRAMES * rounds] * 2
        assert line["updates"] == [UPDATES * rounds] * 2
        assert line["env_steps"] == 2 * (WARM_UP + FRAMES * rounds)
        # Of the chunk's two rounds.
        assert line["bytes"] == [2 * SENT] * 2
        assert line["participants"] == line["downloads"] == [4, 4]
        assert line["finite"] == [True, True]
        assert line["left_out"] == [0, 0]
        # Who took part in which round is not for a line of metrics.
        assert all(not isinstance(value, list) or len(value) == 2 for value in line.values())
        assert not any(isinstance(value, list) and isinstance(value[0], list) for value in line.values())
        evaluated = [name for name in line if name.startswith("eval_")]
        # No loss may call a number of its own as a line calls one already.
        assert set(own_numbers(line)) == set(evaluated)
        assert {"eval_return", "eval_worst", "eval_inside", "eval_beyond", "eval_unfinished"} <= set(evaluated)
        assert [line[name] is not None for name in evaluated] == [rounds in (4, 8)] * len(evaluated)
        rate = line["env_steps_per_second"]
        assert rate is None if rounds == 2 else rate == pytest.approx(2 * 2 * FRAMES / line["chunk_seconds"])


def test_returns_have_a_row_for_each_client(whole):
    """Where it trains, inside and beyond; the final parameters are played though no period ends with them."""
    kinds = [(split, client) for split in ("seen", "inside", "beyond") for client in range(3)]
    rows = read_returns(whole)
    assert [(row["rounds"], row["seed"], row["split"], row["client"]) for row in rows] == [
        (rounds, seed, *kind) for rounds in (4, 8, 10) for seed in (3, 4) for kind in kinds
    ]
    assert {row["policy"] for row in rows} == {"personal"}
    assert all((row["frames"], row["updates"]) == (WARM_UP + FRAMES * n, UPDATES * n) for row in rows for n in [row["rounds"]])
    # An environment is a seed's client's for the whole run, and nobody else's.
    for name in ((row["seed"], *kind) for row in rows[:18] for kind in [(row["split"], row["client"])]):
        mine = [row["env_params"] for row in rows if (row["seed"], row["split"], row["client"]) == name]
        assert len(mine) == 3
        assert len(set(mine)) == 1
    assert len({row["env_params"] for row in rows}) == 2 * 3 + 1

    # What metrics say of a seed is the mean and the least of its clients' rows.
    for line in read_metrics(whole)[1::2]:
        for position, seed in enumerate((3, 4)):
            now = [row for row in rows if (row["seed"], row["rounds"]) == (seed, line["rounds"])]
            seen = [row["return"] for row in now if row["split"] == "seen"]
            assert line["eval_return"][position] == pytest.approx(np.mean(seen))
            assert line["eval_worst"][position] == pytest.approx(min(seen))
            for kind in ("inside", "beyond"):
                theirs = [row["return"] for row in now if row["split"] == kind]
                assert line[f"eval_{kind}"][position] == pytest.approx(np.mean(theirs))
                assert line[f"eval_{kind}_lowest"][position] == pytest.approx(min(theirs))


def test_the_summary_is_of_the_final_parameters(whole):
    summary = json.loads((whole / SUMMARY).read_text())
    rows, lines = read_returns(whole), read_metrics(whole)

    def final(split: str, take) -> list[float]:
        by_seed = [
            [row["return"] for row in rows if (row["rounds"], row["seed"], row["split"]) == (10, seed, split)]
            for seed in (3, 4)
        ]
        return [take(values) for values in by_seed]

    means = final("seen", np.mean)
    assert summary["final_returns"] == pytest.approx(means)
    assert summary["final_return_mean"] == pytest.approx(np.mean(means))
    assert summary["final_return_min"] == pytest.approx(min(means))
    assert summary["final_worst"] == pytest.approx(final("seen", min))
    assert summary["final_variance"] == pytest.approx(final("seen", np.var))
    for kind in ("inside", "beyond"):
        assert summary[f"final_{kind}"] == pytest.approx(final(kind, np.mean))
        assert summary[f"final_{kind}_highest"] == pytest.approx(final(kind, max))
    assert summary["final_unfinished_episodes"] == 0
    best = np.max([*(line["eval_return"] for line in lines[1::2]), means], axis=0)
    assert summary["best_returns"] == pytest.approx(best.tolist())
    assert summary["late_decay"] == pytest.approx((best - means).tolist(), abs=1e-6)
    # Every episode has a step, so the first evaluation reaches 1: after four rounds and what they sent.
    assert (summary["threshold"], summary["threshold_share"]) == (1.0, 1.0)
    assert summary["to_threshold"] == {"rounds": [4, 4], "bytes": [4 * SENT] * 2}
    assert summary["rounds_per_seed"] == 10
    assert summary["frames_per_seed"] == [WARM_UP + 10 * FRAMES] * 2
    assert summary["updates_per_seed"] == [10 * UPDATES] * 2
    assert (summary["env_steps"], summary["updates"]) == (2 * (WARM_UP + 10 * FRAMES), 2 * 10 * UPDATES)
    assert len(summary["devices"]) == 2


def test_an_extended_run_is_the_long_run(tmp_path, whole, driver_and_evaluator, no_plot, capsys):
    """Six rounds are no multiple of the period: the row they end with must go."""
    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(tmp_path, rounds=6), evaluator)
    assert saved(tmp_path) == [4, 6]
    assert {row["rounds"] for row in read_returns(tmp_path)} == {4, 6}
    loop.run(driver, config_of(tmp_path), evaluator)
    assert differences(tmp_path, whole) == {CHECKPOINTS}
    out = capsys.readouterr().out
    assert "at 6 rounds" in out
    assert "8/10 rounds" in out


def test_a_stopped_run_resumed_is_the_one_never_stopped(tmp_path, whole, driver_and_evaluator, no_plot):
    driver, evaluator = driver_and_evaluator
    stop = at(driver, 3, lambda state: (os.kill(os.getpid(), signal.SIGTERM), state)[1])
    with pytest.raises(Stopped, match=r"stopped at 6 rounds, saved in .*step_000000000006"):
        loop.run(stop, config_of(tmp_path), evaluator)
    loop.run(driver, config_of(tmp_path), evaluator)
    assert differences(tmp_path, whole) == {CHECKPOINTS}


def test_a_killed_run_resumed_is_the_one_never_killed(tmp_path, whole, driver_and_evaluator, no_plot):
    """In a process of its own, in the middle of a line after the second save."""
    command = [sys.executable, SCRIPT, str(tmp_path), "torn_line:5", "federated"]
    killed = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved(tmp_path) == [4, 8]
    assert not (tmp_path / SUMMARY).exists()
    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(tmp_path), evaluator)
    assert differences(tmp_path, whole) == set()


def remembering(state, change):
    """The state with a change made to the rewards [D, L, n, capacity] that clients remember."""
    replay = state.clients.agent.replay
    rewards = change(np.array(replay.storage.r_t))
    storage = replay.storage._replace(r_t=jax.device_put(rewards, replay.storage.r_t.sharding))
    clients = state.clients.replace(agent=state.clients.agent.replace(replay=replay.replace(storage=storage)))
    return state.replace(clients=clients)


def test_a_last_bit_of_one_clients_memory_is_seen(tmp_path, whole, driver_and_evaluator, no_plot):
    """The control of the three above: rewards of 1 become 1.0000001 after the state comes back."""

    def flip(rewards):
        rewards.view(np.uint32)[0, 0, 1] ^= 1
        return rewards

    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(tmp_path, rounds=4), evaluator)
    loop.run(at(driver, 1, lambda state: remembering(state, flip)), config_of(tmp_path), evaluator)
    found = differences(tmp_path, whole)
    assert METRICS in found
    assert any(name.startswith(".clients.agent.learner.params") for name in found)


def test_a_client_that_breaks_is_named_with_its_seed_and_never_saved(tmp_path, driver_and_evaluator, no_plot):
    """From some chunk on, a client of seed 4 remembers infinite rewards; this aggregator leaves nobody out."""
    plan = make_participation(config_of(tmp_path).federated).plan
    part = [np.asarray(plan(jax.random.fold_in(stream_key(4, PLANS), n), ())[1].delivers) for n in range(10)]
    # A chunk after the first save, and a client of its second round alone: it is the first to break, and the last.
    chunk, client = next(
        (n // 2 + 1, int(np.argmax(part[n + 1] & ~part[n]))) for n in (4, 6, 8) if np.any(part[n + 1] & ~part[n])
    )

    def poison(rewards):
        rewards[1, 0, client] = np.inf
        return rewards

    driver, evaluator = driver_and_evaluator
    broken = rf"^after {2 * chunk} rounds, client\(s\) \[{client}\] of seed 4: an update is not finite, "
    with pytest.raises(TrainingError, match=broken) as refused:
        loop.run(at(driver, chunk, lambda state: remembering(state, poison)), config_of(tmp_path), evaluator)
    message = str(refused.value)
    assert "seed 3" not in message
    assert "agent.learning_rate" in message
    before = [at for at in (4, 8) if at < 2 * chunk]
    assert str(tmp_path / CHECKPOINTS / f"step_{before[-1]:012d}") in message
    assert saved(tmp_path) == before
    assert read_metrics(tmp_path)[-1]["finite"] == [True, False]
    assert not (tmp_path / SUMMARY).exists()
