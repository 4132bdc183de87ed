"""The agent only composes acting, storing and learning: its clocks, its order, its sweeps and its summaries are as promised."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import arrays, assert_bitwise, assert_close, assert_differs

from dqn_jax.agent import hyperparams_of, make_agent, make_chunk, reduce_info, repeat
from dqn_jax.config import AgentConfig, InputError, NetworkConfig
from dqn_jax.envs import make_env
from dqn_jax.mapping import lane_axes
from dqn_jax.networks import make_network
from dqn_jax.replay import make_memory
from dqn_jax.types import Clock

# Every episode is cut after three steps: the pole cannot fall so soon.
ENV = make_env("CartPole-v1", max_episode_steps=3)
NETWORK = make_network(NetworkConfig(hidden_sizes=(8,)), ENV.spec)
SIZES = {"num_envs": 4, "batch_size": 8, "replay_capacity": 64, "learning_starts": 10}
RULES = {"n_step": 2, "optimizer": "sgd", "learning_rate": 0.01, "target_period": 4, "epsilon_decay_frames": 100}
CONFIG = AgentConfig(**SIZES, **RULES, acts_per_step=2, updates_per_step=3)
AGENT = make_agent(ENV, NETWORK, CONFIG)
NUM_STEPS = 6
KEY = jax.random.key(0)

act = jax.jit(AGENT.act)
learn = jax.jit(AGENT.learn)
step = jax.jit(AGENT.step)
chunk_traces = []


@jax.jit
def chunk(state):
    chunk_traces.append(state)
    return make_chunk(AGENT, NUM_STEPS)(state)


@functools.partial(jax.jit, static_argnames="config")
def start(config, key):
    """-> the state at init and the state after the warm-up."""
    agent = make_agent(ENV, NETWORK, config)
    state = agent.init(key)
    return state, agent.warm_up(state)


@pytest.fixture(scope="module")
def ready():
    return start(CONFIG, KEY)[1]


def clocks(state):
    return int(state.actor.clock.count), int(state.replay.added.count), int(state.learner.updates.count)


@pytest.mark.parametrize(
    ("learning_starts", "num_envs", "n_step", "acts"),
    [(12, 4, 1, 3), (10, 4, 1, 3), (13, 4, 1, 4), (10, 4, 3, 5), (8, 1, 5, 12)],
)
def test_acts_of_the_warm_up(learning_starts, num_envs, n_step, acts):
    config = dataclasses.replace(CONFIG, learning_starts=learning_starts, num_envs=num_envs, n_step=n_step)
    assert config.warm_up_acts == acts


@pytest.mark.parametrize("n_step", [1, 2, 4])
def test_warm_up_stores_what_learning_needs_and_learns_nothing(n_step):
    cold, warm = start(dataclasses.replace(CONFIG, n_step=n_step), KEY)
    assert clocks(cold) == (0, 0, 0)
    # Ten frames, rounded up to four environments; the first n - 1 acts have nothing to store.
    assert clocks(warm) == (3 + n_step - 1, 12, 0)
    assert_bitwise(warm.learner, cold.learner)
    written = np.abs(warm.replay.storage.s_tm1).max(axis=1) > 0
    np.testing.assert_array_equal(written, np.arange(64) < 12)


def test_init_fills_nothing_and_draws_apart():
    one, same, other = (start(CONFIG, jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert_bitwise(one, same)
    for part in (lambda s: s.learner.params, lambda s: s.actor.obs, lambda s: s.stream):
        assert_differs(part(one), part(other))


def test_step_is_acts_then_updates(ready):
    after, info = step(ready)
    by_hand = ready
    for _ in range(CONFIG.acts_per_step):
        by_hand, act_info = act(by_hand)
    losses = []
    for _ in range(CONFIG.updates_per_step):
        by_hand, learn_info = learn(by_hand)
        losses.append(learn_info["loss"])
    assert clocks(ready) == (4, 12, 0)
    assert clocks(after) == clocks(by_hand) == (4 + 2, 12 + 2 * 4, 3)
    assert_close(after, by_hand)
    np.testing.assert_allclose(info["loss"], np.mean(losses), rtol=1e-5)
    # Acts 5 and 6: every environment's second episode ends with the sixth.
    assert {name: float(info[name]) for name in ("episodes", "truncated", "terminated", "return_sum")} == {
        "episodes": 4,
        "truncated": 4,
        "terminated": 0,
        "return_sum": 12,
    }
    assert info["epsilon"] == act_info["epsilon"]


def test_acting_leaves_the_learner_and_learning_the_actor(ready):
    acted, learned = act(ready)[0], learn(ready)[0]
    assert_bitwise(acted.learner, ready.learner)
    assert clocks(acted) == (5, 16, 0)
    assert_bitwise((learned.actor, learned.replay), (ready.actor, ready.replay))
    assert clocks(learned) == (4, 12, 1)


def test_each_update_draws_its_own_batch(ready):
    frozen = ready.learner.hyperparams._replace(learning_rate=jnp.float32(0))
    state = ready.replace(learner=ready.learner.replace(hyperparams=frozen))
    ages = []
    for _ in range(4):
        same, info = learn(state)[1], learn(state)[1]
        assert info["replay_age"] == same["replay_age"]
        ages.append(float(info["replay_age"]))
        state = learn(state)[0]
    # The parameters stand still, so only the draw can differ.
    assert len(set(ages)) > 1
    assert all(0 <= age <= 11 for age in ages)


@pytest.mark.long
def test_chunk_is_repeated_steps_and_measures_its_last_update(ready):
    state, info = chunk(ready)
    assert_bitwise(state, jax.jit(repeat(AGENT.step, NUM_STEPS))(ready)[0])
    assert clocks(state) == (4 + 12, 12 + 48, 18)
    before_last = jax.jit(repeat(AGENT.step, NUM_STEPS - 1))(ready)[0]
    by_hand, infos = jax.jit(AGENT.gather)(before_last)[0], []
    for _ in range(CONFIG.updates_per_step):
        by_hand, learn_info = learn(by_hand)
        infos.append(learn_info)
    for name in ("priority", "q_mean", "q_max", "grad_norm", "update_norm", "replay_age"):
        np.testing.assert_allclose(info[name], infos[-1][name], rtol=1e-4, err_msg=name)
        # The control: the update before it has other numbers.
        assert not np.isclose(info[name], infos[-2][name], rtol=1e-4), name


def test_chunk_info_covers_every_step(ready):
    _, info = chunk(ready)
    state, losses = ready, []
    for _ in range(NUM_STEPS):
        state, step_info = step(state)
        losses.append(step_info["loss"])
    np.testing.assert_allclose(info["loss"], np.mean(losses), rtol=1e-4)
    # Twelve acts, the 5th to the 16th: the 6th, 9th, 12th and 15th end an episode of three steps in each environment.
    assert (info["episodes"], info["truncated"], info["terminated"], info["return_sum"]) == (16, 16, 0, 48)
    # Epsilon of the last act, after 15 of four frames each: 60 of the 100 from 1 to 0.05.
    np.testing.assert_allclose(info["epsilon"], 1 - 0.6 * 0.95, rtol=1e-6)
    assert info["finite"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_finite_tells_a_bad_parameter(ready, bad):
    assert chunk(ready)[1]["finite"]
    params = ready.learner.params
    head = params["head"] | {"bias": params["head"]["bias"].at[1].set(bad)}
    state = ready.replace(learner=ready.learner.replace(params=params | {"head": head}))
    assert not chunk(state)[1]["finite"]


def test_finite_tells_a_parameter_that_the_last_update_spoilt(ready):
    """No loss has seen it yet."""
    agent = make_agent(ENV, NETWORK, dataclasses.replace(CONFIG, acts_per_step=1, updates_per_step=1))
    hyperparams = ready.learner.hyperparams._replace(learning_rate=jnp.float32(np.inf))
    state, info = jax.jit(make_chunk(agent, 1))(ready.replace(learner=ready.learner.replace(hyperparams=hyperparams)))
    assert np.isfinite(info["loss"])
    assert not np.isfinite(state.learner.params["head"]["bias"]).all()
    assert not info["finite"]


def test_finite_tells_a_bad_loss(ready):
    """With a learning rate so small that the parameters stay finite when the loss, a square, overflows."""
    hyperparams = ready.learner.hyperparams._replace(learning_rate=jnp.float32(0))
    storage = ready.replay.storage._replace(r_t=jnp.full_like(ready.replay.storage.r_t, 1e30))
    state = ready.replace(learner=ready.learner.replace(hyperparams=hyperparams), replay=ready.replay.replace(storage=storage))
    state, info = chunk(state)
    assert all(np.isfinite(values).all() for values in arrays(state.learner.params).values())
    assert np.isinf(info["loss"])
    assert not info["finite"]


def test_a_second_chunk_does_not_trace_again(ready):
    state, _ = chunk(ready)
    chunk(state)
    chunk(start(CONFIG, jax.random.key(5))[1])
    assert len(chunk_traces) == 1


def test_correction_reaches_every_update(ready):
    still = lambda grads, params, memory: (jax.tree.map(jnp.zeros_like, grads), memory)  # noqa: E731
    state, _ = jax.jit(functools.partial(AGENT.step, correction=still))(ready)
    assert_bitwise(state.learner.params, ready.learner.params)
    assert clocks(state) == (6, 20, 3)
    assert_differs(step(ready)[0].learner.params, ready.learner.params)


@jax.jit
def step_if(state, active):
    return AGENT.step(state, None, active)[0]


def test_an_inactive_step_changes_nothing(ready):
    """To the last bit, the stored transitions among it; also where the ring has gone round."""
    later = chunk(chunk(ready)[0])[0]
    assert int(later.replay.added.count) > CONFIG.replay_capacity
    for state in (ready, later):
        assert_bitwise(step_if(state, jnp.array(False)), state)


def test_an_active_step_is_the_plain_one(ready):
    after = step_if(ready, jnp.array(True))
    assert_close(after, step(ready)[0], rtol=1e-6)
    assert clocks(after) == (6, 20, 3)


@pytest.mark.parametrize("n_step", [1, 2])
def test_an_inactive_act_stores_nothing(n_step):
    """It is the replay's alone to refuse: the environments go on."""
    config = dataclasses.replace(CONFIG, n_step=n_step)
    state = start(config, KEY)[1]
    act_if = jax.jit(make_agent(ENV, NETWORK, config).act)
    stored, refused = (act_if(state, jnp.array(active))[0] for active in (True, False))
    assert_bitwise(refused.replay, state.replay)
    assert_bitwise(refused.actor, stored.actor)
    assert int(stored.replay.added.count) == 16
    assert not np.array_equal(stored.replay.storage.s_t, state.replay.storage.s_t)


