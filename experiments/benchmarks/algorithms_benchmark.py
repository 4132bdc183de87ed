"""What does an update of each algorithm cost, over one of DQN's? On one core, contestants taking turns.

    python experiments/benchmarks/algorithms_benchmark.py --out experiments/results/algorithms_benchmark-cpu.json

The setting is that of `benchmark.py`, with a replay of 100,000 transitions that is full: CartPole, ten environments, batch 128,
hidden layers of 120 and 84. An update is `agent.learn`; an iteration is `agent.step`, of ten frames and an update.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from dqn_jax.algorithms import ALGORITHMS, fields_of
from dqn_jax.config import AgentConfig, NetworkConfig, Record
from dqn_jax.runner.timing import Contestant, conclude, median_ratio, on_one_core, take_turns

ENV = "CartPole-v1"
CAPACITY = 100_000
AGENT = AgentConfig(
    num_envs=10,
    batch_size=128,
    replay_capacity=CAPACITY,
    learning_starts=CAPACITY,
    learning_rate=2.5e-4,
    target_period=50,
)
NETWORK = NetworkConfig(hidden_sizes=(120, 84))
AT_MOST = {"double": 1.5, "dueling": 1.5, "prioritised": 1.6, "c51": 2.5, "rainbow": 4.0}
"""Largest time of an update over that of DQN."""
NAMES = tuple(name for name in ALGORITHMS if not name.startswith("no_") and name != "pqn")
"""Not PQN, whose updates are of a rollout: `pqn_benchmark.py`."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    out: Path | None = None
    """JSON file to write."""
    quick: bool = False
    """Shorter turns: a check that it works, not numbers to quote."""
    check: bool = False
    """End with status 1 where a target is missed."""


def main(options: Options) -> Record:
    """Measures, prints a table and writes the JSON file; names the targets that are missed."""
    from dqn_jax.runner.records import provenance

    results = provenance() | on_one_core(measure, 50 if options.quick else 500, 3 if options.quick else 15)
    conclude(results, options.out, misses(results), options.check)
    return results


def measure(length: int, turns: int) -> Record:
    """Times `length` updates, and then as many iterations, of every algorithm: each over those of DQN, and in microseconds."""
    results: Record = {}
    for kind in ("update", "iteration"):
        seconds = take_turns({name: contestant(name, kind, length) for name in NAMES}, turns)
        results |= {f"{kind}_{name}_over_dqn": median_ratio(seconds[name], seconds["dqn"]) for name in NAMES if name != "dqn"}
        results |= {f"{kind}_microseconds_{name}": statistics.median(seconds[name]) / length * 1e6 for name in NAMES}
    return results


def contestant(algorithm: str, kind: str, length: int) -> Contestant:
    """Builds a loop of `length` updates or iterations of an algorithm's agent, whose replay is full."""
    import jax

    from dqn_jax.agent import every_step, make_agent
    from dqn_jax.envs import make_env
    from dqn_jax.networks import make_network

    agent_config, network_config = configs_of(algorithm)
    env = make_env(ENV)
    agent = make_agent(env, make_network(network_config, env.spec), agent_config)
    function = agent.learn if kind == "update" else agent.step

    def once(state: Any, _: None) -> tuple[Any, Record]:
        state, info = function(state)
        return state, every_step(info)

    state = jax.jit(lambda: agent.warm_up(agent.init(jax.random.key(0))))()
    return Contestant(state, jax.jit(lambda state: jax.lax.scan(once, state, length=length), donate_argnums=0))


def configs_of(algorithm: str) -> tuple[AgentConfig, NetworkConfig]:
    """Returns the setting's configs of agent and network with an algorithm's fields."""
    fields = fields_of(algorithm, ENV)
    own = (
        {name.removeprefix(room): fields[name] for name in fields if name.startswith(room)} for room in ("agent.", "network.")
    )
    agent, network = own
    return dataclasses.replace(AGENT, **agent), dataclasses.replace(NETWORK, **network)


def misses(results: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each target that is missed."""
    found = {name: results[f"update_{name}_over_dqn"] for name in AT_MOST}
    return [
        f"an update of {name} takes {found[name]:.3f} times one of dqn, and should take at most {most:g}"
        for name, most in AT_MOST.items()
        if found[name] > most
    ]


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
