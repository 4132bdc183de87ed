"""Environments of the host: a plain loop sees the same; so do an actor, a worker and an evaluation inside a program."""

import dataclasses
import os
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import NETWORK, STEADY, assert_bitwise, assert_close, assert_differs
from walks import GOAL, HostWalk, walk

from dqn_jax.agent import keys_of
from dqn_jax.config import InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import workers
from dqn_jax.distributed.actors import Policy, make_job
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.distributed.engines import on_ray
from dqn_jax.distributed.engines.tasks import Task
from dqn_jax.distributed.roles import Copy
from dqn_jax.envs import from_functions, make_env, seeds_of
from dqn_jax.envs.gymnasium_envs import final_observations
from dqn_jax.evaluation import evaluator_of, make_evaluate, one_environment, stepping
from dqn_jax.mapping import stream_key
from dqn_jax.networks import Network, QValues, make_network

pytestmark = pytest.mark.long

LIMIT = 15
CONFIG = ActorLearnerExperiment(
    env="gymnasium:CartPole-v1",
    max_episode_steps=LIMIT,
    seed=5,
    agent=dataclasses.replace(STEADY, num_envs=4, n_step=1),
    network=NetworkConfig(hidden_sizes=(16, 16)),
    runner=RunnerConfig(eval_episodes=32),
    actors=ActorLearnerConfig(num_actors=2, acts_per_block=80, exploration="shared"),
)


def host_seeds(seed, numbers):
    """Of the environments with these numbers in a run."""
    _, actor_key, _ = keys_of(stream_key(seed))
    return seeds_of(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(actor_key, jnp.array(numbers)))


def task(stream):
    return Task(stream, 0, 0, Policy(NETWORK.init(jax.random.key(0)), loss_hyperparams={}))


@pytest.fixture(scope="module")
def block():
    """Eighty acts of the second actor, whose environments are numbers 2 and 3."""
    job = make_job(CONFIG)
    _, block, info = job.work(job.begin(task(1)), task(1))
    assert info["epsilon"] == 1.0
    return block.transitions, info


def test_transitions_are_those_of_a_plain_loop(block):
    transitions, info = block
    terminations = limits = 0
    for column, seed in enumerate(host_seeds(CONFIG.seed, (2, 3))):
        env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        obs, _ = env.reset(seed=seed)
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
    seeds = [seed for run in range(3) for seed in host_seeds(run, range(4))]
    assert len(set(seeds)) == 12
    env = gymnasium.make("CartPole-v1")
    first = [env.reset(seed=seed)[0].astype(np.float32).tolist() for seed in seeds]
    env.close()
    assert len({tuple(obs) for obs in first}) == 12
    assert block[0].s_tm1[0, 0].tolist() not in first


def test_final_observations_are_put_in_where_episodes_ended():
    obs = np.array([[1.0], [2.0], [3.0]])
    final = np.array([None, np.array([9.0]), None], dtype=object)
    info = {"final_obs": final, "_final_obs": np.array([False, True, False])}
    np.testing.assert_array_equal(final_observations(obs, info), [[1.0], [9.0], [3.0]])
    np.testing.assert_array_equal(final_observations(obs, {}), obs)
    np.testing.assert_array_equal(obs, [[1.0], [2.0], [3.0]])


def test_evaluation_plays_each_first_episode_once():
    config = dataclasses.replace(CONFIG, max_episode_steps=30)
    params = NETWORK.init(jax.random.key(2))
    key = jax.random.key(3)
    evaluator = evaluator_of(config, make_env(config.env, config.max_episode_steps), NETWORK)
    returns, unfinished = evaluator.play(key[None], jax.tree.map(lambda x: x[None], params))
    seeds = seeds_of(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(32)))
    greedy = jax.jit(lambda obs: NETWORK.apply(params, obs, None).q_values.argmax())
    lengths = []
    env = gymnasium.make("CartPole-v1", max_episode_steps=30)
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
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


@pytest.fixture
def both(mine):
    """The walk's names: stepped in a program, and on the host."""
    mine.walk = walk
    gymnasium.register("Walk-v0", entry_point=HostWalk, max_episode_steps=5)
    yield "mine:walk", "gymnasium:Walk-v0"
    del gymnasium.registry["Walk-v0"]


WALK_PARAMS = make_network(NetworkConfig(hidden_sizes=(8,)), from_functions("walk", walk()).spec).init(jax.random.key(4))


def test_an_actor_of_the_host_is_that_of_a_program(both):
    def blocks(name):
        config = dataclasses.replace(CONFIG, env=name, max_episode_steps=None, network=NetworkConfig(hidden_sizes=(8,)))
        job = make_job(config)
        first = Task(3, 100, 7, Policy(WALK_PARAMS, loss_hyperparams={}))
        state, *begun = job.work(job.begin(first), first)
        return begun, job.work(state, first._replace(params=None))[1:]

    inside, outside = (blocks(name) for name in both)
    assert_bitwise([block for block, _ in outside], [block for block, _ in inside])
    assert_close(outside[1][1], inside[1][1])
    # The walk was played, to its goal and into its limit.
    assert inside[0][0].transitions.s_t[..., 0].max() == GOAL
    assert inside[1][1]["truncated"] > 0


