"""Proves the table of a comparison by hand, from the `returns.csv` of arms of two draws of two clients, played three times."""

import csv
import json

import federated_table
import numpy as np
import pytest
from federated.helpers import refusal
from federated_table import CURVES, FIGURE, TABLE, best_clients, compare, read_curves, rows_of, tabulate

from dqn_jax.runner.records import Records
from dqn_jax.runner.statistics import bootstrap_ci95

CLIENTS = 2
SEEDS = (7, 8)
# Rounds, and frames of both clients together after them: 100, 200 and 400 frames of each.
TIMES = {1: 200, 2: 400, 4: 800}

# {(policy, split, client): {seed: returns after each of the times}}.
FEDERATED = {
    ("global", "seen", 0): {7: [10, 20, 30], 8: [0, 10, 20]},
    ("global", "seen", 1): {7: [30, 40, 50], 8: [20, 30, 70]},
    ("global", "inside", ""): {7: [6, 12, 18], 8: [3, 3, 9]},
    ("client", "seen", 0): {7: [1, 2, 3], 8: [1, 2, 3]},
    ("client", "seen", 1): {7: [3, 4, 5], 8: [3, 4, 5]},
    ("client", "inside", 0): {7: [2, 2, 2], 8: [2, 2, 2]},
    ("client", "inside", 1): {7: [4, 4, 4], 8: [4, 4, 4]},
}
# In draw 7 client 1 does best on held-out environments, in draw 8 client 0: over all of the run, though not at its end.
INDEPENDENT = {
    ("global", "seen", 0): {7: [1, 1, 1], 8: [2, 2, 2]},
    ("global", "seen", 1): {7: [3, 3, 3], 8: [4, 4, 4]},
    ("global", "inside", ""): {7: [5, 5, 5], 8: [6, 6, 6]},
    ("client", "seen", 0): {7: [90, 90, 90], 8: [5, 5, 5]},
    ("client", "seen", 1): {7: [0, 0, 30], 8: [7, 7, 7]},
    ("client", "inside", 0): {7: [1, 1, 13], 8: [9, 9, 0]},
    ("client", "inside", 1): {7: [9, 9, 0], 8: [1, 1, 10]},
}
POOLED = {
    ("global", "seen", 0): {7: [0, 10, 20], 8: [10, 20, 30]},
    ("global", "seen", 1): {7: [20, 30, 40], 8: [30, 40, 50]},
    ("global", "inside", ""): {7: [6, 6, 6], 8: [0, 0, 3]},
}
ARMS = {"federated": FEDERATED, "independent": INDEPENDENT, "pooled_updates": POOLED}


def rows(returns):
    """In the order in which a run writes them: time by time, seed by seed."""
    return [
        {
            "seed": seed,
            "policy": policy,
            "split": split,
            "client": client,
            "env_params": "{}",
            "rounds": rounds,
            # A cohort that is drawn may be larger in one draw: what is left of a division is nobody's.
            "frames": frames + 1,
            "updates": rounds,
            "return": float(by_seed[seed][position]),
        }
        for position, (rounds, frames) in enumerate(TIMES.items())
        for seed in SEEDS
        for (policy, split, client), by_seed in returns.items()
    ]


def write(directory, arms):
    for name, returns in arms.items():
        records = Records(directory / name, resume=False)
        records.write_config({"federated": {"num_clients": CLIENTS}})
        records.append_returns(rows(returns))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("comparison"), ARMS)


@pytest.fixture(scope="module")
def table(directory):
    return compare(directory)


# Rows are draws 7 and 8, columns the evaluations.
BY_HAND = {
    ("federated", "seen"): [[20, 30, 40], [10, 20, 45]],
    ("federated", "inside"): [[6, 12, 18], [3, 3, 9]],
    ("federated, then K local steps", "seen"): [[2, 3, 4], [2, 3, 4]],
    ("federated, then K local steps", "inside"): [[3, 3, 3], [3, 3, 3]],
    ("independent client, mean", "seen"): [[45, 45, 60], [6, 6, 6]],
    ("independent client, mean", "inside"): [[5, 5, 6.5], [5, 5, 5]],
    # Not the best where it trains, which would be the other one.
    ("independent client, best", "seen"): [[0, 0, 30], [5, 5, 5]],
    ("independent client, best", "inside"): [[9, 9, 0], [9, 9, 0]],
    ("one-shot average", "seen"): [[2, 2, 2], [3, 3, 3]],
    ("one-shot average", "inside"): [[5, 5, 5], [6, 6, 6]],
    ("pooled, a client's updates", "seen"): [[10, 20, 30], [20, 30, 40]],
    ("pooled, a client's updates", "inside"): [[6, 6, 6], [0, 0, 3]],
}


