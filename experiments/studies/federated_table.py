"""A federation beside its alternatives: curves, table and figure from the runs of `federated_comparison.py`.

`python experiments/studies/federated_table.py DIR` builds all three again; where the runs are gone, from `curves.csv`. An area
under a curve is given as the mean return over the evaluations. Differences are paired: draw by draw, the same clients on both
sides.

Not here: training.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dqn_jax.config import InputError, Record
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.plots import band
from dqn_jax.runner.records import RETURNS, jsonable, read_returns
from dqn_jax.runner.statistics import bootstrap_ci95

CURVES = "curves.csv"
TABLE = "comparison.json"
FIGURE = "comparison.png"
COLUMNS = ("series", "split", "seed", "rounds", "frames_per_client", "return")
SPLITS = {"seen": "where clients train", "inside": "unseen, inside the range", "beyond": "unseen, beyond the range"}
BASE = "federated"
ALONE = "independent client, mean"
SERIES = {
    BASE: ("federated", "global"),
    "federated, then K local steps": ("federated", "client"),
    ALONE: ("independent", "client"),
    "independent client, best": ("independent", "best"),
    "one-shot average": ("independent", "global"),
    "pooled, a client's updates": ("pooled_updates", "global"),
    "pooled, all clients' samples": ("pooled_samples", "global"),
}
"""{name: (arm, policy)}."""

Curves = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""{(series, split): (frames of a client [T], returns [S, T])}."""


def compare(directory: Path, origin: Record | None = None) -> Record:
    """Writes curves, table and figure of the runs in a directory, prints the table, and returns it.

    Args:
      directory: holds a run for each arm, or the `curves.csv` and `comparison.json` of an earlier call.
      origin: where the runs come from (`records.provenance`); None keeps what an earlier call wrote.

    Raises:
      InputError: if there is nothing to compare.
    """
    earlier = json.loads((directory / TABLE).read_text()) if (directory / TABLE).exists() else {}
    known = dict.fromkeys(arm for arm, _ in SERIES.values())
    arms = [directory / arm for arm in known if (directory / arm / RETURNS).exists()]
    if arms:
        write_curves(directory, [row for arm in arms for row in rows_of(arm)])
        clients = json.loads((arms[0] / CONFIG).read_text())["federated"]["num_clients"]
    elif (directory / CURVES).exists() and earlier:
        clients = earlier["num_clients"]
    else:
        raise InputError(
            f"{directory} has neither runs nor {CURVES} with {TABLE}: give the run directory of federated_comparison.py"
        )
    curves = read_curves(directory)
    table = {
        "origin": origin or earlier.get("origin"),
        "num_clients": clients,
        "draws": len(next(iter(curves.values()))[1]),
        **tabulate(curves, clients),
    }
    (directory / TABLE).write_text(json.dumps(jsonable(table), indent=2) + "\n")
    draw(curves).savefig(directory / FIGURE, dpi=150)
    print(as_text(table))
    return table


