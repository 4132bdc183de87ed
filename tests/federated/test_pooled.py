"""The pooled agent is one learner on all clients' experience: its gradient is the mean of theirs, its counts their sum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import refusal
from laws.common import ENV, NETWORK, STEADY, arrays, assert_bitwise, assert_close, assert_differs
from laws.federation import config_of, small

from dqn_jax.agent import make_agent
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.federated.pooled import make_pooled, pooled
from dqn_jax.mapping import stream_key
from dqn_jax.types import Clock

pytestmark = pytest.mark.long

N = 3
SEEDS = (3, 8)
DEVICES = jax.local_devices()
BATCH = 24
LOCAL_STEPS, ROUNDS, ACTS, UPDATES, PERIOD = 2, 3, 3, 2, 5
CLIENT = dataclasses.replace(small(STEADY), acts_per_step=ACTS, updates_per_step=UPDATES, target_period=PERIOD)
CONFIG = config_of(num_clients=N, local_steps=LOCAL_STEPS, heterogeneity="cartpole-length")
ENVS = jax.device_get(draw_all(ENV, CONFIG, len(SEEDS)).seen)


def driver(num_devices=1, batch_size=BATCH):
    return make_pooled(
        ENV,
        NETWORK,
        CLIENT,
        CONFIG,
        env_params=ENVS,
        seeds=SEEDS,
        devices=DEVICES[:num_devices],
        rounds_per_step=ROUNDS,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def rounds():
    """(driver, state before, state after, info) of three rounds, with a device for each repetition."""
    centralised = driver(num_devices=2)
    # The first call gives its argument away.
    before = centralised.init()
    return centralised, before, *centralised.step(centralised.init())


@pytest.fixture(scope="module")
def by_hand():
    """One act of each client on its own, and its own gradient on its share of the batch, leaves [N, ...]."""
    alone = make_agent(ENV, NETWORK, dataclasses.replace(CLIENT, batch_size=BATCH // N))

    @jax.jit
    def split(state):
        """Of [1, 1, N, ...] on one device: clients, each with clocks of its own."""
        is_clock = lambda x: isinstance(x, Clock)  # noqa: E731
        return jax.tree.map(lambda x: Clock(jnp.full(N, x.count[0])) if is_clock(x) else x[0, 0], state, is_leaf=is_clock)

    @jax.jit
    def act(clients):
        clients, info = jax.vmap(alone.act)(clients)
        return clients, info["episodes"].sum(), info["return_sum"].sum()

    return split, act, jax.jit(jax.vmap(alone.grad))


def test_its_gradient_is_the_mean_over_clients(rounds, by_hand):
    """Plain clients act on their own, each takes the gradient of its third of a batch, and SGD follows the mean of those."""
    _, before, after, info = rounds
    split, act, grad = by_hand
    repetition = 1
    start = split(jax.tree.map(lambda x: x.addressable_shards[repetition].data, before))
    end = arrays(split(jax.tree.map(lambda x: x.addressable_shards[repetition].data, after)))

    def train(merge):
        clients, losses, counts = start, [], np.zeros(2)
        params = jax.tree.map(np.asarray, start.learner.params)
        target = params
        for update in range(1, LOCAL_STEPS * ROUNDS * UPDATES + 1):
            for _ in range(ACTS if update % UPDATES == 1 else 0):
                clients, *ended = act(clients)
                counts += ended
            clients, grads, learned = grad(clients)
            losses.append(np.mean(learned["loss"]))
            params = jax.tree.map(lambda w, g: w - np.float32(CLIENT.learning_rate) * merge(np.asarray(g)), params, grads)
            target = params if update % PERIOD == 0 else target
            learner = clients.learner.replace(params=params, target_params=target)
            clients = clients.replace(learner=learner)
        return arrays(clients), losses, counts

    clients, losses, counts = train(lambda g: np.broadcast_to(g.mean(axis=0), g.shape))
    parts = {name for name in end if name.startswith((".learner.params", ".learner.target", ".replay.storage", ".actor.env_"))}
    assert len(parts) > 20
    assert_close({name: end[name] for name in parts}, {name: clients[name] for name in parts})
    assert (info["episodes"][repetition], info["return_sum"][repetition]) == tuple(counts)
    np.testing.assert_allclose(info["loss"][repetition], np.mean(losses), rtol=1e-5)
    # Negative control: each client's own gradient leads elsewhere.
    apart, _, _ = train(lambda g: g)
    assert_differs({name: end[name] for name in parts}, {name: apart[name] for name in parts})


def test_every_client_begins_with_its_own_environment_and_their_common_agent(rounds):
    """Environment e of the whole is the same however many clients there are."""
    _, before, after, _ = rounds
    whole = make_agent(ENV, NETWORK, pooled(CLIENT, N, BATCH))
    start = jax.jit(jax.vmap(lambda seed: (lambda s: (s.actor.streams, s.learner.params))(whole.init(stream_key(seed)))))
    streams, params = jax.device_get(jax.tree.map(jnp.asarray, start(np.uint32(SEEDS))))
    state = arrays(before)
    np.testing.assert_array_equal(state[".actor.streams"].reshape(2, N * 2, -1), jax.random.key_data(streams))
    for name, values in arrays(params).items():
        # Both rounded as their programs like.
        np.testing.assert_allclose(state[f".learner.params{name}"][:, 0], np.stack([values] * N, 1), rtol=1e-6, atol=1e-7)
    assert_bitwise(jax.tree.map(lambda x: np.asarray(x)[:, 0], before.actor.env_params), ENVS)
    assert len(np.unique(ENVS.length)) == len(SEEDS) * N
    # Samples differ from client to client; what is learned from them is the same for all.
    assert len(np.unique(state[".stream"].reshape(-1, 2), axis=0)) == len(SEEDS) * N
    kernels = np.asarray(after.learner.params["head"]["kernel"])
    assert not np.array_equal(kernels, state[".learner.params['head']['kernel']"])
    np.testing.assert_array_equal(kernels, np.broadcast_to(kernels[:, :, :1], kernels.shape))
    assert not np.array_equal(kernels[0], kernels[1])


def test_params_are_one_learners_in_the_order_of_the_seeds(rounds):
    centralised, _, after, _ = rounds
    params = centralised.params(after)
    assert set(params) == {"global"}
    assert_bitwise(params["global"], jax.tree.map(lambda x: np.asarray(x)[:, 0, 0], after.learner.params))
    assert params["global"]["head"]["kernel"].shape == (2, 16, 2)


def test_counts_by_hand(rounds):
    centralised, _, state, info = rounds
    assert (centralised.unit, centralised.initial, centralised.per_step) == ("rounds", 0, 3)
    # 48 frames of 6 environments are 8 acts, and the first transition of two steps takes one more.
    assert centralised.initial_frames == 9 * 6
    assert info["frames"].tolist() == [3 * 2 * 3 * 6] * 2
    assert info["updates"].tolist() == [3 * 2 * 2] * 2
    # Two observations of four numbers, an action, a reward and a discount.
    assert info["bytes"].tolist() == [3 * 2 * 3 * 6 * 4 * (4 + 4 + 1 + 1 + 1)] * 2
    np.testing.assert_array_equal(state.actor.clock.count, [9 + 3 * 2 * 3] * 2)
    np.testing.assert_array_equal(state.learner.updates.count, [12] * 2)
    # Each of the clients' replays has the frames of its two environments, but those of the first act.
    np.testing.assert_array_equal(state.replay.added.count, [(9 + 18 - 1) * 2] * 2)
    assert state.replay.storage.r_t.shape == (2, 1, N, CLIENT.replay_capacity)
    assert state.actor.obs.shape == (2, 1, N, CLIENT.num_envs, 4)
    assert all(values.shape == (2,) for values in info.values())
    np.testing.assert_array_equal(info["epsilon"], [1.0, 1.0])
    assert info["finite"].tolist() == [True, True]
    assert centralised.check(state) is None
    assert len(centralised.devices) == 2


def test_its_sizes_are_those_of_all_clients():
    client = dataclasses.replace(STEADY, epsilon_decay_frames=700, n_step=3, importance_anneal_frames=300)
    whole = pooled(client, 5, batch_size=40)
    expected = {
        "num_envs": 5 * 8,
        "replay_capacity": 5 * 512,
        "learning_starts": 5 * 64,
        "epsilon_decay_frames": 5 * 700,
        "importance_anneal_frames": 5 * 300,
        "batch_size": 40,
    }
    assert dataclasses.asdict(whole) == dataclasses.asdict(client) | expected
    # As many acts a client, and so 5 clients' frames, before the first update and in a step.
    assert whole.warm_up_acts == client.warm_up_acts
    assert whole.frames_per_step == 5 * client.frames_per_step
    assert pooled(client, 1, client.batch_size) == client


def test_a_problem_names_the_seeds_and_a_remedy():
    problem = driver().problem
    assert problem({"finite": np.array([True, True])}) is None
    assert (
        problem({"finite": np.array([True, False])})
        == "seed(s) [8]: a loss or parameter is not finite: lower agent.learning_rate or set agent.max_grad_norm"
    )
    assert problem({"finite": np.array([False, False])}).startswith("seed(s) [3, 8]: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_devices": 3}, ("num_seeds is 2", "3 devices", "make it a multiple")),
        ({"batch_size": 20}, ("batch_size is 20", "divide over 3", "make it a multiple")),
        # All clients together gather 3 * 16 frames before the first update.
        ({"batch_size": 51}, ("agent.learning_starts is 48", "agent.batch_size 51")),
    ],
)
def test_what_does_not_divide_is_refused(options, words):
    message = refusal(lambda: driver(**options))
    assert [word for word in words if word not in message] == []
