"""How many frames a second does PQN learn from, beside DQN and Rainbow? On one core, contestants taking turns.

    python experiments/benchmarks/pqn_benchmark.py --out experiments/results/pqn_benchmark-cpu.json

CartPole, one seed, each with the settings that are tuned for it (`--tuned`): whole agent steps, acting and learning.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from dqn_jax.commands.cells import make_cell
from dqn_jax.config import Record
from dqn_jax.runner.timing import Contestant, conclude, median_ratio, on_one_core, take_turns
from dqn_jax.tuned import tuned_fields

ENV = "CartPole-v1"
ALGORITHMS = ("dqn", "rainbow", "pqn")
AT_LEAST = 2.0
"""Frames a second of PQN over those of DQN."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    out: Path | None = None
    """JSON file to write."""
    quick: bool = False
    """Shorter turns: a check that it works, not numbers to quote."""
    check: bool = False
    """End with status 1 where the target is missed."""


def main(options: Options) -> Record:
    """Measures, prints a table and writes the JSON file; says where the target is missed."""
    from dqn_jax.runner.records import provenance

    results = provenance() | on_one_core(measure, 1_024 if options.quick else 20_480, 3 if options.quick else 15)
    conclude(results, options.out, misses(results), options.check)
    return results


def measure(frames: int, turns: int) -> Record:
    """Times as many frames of each: frames a second, and those of PQN over DQN's."""
    seconds = take_turns({name: contestant(name, frames) for name in ALGORITHMS}, turns)
    results: Record = {f"frames_per_second_{name}": frames / statistics.median(seconds[name]) for name in ALGORITHMS}
    return results | {"pqn_over_dqn": median_ratio(seconds["dqn"], seconds["pqn"])}


def contestant(algorithm: str, frames: int) -> Contestant:
    """Builds a loop of agent steps that take as many frames, after the warm-up."""
    import jax

    from dqn_jax.agent import every_step, make_agent
    from dqn_jax.build import build

    config = make_cell(algorithm, "CartPole", {"env": ENV} | tuned_fields(algorithm, ENV)).config
    agent = make_agent(*build(config), config.agent)

    def once(state: Any, _: None) -> tuple[Any, Record]:
        state, info = agent.step(state)
        return state, every_step(info)

    steps = frames // config.agent.frames_per_step
    state = jax.jit(lambda: agent.warm_up(agent.init(jax.random.key(0))))()
    return Contestant(state, jax.jit(lambda state: jax.lax.scan(once, state, length=steps), donate_argnums=0))


def misses(results: Mapping[str, Any]) -> list[str]:
    """Returns a sentence where the target is missed."""
    ratio = results["pqn_over_dqn"]
    return [f"PQN takes {ratio:.2f} times the frames of DQN, and should take {AT_LEAST:g}"] if ratio < AT_LEAST else []


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
