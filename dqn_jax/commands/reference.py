"""Trains with CleanRL's published `dqn_jax` settings on CartPole and compares the training return it reports.

    python experiments/reference.py --out experiments/results/reference.json

CleanRL (Huang et al. 2022) publishes 498.4 +- 2.3 after 500,000 frames, over 3 seeds. Here: the mean return of each seed's
last 100 training episodes, epsilon 0.05 and all, over 20 seeds.

Differences from CleanRL: gymnax's float32 CartPole instead of Gymnasium's; other random streams; the order of random draws;
learning starts after exactly 10,000 frames. A time limit bootstraps in both.
"""

import dataclasses
import json
import math
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.runner.command_line import exit_code_of, options

SIZES = AgentConfig(num_envs=1, acts_per_step=10, batch_size=128, replay_capacity=10_000, learning_starts=10_000)
CONFIG = dataclasses.replace(SIZES, learning_rate=2.5e-4, target_period=50, epsilon_end=0.05, epsilon_decay_frames=250_000)
NETWORK = NetworkConfig(hidden_sizes=(120, 84))
TOTAL_FRAMES = 500_000
NUM_SEEDS = 20
LAST_EPISODES = 100
PUBLISHED = {"mean": 498.4, "std": 2.3, "seeds": 3}


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the result goes."""

    out: Path = Path("runs/reference.json")
    """File to write."""


def compare() -> None:
    """Trains all seeds, half of them on each device, and writes the result."""
    out = options(Options(), "Trains with CleanRL's settings, and compares.").out
    runtime.setup()
    import numpy as np

    from dqn_jax.runner.records import provenance

    episodes, return_sums = train()
    returns = [mean_of_last(*seed) for seed in zip(episodes, return_sums, strict=True)]
    result = provenance() | {
        "measured": f"mean training return of the last {LAST_EPISODES} episodes of each seed",
        "frames": TOTAL_FRAMES,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)),
        "seeds": NUM_SEEDS,
        "returns": returns,
        "published": PUBLISHED,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    published = "{mean} +- {std} over {seeds}".format(**PUBLISHED)
    print(f"{result['mean']:.1f} +- {result['std']:.1f} over {NUM_SEEDS} seeds; published: {published}")


def train():
    """Trains all seeds: (episodes that ended, sum of their returns), each [seeds, agent steps] in order."""
    import jax
    import numpy as np

    from dqn_jax.agent import make_agent
    from dqn_jax.envs import make_env
    from dqn_jax.mapping import local_devices, over, place, stream_key
    from dqn_jax.networks import make_network

    env = make_env("CartPole-v1")
    agent = make_agent(env, make_network(NETWORK, env.spec), CONFIG)
    steps = (TOTAL_FRAMES - CONFIG.warm_up_acts) // CONFIG.acts_per_step

    def step(state, _):
        state, info = agent.step(state)
        return state, (info["episodes"], info["return_sum"])

    def one_seed(seed):
        state = agent.warm_up(agent.init(stream_key(seed)))
        return jax.lax.scan(step, state, length=steps)[1]

    available = local_devices(None)
    devices = available[: math.gcd(len(available), NUM_SEEDS)]
    seeds = np.arange(NUM_SEEDS, dtype=np.uint32).reshape(len(devices), -1)
    history = over(over(one_seed), devices=devices)(place(seeds, devices))
    return [np.asarray(values).reshape(NUM_SEEDS, steps) for values in history]


def mean_of_last(episodes, return_sums) -> float:
    """Computes the mean return of a seed's last 100 episodes, and of any others in the same agent step as the first."""
    from_the_end = episodes[::-1].cumsum()
    first = len(episodes) - 1 - int((from_the_end >= LAST_EPISODES).argmax())
    return float(return_sums[first:].sum() / episodes[first:].sum())


def main() -> int:
    """Runs the job and returns its exit status."""
    return exit_code_of(compare)
