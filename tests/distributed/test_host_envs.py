"""Gymnasium environments on the host: the transitions are those of a plain loop, and evaluation plays first episodes."""

import dataclasses
import os
import subprocess
import sys

import gymnasium
import jax
import numpy as np
import pytest
from laws.common import NETWORK, STEADY

from dqn_jax.config import InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import host_envs
from dqn_jax.distributed.actors import Policy, make_job
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment
from dqn_jax.distributed.engines import on_ray
from dqn_jax.distributed.engines.post import Order

pytestmark = pytest.mark.long

LIMIT = 15
CONFIG = ActorLearnerExperiment(
    env="gymnasium:CartPole-v1",
    max_episode_steps=LIMIT,
    seed=5,
    agent=dataclasses.replace(STEADY, num_envs=4, n_step=1),
    network=NetworkConfig(hidden_sizes=(16, 16)),
    runner=RunnerConfig(eval_episodes=32),
    actors=ActorLearnerConfig(num_actors=2, acts_per_block=40, exploration="shared"),
)


def order(stream):
    return Order(stream, 0, 0, Policy(NETWORK.init(jax.random.key(0)), loss_hyperparams={}))


@pytest.fixture(scope="module")
def block():
    """Forty acts of the second actor, whose environments are numbers 2 and 3."""
    job = make_job(CONFIG)
    _, block, info = job.work(job.begin(order(1)), order(1))
    assert info["epsilon"] == 1.0
    return block.transitions, info


def test_transitions_are_those_of_a_plain_loop(block):
    transitions, info = block
    terminations = limits = 0
    for column, number in enumerate((2, 3)):
        env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        obs, _ = env.reset(seed=host_envs.env_seed(CONFIG.seed, number))
        for time, action in enumerate(transitions.a_tm1[:, column].tolist()):
            after, reward, terminated, truncated, _ = env.step(action)
            seen = jax.tree.map(lambda x, time=time, column=column: x[time, column], transitions)
            np.testing.assert_array_equal(seen.s_tm1, obs.astype(np.float32))
            # The episode's own last observation, at its end too.
            np.testing.assert_array_equal(seen.s_t, after.astype(np.float32))
            assert (seen.r_t, seen.discount_t) == (np.float32(reward), np.float32(0.0 if terminated else 0.99))
            terminations, limits = terminations + terminated, limits + (truncated and not terminated)
            obs = env.reset()[0] if terminated or truncated else after
        env.close()
    assert min(terminations, limits) > 0
    assert (info["terminated"], info["truncated"], info["episodes"]) == (terminations, limits, terminations + limits)


def test_a_loop_with_other_seeds_sees_something_else(block):
    seeds = [host_envs.env_seed(seed, env) for seed in range(3) for env in range(4)]
    assert len(set(seeds)) == 12
    env = gymnasium.make("CartPole-v1")
    first = [env.reset(seed=seed)[0].astype(np.float32).tolist() for seed in seeds]
    env.close()
    assert len({tuple(obs) for obs in first}) == 12
    assert block[0].s_tm1[0, 0].tolist() not in first
    assert {host_envs.env_seed(5, env) for env in range(4)}.isdisjoint(seeds)


def test_final_observations_are_put_in_where_episodes_ended():
    obs = np.array([[1.0], [2.0], [3.0]])
    final = np.array([None, np.array([9.0]), None], dtype=object)
    info = {"final_obs": final, "_final_obs": np.array([False, True, False])}
    np.testing.assert_array_equal(host_envs.final_observations(obs, info), [[1.0], [9.0], [3.0]])
    np.testing.assert_array_equal(host_envs.final_observations(obs, {}), obs)
    np.testing.assert_array_equal(obs, [[1.0], [2.0], [3.0]])


def test_evaluation_plays_each_first_episode_once():
    config = dataclasses.replace(CONFIG, max_episode_steps=30)
    params = NETWORK.init(jax.random.key(2))
    key = jax.random.key(3)
    evaluator = host_envs.make_evaluator(config)
    returns, unfinished = evaluator.play(key[None], jax.tree.map(lambda x: x[None], params))
    first = int(jax.random.randint(key, (), 0, 2**30))
    greedy = jax.jit(lambda obs: NETWORK.apply(params, obs, None).q_values.argmax())
    lengths = []
    env = gymnasium.make("CartPole-v1", max_episode_steps=30)
    for episode in range(32):
        obs, _ = env.reset(seed=first + episode)
        ended, length = False, 0
        while not ended:
            obs, _, terminated, truncated, _ = env.step(int(greedy(obs)))
            ended, length = terminated or truncated, length + 1
        lengths.append(length)
    env.close()
    # Of different lengths, so that others' second episodes were running.
    assert len(set(lengths)) > 1
    np.testing.assert_allclose(returns, [[np.mean(lengths)]])
    assert unfinished.tolist() == [0]
    assert evaluator.columns[0][0]["env_params"] == {"max_steps_in_episode": 30}


REFUSED = {
    "gymnasium:NoSuchThing-v1": "env is 'gymnasium:NoSuchThing-v1', which Gymnasium cannot make: ",
    "gymnasium:Pendulum-v1": "env is 'gymnasium:Pendulum-v1', whose actions are Box",
    "gymnasium:FrozenLake-v1": "env is 'gymnasium:FrozenLake-v1', whose observations are Discrete",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        host_envs.describe(name, None)


def test_an_environment_without_a_time_limit_needs_one():
    class Endless(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
        action_space = gymnasium.spaces.Discrete(2)

    gymnasium.register("Endless-v0", entry_point=Endless)
    try:
        with pytest.raises(InputError, match=r"which has no time limit, .*: set max_episode_steps$"):
            host_envs.describe("gymnasium:Endless-v0", None)
        assert host_envs.describe("gymnasium:Endless-v0", 9).max_episode_steps == 9
    finally:
        del gymnasium.registry["Endless-v0"]


def test_without_gymnasium_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        InputError, match=r"^env is 'gymnasium:CartPole-v1', and Gymnasium .*pip install 'dqn-jax\[gymnasium\]'$"
    ):
        host_envs.describe("gymnasium:CartPole-v1", None)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^backend is 'ray', and Ray is not installed: pip install 'dqn-jax\[ray\]'$"):
        on_ray.start(lambda: None, 1)


WITHOUT = """
import sys
sys.modules["ray"] = None
import dqn_jax.distributed.engines.on_ray, dqn_jax.distributed.host_envs, dqn_jax.distributed.actor_learner
import dqn_jax.distributed.server_on_workers
# gymnax imports it for itself: blocked from here on.
sys.modules["gymnasium"] = None
dqn_jax.envs.is_host("gymnasium:CartPole-v1")
from dqn_jax.distributed import engines
from dqn_jax.distributed.engines.post import Job, Order
for backend in ("in-process", "threads"):
    engine = engines.start(backend, lambda: Job(lambda order: 0, lambda state, order: (state, backend, {})), 1)
    engine.send(0, Order(0, 0, 0, 0))
    print(engine.receive(60.0).payload)
    engine.close()
"""


def test_the_rest_works_without_either():
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["in-process", "threads"]), done.stderr
