"""What does the model of a parameter server cost? On one core, contestants taking turns.

python experiments/benchmarks/server_benchmark.py --out experiments/results/server_benchmark-cpu.json
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import tyro

from dqn_jax.config import AgentConfig, NetworkConfig, Record
from dqn_jax.runner.timing import Contestant, median_ratio, on_one_core, print_table, take_turns

WORKERS = 4
COUNTS = (4, 64, 1024)
AGENT = AgentConfig(
    num_envs=4, batch_size=32, replay_capacity=2_000, learning_starts=64, learning_rate=2.5e-4, target_period=50
)
NETWORK = NetworkConfig(hidden_sizes=(64, 64))


def main(out: Path | None = None, quick: bool = False) -> Record:
    """Measures, prints a table and writes the JSON file.

    Args:
      out: JSON file to write.
      quick: shorter turns: a check that it works, not numbers to quote.
    """
    results = on_one_core(measure, 50 if quick else 1_000, 3 if quick else 15)
    from dqn_jax.runner.records import provenance

    results = provenance() | results
    print_table({name: value for name, value in results.items() if name != "versions"})
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n")
    return results


def measure(updates: int, turns: int) -> Record:
    """Times a barrier against `vmap(axis_name)` data-parallel training of the same sizes, and a push for several W."""
    import jax

    from dqn_jax.agent import make_agent, make_chunk
    from dqn_jax.distributed.config import ServerConfig
    from dqn_jax.distributed.parameter_server import make_parameter_server
    from dqn_jax.envs import make_env
    from dqn_jax.mapping import lane_axes, over, stream_key
    from dqn_jax.networks import make_network

    env = make_env("CartPole-v1")
    network = make_network(NETWORK, env.spec)
    device = jax.local_devices()[:1]

    def server(config: ServerConfig, pushes: int) -> Contestant:
        driver = make_parameter_server(env, network, AGENT, config, seeds=[0], devices=device, pushes_per_chunk=pushes)
        return Contestant(driver.init(), driver.step)

    sizes = {name: WORKERS * getattr(AGENT, name) for name in ("num_envs", "batch_size", "replay_capacity", "learning_starts")}
    agent = make_agent(env, network, dataclasses.replace(AGENT, **sizes), axis_name="shards", num_shards=WORKERS)

    def start(shard: Any) -> Any:
        return agent.warm_up(agent.init(stream_key(0), shard=shard))

    axes = lane_axes(jax.eval_shape(start, 0))
    state = jax.jit(over(start, out_axes=axes))(jax.numpy.arange(WORKERS))
    chunk = over(make_chunk(agent, updates), "shards", in_axes=(axes,), out_axes=(axes, 0))
    seconds = take_turns(
        {
            "data_parallel": Contestant(state, jax.jit(chunk, donate_argnums=0)),
            "barrier": server(ServerConfig(num_workers=WORKERS, mode="barrier"), updates * WORKERS),
            **{count: server(ServerConfig(num_workers=count), updates) for count in COUNTS},
        },
        turns,
    )
    pushes = {f"microseconds_per_push_{count}_workers": statistics.median(seconds[count]) / updates * 1e6 for count in COUNTS}
    return {
        "barrier_over_data_parallel": median_ratio(seconds["barrier"], seconds["data_parallel"]),
        "microseconds_per_update_data_parallel": statistics.median(seconds["data_parallel"]) / updates * 1e6,
        "microseconds_per_update_barrier": statistics.median(seconds["barrier"]) / updates * 1e6,
        **pushes,
    }


if __name__ == "__main__":
    tyro.cli(main)
