"""What do clients, merges and memory cost? Medians of turns that contestants take in one run, on one core.

    python experiments/benchmarks/federated_benchmark.py --out experiments/results/federated_benchmark-cpu.json

The cost of a merge is that of a round over one in which the server takes any client's update as it is.
"""

import dataclasses
import json
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from dqn_jax.config import AgentConfig, NetworkConfig, Record
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.runner.timing import Contestant, median_ratio, on_one_core, print_table, take_turns

AGENT = AgentConfig(num_envs=1, replay_capacity=2_000, learning_starts=64, target_period=100)
NETWORK = NetworkConfig(hidden_sizes=(64, 64))
LOCAL_STEPS = 50
ROUNDS = 4
"""Rounds of a turn, in one program as in a run."""
COUNTS = (10, 100, 1000)
MERGED = 100
"""Clients whose merges are timed."""
TRANSFORMS = ("clip:10", "int8")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to write, and how long to measure."""

    out: Path | None = None
    """JSON file to write."""
    turns: int = 7
    """Turns of every contestant."""


def main(options: Options) -> Record:
    """Measures everything, prints a table and writes the JSON file."""
    results = on_one_core(memory, max(COUNTS)) | on_one_core(clients, options.turns) | on_one_core(merges, options.turns)
    results = on_one_core(machine) | results
    print_table(results)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return results


def machine() -> Record:
    """Returns the origin of the numbers, and the block size."""
    from dqn_jax.federated.blocks import DEFAULT_BLOCK
    from dqn_jax.runner.records import provenance

    return provenance() | {"block_size": DEFAULT_BLOCK, "local_steps": LOCAL_STEPS}


def memory(count: int) -> Record:
    """Measures the peak memory of training clients for three turns, above that of a process that has started jax."""
    import jax

    driver = make_driver(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = driver.init()
    for _ in range(3):
        state, _ = driver.step(state)
    jax.block_until_ready(state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {f"mebibytes_above_start_{count}_clients": (peak - before) / 1024}


def clients(turns: int) -> Record:
    """Times a client's local step with merge, in microseconds, and its growth with the clients."""
    seconds = take_turns({count: contestant(make_driver(count)) for count in COUNTS}, turns)
    each = {count: statistics.median(seconds[count]) / count / LOCAL_STEPS / ROUNDS * 1e6 for count in COUNTS}
    return {f"microseconds_per_client_step_{count}_clients": each[count] for count in COUNTS} | {
        "thousand_over_ten": each[1000] / each[10]
    }


def merges(turns: int) -> Record:
    """Computes the time of a round with a mean, and with transforms before it, over one without a merge."""
    import jax

    from dqn_jax.federated.aggregation import from_function

    nothing = from_function(lambda deltas, weights: jax.tree.map(lambda x: x[0], deltas))
    arms = {
        "nothing": contestant(make_driver(MERGED, change=lambda parts: parts._replace(aggregator=nothing))),
        "mean": contestant(make_driver(MERGED)),
        "transforms": contestant(make_driver(MERGED, transforms=TRANSFORMS)),
    }
    seconds = take_turns(arms, turns)
    return {f"round_with_{name}_over_none": median_ratio(seconds[name], seconds["nothing"]) for name in ("mean", "transforms")}


def make_driver(num_clients: int, change: Callable[[Any], Any] = lambda parts: parts, **options: Any) -> Any:
    """Builds a federation of CartPoles with different pole lengths."""
    import jax

    from dqn_jax.envs import make_env
    from dqn_jax.federated.driver import make_federated, named_parts
    from dqn_jax.federated.heterogeneity import draw_all
    from dqn_jax.networks import make_network

    env = make_env("CartPole-v1")
    network = make_network(NETWORK, env.spec)
    config = FederatedConfig(**{"num_clients": num_clients, "local_steps": LOCAL_STEPS, "unseen_envs": 0, **options})
    envs = draw_all(env, config, 1).seen
    return make_federated(
        env,
        network,
        AGENT,
        config,
        env_params=envs,
        seeds=[0],
        devices=jax.local_devices()[:1],
        rounds_per_step=ROUNDS,
        parts=change(named_parts(env, network, AGENT, config)),
    )


def contestant(driver: Any) -> Contestant:
    """Wraps a driver in its initial state."""
    return Contestant(driver.init(), driver.step)


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