@pytest.mark.long
def test_lanes_are_active_each_for_itself():
    """A lane with clocks of its own is the agent alone, stepped as often as the lane was active."""
    mask = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    alone = [start(CONFIG, jax.random.key(lane))[1] for lane in range(3)]
    # What a correction remembers belongs to the lane too: here it counts updates, and changes no gradient.
    count = lambda grads, params, memory: (grads, memory + 1)  # noqa: E731
    counting = [state.replace(learner=state.learner.replace(memory=jnp.int32(0))) for state in alone]
    lanes = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))(*counting)
    axes = lane_axes(lanes, share_clocks=False)
    step_lanes = jax.jit(jax.vmap(lambda state, active: AGENT.step(state, count, active)[0], (axes, 0), axes))

    for active in mask:
        before, lanes = arrays(lanes), step_lanes(lanes, jnp.array(active))
        for name, values in arrays(lanes).items():
            np.testing.assert_array_equal(values[~active], before[name][~active], err_msg=name)
    assert lanes.learner.memory.tolist() == lanes.learner.updates.count.tolist() == [6, 3, 9]
    lanes = arrays(lanes.replace(learner=lanes.learner.replace(memory=())))
    for lane, times in enumerate(mask.sum(axis=0)):
        state = alone[lane]
        for _ in range(times):
            state = step(state)[0]
        assert_close({name: values[lane] for name, values in lanes.items()}, arrays(state))


