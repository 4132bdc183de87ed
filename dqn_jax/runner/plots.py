"""Figures drawn from a run directory's files, without training again. Not here: how files are read (reading)."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dqn_jax.config import InputError, Record
from dqn_jax.runner.reading import RunFiles, read_run
from dqn_jax.runner.statistics import bootstrap_ci95

LEARNING_CURVE = "learning_curve.png"
CLIENTS = "clients.png"
_LABELS = {
    ("global", "seen"): "greedy, mean over seeds",
    ("global", "inside"): "unseen, inside the training range",
    ("global", "beyond"): "unseen, beyond the training range",
    ("personal", "seen"): "greedy, each client's policy where it trains",
    ("personal", "inside"): "each client's policy, unseen, inside",
    ("personal", "beyond"): "each client's policy, unseen, beyond",
    ("client", "seen"): "clients' own, where they train",
    ("client", "inside"): "clients' own, unseen, inside",
    ("client", "beyond"): "clients' own, unseen, beyond",
}


def curves(rows: list[Record], unit: str) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Groups rows of `returns.csv`: {(policy, split): (frames or rounds [T], mean returns over environments [S, T])}."""
    table: dict[tuple[str, str], dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        table.setdefault((row["policy"], row["split"]), {}).setdefault((row["seed"], row[unit]), []).append(row["return"])
    result = {}
    for kind, cells in table.items():
        seeds, times = (sorted({key[part] for key in cells}) for part in (0, 1))
        result[kind] = (np.array(times), np.array([[np.mean(cells[seed, at]) for at in times] for seed in seeds]))
    return result


def learning_curve(run: RunFiles) -> Figure:
    """Draws the greedy return, mean with 95% bootstrap band and each seed, and the training return (dotted)."""
    config, unit, metrics = run.config, run.unit, run.metrics
    evaluations = curves(run.returns, unit)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (kind, (times, greedy)) in enumerate(evaluations.items()):
        band(axes, times, greedy, f"C{number if number == 0 else number + 1}", _LABELS[kind], thin=number == 0)
    training = _numbers(metrics, "return")
    seen = ~np.isnan(training).all(axis=1)
    training_times = np.array([line[unit] for line in metrics])
    axes.plot(
        training_times[seen],
        np.nanmean(training[seen], axis=1),
        color="tab:orange",
        linestyle=":",
        label="while training (exploring)",
    )
    title = f"{config['env']}, {len(metrics[0]['return'])} seeds"
    if unit == "rounds":
        title += f" of {config['federated']['num_clients']} clients, K = {config['federated']['local_steps']}"
    axes.set(xlabel="rounds" if unit == "rounds" else "frames of each seed", ylabel="episode return", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return figure


def band(axes: Axes, times: np.ndarray, values: np.ndarray, color: str, label: str, thin: bool) -> None:
    """Draws the mean of [S, T] over S, its 95% bootstrap interval and, if `thin`, every row."""
    if thin:
        axes.plot(times, values.T, color=color, linewidth=0.6, alpha=0.35)
    axes.fill_between(
        times,
        *bootstrap_ci95(values),
        color=color,
        alpha=0.25 if thin else 0.12,
        linewidth=0,
        label="95% bootstrap interval" if thin else None,
    )
    axes.plot(times, values.mean(axis=0), color=color, linewidth=2 if thin else 1.2, marker="o", markersize=3, label=label)


def clients_figure(run: RunFiles) -> Figure:
    """Draws for a federated run that was evaluated: its greedy return at each client over the rounds, and the clients' drift.

    Clients of all seeds are rows, the worst at the end of the run at the bottom.
    """
    cells: dict[tuple[int, int], dict[int, float]] = {}
    for row in run.returns:
        if row["policy"] in ("global", "personal") and row["split"] == "seen":
            cells.setdefault((row["seed"], row["client"]), {})[row["rounds"]] = row["return"]
    rounds = sorted(next(iter(cells.values())))
    grid = np.array(sorted(([of[at] for at in rounds] for of in cells.values()), key=lambda line: line[-1]))
    drift = _numbers(run.metrics, "drift")

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.concatenate([[0], rounds])
    image = left.pcolormesh(edges, np.arange(len(grid) + 1), grid, cmap="viridis")
    figure.colorbar(image, ax=left, label="greedy return")
    left.set(xlabel="rounds", ylabel="client, of all seeds", title="the federation's policy at each client")
    known = ~np.isnan(drift).any(axis=1)
    times = np.array([line["rounds"] for line in run.metrics])
    band(right, times[known], drift[known].T, "C0", "mean over seeds", thin=True)
    right.set(xlabel="rounds", ylabel="L2 distance", title="drift: clients' updates from the merged one", ylim=(0, None))
    right.grid(alpha=0.3)
    right.legend(frameon=False, fontsize="small")
    return figure


def _numbers(metrics: list[Record], name: str) -> np.ndarray:
    """Returns one name of all lines, [T, S], null as NaN."""
    return np.array([line[name] for line in metrics], float)


def draw_run(run_dir: Path) -> list[Path]:
    """Draws the figures of a run directory into it and returns their paths.

    Raises:
      InputError: as `read_run`, and where they cannot be written.
    """
    run = read_run(run_dir)
    figures = {LEARNING_CURVE: learning_curve}
    if all("drift" in line for line in run.metrics) and run.returns:
        figures[CLIENTS] = clients_figure
    for name, draw in figures.items():
        save(draw(run), run_dir / name)
    return [run_dir / name for name in figures]


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, in a new directory if need be.

    Raises:
      InputError: where it cannot be written, or not as a file of that name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be written ({reason}): name another file") from None
