"""The snippets of docs/extending.md train in every way of training, by name alone, and do what they are named for."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matrix
import numpy as np
import pytest
from laws.common import assert_bitwise, spec_of

from dqn_jax.agent import hyperparams_of, make_agent
from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.config import AgentConfig, InputError, NetworkConfig
from dqn_jax.envs import make_env
from dqn_jax.federated.aggregation import make_aggregator
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.sharing import make_sharing
from dqn_jax.federated.transforms import make_transforms
from dqn_jax.losses import make_loss
from dqn_jax.networks import make_network
from dqn_jax.types import Transition

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The snippets as a user's module in the working directory."""
    (tmp_path / "mine.py").write_text("\n".join(SNIPPETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def test_a_wrapper_charges_for_every_step():
    plain, hurried = (make_env("mine:corridor", wrappers=wrappers) for wrappers in ((), ("mine:hurried:0.25",)))
    state, _ = plain.init(KEY, plain.params)
    rewards = [env.step(KEY, state, jnp.int32(1), env.params)[1].reward for env in (plain, hurried)]
    np.testing.assert_allclose(rewards[0] - rewards[1], 0.25, rtol=1e-6)


def test_a_snippet_is_short():
    assert len(SNIPPETS) > 8
    assert max(len(snippet.strip().splitlines()) for snippet in SNIPPETS) <= 20


AGENTS = {
    "munchausen and noise": (
        {"loss": "mine:munchausen:0.05", "exploration": "greedy", "optimizer": "mine:careful:0.01", "memory": "prioritised"},
        {"head": "mine:noisy", "trunk": "mine:tanh:8"},
        {},
    ),
    "c51": (
        {"loss": "mine:c51_loss", "exploration": "mine:cooling:2:100", "optimizer": "lion:0.8", "memory": "newest"},
        {"head": "mine:c51", "hidden_sizes": (8,)},
        {"env": "mine:corridor", "env_kwargs": ("length=5",), "wrappers": ("mine:hurried:0.1", "frame-stack:2")},
    ),
}


def fields_of_rollouts():
    """PQN's fields of an agent, small, on stacked observations, with a user's trunk."""
    fields = {name.removeprefix("agent."): x for name, x in ALGORITHMS["pqn"].items() if name.startswith("agent.")}
    return fields | {"num_envs": 4, "acts_per_step": 4, "batch_size": 8, "updates_per_step": 2}


SMALL_NETWORK = {"hidden_sizes": (8,)}
Q_LAMBDA = {"n_step": 3, "return_lambda": 0.7}
AGENTS |= {
    "q(lambda)": ({**Q_LAMBDA, "loss": "huber", "double_q": True}, SMALL_NETWORK, {}),
    "rollouts": (fields_of_rollouts(), {"trunk": "mine:tanh:8"}, {"env": "mine:corridor", "wrappers": ("frame-stack:2",)}),
    "prioritised q(lambda)": ({**Q_LAMBDA, "memory": "prioritised"}, SMALL_NETWORK, {"env": "Breakout-MinAtar"}),
}


def experiment(driver, agent, network, env=None):
    """The small experiment of a way of training, with parts of a user's."""
    small = matrix.DRIVERS[driver]
    agent = dataclasses.replace(small.agent, **agent)
    config = dataclasses.replace(small, agent=agent, network=NetworkConfig(**network), **(env or {}))
    if driver != "federated":
        return config
    distribution = "range:slip:0.0:0.4" if env else "cartpole-length"
    parts = {"aggregator": "mine:short:0.5", "heterogeneity": distribution, "transforms": ("mine:gaussian:0.01",)}
    return dataclasses.replace(config, federated=dataclasses.replace(config.federated, unseen_envs=1, **parts))


SERVERS = ("parameter server in virtual time, one replay", "parameter server on threads")


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "driver"),
    [
        *(("munchausen and noise", driver) for driver in ("data-parallel", *SERVERS)),
        *(("c51", driver) for driver in ("data-parallel", "federated", "actor-learner on threads")),
        *(("q(lambda)", driver) for driver in ("data-parallel", "federated", "parameter server on threads")),
        ("prioritised q(lambda)", "actor-learner on threads"),
        *(("rollouts", driver) for driver in ("data-parallel", "actor-learner on threads")),
    ],
)
def test_in_every_way_of_training(driver, agent):
    made, evaluator = matrix.driver_of(experiment(driver, *AGENTS[agent]))
    state, _, _ = matrix.two_chunks(made)
    if driver == "data-parallel":
        returns, _ = evaluator.play(jax.random.split(KEY, 1), made.params(state))
        assert np.isfinite(returns).all()


