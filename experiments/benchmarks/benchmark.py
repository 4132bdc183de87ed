"""Measures speed as ratios within one run: contestants take turns, and medians of the ratios within a turn are reported.

    python experiments/benchmarks/benchmark.py --out experiments/results/benchmark-cpu.json
    python experiments/benchmarks/benchmark.py --against ../before --check
    python experiments/benchmarks/benchmark.py --quick

`--against` takes another checkout in turns, each with its own package and its own copy of this script, in processes of their
own; `..._against` is this checkout's time over the other's. Runs unchanged on a GPU. On a CPU every device is one thread, so
one device is one core.
"""

import contextlib
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, NetworkConfig, Record
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.timing import Contestant, Turn, conclude, keep_to_one_core, median_ratio, serve, served, take_turns

# The setting of the published peers: CleanRL's dqn_jax with ten environments instead of ten steps of one.
CARTPOLE = AgentConfig(num_envs=10, batch_size=128, learning_starts=1_000, learning_rate=2.5e-4, target_period=50)
# For several devices: sizes that four of them divide.
CARTPOLE_SHARDED = dataclasses.replace(CARTPOLE, num_envs=16)
BREAKOUT = AgentConfig(num_envs=16, batch_size=32, replay_capacity=100_000, learning_starts=1_600, learning_rate=2.5e-4)
SETTINGS = {
    "peers": ("CartPole-v1", NetworkConfig(hidden_sizes=(120, 84)), CARTPOLE),
    "cartpole": ("CartPole-v1", NetworkConfig(hidden_sizes=(120, 84)), CARTPOLE_SHARDED),
    "breakout": ("Breakout-MinAtar", NetworkConfig(hidden_sizes=(128,)), BREAKOUT),
}

AT_MOST = {
    "iteration_over_floor": 1.25,
    "pmap_over_jit": 1.03,
    "compile_cartpole_over_floor": 7.0,
    "compile_breakout_over_floor": 9.0,
    "replay_breakout_over_floor": 1.08,
}
AT_LEAST = {"sixteen_seeds_over_one": 1.6}
AGAINST = 1.12
"""Largest ratio of this checkout's time to the other's, unless `--targets` gives another.

Two checkouts with the same code were up to 1.11 apart with four devices on two cores, and up to 1.06 elsewhere."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, where to write it, and what it is compared with."""

    out: Path | None = None
    """JSON file to write."""
    quick: bool = False
    """Shorter turns: a check that it works, not numbers to quote."""
    against: Path | None = None
    """Directory of another checkout, to take turns with."""
    check: bool = False
    """End with status 1 where a target is missed."""
    targets: dict[str, float] = dataclasses.field(default_factory=dict)
    """Largest values, by name: `--targets iteration_against 0.67` asks for 1.5 times the other checkout's speed."""
    serve: Literal["one-core", "compiling", "devices"] | None = None
    """Serve this group of contestants to another process, as `--against` has it from both checkouts."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Data-parallel training to be timed."""

    setting: str
    seeds: int
    devices: int | None
    """Devices that one agent is divided over; None divides the seeds over as many as there are cores (or GPUs)."""
    steps: int
    """Agent steps of a turn."""

    @property
    def frames(self) -> int:
        """Returns the frames of a turn, of all seeds."""
        return self.steps * SETTINGS[self.setting][2].frames_per_step * self.seeds


def cells(quick: bool) -> dict[str, Cell]:
    """Lists what is timed on several devices, by name."""
    scale = 1 if quick else 10
    divided = {
        f"{name}_{count}_devices": Cell(name, seeds, count, steps * scale)
        for name, seeds, steps in (("cartpole", 8, 30), ("breakout", 2, 5))
        for count in (1, 2, 4)
    }
    return divided | {f"{seeds}_seeds": Cell("cartpole", seeds, None, 30 * scale) for seeds in (1, 4, 16)}


def main(options: Options) -> None:
    """Measures everything, prints a table, writes the JSON file; or serves contestants to the process that does."""
    if options.serve is not None:
        serve(GROUPS[options.serve](options.quick))
        return
    seconds: dict[str, dict[str, list[float]]] = {"here": {}, "there": {}}
    for group in GROUPS:
        for (side, name), turns in turns_of(group, options).items():
            seconds[side][name] = turns
    runtime.setup(1)
    results = describe_machine() | ratios(seconds["here"], options.quick) | replay_bytes()
    results |= {f"{name}_against": median_ratio(seconds["here"][name], turns) for name, turns in seconds["there"].items()}
    conclude(results, options.out, misses(results, options.targets), options.check)