def test_curves_are_means_over_environments_or_clients(directory, table):
    curves = read_curves(directory)
    assert curves.keys() == BY_HAND.keys()
    for kind, expected in BY_HAND.items():
        frames, returns = curves[kind]
        assert frames.tolist() == [100, 200, 400], kind
        assert returns.tolist() == expected, kind
    with open(directory / CURVES, newline="") as file:
        first = next(csv.DictReader(file))
    assert first == {
        "series": "federated",
        "split": "seen",
        "seed": "7",
        "rounds": "1",
        "frames_per_client": "100",
        "return": "20.0",
    }


def test_areas_finals_and_paired_differences(table):
    """An area is the mean over evaluations; a difference is taken draw by draw, and its interval is of the differences."""
    assert (table["num_clients"], table["draws"]) == (2, 2)
    equal = table["equal_frames_per_client"]
    assert set(equal) == {"seen", "inside"}
    for (series, split), returns in BY_HAND.items():
        returns, base = np.array(returns), np.array(BY_HAND["federated", split])
        entry = equal[split][series]
        expected = {"area": returns.mean(axis=1), "final": returns[:, -1]}
        if series != "federated":
            expected["federated_minus_this_area"] = base.mean(axis=1) - returns.mean(axis=1)
        assert entry.keys() == expected.keys()
        for name, values in expected.items():
            assert entry[name]["mean"] == pytest.approx(values.mean())
            assert entry[name]["ci95"] == pytest.approx(list(bootstrap_ci95(values)))
    # In plain numbers: federated areas 30 and 25, those of pooled 20 and 30, so differences 10 and -5.
    assert equal["seen"]["federated"]["area"]["mean"] == 27.5
    assert equal["seen"]["federated"]["final"]["mean"] == 42.5
    assert equal["seen"]["pooled, a client's updates"]["federated_minus_this_area"]["mean"] == 2.5
    assert equal["inside"]["independent client, best"]["federated_minus_this_area"]["mean"] == pytest.approx((6 - 1) / 2)
    # Draws are paired: where both sides move together from draw to draw, the difference does not move at all.
    paired = {
        ("federated", "seen"): (np.array([1, 2]), np.array([[1.0, 3], [101, 103]])),
        ("one-shot average", "seen"): (np.array([1, 2]), np.array([[0.0, 2], [100, 102]])),
    }
    difference = tabulate(paired, 2)["equal_frames_per_client"]["seen"]["one-shot average"]["federated_minus_this_area"]
    assert (difference["mean"], *difference["ci95"]) == (1, 1, 1)


def test_equal_total_frames(table):
    """Half of the frames of each of two clients against all of one alone."""
    equal = table["equal_total_frames"]
    assert set(equal) == {"seen", "inside"}
    seen = equal["seen"]
    assert (seen["frames_per_client"], seen["frames_alone"]) == (200, 400)
    assert (seen["federated"]["mean"], seen["alone"]["mean"], seen["federated_minus_alone"]["mean"]) == (25, 33, -8)
    assert seen["federated_minus_alone"]["ci95"] == pytest.approx(list(bootstrap_ci95(np.array([30 - 60, 20 - 6]))))
    inside = equal["inside"]
    assert (inside["federated"]["mean"], inside["alone"]["mean"]) == ((12 + 3) / 2, (6.5 + 5) / 2)


@pytest.mark.parametrize(("clients", "federated"), [(1, 35), (2, 15), (4, 5), (3, 5 + 10 / 3)])
def test_between_evaluations_equal_frames_are_interpolated(clients, federated):
    """Of 400 frames a client: all, half, a quarter, and a third, which is a third of the way from 100 to 200."""
    frames = np.array([100, 200, 400])
    curves = {
        (federated_table.BASE, "seen"): (frames, np.array([[0.0, 10, 30], [10, 20, 40]])),
        (federated_table.ALONE, "seen"): (frames, np.array([[0.0, 0, 1], [0, 0, 5]])),
    }
    equal = tabulate(curves, clients)["equal_total_frames"]["seen"]
    assert equal["frames_per_client"] == pytest.approx(400 / clients)
    assert equal["federated"]["mean"] == pytest.approx(federated)
    assert equal["federated_minus_alone"]["mean"] == pytest.approx(federated - 3)
    # Before the first evaluation nothing is known.
    assert tabulate(curves, clients=5)["equal_total_frames"] == {}


