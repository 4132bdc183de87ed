"""Every algorithm in every driver: compiles and trains each for two chunks, and writes what came of it.

python tests/matrix.py --out experiments/results/matrix.json

A cell of the matrix is a small preset of a driver with `--algorithm`: no driver knows of any. What a driver refuses, it refuses
by a sentence, which is the cell's result. Each cell compiles all its programs, in a hurry (`hurry.py`), on a machine that may
have other work: its seconds are no measurement of speed.

Not here: whether anything is learnt (`learning/`).
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from hurry import hurry

from dqn_jax import runtime
from dqn_jax.algorithms import ALGORITHMS, fields_of
from dqn_jax.config import AgentConfig, DataParallelExperiment, Experiment, InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.runner.config_file import nest, with_values
from dqn_jax.runner.records import provenance
from dqn_jax.types import Info

_COMMON: dict[str, Any] = {
    "agent": AgentConfig(num_envs=2, batch_size=4, replay_capacity=32, learning_starts=4),
    "network": NetworkConfig(hidden_sizes=(8,)),
    "runner": RunnerConfig(log_every=4),
    "num_seeds": 1,
    "num_devices": 1,
}
_FRAMES = {**_COMMON, "total_frames": 2_000}
_CLIENTS = FederatedConfig(num_clients=2, local_steps=2, heterogeneity="none", unseen_envs=0)
_SERVER = ServerConfig(num_workers=2)
_SERVERS = {
    "parameter server in virtual time": {"server": _SERVER},
    "parameter server in virtual time, one replay": {"server": dataclasses.replace(_SERVER, replay="shared")},
    "parameter server on threads": {"server": _SERVER, "backend": "threads"},
}
DRIVERS: dict[str, Experiment] = {
    "data-parallel": DataParallelExperiment(**_FRAMES | {"num_devices": 2}),
    "federated": FederatedExperiment(**_COMMON | {"runner": RunnerConfig(log_every=1)}, federated=_CLIENTS, rounds=2),
    **{name: ServerExperiment(**_FRAMES, **fields) for name, fields in _SERVERS.items()},
    "actor-learner on threads": ActorLearnerExperiment(
        **_FRAMES, backend="threads", actors=ActorLearnerConfig(num_actors=2, acts_per_block=2)
    ),
}
"""A small experiment of each way of training."""


def config_of(driver: str, algorithm: str) -> Experiment:
    """The config of a cell, as `--algorithm` gives it; raises InputError where the driver refuses the algorithm."""
    small = DRIVERS[driver]
    return with_values(small, nest(fields_of(algorithm, small.env)))


def driver_of(config: Any) -> tuple[Any, Any]:
    """The driver of an experiment, its workers started, and its evaluator."""
    # Not at the top: these start jax.
    from dqn_jax.distributed import actor_learner, actors, data_parallel, engines, parameter_server, server_on_workers, workers
    from dqn_jax.federated import driver as federated

    if isinstance(config, DataParallelExperiment):
        return data_parallel.from_config(config)
    if isinstance(config, FederatedExperiment):
        return federated.from_config(config)
    if isinstance(config, ActorLearnerExperiment):
        return actor_learner.from_config(config, engines.start(config.backend, lambda: actors.make_job(config), 2))
    if config.backend == "device":
        return parameter_server.from_config(config)
    return server_on_workers.from_config(config, engines.start(config.backend, lambda: workers.make_job(config), 2))


def two_chunks(driver: Any) -> tuple[Any, list[Info], list[float]]:
    """Trains for two chunks and ends the workers: (state, infos, seconds of the start with the first chunk, of the second).

    Raises:
      AssertionError: unless every loss is finite and every parameter has changed.
    """
    infos: list[Info] = []
    seconds: list[float] = []
    try:
        begun = time.perf_counter()
        state = driver.init()
        before = jax.device_get(driver.params(state))
        for _ in range(2):
            state, info = driver.step(state)
            assert driver.problem(info) is None, driver.problem(info)
            assert np.isfinite(info["loss"]).all(), f"the loss is {info['loss']}"
            infos.append(info)
            seconds.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        after = jax.device_get(driver.params(state))
    finally:
        driver.close()
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert not any(np.array_equal(x, y) for x, y in pairs), "a parameter is what it was"
    return state, infos, seconds


def train(driver: str, algorithm: str) -> dict[str, Any]:
    """Trains a cell: its last loss and its seconds, or the sentence that refuses it."""
    cell: dict[str, Any] = {"driver": driver, "algorithm": algorithm}
    try:
        config = config_of(driver, algorithm)
    except InputError as error:
        return cell | {"refused": str(error)}
    jax.clear_caches()
    _, infos, (first, second) = two_chunks(driver_of(config)[0])
    return cell | {"loss": float(infos[-1]["loss"][0]), "compile_seconds": first - second, "chunk_seconds": second}


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to write what came of it."""

    out: Path | None = None
    """JSON file to write."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to train; of others the file keeps what it has."""


def main(options: Options) -> None:
    """Trains every cell, prints a line for each, and writes the JSON file."""
    hurry()
    runtime.setup(2)
    jax.config.update("jax_enable_compilation_cache", False)
    begun = time.perf_counter()
    cells = []
    for algorithm in options.algorithms:
        for driver in DRIVERS:
            cells.append(train(driver, algorithm))
            print(*cells[-1].values(), sep=" | ", flush=True)
    minutes = (time.perf_counter() - begun) / 60
    print(f"{len(cells)} cells, {minutes:.1f} minutes")
    if options.out is not None:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {"minutes": 0, "cells": []}
        others = [cell for cell in kept["cells"] if cell["algorithm"] not in options.algorithms]
        cells = sorted(others + cells, key=lambda cell: list(ALGORITHMS).index(cell["algorithm"]))
        if others:
            minutes += kept["minutes"]
        options.out.write_text(json.dumps(provenance() | {"minutes": minutes, "cells": cells}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