def rows_of(run_dir: Path) -> list[Record]:
    """Returns rows of `curves.csv` for one arm: means over environments, or over clients."""
    rows = read_returns(run_dir)
    clients = json.loads((run_dir / CONFIG).read_text())["federated"]["num_clients"]
    best = best_clients(rows)
    result = []
    for series, (arm, policy) in SERIES.items():
        if arm != run_dir.name:
            continue
        cells: dict[tuple, list[float]] = {}
        for row in rows:
            # With personal parameters a client's policy stands where the one policy of all does.
            served = "global" if row["policy"] == "personal" else row["policy"]
            wanted = served == policy or (policy == "best" and row["policy"] == "client" and row["client"] == best[row["seed"]])
            if wanted:
                key = (series, row["split"], row["seed"], row["rounds"], row["frames"] // clients)
                cells.setdefault(key, []).append(row["return"])
        result += [dict(zip(COLUMNS, (*key, float(np.mean(values))), strict=True)) for key, values in cells.items()]
    return result


def best_clients(rows: list[Record]) -> dict[int, int]:
    """Finds {seed: the client whose own parameters did best on held-out environments}, in hindsight over the run."""
    totals: dict[int, dict[int, list[float]]] = {}
    held_out = any(row["split"] == "inside" for row in rows)
    for row in rows:
        if row["policy"] == "client" and row["split"] == ("inside" if held_out else "seen"):
            totals.setdefault(row["seed"], {}).setdefault(row["client"], []).append(row["return"])
    return {seed: max(of, key=lambda client: np.mean(of[client])) for seed, of in totals.items()}


def write_curves(directory: Path, rows: list[Record]) -> None:
    """Writes `curves.csv`."""
    with open(directory / CURVES, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([row | {"return": round(row["return"], 4)} for row in rows])


def read_curves(directory: Path) -> Curves:
    """Reads `curves.csv`.

    Raises:
      InputError: if arms, or seeds of one, have other seeds, rounds or frames than the rest: nothing would be paired then.
    """
    cells: dict[tuple[str, str], dict[tuple[int, int], tuple[int, float]]] = {}
    with open(directory / CURVES, newline="") as file:
        for row in csv.DictReader(file):
            cell = (int(row["frames_per_client"]), float(row["return"]))
            cells.setdefault((row["series"], row["split"]), {})[int(row["seed"]), int(row["rounds"])] = cell
    first = next(iter(cells.values()))
    keys, pace = first.keys(), {at: frames for (_, at), (frames, _) in first.items()}
    for (series, _), values in cells.items():
        if values.keys() != keys or any(frames != pace[at] for (_, at), (frames, _) in values.items()):
            raise InputError(f"{directory} has other seeds, rounds or frames for {series!r} than for the rest: train all alike")
    seeds, rounds = (sorted({key[part] for key in keys}) for part in (0, 1))
    return {
        kind: (
            np.array([pace[at] for at in rounds]),
            np.array([[values[seed, at][1] for at in rounds] for seed in seeds]),
        )
        for kind, values in cells.items()
    }


def tabulate(curves: Curves, clients: int) -> Record:
    """Computes by split: area and final return of each series, and by how much the federation's area is larger.

    Under `equal_total_frames`: the federation after 1/N of the frames a client has in the end, interpolated between
    evaluations, against one independent client after all of them; N clients together have then taken as many as the one alone.
    It is left out where that is before the first evaluation.
    """
    equal_frames: Record = {}
    for (series, split), (_, returns) in curves.items():
        entry = {"area": _mean(returns.mean(axis=1)), "final": _mean(returns[:, -1])}
        if (BASE, split) in curves and series != BASE:
            base = curves[BASE, split][1]
            entry["federated_minus_this_area"] = _mean(base.mean(axis=1) - returns.mean(axis=1))
        equal_frames.setdefault(split, {})[series] = entry
    equal_total = {}
    for split in equal_frames:
        if (BASE, split) not in curves or (ALONE, split) not in curves:
            continue
        (frames, federated), (_, alone) = curves[BASE, split], curves[ALONE, split]
        share = frames[-1] / clients
        if share < frames[0]:
            continue
        early = np.array([np.interp(share, frames, returns) for returns in federated])
        equal_total[split] = {
            "frames_per_client": share,
            "frames_alone": int(frames[-1]),
            "federated": _mean(early),
            "alone": _mean(alone[:, -1]),
            "federated_minus_alone": _mean(early - alone[:, -1]),
        }
    return {"equal_frames_per_client": equal_frames, "equal_total_frames": equal_total}


def _mean(values: np.ndarray) -> Record:
    low, high = bootstrap_ci95(values)
    return {"mean": values.mean(), "ci95": [low, high]}


def as_text(table: Record) -> str:
    """Formats the table in Markdown."""
    splits = table["equal_frames_per_client"]
    names = [series for series in SERIES if any(series in of for of in splits.values())]
    compared = "inside" if "inside" in splits else "seen"
    lines = [
        "| | " + " | ".join(f"area, {SPLITS[split]}" for split in splits) + f" | federated minus this, {SPLITS[compared]} |",
        "|---|" + "---|" * (len(splits) + 1),
    ]
    for name in names:
        areas = [_cell(splits[split].get(name, {}).get("area")) for split in splits]
        difference = splits[compared].get(name, {}).get("federated_minus_this_area")
        lines.append(f"| {name} | " + " | ".join(areas) + f" | {_cell(difference)} |")
    for split, row in table["equal_total_frames"].items():
        lines.append(
            f"\nequal total frames, {SPLITS[split]}: federated after {row['frames_per_client']:,.0f} frames a client "
            f"{_cell(row['federated'])}, one alone after {row['frames_alone']:,} {_cell(row['alone'])}, difference "
            f"{_cell(row['federated_minus_alone'])}"
        )
    return "\n".join(lines)


def _cell(value: Record | None) -> str:
    if value is None:
        return ""
    low, high = value["ci95"]
    interval = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
    return f"{value['mean']:.1f}{interval}"


def draw(curves: Curves) -> Figure:
    """Draws the curves of every series for each split, and the paired difference in area by draw."""
    splits = [split for split in SPLITS if any(kind == split for _, kind in curves)]
    figure = Figure(figsize=(4.2 * (len(splits) + 1), 4.6), layout="constrained")
    *panels, last = figure.subplots(1, len(splits) + 1)
    colors = {series: f"C{number}" for number, series in enumerate(SERIES)}
    for axes, split in zip(panels, splits, strict=True):
        for series, color in colors.items():
            if (series, split) in curves:
                band(axes, *curves[series, split], color, series, thin=False)
        axes.set(xlabel="frames of each client", ylabel="greedy return", title=SPLITS[split])
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize="x-small")
    others = [series for series in SERIES if series != BASE and any((series, split) in curves for split in splits)]
    split = "inside" if "inside" in splits else splits[0]
    for height, series in enumerate(others):
        if (BASE, split) not in curves or (series, split) not in curves:
            continue
        difference = (curves[BASE, split][1] - curves[series, split][1]).mean(axis=1)
        low, high = bootstrap_ci95(difference)
        last.plot(difference, np.full(len(difference), height), "o", color=colors[series], alpha=0.35, markersize=4)
        last.plot([low, high], [height, height], color="black", linewidth=2)
        last.plot(difference.mean(), height, "|", color="black", markersize=14)
    last.axvline(0, color="grey", linewidth=0.8)
    last.set_yticks(range(len(others)), others, fontsize="small")
    last.set(xlabel=f"difference in area, {SPLITS[split]}", title="federated minus ...")
    last.invert_yaxis()
    last.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/studies/federated_table.py DIR")
    compare(Path(sys.argv[1]))