def change(row, **fields):
    return row | {name: value(row[name]) for name, value in fields.items()}


@pytest.mark.parametrize(
    "unlike",
    [
        # An arm that was stopped, one with a draw less, one with other frames, and draws that differ in them.
        lambda rows: [row for row in rows if row["rounds"] < 4],
        lambda rows: [row for row in rows if row["seed"] == 7],
        lambda rows: [change(row, frames=lambda frames: 2 * frames) for row in rows],
        lambda rows: [change(row, frames=lambda frames, row=row: frames + 10 * (row["seed"] == 8)) for row in rows],
    ],
)
def test_what_is_not_alike_is_not_compared(tmp_path, unlike):
    write(tmp_path, {"federated": FEDERATED})
    records = Records(tmp_path / "pooled_updates", resume=False)
    records.write_config({"federated": {"num_clients": CLIENTS}})
    records.append_returns(unlike(rows(POOLED)))
    message = refusal(lambda: compare(tmp_path))
    assert message.startswith(
        f'{tmp_path} has other seeds, rounds or frames for "pooled, a client\'s updates" than for the rest: '
    )


def test_the_best_client_is_chosen_for_each_draw_on_held_out_environments(directory):
    assert best_clients(federated_table.read_returns(directory / "independent")) == {7: 1, 8: 0}


def test_without_held_out_environments_the_best_is_where_it_trains(tmp_path):
    seen = {kind: values for kind, values in INDEPENDENT.items() if kind[1] == "seen"}
    write(tmp_path, {"independent": seen})
    assert best_clients(federated_table.read_returns(tmp_path / "independent")) == {7: 0, 8: 1}
    best = [row for row in rows_of(tmp_path / "independent") if row["series"] == "independent client, best"]
    assert [row["return"] for row in best] == [90, 7, 90, 7, 90, 7]
    # A comparison of one arm alone, with nothing to subtract from.
    table = compare(tmp_path)
    assert table["equal_total_frames"] == {}
    assert set(table["equal_frames_per_client"]["seen"]) == {
        "independent client, mean",
        "independent client, best",
        "one-shot average",
    }
    assert all(set(entry) == {"area", "final"} for entry in table["equal_frames_per_client"]["seen"].values())


def test_a_series_is_of_its_own_arm(tmp_path, directory):
    """Other directories beside the arms are no series, and a federated arm without clients' own parameters has one less."""
    assert {row["series"] for row in rows_of(directory / "federated")} == {"federated", "federated, then K local steps"}
    assert {row["series"] for row in rows_of(directory / "pooled_updates")} == {"pooled, a client's updates"}
    server = {kind: values for kind, values in FEDERATED.items() if kind[0] == "global"}
    write(tmp_path, {"federated": server, "something": POOLED})
    assert {row["series"] for row in rows_of(tmp_path / "federated")} == {"federated"}
    assert rows_of(tmp_path / "something") == []
    assert set(compare(tmp_path)["equal_frames_per_client"]["seen"]) == {"federated"}


def test_personal_policies_stand_where_the_one_policy_does(tmp_path):
    """What a client plays with its personal parameters is the federation's series: the mean over clients, also held out."""
    personal = {
        ("personal", "seen", 0): {7: [10, 20, 30], 8: [0, 10, 20]},
        ("personal", "seen", 1): {7: [30, 40, 50], 8: [20, 30, 70]},
        ("personal", "inside", 0): {7: [6, 12, 18], 8: [3, 3, 9]},
        ("personal", "inside", 1): {7: [8, 12, 20], 8: [5, 3, 9]},
    }
    own = {kind: values for kind, values in FEDERATED.items() if kind[0] == "client"}
    write(tmp_path, {"federated": personal | own, "pooled_updates": POOLED})
    compare(tmp_path)
    curves = read_curves(tmp_path)
    assert curves["federated", "seen"][1].tolist() == BY_HAND["federated", "seen"]
    assert curves["federated", "inside"][1].tolist() == [[7, 12, 19], [4, 3, 9]]
    for split in ("seen", "inside"):
        name = ("federated, then K local steps", split)
        assert curves[name][1].tolist() == BY_HAND[name]


