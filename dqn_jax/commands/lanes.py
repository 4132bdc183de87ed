"""Trains one config for many seeds, and learning rates, at once, and evaluates it on the way. No files are written.

Not here: which configs are compared, and what becomes of the numbers.

Shapes: S lanes, T evaluations, E episodes of an evaluation.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import AgentState
from dqn_jax.build import build
from dqn_jax.config import DataParallelExperiment
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.envs import eval_env_of
from dqn_jax.evaluation import make_evaluate
from dqn_jax.mapping import evaluation_key, local_devices
from dqn_jax.runner.timing import Contestant
from dqn_jax.types import Params


class Curves(NamedTuple):
    """What training gave."""

    frames: np.ndarray
    """[T] frames of a lane until each evaluation."""
    updates: np.ndarray
    """[T] updates of a lane until then."""
    returns: np.ndarray
    """[S, T, E] returns of greedy episodes."""
    infos: dict[str, np.ndarray]
    """{name: [S, T]}: metrics of the chunk before each evaluation."""
    seconds: np.ndarray
    """[T] seconds of training, of all lanes together: the median chunk's, so without compilation and evaluations."""
    params: Params
    """The final ones, leaves [S, ...]."""


def train_lanes(
    config: DataParallelExperiment, seeds: Sequence[int], learning_rates: Sequence[float], evaluations: int, episodes: int
) -> Curves:
    """Trains a lane for each seed and its learning rate, divided over the devices there are.

    Args:
      config: the agent, its environment and how long it is trained; its seeds and periods are not read.
      seeds: [S], which may repeat.
      learning_rates: [S].
      evaluations: T, evenly spaced; the last one is of the final parameters.
      episodes: E.
    """
    # Many programs in one process exhaust the memory for their code; the cache on disk brings a cell's back.
    jax.clear_caches()
    env, network = build(config)
    agent = config.agent
    steps = (config.total_frames - agent.warm_up_frames) // agent.frames_per_step // evaluations
    devices = local_devices(None)
    devices = devices[: math.gcd(len(devices), len(seeds))]
    driver = make_data_parallel(
        env, network, agent, seeds=seeds, devices=devices, steps_per_chunk=steps, seeds_over_devices=True
    )
    training = Contestant(_with_rates(driver.init(), learning_rates), driver.step)
    evaluate = make_evaluate(eval_env_of(config, env), network, episodes, epsilon=config.runner.eval_epsilon)
    play = jax.jit(jax.vmap(evaluate))
    returns, infos, seconds = [], [], []
    for number in range(1, evaluations + 1):
        seconds.append(training.turn())
        infos.append(training.info)
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(seeds), number)
        returns.append(np.asarray(play(keys, driver.params(training.state)).returns))
    done = np.arange(1, evaluations + 1)
    return Curves(
        frames=driver.initial_frames + done * driver.per_step,
        updates=done * steps * agent.updates_per_step,
        returns=np.stack(returns, axis=1),
        infos={name: np.stack([info[name] for info in infos], axis=1) for name in infos[0]},
        seconds=done * statistics.median(seconds),
        params=driver.params(training.state),
    )


def _with_rates(state: AgentState, learning_rates: Sequence[float]) -> AgentState:
    """Gives each lane its learning rate, which is an array of the state."""
    numbers = state.learner.hyperparams
    old = numbers.learning_rate
    rates = jax.device_put(np.array(learning_rates, np.float32).reshape(old.shape), old.sharding)
    return state.replace(learner=state.learner.replace(hyperparams=numbers._replace(learning_rate=rates)))
