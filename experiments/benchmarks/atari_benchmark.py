"""How many frames a second does an actor-learner take in an Atari game, and which of its parts holds it up?

    python experiments/benchmarks/atari_benchmark.py --out experiments/results/atari_benchmark-cpu.json

Boxing at 42 x 42 bytes with the settings of experiments/studies/arcade.py, on all cores: sixteen games alone; an actor that
acts in them; the learner alone, on blocks that are there; and all together, two actors on threads, and as Ray processes. A
frame is a step of the agent, four of the game. Needs the extras atari and ray.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, NetworkConfig, Record
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment
from dqn_jax.runner.command_line import exit_code_of

CONFIG = ActorLearnerExperiment(
    env="atari:Boxing",
    env_kwargs=("img_height=42", "img_width=42"),
    num_devices=1,
    agent=AgentConfig(
        num_envs=16, updates_per_step=4, replay_capacity=20_000, batch_size=32, learning_starts=2_000, n_step=3, double_q=True
    ),
    network=NetworkConfig(trunk="nature", channels=16, hidden_sizes=(128,)),
    actors=ActorLearnerConfig(num_actors=2, exploration="shared"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the numbers go, and for how long is measured."""

    out: Path | None = None
    """JSON file to write."""
    seconds: float = 20.0
    """Of each measurement, after what compiles."""


def main(options: Options) -> None:
    """Measures each part and the whole, and prints frames a second."""
    from dqn_jax.distributed.engines import on_ray

    on_ray.connect(None, CONFIG.actors.num_actors)
    runtime.setup(1)
    from dqn_jax.runner.records import provenance

    paces = {"environment": environment, "acting": acting, "learning": learning}
    results: Record = {f"frames_per_second_{name}": pace(options.seconds) for name, pace in paces.items()}
    for backend in ("threads", "ray"):
        results[f"frames_per_second_{backend}"] = together(dataclasses.replace(CONFIG, backend=backend), options.seconds)
    for name, value in results.items():
        print(f"{name}: {value:,.0f}")
    if options.out is not None:
        options.out.write_text(json.dumps(provenance() | results, indent=2) + "\n")


def frames_per_second(turn: Callable[[], int], seconds: float) -> float:
    """Repeats a turn, that returns its frames, for some seconds; the first, which compiles, does not count."""
    turn()
    frames, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        frames += turn()
    return frames / (time.perf_counter() - start)


def environment(seconds: float) -> float:
    """Steps all games at random."""
    from dqn_jax.envs import env_of

    env = env_of(CONFIG, on_host=True)
    assert env.start is not None
    running, rng, number = env.start(range(CONFIG.agent.num_envs)), np.random.default_rng(0), CONFIG.agent.num_envs

    def turn() -> int:
        running.step(rng.integers(0, env.spec.num_actions, number))
        return number

    return frames_per_second(turn, seconds)


def job(config: ActorLearnerExperiment) -> tuple[Any, Any]:
    """Makes an actor's job, and its first task."""
    import jax

    from dqn_jax.build import build
    from dqn_jax.distributed.actors import Policy, make_job
    from dqn_jax.distributed.engines.tasks import Task

    _, network = build(config, on_host=True)
    return make_job(config), Task(0, 0, 0, Policy(network.init(jax.random.key(0)), {}))


def acting(seconds: float) -> float:
    """Lets one actor with all games play blocks, and pack them."""
    one = dataclasses.replace(CONFIG, actors=dataclasses.replace(CONFIG.actors, num_actors=1))
    work, task = job(one)
    state = [work.begin(task)]

    def turn() -> int:
        state[0], _, _ = work.work(state[0], task)
        return one.frames_per_block

    return frames_per_second(turn, seconds)


def learning(seconds: float) -> float:
    """Lets the learner learn from one block over and over, once its replay has enough."""
    from dqn_jax.build import build
    from dqn_jax.distributed.actor_learner import make_learner_side
    from dqn_jax.distributed.actors import with_every_frame
    from dqn_jax.mapping import local_devices

    work, task = job(CONFIG)
    side = make_learner_side(CONFIG, *build(CONFIG, on_host=True), local_devices(1))
    block = with_every_frame(work.work(work.begin(task), task)[1])
    state = [side.init()]
    for _ in range(CONFIG.warm_up_blocks):
        state[0] = side.absorb(state[0], block, False)

    def turn() -> int:
        state[0] = side.absorb(state[0], block, True)
        return CONFIG.frames_per_block

    return frames_per_second(turn, seconds)


def together(config: ActorLearnerExperiment, seconds: float) -> float:
    """Trains with actors and a learner."""
    from dqn_jax.commands.workers import start
    from dqn_jax.distributed.actor_learner import from_config
    from dqn_jax.distributed.actors import make_job

    driver, _ = from_config(config, start(config, make_job, config.actors.num_actors))
    state = [driver.init()]

    def turn() -> int:
        state[0], info = driver.step(state[0])
        return int(info["frames"][0])

    try:
        return frames_per_second(turn, seconds)
    finally:
        driver.close()


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(tyro.cli(Options))))