def test_files_are_those_of_the_table(directory, table, capsys):
    assert json.loads((directory / TABLE).read_text()) == json.loads(json.dumps(federated_table.jsonable(table)))
    assert (directory / FIGURE).read_bytes().startswith(b"\x89PNG")
    compare(directory)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| | area, where clients train | area, unseen, inside the range | federated minus this")
    cells = {line.split("|")[1].strip(): [cell.split("[")[0].strip() for cell in line.split("|")[2:-1]] for line in lines[2:8]}
    assert list(cells) == [series for series in federated_table.SERIES if (series, "seen") in BY_HAND]
    assert cells["federated"] == ["27.5", "8.5", ""]
    assert cells["pooled, a client's updates"] == ["25.0", "3.5", "5.0"]
    assert "federated after 200 frames a client 25.0 " in lines[9]
    assert "one alone after 400 33.0 " in lines[9]


def test_from_the_curves_alone_all_is_built_again(tmp_path, directory, table):
    """As from committed results, whose runs are gone."""
    for name in (CURVES, TABLE):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    assert federated_table.jsonable(compare(tmp_path)) == federated_table.jsonable(table)
    assert (tmp_path / TABLE).read_bytes() == (directory / TABLE).read_bytes()
    assert (tmp_path / FIGURE).read_bytes() == (directory / FIGURE).read_bytes()
    # It is the curves that are read, not the table.
    text = (tmp_path / CURVES).read_text()
    (tmp_path / CURVES).write_text(text.replace("federated,seen,7,4,400,40.0", "federated,seen,7,4,400,100.0"))
    assert compare(tmp_path)["equal_frames_per_client"]["seen"]["federated"]["final"]["mean"] == (100 + 45) / 2


def test_where_the_runs_come_from_is_kept(tmp_path):
    """Drawing again from the files does not make their numbers of another day or machine."""
    write(tmp_path, {"federated": FEDERATED})
    assert compare(tmp_path)["origin"] is None
    origin = {"command": "python experiments/federated.py", "date": "2020-02-02"}
    assert compare(tmp_path, origin)["origin"] == origin
    assert compare(tmp_path)["origin"] == origin
    assert json.loads((tmp_path / TABLE).read_text())["origin"] == origin
    assert compare(tmp_path, {"date": "2020-02-03"})["origin"] == {"date": "2020-02-03"}


def test_the_last_panel_shows_each_draws_difference(directory, table):
    figure = federated_table.draw(read_curves(directory))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["where clients train", "unseen, inside the range", "federated minus ..."]
    *_, last = figure.axes
    assert last.get_xlabel() == "difference in area, unseen, inside the range"
    series = [label.get_text() for label in last.get_yticklabels()]
    assert series == [name for name in federated_table.SERIES if (name, "inside") in BY_HAND and name != "federated"]
    base = np.array(BY_HAND["federated", "inside"])
    dots = [line for line in last.lines if line.get_marker() == "o"]
    for height, (name, line) in enumerate(zip(series, dots, strict=True)):
        assert line.get_ydata().tolist() == [height] * 2
        np.testing.assert_allclose(line.get_xdata(), (base - BY_HAND[name, "inside"]).mean(axis=1))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["federated"].get_ydata(), [15, 25, 42.5])
    assert lines["federated"].get_xdata().tolist() == [100, 200, 400]


def test_one_draw_has_no_interval(tmp_path):
    alone = {kind: {7: by_seed[7]} for kind, by_seed in FEDERATED.items()}
    records = Records(tmp_path / "federated", resume=False)
    records.write_config({"federated": {"num_clients": CLIENTS}})
    records.append_returns([row for row in rows(FEDERATED) if row["seed"] == 7])
    table = compare(tmp_path)
    assert table["draws"] == len(next(iter(alone.values()))) == 1
    # JSON has no number for what is not known.
    area = json.loads((tmp_path / TABLE).read_text())["equal_frames_per_client"]["seen"]["federated"]["area"]
    assert area == {"mean": 30.0, "ci95": [None, None]}


def test_a_directory_with_nothing_in_it_is_refused(tmp_path):
    message = refusal(lambda: compare(tmp_path))
    assert message.startswith(f"{tmp_path} has neither runs nor {CURVES} with {TABLE}: give the run directory of ")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, {"something": POOLED})
    assert refusal(lambda: compare(tmp_path)) == message
