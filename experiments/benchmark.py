"""Measures speed as ratios within one run: contestants take turns, and medians of at least five turns are compared.

    python experiments/benchmark.py --out experiments/results/benchmark-cpu.json
    python experiments/benchmark.py --quick

Runs unchanged on a GPU. On a CPU every device is one thread, so one device is one core.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.runner.timing import Contestant, median_ratio, on_one_core, print_table, take_turns

# The setting of the published peers: CleanRL's dqn_jax with ten environments instead of ten steps of one.
CARTPOLE = AgentConfig(num_envs=10, batch_size=128, learning_starts=1_000, learning_rate=2.5e-4, target_period=50)
CARTPOLE_NETWORK = NetworkConfig(hidden_sizes=(120, 84))
# For several devices: sizes that four of them divide.
CARTPOLE_SHARDED = dataclasses.replace(CARTPOLE, num_envs=16)
BREAKOUT = AgentConfig(num_envs=16, batch_size=32, replay_capacity=100_000, learning_starts=1_600, learning_rate=2.5e-4)
BREAKOUT_NETWORK = NetworkConfig(hidden_sizes=(128,))
DEVICE_COUNTS = (1, 2, 4)
SEED_COUNTS = (1, 4, 16)
DEVICE_SEEDS = {"cartpole": 8, "breakout": 2}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    out: Path | None = None
    """JSON file to write."""
    quick: bool = False
    """Shorter turns: a check that it works, not numbers to quote."""


def main(options: Options) -> dict[str, Any]:
    """Measures everything, prints a table and writes the JSON file."""
    scale = 1 if options.quick else 10
    turns = 5 if options.quick else 9
    ratios = on_one_core(iteration_ratios, 100 * scale, turns)
    runtime.setup(max(DEVICE_COUNTS))
    results: dict[str, Any] = describe_machine() | ratios
    results |= compile_times()
    results |= device_throughput("cartpole", steps=30 * scale, turns=turns)
    results |= device_throughput("breakout", steps=5 * scale, turns=turns)
    results |= seed_throughput(steps=30 * scale, turns=turns)
    results["bytes_per_transition_breakout"] = bytes_per_transition()
    print_table(results)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    return results


def describe_machine() -> dict[str, Any]:
    """The command, the day, the hardware and the versions that the numbers belong to, flat."""
    from dqn_jax.runner.records import provenance

    facts = provenance()
    return facts | {"versions": ", ".join(f"{package} {version}" for package, version in facts["versions"].items())}


def compile_times() -> dict[str, Any]:
    """Seconds from a new driver to its first finished chunk, less what the same calls take once compiled."""
    seconds = {}
    for name in ("cartpole", "breakout"):
        driver = make_driver(name, num_devices=1, num_seeds=1, steps=1)
        began = time.perf_counter()
        start_and_step(driver)
        first = time.perf_counter() - began
        began = time.perf_counter()
        start_and_step(driver)
        seconds[f"compile_seconds_{name}"] = first - (time.perf_counter() - began)
    return seconds


def start_and_step(driver: Any) -> None:
    """Initialises, warms up and trains for one chunk."""
    import jax

    jax.block_until_ready(driver.step(driver.init())[0])


def iteration_ratios(steps: int, turns: int) -> dict[str, Any]:
    """An agent iteration against its bare arithmetic, and `pmap` on one device against `jit`."""
    import jax

    from dqn_jax.agent import make_agent, make_chunk
    from dqn_jax.distributed.data_parallel import AXIS
    from dqn_jax.mapping import over, place

    env, network, config = parts("cartpole", sharded=False)
    device = jax.local_devices()[:1]
    agent = make_agent(env, network, config)
    averaging = make_agent(env, network, config, axis_name=AXIS)
    start = jax.jit(lambda: agent.warm_up(agent.init(jax.random.key(0))))
    plain = jax.jit(make_chunk(agent, steps), donate_argnums=0)
    parallel = over(make_chunk(averaging, steps), AXIS, device, donate=True)
    floor = jax.jit(bare_arithmetic(network, config, steps), donate_argnums=0)
    seconds = take_turns(
        {
            "jit": Contestant(start(), plain),
            "pmap": Contestant(place(jax.tree.map(lambda x: x[None], start()), device), parallel),
            "floor": Contestant(start().learner, floor),
        },
        turns,
    )
    return {
        "iteration_over_floor": median_ratio(seconds["jit"], seconds["floor"]),
        "iteration_microseconds": statistics.median(seconds["jit"]) / steps * 1e6,
        "floor_microseconds": statistics.median(seconds["floor"]) / steps * 1e6,
        "pmap_over_jit": median_ratio(seconds["pmap"], seconds["jit"]),
    }


def bare_arithmetic(network: Any, config: AgentConfig, steps: int) -> Callable:
    """The forward passes, backward pass and Adam step of an update on a fixed batch, in a scan: state -> (state, losses).

    The target network is the last update's parameters; one that never changed would be hoisted out of the loop.
    """
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adam(config.learning_rate, eps=config.optimizer_eps)
    keys = jax.random.split(jax.random.key(1), 2)
    s_tm1, s_t = (jax.random.normal(key, (config.batch_size, 4)) for key in keys)
    a_tm1 = jnp.arange(config.batch_size) % 2

    def q_values(params: Any, obs: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: network.apply(params, one, keys[0], True))(obs)

    def update(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, target_params, opt_state = carry

        def loss(params: Any) -> jax.Array:
            target = 1.0 + config.discount * jnp.max(q_values(target_params, s_t), axis=1)
            values = jnp.take_along_axis(q_values(params, s_tm1), a_tm1[:, None], axis=1)[:, 0]
            return jnp.mean(jnp.square(jax.lax.stop_gradient(target) - values))

        value, grads = jax.value_and_grad(loss)(params)
        deltas, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, deltas), params, opt_state), value

    def run(state: Any) -> tuple[Any, jax.Array]:
        carry = (state.params, state.target_params, state.opt_state)
        (params, target_params, opt_state), losses = jax.lax.scan(update, carry, length=steps)
        return state.replace(params=params, target_params=target_params, opt_state=opt_state), losses

    return run


def device_throughput(name: str, steps: int, turns: int) -> dict[str, Any]:
    """Frames/s, over all seeds, of one global batch divided over 1, 2 and 4 devices; None where there are fewer."""
    import jax

    seeds = DEVICE_SEEDS[name]
    counts = [count for count in DEVICE_COUNTS if count <= jax.local_device_count()]
    drivers = {count: make_driver(name, count, seeds, steps) for count in counts}
    rates = frames_per_second({count: (driver, seeds) for count, driver in drivers.items()}, turns)
    return {f"frames_per_second_{name}_{count}_devices": rates.get(count) for count in DEVICE_COUNTS}


def seed_throughput(steps: int, turns: int) -> dict[str, Any]:
    """CartPole frames/s, over all seeds, of 1, 4 and 16 seeds divided over as many devices as there are cores (or GPUs)."""
    import jax

    available = jax.local_device_count()
    if jax.local_devices()[0].platform == "cpu":
        available = min(available, os.cpu_count() or 1)
    contestants = {}
    for seeds in SEED_COUNTS:
        num_devices = max(count for count in range(1, available + 1) if seeds % count == 0)
        contestants[seeds] = (make_driver("cartpole", num_devices, seeds, steps, seeds_over_devices=True), seeds)
    rates = frames_per_second(contestants, turns)
    results: dict[str, Any] = {f"frames_per_second_{seeds}_seeds": rates[seeds] for seeds in SEED_COUNTS}
    return results | {"sixteen_seeds_over_one": rates[16] / rates[1]}


def bytes_per_transition() -> float:
    """Bytes of replay storage a transition takes on Breakout-MinAtar, next observation and all."""
    import jax

    from dqn_jax.agent import make_agent

    agent = make_agent(*parts("breakout", sharded=False))
    storage = jax.eval_shape(lambda: agent.init(jax.random.key(0))).replay.storage
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(storage)) / BREAKOUT.replay_capacity


def parts(name: str, sharded: bool) -> tuple[Any, Any, AgentConfig]:
    """(environment, network, config) of a benchmark."""
    from dqn_jax.envs import make_env
    from dqn_jax.networks import make_network

    if name == "breakout":
        env_name, network_config, config = "Breakout-MinAtar", BREAKOUT_NETWORK, BREAKOUT
    else:
        env_name, network_config, config = "CartPole-v1", CARTPOLE_NETWORK, CARTPOLE_SHARDED if sharded else CARTPOLE
    env = make_env(env_name)
    return env, make_network(network_config, env.obs_shape, env.num_actions), config


def make_driver(name: str, num_devices: int, num_seeds: int, steps: int, seeds_over_devices: bool = False) -> Any:
    """A data-parallel driver for a benchmark."""
    import jax

    from dqn_jax.distributed.data_parallel import make_data_parallel

    return make_data_parallel(
        *parts(name, sharded=True),
        seeds=range(num_seeds),
        devices=jax.local_devices()[:num_devices],
        steps_per_chunk=steps,
        seeds_over_devices=seeds_over_devices,
    )


def frames_per_second(drivers: dict[Any, tuple[Any, int]], turns: int) -> dict[Any, float]:
    """Median frames/s, over all seeds, of each (driver, number of seeds)."""
    seconds = take_turns({name: Contestant(driver.init(), driver.step) for name, (driver, _) in drivers.items()}, turns)
    return {name: driver.per_step * seeds / statistics.median(seconds[name]) for name, (driver, seeds) in drivers.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
