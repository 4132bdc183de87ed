"""Each column of an evaluation is the policy, the environment and the episodes that it says, and is summed up right.

The environment pays ten times the action taken first, then what it is worth, a number in its parameters, and a random luck
below one that the episode begins with. So a column's return tells who played, where, and in which episodes.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.envs import Environment, EnvSpec, TimeStep
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.evaluation import make_evaluator
from dqn_jax.federated.heterogeneity import ClientEnvs
from dqn_jax.networks import Network, QValues

DEVICES = jax.local_devices()
EPISODES = 2
ENDLESS = 9.0
"""Where this is what an episode is worth, it runs into the cap."""


class Worth(flax.struct.PyTreeNode):
    # Named as the field of the distribution below, of which the columns tell.
    length: jax.Array
    max_steps_in_episode: jax.Array


def init(key, params):
    return (jax.random.uniform(key), jnp.int32(0)), jnp.zeros(1)


def step(key, state, action, params):
    luck, time = state
    reward = jnp.where(time == 0, 10.0 * action, jnp.where(time == 1, params.length + luck, 0.0))
    ended = (time == 1) & (params.length < ENDLESS)
    return (luck, time + 1), TimeStep(jnp.zeros(1), jnp.zeros(1), reward, ended, jnp.array(False))


ENV = Environment(EnvSpec("worth", (1,), np.dtype(np.float32), 8, 4), init, step, Worth(jnp.float32(0), jnp.int32(4)))
# A policy is the action that it always takes.
NETWORK = Network(lambda key: jnp.int32(0), lambda params, obs, key: QValues(jax.nn.one_hot(params, 8)))

SEEN, INSIDE, BEYOND = [[1, 2, 3], [4, 5, 9]], [[6, 7], [1, 3]], [[8, 9], [5, 4]]
SERVER = np.array([0, 1])
CLIENTS = np.array([[2, 3, 4], [5, 6, 7]])
KEYS = jax.random.split(jax.random.key(0), 2)


def worths(values):
    values = np.float32(values)
    return Worth(values, np.full(values.shape, 4))


def envs(*kinds):
    return ClientEnvs(*(worths(kind) for kind in kinds))


def evaluator(seen=SEEN, inside=INSIDE, beyond=BEYOND, devices=DEVICES[:2], **options):
    sizes = {"num_clients": np.shape(seen)[1], "unseen_envs": np.shape(inside)[1], "heterogeneity": "cartpole-length"}
    return make_evaluator(ENV, NETWORK, FederatedConfig(**sizes | options), envs(seen, inside, beyond), EPISODES, devices)


@pytest.fixture(scope="module")
def everything():
    """Clients' own parameters too, repetitions on a device each."""
    made = evaluator(eval_clients=True)
    return made, *made.play(KEYS, {"global": SERVER, "clients": CLIENTS})


@pytest.fixture(scope="module")
def personal():
    """A policy of each client, beside its own parameters before the merge."""
    made = evaluator(eval_clients=True, personal="head")
    return made, *made.play(KEYS, {"personal": CLIENTS, "clients": 7 - CLIENTS})


def of(columns, **wanted):
    return [i for i, column in enumerate(columns) if all(column[name] == value for name, value in wanted.items())]


def test_the_server_plays_where_its_column_says(everything):
    made, returns, _ = everything
    for seed in range(2):
        columns = made.columns[seed]
        played = np.floor(returns[seed, of(columns, policy="global")]) - 10 * SERVER[seed]
        assert played.tolist() == [*SEEN[seed], *INSIDE[seed], *BEYOND[seed]]
        named = [(c["split"], c["client"], c["env_params"]["length"]) for c in columns if c["policy"] == "global"]
        assert named == [
            *(("seen", i, worth) for i, worth in enumerate(SEEN[seed])),
            *(("inside", "", worth) for worth in INSIDE[seed]),
            *(("beyond", "", worth) for worth in BEYOND[seed]),
        ]


