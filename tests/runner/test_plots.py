"""Proves that figures of a federated run show what its files say; those of a plain run are proved with the run loop."""

import numpy as np
import pytest

from dqn_jax.config import InputError
from dqn_jax.runner.plots import clients_figure, curves, draw_run, learning_curve
from dqn_jax.runner.reading import read_run
from dqn_jax.runner.records import Records

# Seeds 5 and 6 of two clients each, played after rounds 2 and 6 where they train and on one held-out environment.
RETURNS = {
    ("seen", 0): {(2, 5): 10.0, (6, 5): 40.0, (2, 6): 12.0, (6, 6): 20.0},
    ("seen", 1): {(2, 5): 20.0, (6, 5): 60.0, (2, 6): 14.0, (6, 6): 30.0},
    ("beyond", ""): {(2, 5): 1.0, (6, 5): 2.0, (2, 6): 3.0, (6, 6): 4.0},
}
# Nobody took part in round 4 of seed 6, and no episode ended in round 2.
DRIFT = {2: [0.5, 1.5], 4: [0.25, None], 6: [0.125, 0.375]}
TRAINING = {2: [None, None], 4: [8.0, None], 6: [8.0, 16.0]}


def rows_of(returns) -> list[dict]:
    return [
        {
            "seed": seed,
            "policy": "global",
            "split": split,
            "client": client,
            "env_params": "{}",
            "rounds": rounds,
            "frames": 100 * rounds + seed,
            "updates": rounds,
            "return": value,
        }
        for (split, client), values in returns.items()
        for (rounds, seed), value in values.items()
    ]


def write(run_dir, rows):
    records = Records(run_dir, resume=False)
    federated = {"num_clients": 2, "local_steps": 7}
    records.write_config({"env": "CartPole-v1", "num_seeds": 2, "rounds": 6, "federated": federated})
    for rounds in (2, 4, 6):
        line = {"rounds": rounds, "return": TRAINING[rounds], "eval_return": None, "drift": DRIFT[rounds], "wall_seconds": 1.0}
        records.append_metrics(line)
    records.append_returns(rows)


@pytest.fixture
def run_dir(tmp_path):
    write(tmp_path, rows_of(RETURNS))
    return tmp_path


def lines_of(axes) -> dict:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_curves_are_means_over_environments_by_seed_and_time():
    found = curves(rows_of(RETURNS), "rounds")
    assert list(found) == [("global", "seen"), ("global", "beyond")]
    times, seen = found["global", "seen"]
    assert times.tolist() == [2, 6]
    assert seen.tolist() == [[15.0, 50.0], [13.0, 25.0]]
    assert found["global", "beyond"][1].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    # In whatever order the rows stand, and by policy too.
    shuffled = [row | {"policy": "client"} for row in reversed(rows_of(RETURNS))]
    assert curves(shuffled, "rounds")["client", "seen"][1].tolist() == [[15.0, 50.0], [13.0, 25.0]]
    # A plain run's are told apart by frames.
    plain = [row | {"frames": 10 * row["rounds"]} for row in rows_of({("seen", 0): RETURNS["seen", 0]})]
    times, seen = curves(plain, "frames")["global", "seen"]
    assert (times.tolist(), seen.tolist()) == ([20, 60], [[10.0, 40.0], [12.0, 20.0]])


def test_the_learning_curve_has_a_line_for_each_kind_of_environment(run_dir):
    (axes,) = learning_curve(read_run(run_dir)).axes
    assert axes.get_xlabel() == "rounds"
    assert "2 clients, K = 7" in axes.get_title()
    assert "2 seeds" in axes.get_title()
    lines = lines_of(axes)
    mean, beyond = (lines[label] for label in ("greedy, mean over seeds", "unseen, beyond the training range"))
    assert (mean.get_xdata().tolist(), mean.get_ydata().tolist()) == ([2, 6], [14.0, 37.5])
    assert beyond.get_ydata().tolist() == [2.0, 3.0]
    training = lines["while training (exploring)"]
    assert (training.get_xdata().tolist(), training.get_ydata().tolist()) == ([4, 6], [8.0, 12.0])
    # Kinds of environments are told apart by their colours.
    assert len({line.get_color() for line in lines.values()}) == 3


def test_clients_are_rows_from_worst_to_best_at_the_end(run_dir):
    figure = clients_figure(read_run(run_dir))
    (image,) = figure.axes[0].collections
    assert np.asarray(image.get_array()).tolist() == [[12.0, 20.0], [14.0, 30.0], [10.0, 40.0], [20.0, 60.0]]
    # A colour stands for the rounds since the evaluation before.
    assert image.get_coordinates()[0, :, 0].tolist() == [0, 2, 6]
    drift = lines_of(figure.axes[1])["mean over seeds"]
    assert (drift.get_xdata().tolist(), drift.get_ydata().tolist()) == ([2, 6], [1.0, 0.25])


def test_personal_policies_are_drawn_in_place_of_the_one(tmp_path):
    rows = [row | {"policy": "personal"} for row in rows_of({kind: RETURNS[kind] for kind in RETURNS if kind[0] == "seen"})]
    write(tmp_path, rows)
    assert "greedy, each client's policy where it trains" in lines_of(learning_curve(read_run(tmp_path)).axes[0])
    (image,) = clients_figure(read_run(tmp_path)).axes[0].collections
    assert np.asarray(image.get_array()).tolist() == [[12.0, 20.0], [14.0, 30.0], [10.0, 40.0], [20.0, 60.0]]


def test_a_federated_run_is_drawn_into_two_files(run_dir):
    paths = draw_run(run_dir)
    assert paths == [run_dir / "learning_curve.png", run_dir / "clients.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_run_without_an_evaluation_has_its_training_curve(tmp_path):
    write(tmp_path, [])
    assert draw_run(tmp_path) == [tmp_path / "learning_curve.png"]
    assert list(lines_of(learning_curve(read_run(tmp_path)).axes[0])) == ["while training (exploring)"]


def test_a_figure_that_cannot_be_written_is_named(run_dir):
    (run_dir / "clients.png").mkdir()
    with pytest.raises(InputError, match=r"clients\.png cannot be written \(Is a directory\): name another file"):
        draw_run(run_dir)