ENV = make_env("CartPole-v1")
BATCH = Transition(
    s_tm1=jnp.float32([[1, 0, 0, 0], [0, 1, 0, 0]]),
    a_tm1=jnp.array([0, 1]),
    r_t=jnp.float32([1, 2]),
    discount_t=jnp.float32([0.5, 0]),
    s_t=jnp.float32([[0, 0, 1, 0], [0, 0, 0, 1]]),
)


def test_munchausens_target_by_hand():
    """Values are rows of a table; soft values and log policies in numpy, one transition ends."""
    config = AgentConfig(loss="mine:munchausen:0.5:0.9")
    table = np.array([[1.0, 2.0], [0.5, -0.5], [0.3, 0.1], [5.0, 5.0]], np.float32)
    target = np.array([[0.2, 0.4], [1.0, 1.2], [0.7, 0.2], [9.0, 9.0]], np.float32)

    class Table:
        q_values = None

        def __init__(self, q_values):
            self.q_values = q_values

    network = make_network(NetworkConfig(), spec_of((4,), 2))._replace(apply=lambda params, obs, key: Table(obs @ params))
    output = make_loss(network, config)(table, target, BATCH, KEY, hyperparams_of(config).loss)
    policy = np.exp(target / 0.5) / np.exp(target / 0.5).sum(axis=1, keepdims=True)
    # sum_a pi(a) (Q'(a) - tau log pi(a)), and a bonus of alpha tau log pi of the action taken, not below -1.
    soft = (policy * (target - 0.5 * np.log(policy))).sum(axis=1)
    bonus = 0.9 * np.maximum(0.5 * np.log([policy[0, 0], policy[1, 1]]), -1)
    error = np.array([1 + bonus[0] + 0.5 * soft[2] - 1.0, 2 + bonus[1] - -0.5])
    np.testing.assert_allclose(output.loss, error**2, rtol=1e-5)
    np.testing.assert_allclose(output.priority, np.abs(error), rtol=1e-5)


def test_noise_is_drawn_from_a_key_and_left_out_without_one():
    network = make_network(NetworkConfig(head="mine:noisy", hidden_sizes=(8,)), spec_of((4,), 2))
    params = jax.tree.map(lambda x: x + 0.1, network.init(KEY))
    obs = jnp.ones(4)
    one, again, other = (network.apply(params, obs, jax.random.key(k)).q_values for k in (1, 1, 2))
    still = network.apply(params, obs, None).q_values
    assert_bitwise(one, again)
    assert np.abs(one - other).max() > 1e-3
    draws = jax.vmap(lambda key: network.apply(params, obs, key).q_values)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(draws.mean(axis=0), still, atol=4 * draws.std(axis=0).max() / 4000**0.5)
    # Acting with it explores though the rule is greedy.
    config = AgentConfig(num_envs=64, replay_capacity=64, learning_starts=64, batch_size=4, exploration="greedy")
    agent = make_agent(ENV, network, config)
    state = agent.init(KEY).replace(learner=agent.init(KEY).learner.replace(params=params))
    same = state.replace(actor=state.actor.replace(obs=jnp.ones((64, 4))))
    actions = jax.jit(agent.act)(same)[0].replay.storage.a_tm1
    assert set(actions.tolist()) == {0, 1}


def test_c51_moves_its_mass_by_hand():
    """All mass of the best action on 10: with r = 1 and a discount of a half it moves to 6."""
    config = AgentConfig(loss="mine:c51_loss")
    make_network(NetworkConfig(head="mine:c51"), spec_of((4,), 2))
    mine = sys.modules["mine"]
    atoms = np.full((4, 2, 51), 0.0, np.float32)
    # The support's atom 5 is 10; the other action is worth 0.
    atoms[2, 1, 5] = atoms[2, 0, 0] = 100.0
    now = np.log(np.random.default_rng(0).dirichlet(np.ones(51), (4, 2))).astype(np.float32)

    def apply(params, obs, key):
        logits = jnp.tensordot(obs, params, 1)
        return mine.Atoms(jax.nn.softmax(logits) @ mine.SUPPORT, logits)

    network = make_network(NetworkConfig(), spec_of((4,), 2))._replace(apply=apply)
    output = make_loss(network, config)(jnp.array(now), jnp.array(atoms), BATCH, KEY, {})
    # 6 on atoms 2 apart is atom 3. The other transition ends with 2, which is atom 1.
    np.testing.assert_allclose(output.loss, [-now[0, 0, 3], -now[1, 1, 1]], rtol=1e-4)


