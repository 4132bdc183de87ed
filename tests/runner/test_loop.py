"""Proves when a run logs, plays, saves, stops and refuses, and that one stopped and resumed is the one never stopped."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError, NetworkConfig, RunnerConfig, TrainingError
from dqn_jax.distributed import data_parallel
from dqn_jax.evaluation import Evaluation, one_environment
from dqn_jax.runner import checkpoint, loop, memory
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.lock import LOCK
from dqn_jax.runner.memory import GIB
from dqn_jax.runner.plots import draw_run, learning_curve
from dqn_jax.runner.reading import read_run
from dqn_jax.runner.records import METRICS, RETURNS, SUMMARY, Records, jsonable, read_metrics, read_returns
from dqn_jax.runner.signals import Stopped
from dqn_jax.types import Driver

SEEDS = np.array([7, 8])
INITIAL, FRAMES, UPDATES = 5, 10, 4
"""What the fake driver takes to start, and in a chunk; so chunk k ends at 5 + 10 k frames."""


class State(NamedTuple):
    weights: jax.Array
    count: jax.Array
    keys: jax.Array


def fake_driver(
    at: dict[int, Callable[[], None]] | None = None,
    finite: Callable[[int], list[bool]] = lambda chunk: [True, True],
    check: Callable[[State], None] = lambda state: None,
    width: int = 2,
) -> Driver:
    """Trains nothing: weights that depend on every chunk so far. `at` is what happens in a chunk, 0 for the start."""
    at = at or {}

    def init() -> State:
        at.get(0, int)()
        return State(jnp.zeros((len(SEEDS), width)), jnp.int32(0), jax.vmap(jax.random.key)(SEEDS))

    def step(state: State):
        chunk = int(state.count) + 1
        at.get(chunk, int)()
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, chunk)
        noise = np.asarray(jax.random.key_data(keys))[:, :1] % 100
        # The last chunk's is the worst: a summary of the best would not be that of the last.
        weights = np.asarray(state.weights) / 2 + noise + (100 if chunk < 10 else -500)
        info = {
            "loss": weights[:, 0],
            "epsilon": np.full(2, 1 / chunk, np.float32),
            "episodes": np.array([chunk % 2, 2]),
            "return_sum": np.array([chunk % 2, chunk], np.float32),
            "finite": np.array(finite(chunk)),
            "frames": np.full(2, FRAMES),
            "updates": np.full(2, UPDATES),
        }
        return State(jnp.asarray(weights, jnp.float32), jnp.int32(chunk), keys), info

    def problem(info) -> str | None:
        broken = SEEDS[~info["finite"]].tolist()
        return f"seed(s) {broken}: not finite: take a remedy" if broken else None

    return Driver(
        init=init,
        step=step,
        params=lambda state: state.weights,
        check=check,
        problem=problem,
        unit="frames",
        initial=INITIAL,
        per_step=FRAMES,
        initial_frames=INITIAL,
        devices=("fake:0", "fake:1"),
    )


def evaluate(key: jax.Array, params: jax.Array) -> Evaluation:
    """32 episodes that return the first weight, one of them cut short, and a little that depends on the key."""
    noise = jax.random.randint(key, (32,), 0, 32) / 1024
    return Evaluation(params[0] + noise, jnp.ones(32, jnp.int32), jnp.arange(32) > 0)


def evaluate_plainly(key: jax.Array, params: jax.Array) -> Evaluation:
    return Evaluation(jnp.full(32, params[0]), jnp.ones(32, jnp.int32), jnp.arange(32) > 0)


def evaluate_only_noise(key: jax.Array, params: jax.Array) -> Evaluation:
    return evaluate(key, jnp.zeros_like(params))


# Made once: each compiles its own program.
EVALUATOR, PLAIN, NOISE = (
    one_environment(play, SEEDS.tolist(), {}) for play in (evaluate, evaluate_plainly, evaluate_only_noise)
)


def config_of(run_dir: Path, **changes) -> DataParallelExperiment:
    """100 frames: ten chunks, that end at 15, 25, ... 105. Played every 25 frames, saved every 30."""
    runner = {"log_every": 10, "eval_every": 25, "checkpoint_every": 30, "keep_checkpoints": 10}
    runner |= {name: changes.pop(name) for name in list(changes) if name in runner}
    agent = AgentConfig(num_envs=1, batch_size=1, replay_capacity=10, learning_starts=5)
    fields = {"num_seeds": 2, "seed": int(SEEDS[0]), "total_frames": 100, "agent": agent, "runner": RunnerConfig(**runner)}
    return DataParallelExperiment(run_dir=run_dir, **(fields | changes))


def without_times(values: dict) -> dict:
    return {name: value for name, value in values.items() if not name.endswith(("_seconds", "_per_second")) and name != "time"}


def results(run_dir: Path) -> dict:
    """All that a run directory says, apart from how long it took."""
    newest, problems = checkpoint.newest_valid(run_dir / "checkpoints")
    assert problems == []
    with np.load(newest.path / checkpoint.ARRAYS.format(0)) as arrays:
        state = [(leaf, arrays[f"arr_{index}"].tobytes()) for index, leaf in enumerate(newest.leaves)]
    return {
        "metrics": [without_times(line) for line in read_metrics(run_dir)],
        "returns": (run_dir / RETURNS).read_text(),
        "summary": without_times(json.loads((run_dir / SUMMARY).read_text())),
        "state": state,
        "progress": (newest.path.name, *(newest.progress[name] for name in ("done", "frames", "updates"))),
    }


def returns_of(run_dir: Path) -> dict[int, dict[int, float]]:
    """{frames: {seed: return}}."""
    table: dict[int, dict[int, float]] = {}
    for row in read_returns(run_dir):
        table.setdefault(row["frames"], {})[row["seed"]] = row["return"]
    return table


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def saved(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted((run_dir / "checkpoints").glob("step_*"))]


def never() -> None:
    raise AssertionError("the driver must not have been started")


@pytest.fixture(autouse=True)
def no_plot(request, monkeypatch):
    """Drawing takes longer than all else here."""
    if "plotted" not in request.fixturenames:
        monkeypatch.setattr(loop, "draw_run", lambda run_dir: None)


@pytest.fixture
def plotted():
    """Asks for the plot to be drawn."""


@pytest.fixture
def signals():
    """Signals that the loop did not keep to itself. Without it, one that slips through would end the tests."""
    seen: list[int] = []
    previous = {
        signum: signal.signal(signum, lambda signum, _: seen.append(signum))
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield seen
    for signum, handler in previous.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    """Results of the run that nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_run", lambda run_dir: None)
        run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
        loop.run(fake_driver(), config_of(run_dir), EVALUATOR)
        return results(run_dir)