def turns_of(group: str, options: Options) -> dict[tuple[str, str], list[float]]:
    """Times every turn of a group's contestants, in seconds, by side ("here" or "there") and name."""
    turns = {"compiling": 1 if options.quick else 3}.get(group, 5 if options.quick else 9)
    script = Path(__file__).resolve()
    sides = {"here": script.parents[2]} | ({} if options.against is None else {"there": options.against})
    with contextlib.ExitStack() as stack:
        contestants = {}
        for side, checkout in sides.items():
            args = ("--serve", group, *(["--quick"] if options.quick else []))
            for name, remote in stack.enter_context(served(checkout, script.name, *args)).items():
                contestants[side, name] = remote
        # Both sides of a name one after the other: what slows the machine down slows both.
        return take_turns(dict(sorted(contestants.items(), key=lambda item: item[0][::-1])), turns)


def ratios(seconds: Mapping[str, list[float]], quick: bool) -> Record:
    """Computes the results from the seconds of this checkout's contestants."""
    iterations = iterations_of(quick)
    results: Record = {
        "iteration_over_floor": median_ratio(seconds["iteration"], seconds["floor"]),
        "iteration_microseconds": statistics.median(seconds["iteration"]) / iterations * 1e6,
        "floor_microseconds": statistics.median(seconds["floor"]) / iterations * 1e6,
        "pmap_over_jit": median_ratio(seconds["pmap"], seconds["iteration"]),
    }
    for name in ("cartpole", "breakout"):
        compiling, floor = seconds[f"compile_{name}"], seconds[f"compile_{name}_floor"]
        results[f"compile_seconds_{name}"] = statistics.median(compiling)
        results[f"compile_{name}_over_floor"] = median_ratio(compiling, floor)
    rates = {
        name: cell.frames / statistics.median(seconds[name]) if name in seconds else None for name, cell in cells(quick).items()
    }
    results |= {f"frames_per_second_{name}": rate for name, rate in rates.items()}
    # Sixteen times the frames in a turn.
    return results | {"sixteen_seeds_over_one": 16 * median_ratio(seconds["1_seeds"], seconds["16_seeds"])}


def misses(results: Mapping[str, Any], targets: Mapping[str, float]) -> list[str]:
    """Returns a sentence for each target that is missed, or was not measured."""
    against = {name: AGAINST for name in results if name.endswith("_against")}
    sentences = [f"{name} was not measured: choose from {', '.join(results)}" for name in targets if name not in results]
    for name, most in (AT_MOST | against | dict(targets)).items():
        if name in results and results[name] > most:
            sentences.append(f"{name} is {results[name]:.3f}, and should be at most {most:g}")
    for name, least in AT_LEAST.items():
        if results[name] < least:
            sentences.append(f"{name} is {results[name]:.3f}, and should be at least {least:g}")
    return sentences


def describe_machine() -> Record:
    """Returns the origin of the numbers: command, date, hardware and versions, flat."""
    from dqn_jax.runner.records import provenance

    facts = provenance()
    return facts | {"versions": ", ".join(f"{package} {version}" for package, version in facts["versions"].items())}


def iterations_of(quick: bool) -> int:
    """Returns the agent steps in a turn on one core."""
    return 100 if quick else 1_000


def one_core(quick: bool) -> Mapping[str, Callable[[], Turn]]:
    """Lists an agent's iteration by `jit`, by `pmap` on one device, and its bare arithmetic."""
    keep_to_one_core()
    import jax

    from dqn_jax.agent import make_agent, make_chunk
    from dqn_jax.distributed.data_parallel import AXIS
    from dqn_jax.mapping import over, place

    env, network, config = parts("peers")
    device = jax.local_devices()[:1]
    steps = iterations_of(quick)
    agent = make_agent(env, network, config)
    averaging = make_agent(env, network, config, axis_name=AXIS)
    start = jax.jit(lambda: agent.warm_up(agent.init(jax.random.key(0))))

    def parallel() -> Contestant:
        state = place(jax.tree.map(lambda x: x[None], start()), device)
        return Contestant(state, over(make_chunk(averaging, steps), AXIS, device, donate=True))

    return {
        "iteration": lambda: Contestant(start(), jax.jit(make_chunk(agent, steps), donate_argnums=0)),
        "pmap": parallel,
        "floor": lambda: Contestant(
            start().learner, jax.jit(bare_arithmetic(network, config, env.spec.obs_shape, steps), donate_argnums=0)
        ),
    }