def test_parts_of_the_federation():
    weights = jnp.array([1.0, 3.0, 0.0])
    deltas = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4], [jnp.nan, jnp.inf]])}
    # The first is cut from 5 to 1, the second is short, the third is absent.
    short, _ = make_aggregator("mine:short:1").combine((), deltas, weights)
    np.testing.assert_allclose(short["w"], [(0.6 + 0.9) / 4, (0.8 + 1.2) / 4], rtol=1e-5)
    momentum = make_aggregator("mine:momentum")
    _, state = momentum.combine(momentum.init({"w": jnp.zeros(2)}), deltas, weights)
    delta, state = momentum.combine(state, deltas, weights)
    # The mean by weights 1 and 3, and 0.9 of it from before.
    np.testing.assert_allclose(delta["w"], [1.9 * 3.9 / 4, 1.9 * 5.2 / 4], rtol=1e-5)
    transform = make_transforms(("mine:gaussian:0.5",))
    delta = {"w": jnp.zeros(10_000)}
    _, sent = transform.update(KEY, transform.init(delta), delta)
    assert abs(float(sent["w"].std()) - 0.5) < 0.02
    network = make_network(NetworkConfig(hidden_sizes=(8, 8)), spec_of((4,), 2))
    sharing = make_sharing(network, AgentConfig(), FederatedConfig(personal="mine:biases"))
    shared = jax.tree_util.tree_leaves_with_path(sharing.shared(network.init(KEY)))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in shared]
    assert names == ["trunk/Dense_0/kernel", "trunk/Dense_1/kernel"]


COMMAND = [sys.executable, str(ROOT / "experiments" / "data_parallel.py"), "--num-devices", "1", "--num-seeds", "1"]
COMMAND += ["--total-frames", "40", "--runner.log-every", "4", "--agent.num-envs", "2"]
COMMAND += ["--agent.batch-size", "4", "--agent.replay-capacity", "32", "--agent.learning-starts", "4"]


BROKEN = """
from mine import *

def fails(network, config):
    def loss(params, target_params, batch, key, hyperparams):
        return LossOutput(batch.missing, batch.r_t, batch.r_t)
    return loss

def infinite(network, config):
    squared = munchausen(network, config)
    def loss(params, target_params, batch, key, hyperparams):
        output = squared(params, target_params, batch, key, {"tau": 1.0, "alpha": 0.0})
        return output._replace(loss=output.loss / jnp.sum(0 * batch.r_t))
    return loss

def signed(network, config):
    squared = munchausen(network, config)
    def loss(params, target_params, batch, key, hyperparams):
        output = squared(params, target_params, batch, key, {"tau": 1.0, "alpha": 0.0})
        return output._replace(priority=-1.5 - 0 * output.priority)
    return loss

class Nan(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", lambda key: jnp.full((x.size, 2), jnp.nan))

third = lambda key, q_values, frames, hyperparams: jnp.int32(2)
nan = lambda config, num_actions: Nan()
none = lambda rate: None
bad_trunk = lambda config: nn.Sequential([lambda x: x.missing])
wide = lambda config, num_actions: nn.Dense(num_actions + 1)
"""


@pytest.mark.long
def test_what_a_users_code_raises_is_one_sentence_with_its_place():
    """The module is in the working directory of the process; with `--debug` the traceback comes first."""
    Path("broken.py").write_text(BROKEN)
    done = subprocess.run([*COMMAND, "--agent.loss", "broken:fails", "--debug"], capture_output=True, text=True, check=False)
    sentence = f"--agent.loss is 'broken:fails', which fails at {Path('broken.py').resolve()}:6 with AttributeError"
    assert done.returncode == 2
    *trace, last = done.stderr.splitlines()
    assert last.startswith(sentence), done.stderr
    assert trace[0].startswith("Traceback (most recent call last)")


@pytest.mark.parametrize(
    ("agent", "network", "sentence"),
    [
        (
            {"loss": "broken:infinite"},
            {},
            "agent.loss is 'broken:infinite', and a first update on 4 transitions gives gradients that are not finite",
        ),
        ({"loss": "broken:signed"}, {}, "agent.loss is 'broken:signed', .* gives a priority of -1.5, below 0: correct it"),
        ({}, {"head": "broken:nan"}, "network.head is 'broken:nan', .* gives .* initial parameters that are not finite and"),
        ({"optimizer": "broken:none"}, {}, "agent.optimizer is 'broken:none', which makes a NoneType: make an optimizer"),
        (
            {},
            {"trunk": "broken:bad_trunk", "head": "mine:noisy"},
            "network.trunk is 'broken:bad_trunk', which fails at .*broken",
        ),
        ({"exploration": "broken:third"}, {}, "agent.exploration is 'broken:third', .* gives actions from 2 to 2: correct it"),
        ({}, {"head": "broken:wide"}, r"network.head is 'broken:wide', whose q_values have shape \(3,\): give one of each"),
    ],
)
def test_what_a_part_must_not_do_is_found_before_training(agent, network, sentence):
    Path("broken.py").write_text(BROKEN)
    with pytest.raises(InputError, match=sentence):
        matrix.driver_of(experiment("data-parallel", agent, network))
    sys.modules.pop("broken", None)