@pytest.mark.long
def test_a_sweep_is_a_vmap_of_init():
    config = dataclasses.replace(CONFIG, acts_per_step=1, updates_per_step=1)
    agent = make_agent(ENV, NETWORK, config)
    changes = [{"learning_rate": 0.02}, {"discount": 0.5}, {"epsilon_start": 0.0, "epsilon_end": 0.0}, {"target_rate": 0.5}]
    settings = [hyperparams_of(dataclasses.replace(config, **change)) for change in ({}, *changes)]

    def train(hyperparams):
        return repeat(agent.step, 6)(agent.warm_up(agent.init(KEY, hyperparams=hyperparams)))[0]

    traces = []

    @jax.jit
    def alone(hyperparams):
        traces.append(hyperparams)
        return train(hyperparams)

    singles = [alone(hyperparams) for hyperparams in settings]
    assert len(traces) == 1
    axes = lane_axes(jax.eval_shape(train, settings[0]))
    swept = jax.jit(jax.vmap(train, out_axes=axes))(jax.tree.map(lambda *x: jnp.stack(x), *settings))
    for lane, single in enumerate(singles):
        # The lanes share their clocks.
        row = {name: values if name.endswith(".count") else values[lane] for name, values in arrays(swept).items()}
        assert_close(row, arrays(single))

    plain, rate, discount, greedy, target = singles
    assert np.unique(plain.replay.storage.discount_t[:12]) == pytest.approx([0.99**2, 0.99])
    assert np.unique(discount.replay.storage.discount_t[:12]).tolist() == [0.25, 0.5]
    assert_bitwise(rate.replay.storage.s_tm1[:12], plain.replay.storage.s_tm1[:12])
    for other, part in [
        (rate, lambda s: s.learner.params),
        (greedy, lambda s: s.replay.storage.a_tm1[:12]),
        (target, lambda s: s.learner.target_params),
    ]:
        assert_differs(part(other), part(plain))