@pytest.mark.parametrize(
    ("eval_every", "checkpoint_every", "played", "saved_at"),
    [
        (25, 30, [25, 55, 75, 105], [35, 65, 95, 105]),
        (3, 10, list(range(15, 106, 10)), list(range(15, 106, 10))),  # shorter than a chunk: once a chunk
        (100, 104, [105], [105]),
        # A multiple of each lies one frame after the end of a chunk: 26 and 36.
        (26, 36, [35, 55, 85, 105], [45, 75, 105]),
        (105, 50, [105], [55, 105]),
        (1000, 1000, [], [105]),  # never on the way
    ],
)
def test_periods_are_crossed_whatever_the_chunk(tmp_path, eval_every, checkpoint_every, played, saved_at):
    config = config_of(tmp_path, eval_every=eval_every, checkpoint_every=checkpoint_every)
    loop.run(fake_driver(), config, EVALUATOR)
    lines = read_metrics(tmp_path)
    assert [line["frames"] for line in lines] == list(range(15, 106, 10))
    assert [line["frames"] for line in lines if line["eval_return"] is not None] == played
    # The end is always played and saved, and written once.
    table = (tmp_path / RETURNS).read_text().splitlines()[1:]
    assert [int(line.split(",")[6]) for line in table] == [at for at in sorted({*played, 105}) for _ in SEEDS]
    assert saved(tmp_path) == saved_at


