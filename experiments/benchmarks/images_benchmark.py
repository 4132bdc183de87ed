"""What do images cost: a replay with each frame once against whole stacks, convolutions by products against XLA's own?

On one core, contestants taking turns.

    python experiments/benchmarks/images_benchmark.py --out experiments/results/images_benchmark-cpu.json

Frames of 84 x 84 bytes in stacks of four, eight environments, batches of 32, one step a transition: the bytes of a transition,
the time to store a step of all environments, and the time to draw a batch. Then the time of a gradient of the network of
Mnih et al. (2015) on a batch.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dqn_jax.config import AgentConfig, Record
from dqn_jax.runner.timing import Contestant, conclude, median_ratio, on_one_core, take_turns
from dqn_jax.types import EnvSpec

SPEC = EnvSpec("pixels", (84, 84, 4), np.dtype(np.uint8), 6, 27_000, stack=4)
"""The limit of episodes is Atari's."""
AGENT = AgentConfig(num_envs=8, batch_size=32, replay_capacity=20_000)
LARGE = 1_000_000
"""Transitions of the replay whose bytes are computed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    out: Path | None = None
    """JSON file to write."""
    quick: bool = False
    """Shorter turns: a check that it works, not numbers to quote."""


def main(options: Options) -> Record:
    """Measures, prints a table and writes the JSON file."""
    from dqn_jax.runner.records import provenance

    turns = 3 if options.quick else 15
    results = provenance() | on_one_core(measure, 20 if options.quick else 200, turns)
    results |= on_one_core(measure_network, 1 if options.quick else 3, min(turns, 5))
    conclude(results, options.out)
    return results


def measure(length: int, turns: int) -> Record:
    """Returns bytes, and times of `length` additions and as many draws, of both rings."""
    results: Record = {f"bytes_{name}": bytes_of(name) for name in ("frames", "stacks")}
    for kind in ("add", "sample"):
        seconds = take_turns({name: contestant(name, kind, length) for name in ("frames", "stacks")}, turns)
        results[f"{kind}_frames_over_stacks"] = median_ratio(seconds["frames"], seconds["stacks"])
        results |= {f"{kind}_microseconds_{name}": statistics.median(seconds[name]) / length * 1e6 for name in seconds}
    return results


def bytes_of(name: str) -> float:
    """Returns the bytes of each of a million transitions."""
    import jax

    memory = memory_of(name, dataclasses.replace(AGENT, replay_capacity=LARGE))
    leaves = jax.tree.leaves(jax.eval_shape(memory.init))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / LARGE


def memory_of(name: str, config: AgentConfig) -> Any:
    """Builds the uniform memory of an agent in such an environment."""
    from dqn_jax.agent import example_of
    from dqn_jax.envs import Environment
    from dqn_jax.frame_ring import make_frame_ring
    from dqn_jax.replay import make_memory

    none: Any = None
    example = example_of(Environment(SPEC, none, none, ()), config)
    ring = make_frame_ring(SPEC, config, config.replay_capacity, config.num_envs)
    return make_memory(example, config, ring=ring if name == "frames" else None)


def contestant(name: str, kind: str, length: int) -> Contestant:
    """Builds a loop of `length` additions to a full memory, or of as many batches drawn of it, whose every pixel is read."""
    import jax
    import jax.numpy as jnp

    from dqn_jax.types import Transition
    from dqn_jax.windows import SingleStep

    memory = memory_of(name, AGENT)
    rows = (AGENT.num_envs,)
    obs = jax.random.randint(jax.random.key(0), (*rows, *SPEC.obs_shape), 0, 256).astype(jnp.uint8)
    step = Transition(obs, jnp.zeros(rows, jnp.int32), jnp.zeros(rows), jnp.full(rows, 0.99), obs)
    number = jnp.zeros(rows, jnp.int32)
    # An old episode, whose stacks go back by three steps.
    frames = step._replace(s_tm1=obs[..., -1:], s_t=obs[..., -1:])
    given = SingleStep(frames, number > 0, number + 100, number, number) if name == "frames" else step

    def add(state: Any, _: None) -> tuple[Any, jax.Array]:
        return memory.add(state, given), jnp.float32(0)

    def sample(carry: Any, _: None) -> tuple[Any, jax.Array]:
        state, key = carry
        batch = memory.sample(key, state).transitions
        seen = jnp.sum(batch.s_tm1.astype(jnp.float32)) + jnp.sum(batch.s_t.astype(jnp.float32))
        return (state, jax.random.fold_in(key, 0)), seen

    full = jax.jit(lambda: jax.lax.scan(add, memory.init(), length=AGENT.replay_capacity // AGENT.num_envs)[0])()
    start, function = (full, add) if kind == "add" else ((full, jax.random.key(1)), sample)

    def run(state: Any) -> tuple[Any, Record]:
        state, seen = jax.lax.scan(function, state, length=length)
        return state, {"seen": jnp.sum(seen)}

    return Contestant(start, jax.jit(run, donate_argnums=0))


def measure_network(length: int, turns: int) -> Record:
    """Returns times of `length` gradients of the network, with its convolutions and with XLA's."""
    seconds = take_turns({name: network_contestant(name, length) for name in ("products", "xla")}, turns)
    times = {f"gradient_milliseconds_{name}": statistics.median(seconds[name]) / length * 1e3 for name in seconds}
    return {"gradient_products_over_xla": median_ratio(seconds["products"], seconds["xla"])} | times


def network_contestant(name: str, length: int) -> Contestant:
    """Builds a loop of `length` steps of plain descent of the network's square output, on a batch of stacks."""
    import jax
    import jax.numpy as jnp

    batch = jax.random.uniform(jax.random.key(0), (AGENT.batch_size, *SPEC.obs_shape))
    nature = nature_of(name == "xla")
    params = nature.init(jax.random.key(1), batch[0])

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(jax.vmap(lambda obs: nature.apply(params, obs))(batch)))

    def descend(params: Any, _: None) -> tuple[Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda x, g: x - 1e-3 * g, params, grads), value

    def run(params: Any) -> tuple[Any, Record]:
        params, losses = jax.lax.scan(descend, params, length=length)
        return params, {"loss": jnp.mean(losses)}

    return Contestant(params, jax.jit(run, donate_argnums=0))


def nature_of(by_xla: bool) -> Any:
    """Builds the trunk with a layer of 512, or the same with XLA's convolutions."""
    import flax.linen as nn

    from dqn_jax.trunks import Nature, Trunk

    class ByXla(nn.Module):
        @nn.compact
        def __call__(self, obs: Any) -> Any:
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                obs = nn.relu(nn.Conv(features, (size, size), stride, padding="VALID")(obs))
            return Trunk((512,), name="layers")(obs)

    return ByXla() if by_xla else Nature((512,))


if __name__ == "__main__":
    main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0]))