def test_hyperparams_are_strong_arrays():
    clipped = dataclasses.replace(CONFIG, max_grad_norm=0.5)
    assert hyperparams_of(CONFIG).learner.max_grad_norm == jnp.inf
    assert hyperparams_of(clipped).learner.max_grad_norm == 0.5
    for hyperparams in (hyperparams_of(CONFIG), hyperparams_of(clipped)):
        leaves = jax.tree_util.tree_leaves_with_path(hyperparams)
        dtypes = {path[-1].name: x.dtype for path, x in leaves}
        assert dtypes.pop("epsilon_decay_frames") == dtypes.pop("epsilon_first_frame") == jnp.int32
        assert set(dtypes.values()) == {jnp.dtype(jnp.float32)}
        assert not any(x.weak_type for x in jax.tree.leaves(hyperparams))


def test_shards_divide_one_agent():
    whole = start(CONFIG, KEY)[0]
    half = make_agent(ENV, NETWORK, CONFIG, num_shards=2)
    shards = [jax.jit(half.init)(KEY, shard=shard) for shard in range(2)]
    for shard, state in enumerate(shards):
        assert_bitwise(state.learner, whole.learner)
        mine = slice(2 * shard, 2 * shard + 2)
        assert_bitwise((state.actor.obs, state.actor.streams), (whole.actor.obs[mine], whole.actor.streams[mine]))
        assert state.replay.storage.r_t.shape == (32,)
    # Each draws batches of its own.
    assert not np.array_equal(*(jax.random.key_data(state.stream) for state in shards))


def test_refuses_sizes_that_do_not_divide():
    with pytest.raises(InputError, match=r"agent\.num_envs is 4, which does not divide over 3 devices"):
        make_agent(ENV, NETWORK, CONFIG, num_shards=3)


def test_environment_parameters_are_carried():
    params = ENV.params.replace(gravity=jnp.float32(3), max_steps_in_episode=jnp.int32(2))
    state = jax.jit(AGENT.init)(KEY, params)
    assert state.actor.env_params.gravity == 3
    episodes = []
    for _ in range(4):
        state, info = act(state)
        episodes.append(int(info["episodes"]))
    assert episodes == [0, 4, 0, 4]


def test_reduce_info_by_hand():
    infos = {
        "episodes": [1, 0, 2],
        "return_sum": [10.0, 0.0, 5.0],
        "terminated": [1, 0, 1],
        "truncated": [0, 0, 1],
        "finite": [True, False, True],
        "epsilon": [0.9, 0.8, 0.7],
        "q_max": [1.0, 7.0, 2.0],
        "loss": [1.0, 2.0, 6.0],
        "a name that nobody declared": [1.0, 2.0, 3.0],
    }
    reduced = reduce_info({name: np.array(values) for name, values in infos.items()})
    assert reduced == {
        "episodes": 3,
        "return_sum": 15.0,
        "terminated": 2,
        "truncated": 1,
        "finite": False,
        "epsilon": 0.7,
        "q_max": 7.0,
        "loss": 3.0,
        "a name that nobody declared": 2.0,
    }


@pytest.mark.long
def test_a_memory_prepares_once_a_step_before_the_updates(monkeypatch):
    """A memory that counts in its number of transitions, from the parameters before the updates and a key of its own."""
    seen = []

    def counting(*args):
        memory = make_memory(*args)

        def prepare(state, value, key):
            seen.append(key)
            # Adds 1000, and says whether the parameters are those that the step began with, without biases.
            moved = value(jnp.zeros(ENV.spec.obs_shape)) != 0
            return state.replace(added=Clock(state.added.count + 1000 + moved))

        return memory._replace(prepare=prepare)

    monkeypatch.setattr("dqn_jax.agent.make_memory", counting)
    agent = make_agent(ENV, NETWORK, dataclasses.replace(CONFIG, updates_per_step=3, target_period=100))
    ready = agent.warm_up(agent.init(KEY))
    stepped, _ = jax.jit(agent.step)(ready)
    per_step = CONFIG.num_envs * CONFIG.acts_per_step
    assert int(stepped.replay.added.count) == int(ready.replay.added.count) + per_step + 1000
    assert len(seen) == 1
    # As if nothing had happened: what it prepared is not kept either.
    refused, _ = jax.jit(agent.step)(ready, active=jnp.array(False))
    assert int(refused.replay.added.count) == int(ready.replay.added.count)
