"""A small run in a process of its own, killed at a named point, for law 8: data-parallel, federated or with a server.

python killed_run.py RUN_DIR [POINT [KIND]]: resumes what RUN_DIR holds, and runs to its end or to where POINT kills it. As
hosts, several processes started by the launcher train together and POINT is for process 1.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, DataParallelExperiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.hosts import join, parse_hosts

CHUNKS = 12
FRAMES_PER_CHUNK = 40
INITIAL_FRAMES = 12
"""ceil(8 / 4) + n - 1 acts of four environments."""
SAVED_AFTER = (3, 6, 9, 12)
"""Chunks that a multiple of 120 frames lies in."""


_BATCH = {"batch_size": 4, "learning_starts": 8}


def config_of(run_dir: Path) -> DataParallelExperiment:
    """Twelve chunks; the replay goes round four times, the target moves in most chunks, and episodes end by both ends."""
    return DataParallelExperiment(
        max_episode_steps=20,
        num_devices=2,
        num_seeds=2,
        total_frames=INITIAL_FRAMES + CHUNKS * FRAMES_PER_CHUNK,
        run_dir=run_dir,
        resume=True,
        agent=AgentConfig(num_envs=4, replay_capacity=128, n_step=2, target_period=7, epsilon_decay_frames=400, **_BATCH),
        network=NetworkConfig(hidden_sizes=(16,)),
        runner=RunnerConfig(log_every=FRAMES_PER_CHUNK, eval_every=120, checkpoint_every=120, keep_checkpoints=2),
    )


def hosts_config_of(run_dir: Path, num_devices: int = 2) -> DataParallelExperiment:
    """The same with steady arithmetic (laws/common.py): its sums are taken in another order than on one process."""
    config = config_of(run_dir)
    agent = dataclasses.replace(config.agent, optimizer="sgd", learning_rate=1e-2, epsilon_end=1.0)
    # Most of the time of these processes is spent starting: none but the last evaluation is compiled.
    runner = dataclasses.replace(config.runner, eval_every=config.total_frames)
    return dataclasses.replace(config, num_devices=num_devices, agent=agent, runner=runner)


_SMALL = {
    "max_episode_steps": 20,
    "num_devices": 2,
    "num_seeds": 2,
    "seed": 3,
    "resume": True,
    "agent": AgentConfig(num_envs=2, replay_capacity=32, target_period=3, epsilon_decay_frames=60, **_BATCH),
    "network": NetworkConfig(hidden_sizes=(16,)),
}
"""What the federation and the parameter server share."""


def federated_config_of(run_dir: Path, **changes) -> FederatedExperiment:
    """Ten rounds, two a chunk: two of three clients take part, so each has clocks of its own, beside a head of its own."""
    fields = {
        "rounds": 10,
        "run_dir": run_dir,
        # A mean that does not leave out clients whose update is not finite, as a user's own function would not.
        "federated": FederatedConfig(
            num_clients=3,
            local_steps=4,
            participation="fixed",
            num_clients_per_round=2,
            unseen_envs=1,
            personal="head",
            aggregator="dqn_jax.federated.aggregation:mean_of",
        ),
        "runner": RunnerConfig(log_every=2, eval_every=4, checkpoint_every=4, keep_checkpoints=10, threshold=1.0),
    }
    return FederatedExperiment(**(_SMALL | fields | changes))


def server_config_of(run_dir: Path, **changes) -> ServerExperiment:
    """Ten chunks of ten pushes; so many come too late that the two seeds make different numbers of updates."""
    fields = {
        "total_frames": 224,
        "run_dir": run_dir,
        "server": ServerConfig(num_workers=3, lag_limit=1),
        "runner": RunnerConfig(log_every=20, eval_every=80, checkpoint_every=60, keep_checkpoints=10),
    }
    return ServerExperiment(**(_SMALL | fields | changes))


def kill() -> None:
    """Ends this process as a power cut would: nothing is flushed, nothing is caught."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, driver):
    """The driver, and the program around it changed so that it dies at `point`."""
    from dqn_jax.runner import checkpoint
    from dqn_jax.runner.records import METRICS, Records

    calls = {"step": 0, "save": 0, "metrics": 0}
    kind, _, number = point.partition(":")

    def due(what: str) -> bool:
        calls[what] += 1
        return calls[what] == int(number)

    def step(state):
        if due("step"):
            kill() if kind == "chunk" else os.kill(os.getpid(), signal.SIGTERM)
        return driver.step(state)

    def flush(file):
        # The arrays are flushed first: half of them are on disk.
        if file.name.endswith(checkpoint.ARRAYS.format(0)) and due("save"):
            file.flush()
            os.truncate(file.name, os.path.getsize(file.name) // 2)
            kill()
        return original(file)

    def flush_directory(directory):
        if due("save"):
            kill()
        return original(directory)

    def metrics(self, line):
        if due("metrics"):
            with open(self.run_dir / METRICS, "a") as file:
                file.write('{"frames": 3')
            kill()
        return original(self, line)

    if kind in ("chunk", "stop"):
        return driver._replace(step=step)
    owner, name, deadly = {
        "torn_arrays": (checkpoint, "_flush", flush),
        "after_rename": (checkpoint, "_flush_directory", flush_directory),
        "torn_line": (Records, "append_metrics", metrics),
    }[kind]
    original = getattr(owner, name)
    setattr(owner, name, deadly)
    return driver


def main() -> None:
    hosts, (run_dir, *options) = parse_hosts()
    point = options[0] if options else ""
    kind = options[1] if len(options) > 1 else "data_parallel"
    configs = {"federated": federated_config_of, "hosts": hosts_config_of, "server": server_config_of}
    config = configs.get(kind, config_of)(Path(run_dir))
    # As many as the tests start: the compiled programs of one process then serve the other.
    runtime.setup(4 if hosts is None else config.num_devices)
    join(hosts)
    from dqn_jax.distributed import data_parallel, parameter_server
    from dqn_jax.federated import driver as federated
    from dqn_jax.runner.loop import run

    drivers = {"federated": federated, "server": parameter_server}
    driver, evaluator = drivers.get(kind, data_parallel).from_config(config)
    armed = point != "" and (hosts is None or hosts.process_id == 1)
    run(arm(point, driver) if armed else driver, config, evaluator)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