def test_each_client_plays_its_own_environment_and_all_held_out_ones(everything):
    """In the very episodes that the server plays there: their luck is the same, down to rounding."""
    made, returns, _ = everything
    for seed in range(2):
        columns = made.columns[seed]
        assert returns.shape[1] == len(columns) == 3 + 2 + 2 + 3 * 3
        for kind in ("seen", "inside", "beyond"):
            server = returns[seed, of(columns, policy="global", split=kind)] - 10 * SERVER[seed]
            theirs = of(columns, policy="client", split=kind)
            assert [columns[i]["client"] for i in theirs] == [0, 1, 2]
            expected = 10 * CLIENTS[seed] + (server if kind == "seen" else server.mean())
            np.testing.assert_allclose(returns[seed, theirs], expected, rtol=1e-6)
            told = [columns[i]["env_params"] for i in theirs]
            assert told == ([{"length": worth} for worth in SEEN[seed]] if kind == "seen" else ["all held out"] * 3)
    # Columns of the server come first, those of clients after them, in groups.
    kinds = [(c["policy"], c["split"]) for c in made.columns[0]]
    assert list(dict.fromkeys(kinds)) == [(who, kind) for who in ("global", "client") for kind in ("seen", "inside", "beyond")]


def test_each_clients_policy_plays_as_its_own_parameters_do(personal, everything):
    """In the same episodes, and with the columns that the clients' own have, which stand after it."""
    made, returns, unfinished = personal
    clients = returns.shape[1] // 2
    np.testing.assert_allclose(returns[:, :clients], everything[1][:, 7:], rtol=1e-6)
    np.testing.assert_allclose(
        returns[:, clients:] - returns[:, :clients], np.tile(10 * (7 - 2 * CLIENTS), 3), rtol=1e-5, atol=1e-4
    )
    for columns, served in zip(made.columns, everything[0].columns, strict=True):
        assert columns[clients:] == served[7:]
        assert columns[:clients] == [column | {"policy": "personal"} for column in served[7:]]
    # Seed 0 has an endless environment held out, for three clients twice; seed 1 one of a client's, for two.
    assert unfinished.tolist() == [EPISODES * 6, EPISODES * 2]


def test_every_environment_has_episodes_of_its_own(everything):
    """Environments of both repetitions, by the mean luck of their episodes."""
    made, returns, _ = everything
    luck = returns[:, of(made.columns[0], policy="global")] % 1
    assert len(np.unique(np.round(luck, 4))) == luck.size
    other = made.play(KEYS[::-1], {"global": SERVER, "clients": CLIENTS})[0]
    np.testing.assert_allclose(other[0, :7] % 1, luck[1], atol=1e-5)


def test_unfinished_episodes_are_counted_for_each_repetition(everything):
    """Seed 0 has an endless environment held out, for the server and three clients; seed 1 one of a client's, for two."""
    assert everything[2].tolist() == [EPISODES * 4, EPISODES * 2]


def test_without_clients_and_on_one_device_the_columns_are_the_same(everything):
    made = evaluator(devices=DEVICES[:1])
    returns, unfinished = made.play(KEYS, {"global": SERVER})
    np.testing.assert_allclose(returns, everything[1][:, :7], rtol=1e-6)
    assert made.columns == [columns[:7] for columns in everything[0].columns]
    assert unfinished.tolist() == [EPISODES, EPISODES]


def test_with_nothing_held_out_there_are_clients_alone():
    empty = np.zeros((2, 0))
    made = evaluator(inside=empty, beyond=empty, eval_clients=True, devices=DEVICES[:1])
    returns, _ = made.play(KEYS, {"global": SERVER, "clients": CLIENTS})
    actions = np.array([[0, 0, 0, 2, 3, 4], [1, 1, 1, 5, 6, 7]])
    np.testing.assert_array_equal(np.floor(returns), np.tile(SEEN, 2) + 10 * actions)
    assert [(c["policy"], c["split"], c["client"]) for c in made.columns[0]] == [
        (who, "seen", client) for who in ("global", "client") for client in range(3)
    ]
    assert set(made.describe(returns)) == {
        "eval_return",
        "eval_worst",
        "eval_lowest_tenth",
        "eval_variance",
        "eval_client_seen",
        "eval_client_seen_best",
    }