def test_processes_whose_parameters_differ_save_nothing(tmp_path, monkeypatch):
    """Each compares its own with the others' before every checkpoint."""
    compared = []

    def check_equal(parameters, what):
        compared.append(parameters())
        if len(compared) == 2:
            raise TrainingError(f"{what} of process(es) [1] are not bitwise those of process 0")

    monkeypatch.setattr(loop.peers, "check_equal", check_equal)
    with pytest.raises(TrainingError, match=r"^parameters of process\(es\) \[1\]"):
        loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    assert saved(tmp_path) == [35]
    assert not np.array_equal(*compared)


def test_old_checkpoints_go(tmp_path):
    loop.run(fake_driver(), config_of(tmp_path, keep_checkpoints=2), EVALUATOR)
    assert saved(tmp_path) == [95, 105]


def test_a_run_directory_is_complete(tmp_path, plotted, capsys):
    summary = loop.run(fake_driver(), config_of(tmp_path), PLAIN)
    files = {CONFIG, METRICS, RETURNS, SUMMARY, "learning_curve.png"}
    assert {path.name for path in tmp_path.iterdir()} == files | {"checkpoints", LOCK}

    state = fake_driver().init()
    by_frames = {}
    for chunk in range(1, 11):
        state, info = fake_driver().step(state)
        by_frames[INITIAL + FRAMES * chunk] = (np.asarray(state.weights[:, 0], np.float64), info)
    last = by_frames[105][0]
    assert last.max() < min(weights.min() for frames, (weights, _) in by_frames.items() if frames < 105)

    assert json.loads((tmp_path / SUMMARY).read_text()) == jsonable(summary)
    np.testing.assert_allclose(summary["final_returns"], last, rtol=1e-6)
    np.testing.assert_allclose(summary["final_return_mean"], last.mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["final_return_iqm"], last.mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["final_return_min"], last.min(), rtol=1e-6)
    np.testing.assert_allclose(summary["final_return_ci95"], [last.min(), last.max()], rtol=1e-6)
    assert (summary["env_steps"], summary["frames_per_seed"]) == (210, 105)
    assert (summary["updates"], summary["updates_per_seed"]) == (80, 40)
    assert summary["final_unfinished_episodes"] == 2
    assert summary["devices"] == ["fake:0", "fake:1"]
    assert 0 < summary["compile_seconds"] < summary["wall_seconds"]
    assert summary["env_steps_per_second"] > 0

    lines = read_metrics(tmp_path)
    assert len({tuple(line) for line in lines}) == 1
    for chunk, line in enumerate(lines, start=1):
        frames = INITIAL + FRAMES * chunk
        weights, info = by_frames[frames]
        assert (line["frames"], line["env_steps"], line["updates"]) == (frames, 2 * frames, UPDATES * chunk)
        # Seed 7 ends an episode of return 1 in every other chunk, seed 8 two that return `chunk` together.
        assert line["return"] == [1.0 if chunk % 2 else None, chunk / 2]
        assert line["finite"] == [True, True]
        np.testing.assert_allclose(line["loss"], info["loss"])
        assert line["chunk_seconds"] > 0
        # The first chunk's time is mostly compilation.
        rate = line["env_steps_per_second"]
        assert rate is None if chunk == 1 else rate == pytest.approx(20 / line["chunk_seconds"])
        if frames in (25, 55, 75, 105):
            np.testing.assert_allclose(line["eval_return"], weights, rtol=1e-6)
            assert line["eval_unfinished"] == [1, 1]
    returns = returns_of(tmp_path)
    assert sorted(returns) == [25, 55, 75, 105]
    for frames, by_seed in returns.items():
        assert list(by_seed) == SEEDS.tolist()
        np.testing.assert_allclose(list(by_seed.values()), by_frames[frames][0], rtol=1e-6)
    assert (tmp_path / RETURNS).read_text().splitlines()[1].startswith("7,global,seen,0,{},,25,8,")
    assert "fake:0, fake:1" in (out := capsys.readouterr().out)
    assert (out.count(" left  "), out.count(f"watch it: dqn-jax play {tmp_path}\n")) == (4, 1)

    # Figures redraw from the files alone.
    shutil.rmtree(tmp_path / "checkpoints")
    picture = (tmp_path / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    (tmp_path / "learning_curve.png").unlink()
    assert draw_run(tmp_path) == [tmp_path / "learning_curve.png"]
    assert (tmp_path / "learning_curve.png").read_bytes() == picture
    curves = {line.get_label(): line for line in learning_curve(read_run(tmp_path)).axes[0].lines}
    mean = curves["greedy, mean over seeds"]
    assert mean.get_xdata().tolist() == [25, 55, 75, 105]
    np.testing.assert_allclose(mean.get_ydata(), [by_frames[frames][0].mean() for frames in (25, 55, 75, 105)], rtol=1e-6)
    training = curves["while training (exploring)"].get_ydata()
    np.testing.assert_allclose(training, [np.nanmean([1 if chunk % 2 else np.nan, chunk / 2]) for chunk in range(1, 11)])


def test_a_time_limit_is_in_the_returns(tmp_path):
    evaluator = PLAIN._replace(columns=one_environment(evaluate, SEEDS.tolist(), {"max_steps_in_episode": 9}).columns)
    loop.run(fake_driver(), config_of(tmp_path), evaluator)
    assert '"{""max_steps_in_episode"": 9}"' in (tmp_path / RETURNS).read_text()


def test_evaluations_draw_anew_for_each_seed_and_time_and_alike_in_each_run(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        loop.run(fake_driver(), config_of(tmp_path / name, seed=seed), NOISE)
    a, b, c = (returns_of(tmp_path / name) for name in "abc")
    assert a == b
    assert len({value for by_seed in a.values() for value in by_seed.values()}) == 8
    # Seed 8 is played alike whether it is the first or the second.
    assert [by_seed[8] for by_seed in a.values()] == [by_seed[8] for by_seed in c.values()]


@pytest.mark.parametrize(("bad", "named", "not_named"), [([True, False], "[8]", "7"), ([False, False], "[7, 8]", "9")])
def test_non_finite_is_refused_by_seed_and_never_saved(tmp_path, bad, named, not_named):
    """In the sixth chunk, the second that would be saved."""
    driver = fake_driver(finite=lambda chunk: bad if chunk == 6 else [True, True])
    with pytest.raises(TrainingError, match=r"^after 65 frames, ") as refused:
        loop.run(driver, config_of(tmp_path), EVALUATOR)
    message = str(refused.value)
    assert f"seed(s) {named}: not finite: take a remedy; --resume goes on from the last good checkpoint, " in message
    assert not_named not in message.partition(":")[0]
    assert str(tmp_path / "checkpoints" / "step_000000000035") in message
    assert saved(tmp_path) == [35]
    found, problems = checkpoint.newest_valid(tmp_path / "checkpoints")
    assert (found.progress["done"], found.progress["frames"], problems) == (35, [35, 35], [])
    # The line that shows it is kept for whoever looks.
    assert [line["finite"] for line in read_metrics(tmp_path)] == [[True, True]] * 5 + [bad]


def test_non_finite_before_anything_is_saved_says_so(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint had been saved yet"):
        loop.run(fake_driver(finite=lambda chunk: [False, True]), config_of(tmp_path), EVALUATOR)
    assert saved(tmp_path) == []


def test_non_finite_in_the_last_chunk_is_refused_too(tmp_path):
    with pytest.raises(TrainingError, match=r"after 105 frames, seed\(s\) \[7\]"):
        loop.run(fake_driver(finite=lambda chunk: [chunk < 10, True]), config_of(tmp_path), EVALUATOR)
    assert saved(tmp_path) == [35, 65, 95]
    assert not (tmp_path / SUMMARY).exists()


def test_a_state_that_fails_the_drivers_check_is_never_saved(tmp_path):
    def check(state: State) -> None:
        raise TrainingError(f"broken after {int(state.count)}")

    with pytest.raises(TrainingError, match="broken after 3"):
        loop.run(fake_driver(check=check), config_of(tmp_path), EVALUATOR)
    assert saved(tmp_path) == []
    assert not (tmp_path / SUMMARY).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("chunk", [0, 1, 3, 4, 9])
def test_a_stopped_run_resumed_is_the_one_never_stopped(tmp_path, signals, uninterrupted, signum, chunk):
    """In the start, before anything is saved, in a chunk that is saved anyway, in one that is not."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    driver = fake_driver({chunk: lambda: os.kill(os.getpid(), signum)})
    with pytest.raises(Stopped) as stopped:
        loop.run(driver, config_of(tmp_path), EVALUATOR)
    at = INITIAL + FRAMES * chunk
    assert stopped.value.exit_code == 128 + signum
    assert str(tmp_path / "checkpoints" / f"step_{at:012d}") in str(stopped.value)
    assert saved(tmp_path)[-1] == at
    assert len(read_metrics(tmp_path)) == chunk
    assert not (tmp_path / SUMMARY).exists()
    assert signals == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    loop.run(fake_driver(), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_hang_up_that_is_ignored_stays_so(tmp_path, signals, uninterrupted):
    """As by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    loop.run(fake_driver({4: lambda: os.kill(os.getpid(), signal.SIGHUP)}), config_of(tmp_path), EVALUATOR)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert results(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("function", "call", "frames", "way_back"),
    [
        ("Records.write_config", 1, 5, "no checkpoint had been saved yet"),
        ("Records.append_metrics", 5, 55, "step_000000000035"),
        ("Records.append_returns", 3, 75, "step_000000000065"),
        ("Records.marks", 2, 65, "step_000000000035"),
        ("Records.write_summary", 1, 105, "step_000000000105"),
        ("checkpoint.np.savez", 3, 65, "step_000000000035"),
    ],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    tmp_path, monkeypatch, uninterrupted, function, call, frames, way_back
):
    """At one call of what writes; the policy in a checkpoint is written by the same function as its arrays."""
    room, *_, name = function.split(".")
    place = {"Records": Records, "checkpoint": checkpoint.np}[room]
    usual, calls = getattr(place, name), []

    def full(*args, **options):
        calls.append(name)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(*args, **options)

    monkeypatch.setattr(place, name, full)
    with pytest.raises(TrainingError) as refused:
        loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    monkeypatch.setattr(place, name, usual)
    message = str(refused.value)
    assert message.startswith(f"after {frames} frames, {tmp_path} cannot be written (No space left on device); ")
    assert message.endswith(way_back)
    loop.run(fake_driver(), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_checkpoint_without_a_runs_progress_is_refused(tmp_path):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    manifest = sorted((tmp_path / "checkpoints").iterdir())[-1] / checkpoint.MANIFEST
    kept = manifest.read_text()
    for name in ("marks", "done", "another"):
        body = json.loads(kept)["body"]
        if body["progress"].pop(name, None) is None:
            body["progress"][name] = 1
        sha256 = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        manifest.write_text(json.dumps({"sha256": sha256, "body": body}))
        with pytest.raises(InputError, match=r"step_000000000105 was written by another version: resume with that one$"):
            loop.run(fake_driver(), config_of(tmp_path, resume=True, total_frames=200), EVALUATOR)


def test_stopped_again_and_again(tmp_path, signals, uninterrupted):
    for chunk in (2, 3, 7):
        driver = fake_driver({chunk: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        with pytest.raises(Stopped):
            loop.run(driver, config_of(tmp_path, resume=True), EVALUATOR)
    loop.run(fake_driver(), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_signal_in_the_last_chunk_does_not_stop_what_is_done(tmp_path, signals, uninterrupted):
    loop.run(fake_driver({10: lambda: os.kill(os.getpid(), signal.SIGTERM)}), config_of(tmp_path), EVALUATOR)
    assert results(tmp_path) == uninterrupted
    assert signals == []


@pytest.mark.parametrize("end", ["done", "failed"])
def test_handlers_come_back_however_a_run_ends(tmp_path, signals, end):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during = []
    watch = {1: lambda: during.append(signal.getsignal(signal.SIGTERM))}
    with contextlib.suppress(TrainingError):
        loop.run(fake_driver(watch, finite=lambda chunk: [end == "done"] * 2), config_of(tmp_path), EVALUATOR)
    assert during[0] not in handlers
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_acts_as_usual(tmp_path, signals):
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        loop.run(fake_driver({4: twice}), config_of(tmp_path), EVALUATOR)
    assert signals == [signal.SIGINT]


@pytest.mark.parametrize("at", ["before a save", "between saves", "after the last save"])
def test_a_crashed_run_resumed_is_the_one_never_stopped(tmp_path, uninterrupted, at):
    """Lines written after the last save are written once."""
    chunk = {"before a save": 3, "between saves": 5, "after the last save": 10}[at]

    def crash() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        loop.run(fake_driver({chunk: crash}), config_of(tmp_path), EVALUATOR)
    assert len(read_metrics(tmp_path)) == chunk - 1
    loop.run(fake_driver(), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_finished_run_resumed_says_so_and_does_nothing(tmp_path, capsys):
    summary = loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    before = contents(tmp_path)
    capsys.readouterr()
    assert loop.run(fake_driver({0: never})._replace(init=never), config_of(tmp_path, resume=True), EVALUATOR) == summary
    assert capsys.readouterr().out == f"{tmp_path} is complete: nothing is left to do\n"
    assert contents(tmp_path) == before
    # But not of files that are no longer what they were.
    (tmp_path / METRICS).write_bytes(before[METRICS].replace(b"frames", b"frame5", 1))
    with pytest.raises(InputError, match="has changed before byte"):
        loop.run(fake_driver({0: never}), config_of(tmp_path, resume=True), EVALUATOR)


def test_a_finished_run_without_its_summary_is_finished_again(tmp_path, uninterrupted):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    (tmp_path / SUMMARY).unlink()
    loop.run(fake_driver(dict.fromkeys(range(1, 20), never)), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_run_whose_checkpoints_are_gone_is_refused_and_nothing_is_touched(tmp_path):
    def refused_without(*gone):
        for name in gone:
            path = tmp_path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = contents(tmp_path)
        with pytest.raises(InputError) as refused:
            loop.run(fake_driver({0: never}), config_of(tmp_path, resume=True), EVALUATOR)
        assert contents(tmp_path) == before
        return str(refused.value)

    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    words = f"run_dir {tmp_path} has {{}} and no checkpoint: restore its checkpoints, or name another directory"
    metrics = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(b"")
    assert refused_without("checkpoints") == words.format("a summary")
    (tmp_path / METRICS).write_bytes(metrics)
    assert refused_without(SUMMARY) == words.format("metrics of 10 chunks")


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, uninterrupted):
    def crash() -> None:
        raise RuntimeError("power cut")

    def crash_in_chunk(chunk):
        run_dir = tmp_path / str(chunk)
        with pytest.raises(RuntimeError, match="power cut"):
            loop.run(fake_driver({chunk: crash}), config_of(run_dir), EVALUATOR)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        return config_of(run_dir, resume=True)

    # The third chunk is the first that is saved: up to its line there may have been no checkpoint, after it there has been one.
    for chunk in (1, 4):
        config = crash_in_chunk(chunk)
        loop.run(fake_driver(), config, EVALUATOR)
        assert results(config.run_dir) == uninterrupted
    with pytest.raises(InputError, match="no checkpoint"):
        loop.run(fake_driver({0: never}), crash_in_chunk(5), EVALUATOR)


@pytest.mark.parametrize("first_total", [55, 60])
def test_an_extended_run_is_the_long_run(tmp_path, uninterrupted, first_total):
    """55 frames end on an evaluation; 65 do not, and the row that the short run ended with must go."""
    loop.run(fake_driver(), config_of(tmp_path, total_frames=first_total), EVALUATOR)
    assert max(returns_of(tmp_path)) == (55 if first_total == 55 else 65)
    loop.run(fake_driver(), config_of(tmp_path, total_frames=100, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted


def test_a_number_may_change_at_a_resume_and_is_in_the_history(tmp_path, capsys, monkeypatch):
    bad = fake_driver(finite=lambda chunk: [chunk != 6, True])
    with pytest.raises(TrainingError, match="--resume goes on"):
        loop.run(bad, config_of(tmp_path), EVALUATOR)
    restore, taken = checkpoint.Checkpoint.restore, []

    def watched(self, template, new_numbers):
        taken.append(new_numbers)
        return restore(self, template, new_numbers)

    monkeypatch.setattr(checkpoint.Checkpoint, "restore", watched)
    config = config_of(tmp_path, resume=True)
    slower = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=1e-4))
    capsys.readouterr()
    loop.run(fake_driver(), slower, EVALUATOR)
    assert "from here agent.learning_rate was 0.001 and is 0.0001\n" in capsys.readouterr().out
    history = [{"frames": 35, "agent.learning_rate": [0.001, 0.0001]}]
    written = json.loads((tmp_path / CONFIG).read_text())
    assert (written["history"], written["agent"]["learning_rate"]) == (history, 0.0001)
    # Once it is said, it stays said, and is no news.
    loop.run(fake_driver(), dataclasses.replace(slower, total_frames=200), EVALUATOR)
    assert json.loads((tmp_path / CONFIG).read_text())["history"] == history
    assert "from here" not in capsys.readouterr().out
    loop.run(fake_driver(), dataclasses.replace(config, total_frames=300), EVALUATOR)
    history += [{"frames": 205, "agent.learning_rate": [0.0001, 0.001]}]
    assert json.loads((tmp_path / CONFIG).read_text())["history"] == history
    assert taken == [True, False, True]


def test_resume_starts_where_there_is_nothing(tmp_path, uninterrupted):
    loop.run(fake_driver(), config_of(tmp_path / "new", resume=True), EVALUATOR)
    assert results(tmp_path / "new") == uninterrupted


@pytest.mark.parametrize("saves", [True, False])
def test_a_changed_config_is_refused_and_nothing_is_touched(tmp_path, saves):
    """Also where only config.json tells, before the first checkpoint."""

    def crash() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        loop.run(fake_driver({6 if saves else 2: crash}), config_of(tmp_path), EVALUATOR)
    before = contents(tmp_path)
    changed = config_of(tmp_path, resume=True, eval_every=26, seed=3)
    with pytest.raises(InputError) as refused:
        loop.run(fake_driver({0: never}), changed, EVALUATOR)
    assert "runner.eval_every was 25 and is 26" in str(refused.value)
    assert "seed was 7 and is 3" in str(refused.value)
    assert contents(tmp_path) == before


def test_a_second_run_in_a_directory_is_refused_and_nothing_is_touched(tmp_path):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="--resume"):
        loop.run(fake_driver({0: never}), config_of(tmp_path), EVALUATOR)
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(tmp_path, uninterrupted, capsys):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    for name in ("step_000000000105", "step_000000000095"):
        (tmp_path / "checkpoints" / name / checkpoint.ARRAYS.format(0)).unlink()
    loop.run(fake_driver(), config_of(tmp_path, resume=True), EVALUATOR)
    assert results(tmp_path) == uninterrupted
    out = capsys.readouterr().out
    assert out.count("warning: step_") == 2
    assert "resuming" in out
    assert "at 65 frames" in out


def test_only_damaged_checkpoints_are_refused_and_nothing_is_touched(tmp_path):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / checkpoint.MANIFEST).unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError, match="can be used"):
        loop.run(fake_driver({0: never}), config_of(tmp_path, resume=True), EVALUATOR)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_another_shape_is_refused_as_bad_input(tmp_path):
    loop.run(fake_driver(), config_of(tmp_path), EVALUATOR)
    with pytest.raises(InputError, match="step_000000000105"):
        loop.run(fake_driver(width=3), config_of(tmp_path, total_frames=200, resume=True), EVALUATOR)


def test_a_budget_that_the_warm_up_uses_up_is_refused_or_finished(tmp_path, plotted):
    refusal = ""
    try:
        summary = loop.run(fake_driver(), config_of(tmp_path, total_frames=INITIAL), EVALUATOR)
    except InputError as refused:
        refusal = str(refused)
    assert "total_frames" in refusal or summary["env_steps"] == 2 * INITIAL


def real_config(run_dir: Path) -> DataParallelExperiment:
    agent = AgentConfig(num_envs=4, batch_size=4, replay_capacity=64, learning_starts=8, n_step=2, target_period=7)
    runner = RunnerConfig(log_every=40, eval_every=120, checkpoint_every=120)
    network = NetworkConfig(hidden_sizes=(16,))
    return DataParallelExperiment(
        max_episode_steps=20,
        num_devices=2,
        num_seeds=2,
        total_frames=240,
        run_dir=run_dir,
        agent=agent,
        network=network,
        runner=runner,
    )


@pytest.fixture(scope="module")
def real_driver():
    return data_parallel.from_config(real_config(Path("unused")))


@pytest.mark.long
def test_a_real_run_ends_with_every_file(tmp_path, real_driver, plotted):
    driver, evaluator = real_driver
    summary = loop.run(driver, real_config(tmp_path), evaluator)
    # Three acts of four environments to start, the first of which stores nothing (n = 2); then chunks of ten.
    assert driver.initial_frames == 12
    assert [line["frames"] for line in read_metrics(tmp_path)] == [52, 92, 132, 172, 212, 252]
    assert (summary["frames_per_seed"], summary["env_steps"], summary["updates"]) == (252, 504, 120)
    assert saved(tmp_path) == [132, 252]
    assert sorted(returns_of(tmp_path)) == [132, 252]
    assert {row["env_params"] for row in read_returns(tmp_path)} == {'{"max_steps_in_episode": 20}'}
    assert len(summary["final_returns"]) == 2
    assert all(1 <= value <= 20 for value in summary["final_returns"])
    assert len(summary["devices"]) == 2
    assert (tmp_path / "learning_curve.png").exists()


def one_ulp_in_one_replica(state):
    """The state with the last bit of one parameter of one seed flipped on the second device."""
    kernel = state.learner.params["trunk"]["Dense_0"]["kernel"]
    rows = [np.array(shard.data) for shard in kernel.addressable_shards]
    rows[1].view(np.uint32)[0, 1, 2, 3] ^= 1
    shards = [jax.device_put(row, shard.device) for row, shard in zip(rows, kernel.addressable_shards, strict=True)]
    tampered = jax.make_array_from_single_device_arrays(kernel.shape, kernel.sharding, shards)
    assert np.sum(np.asarray(tampered) != np.asarray(kernel)) == 1
    trunk = state.learner.params["trunk"] | {"Dense_0": state.learner.params["trunk"]["Dense_0"] | {"kernel": tampered}}
    return state.replace(learner=state.learner.replace(params=state.learner.params | {"trunk": trunk}))


@pytest.mark.long
def test_replicas_that_differ_by_a_bit_end_the_run(tmp_path, real_driver):
    driver, evaluator = real_driver
    chunks = []

    def step(state):
        chunks.append(1)
        return driver.step(one_ulp_in_one_replica(state) if len(chunks) == 5 else state)

    # Two chunks of averaged gradients later the difference is still there to be found.
    with pytest.raises(TrainingError, match=r"replicas differ in .*\['trunk'\]\['Dense_0'\].* row\(s\) \[1\]"):
        loop.run(driver._replace(step=step), real_config(tmp_path), evaluator)
    assert not (tmp_path / SUMMARY).exists()


@pytest.mark.long
def test_check_replicas_names_the_leaf(real_driver):
    driver, _ = real_driver
    state, _ = driver.step(driver.init())
    driver.check(state)
    with pytest.raises(TrainingError, match=r"replicas differ in \[0\]\['trunk'\]\['Dense_0'\]\['kernel'\]: .* \[1\]"):
        driver.check(one_ulp_in_one_replica(state))


def test_a_replay_beyond_the_memory_that_is_free_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "free_bytes", lambda: 3 * GIB)
    large = fake_driver()._replace(replay_bytes=3 * GIB + 2**28)
    with pytest.raises(InputError) as error:
        loop.run(large, config_of(tmp_path), EVALUATOR)
    assert str(error.value) == (
        "agent.replay_capacity is too large: with all seeds, clients and workers it takes 3.25 GiB, and 3.00 GiB are free"
    )
    assert (tmp_path / METRICS).read_text() == ""
    loop.run(large._replace(replay_bytes=3 * GIB), config_of(tmp_path), EVALUATOR)
    assert "replay: 3.00 GiB\n" in capsys.readouterr().out


def test_what_is_free_is_less_than_there_is_and_may_be_unknown(tmp_path, monkeypatch):
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < memory.free_bytes() < pages
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.free_bytes() is None
    memory.check_replays(2**60, None)