@dataclasses.dataclass
class Compilation:
    """A contestant that compiles anew in every turn."""

    make: Callable[[], Callable[[], Any]]

    def turn(self) -> float:
        """Returns the seconds of the first call less those of the second, which compiles nothing."""
        import jax

        call, seconds = self.make(), []
        for _ in range(2):
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - began)
        return seconds[0] - seconds[1]


def compiling(quick: bool) -> Mapping[str, Callable[[], Turn]]:
    """Lists a driver's start and first chunk on one device, and its bare arithmetic, compiled anew in every turn."""
    del quick
    runtime.setup(1)
    import jax

    from dqn_jax.agent import hyperparams_of
    from dqn_jax.learner import make_learner

    def whole(name: str) -> Callable[[], Any]:
        driver = make_driver(Cell(name, seeds=1, devices=1, steps=1))
        return lambda: driver.step(driver.init())[0]

    def floor(name: str) -> Callable[[], Any]:
        env, network, config = parts(name)
        run = bare_arithmetic(network, config, env.spec.obs_shape, steps=1)
        learner = make_learner(network, config)
        return jax.jit(lambda: run(learner.init(jax.random.key(0), hyperparams_of(config).learner))[0].params)

    makers = {f"compile_{name}": partial(whole, name) for name in ("cartpole", "breakout")}
    makers |= {f"compile_{name}_floor": partial(floor, name) for name in ("cartpole", "breakout")}
    return {name: partial(Compilation, make) for name, make in makers.items()}


def on_devices(quick: bool) -> Mapping[str, Callable[[], Turn]]:
    """Lists data-parallel training in each cell with enough devices."""
    runtime.setup(4)
    import jax

    def contestant(cell: Cell) -> Contestant:
        driver = make_driver(cell)
        return Contestant(driver.init(), driver.step)

    possible = {name: cell for name, cell in cells(quick).items() if (cell.devices or 1) <= jax.local_device_count()}
    return {name: partial(contestant, cell) for name, cell in possible.items()}


GROUPS: dict[str, Callable[[bool], Mapping[str, Callable[[], Turn]]]] = {
    "one-core": one_core,
    "compiling": compiling,
    "devices": on_devices,
}


def bare_arithmetic(network: Any, config: AgentConfig, obs_shape: tuple[int, ...], steps: int) -> Callable:
    """Builds a scan of the forward passes, backward pass and Adam step on a fixed batch: state -> (state, losses).

    The target network is the last update's parameters; one that never changed would be hoisted out of the loop.
    """
    import jax
    import jax.numpy as jnp
    import optax

    # Of the form that the learner's state has, without clipping.
    optimizer = optax.chain(optax.identity(), optax.adam(config.learning_rate, eps=config.optimizer_eps))
    keys = jax.random.split(jax.random.key(1), 2)
    s_tm1, s_t = (jax.random.normal(key, (config.batch_size, *obs_shape)) for key in keys)
    a_tm1 = jnp.arange(config.batch_size) % 2

    def q_values(params: Any, obs: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: network.apply(params, one, keys[0]).q_values)(obs)

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


def replay_bytes() -> dict[str, float]:
    """Returns the replay bytes of a Breakout-MinAtar transition with its next observation, and that over the fewest."""
    from dqn_jax.agent import example_of
    from dqn_jax.replay import bytes_per_transition

    env, _, config = parts("breakout")
    taken = bytes_per_transition(example_of(env, config))
    # A bit for each entry of two observations; action, reward and discount of four bytes.
    fewest = 2 * -(-math.prod(env.spec.obs_shape) // 8) + 3 * 4
    return {"bytes_per_transition_breakout": taken, "replay_breakout_over_floor": taken / fewest}


def parts(setting: str) -> tuple[Any, Any, AgentConfig]:
    """Builds (environment, network, config) of a setting."""
    from dqn_jax.envs import make_env
    from dqn_jax.networks import make_network

    env_name, network_config, config = SETTINGS[setting]
    env = make_env(env_name)
    return env, make_network(network_config, env.spec), config


def make_driver(cell: Cell) -> Any:
    """Builds the data-parallel driver of a cell."""
    import jax

    from dqn_jax.distributed.data_parallel import make_data_parallel

    devices = jax.local_devices()
    if cell.devices is None:
        cores = (os.cpu_count() or 1) if devices[0].platform == "cpu" else len(devices)
        fitting = [count for count in range(1, min(len(devices), cores) + 1) if cell.seeds % count == 0]
        devices = devices[: max(fitting)]
    return make_data_parallel(
        *parts(cell.setting),
        seeds=range(cell.seeds),
        devices=devices[: cell.devices],
        steps_per_chunk=cell.steps,
        seeds_over_devices=cell.devices is None,
    )


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))))