def test_alike_environments_have_no_fields_to_tell():
    made = evaluator(heterogeneity="none")
    assert [column["env_params"] for column in made.columns[0]] == [{}] * 7


def test_describe_by_hand():
    """Eleven clients: a tenth of them is two."""
    made = evaluator(seen=np.ones((2, 11)), eval_clients=True)
    seen = [[9, 4, 1, 3, 5, 6, 7, 8, 10, 2, 11], [5.0] * 10 + [27]]
    inside, beyond = [[10, 30], [0, 1]], [[2, 3], [4, 8]]
    own = {"seen": [0] * 10 + [22], "inside": [3] * 10 + [-8], "beyond": list(range(11))}
    row = [value for kind in own.values() for value in kind]
    returns = np.array([[*seen[i], *inside[i], *beyond[i], *(i * value for value in row)] for i in range(2)], np.float64)
    described = made.describe(returns)
    expected = {
        "eval_return": [6, 7],
        "eval_worst": [1, 5],
        # The mean of 1 and 2.
        "eval_lowest_tenth": [1.5, 5],
        # Of 1 to 11: (121 - 1) / 12. And (10 * 2^2 + 20^2) / 11.
        "eval_variance": [10, 40],
        "eval_inside": [20, 0.5],
        "eval_beyond": [2.5, 6],
        "eval_client_seen": [0, 2],
        "eval_client_seen_best": [0, 22],
        "eval_client_inside": [0, 2],
        "eval_client_inside_best": [0, 3],
        "eval_client_beyond": [0, 5],
        "eval_client_beyond_best": [0, 10],
    }
    assert described.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(described[name], values, err_msg=name)


def test_describe_personal_policies_by_hand():
    """Means of the clients, and on held-out environments their range; clients' own beside them."""
    made = evaluator(personal="head", eval_clients=True)
    seen, inside, beyond = [[3, 1, 8], [2, 2, 2]], [[4, 0, 5], [1, 1, 4]], [[6, 9, 0], [7, 7, 7]]
    own = [1, 2, 6, 0, 0, 3, -1, -2, 0]
    described = made.describe(np.array([[*seen[i], *inside[i], *beyond[i], *own] for i in range(2)], np.float64))
    expected = {
        "eval_return": [4, 2],
        "eval_worst": [1, 2],
        "eval_lowest_tenth": [1, 2],
        # Of 3, 1 and 8 about 4.
        "eval_variance": [26 / 3, 0],
        "eval_inside": [3, 2],
        "eval_inside_lowest": [0, 1],
        "eval_inside_highest": [5, 4],
        "eval_beyond": [5, 7],
        "eval_beyond_lowest": [0, 7],
        "eval_beyond_highest": [9, 7],
        "eval_client_seen": [3, 3],
        "eval_client_seen_best": [6, 6],
        "eval_client_inside": [1, 1],
        "eval_client_inside_best": [3, 3],
        "eval_client_beyond": [-1, -1],
        "eval_client_beyond_best": [0, 0],
    }
    assert described.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(described[name], values, err_msg=name)


@pytest.mark.parametrize(("clients", "lowest"), [(1, [0]), (10, [0]), (20, [0, 1])])
def test_a_tenth_is_at_least_one_client(clients, lowest):
    made = evaluator(seen=np.ones((2, clients)), inside=np.zeros((2, 0)), beyond=np.zeros((2, 0)))
    described = made.describe(np.arange(clients, dtype=float)[None, ::-1])
    assert described["eval_lowest_tenth"] == np.mean(lowest)