@pytest.mark.parametrize(
    ("server", "agent"),
    [
        (ServerConfig(num_workers=2), {"acts_per_step": 3, "n_step": 2}),
        (ServerConfig(num_workers=2, push="delta", local_steps=2), {"updates_per_step": 2, "memory": "prioritised"}),
    ],
    ids=["gradient", "delta"],
)
def test_a_worker_of_the_host_is_that_of_a_program(both, server, agent):
    """Lives begin, parameters are pulled, and two pushes follow: all of them the same, but for the order of sums."""

    def pushes(name, stream=1):
        config = ServerExperiment(
            env=name,
            backend="in-process",
            num_seeds=1,
            agent=dataclasses.replace(STEADY, num_envs=2, batch_size=8, replay_capacity=64, learning_starts=16, **agent),
            network=NetworkConfig(hidden_sizes=(8,)),
            server=server,
        )
        job = workers.make_job(config)
        first = Task(stream, 0, 0, Copy(WALK_PARAMS, WALK_PARAMS, loss_hyperparams={}))
        state, push, info = job.work(job.begin(first), first)
        again = job.work(state, first._replace(params=None))
        new = Copy(jax.tree.map(lambda x: 2 * x, WALK_PARAMS), WALK_PARAMS, loss_hyperparams={})
        return (push, info), again[1:], job.work(again[0], first._replace(params=new))[1:]

    inside, outside, other = pushes(both[0]), pushes(both[1]), pushes(both[1], stream=2)
    assert_close(outside, inside)
    assert_differs([push for push, _ in other], [push for push, _ in inside])


def test_evaluation_on_the_host_is_that_of_a_program(both):
    """Every policy that walks by what it sees, down to the goal or into the limit."""
    envs = [make_env(name) for name in both]
    # Q(right) - Q(left) = w . observation + b: right everywhere; nowhere; until place 2.
    network = Network(
        lambda key: jnp.zeros(3), lambda params, obs, key: QValues(jnp.array([0.0, params @ jnp.append(obs, 1.0)]))
    )
    policies = jnp.array([[0.0, 0, 1], [0.0, 0, -1], [-1.0, 0, 1.5]])
    keys = jax.random.split(jax.random.key(0), 3)
    inside, outside = (
        one_environment(make_evaluate(env, network, 32), range(3), {}, stepping(env).over_seeds).play(keys, policies)
        for env in envs
    )
    assert np.asarray(outside[0]).tolist() == [[60.0], [0.0], [10.0 + 4 * 20.0]]
    np.testing.assert_array_equal(outside[0], inside[0])
    assert (np.asarray(outside[1]).tolist(), np.asarray(inside[1]).tolist()) == ([0] * 3, [0] * 3)


REFUSED = {
    "gymnasium:NoSuchThing-v1": "env is 'gymnasium:NoSuchThing-v1', which Gymnasium cannot make: ",
    "gymnasium:Pendulum-v1": "env is 'gymnasium:Pendulum-v1', whose actions are Box",
    "gymnasium:FrozenLake-v1": "env is 'gymnasium:FrozenLake-v1', whose observations are Discrete",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        make_env(name)


def test_an_environment_without_a_time_limit_needs_one():
    class Endless(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
        action_space = gymnasium.spaces.Discrete(2)

    gymnasium.register("Endless-v0", entry_point=Endless)
    try:
        with pytest.raises(InputError, match=r"which has no time limit, .*: set --max-episode-steps$"):
            make_env("gymnasium:Endless-v0")
        assert make_env("gymnasium:Endless-v0", 9).spec.max_episode_steps == 9
    finally:
        del gymnasium.registry["Endless-v0"]


def test_without_gymnasium_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(InputError, match=r"^env is 'gymnasium:CartPole-v1', and Gymnasium .*pip install -e '\.\[gymnasium\]'$"):
        make_env("gymnasium:CartPole-v1")


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^backend is 'ray', and Ray is not installed: pip install -e '\.\[ray\]'$"):
        on_ray.start(lambda: None, 1)


WITHOUT = """
import sys
sys.modules["ray"] = None
import dqn_jax.distributed.engines.on_ray, dqn_jax.distributed.actors, dqn_jax.distributed.actor_learner
import dqn_jax.distributed.workers, dqn_jax.distributed.server_on_workers
# gymnax imports it for itself: blocked from here on.
sys.modules["gymnasium"] = None
from dqn_jax.config import InputError
try:
    dqn_jax.envs.make_env("gymnasium:CartPole-v1")
except InputError as error:
    assert "not installed" in str(error)
from dqn_jax.distributed import engines
from dqn_jax.distributed.engines.tasks import Job, Task
for backend in ("in-process", "threads"):
    engine = engines.start(backend, lambda: Job(lambda task: 0, lambda state, task: (state, backend, {})), 1)
    engine.send(0, Task(0, 0, 0, 0))
    print(engine.receive(60.0).payload)
    engine.close()
"""


def test_the_rest_works_without_either():
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["in-process", "threads"]), done.stderr


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("atari:Pong", "ale_py", "atari"), ("octax:brix", "octax", "octax"), ("pgx:2048", "pgx", "pgx")],
)
def test_without_games_the_error_names_their_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^env is '{name}', and .* is not installed: pip install -e '\.\[{extra}\]'$"):
        make_env(name)
