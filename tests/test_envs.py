"""Every discrete gymnax environment keeps the contract of `Environment`; the others are refused by name."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import InputError
from dqn_jax.envs import discrete_environments, make_env
from dqn_jax.replay import pack, unpack

CONTINUOUS = {"Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc"}
DOWNLOAD = "MNISTBandit-bsuite"
DISCRETE = [name for name in gymnax.registered_envs if name not in CONTINUOUS and name != DOWNLOAD]
BOOLEAN = [name for name in DISCRETE if "MinAtar" in name or name.split("-")[0] in ("Catch", "DeepSea", "Pong", "FrozenLake")]
# Their observations tell the share of the time limit that is over, so they differ between two limits.
SEES_THE_LIMIT = {"DiscountingChain-bsuite", "MetaMaze-misc", "BernoulliBandit-misc", "GaussianBandit-misc"}


class Played:
    """One environment, compiled once for all the tests, and a few random steps of it beside gymnax's own answers."""

    def __init__(self, name):
        self.gymnax_env, params = gymnax.make(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gymnax, "make", lambda name: (self, params))
            self.env = make_env(name)
        self.traces = 0
        self.play = jax.jit(self._play)
        self.keys = list(jax.random.split(jax.random.key(7), 2 if name == "Seaquest-MinAtar" else 12))
        self.actions = np.random.default_rng(0).integers(self.env.spec.num_actions, size=len(self.keys)).astype(np.int32)
        self.first = self.env.init(jax.random.key(3), self.env.params)
        self.states, self.time_steps, self.raw_steps = [self.first[0]], [], []
        for key, action in zip(self.keys, self.actions, strict=True):
            state, time_step, raw_step = self.play(key, self.states[-1], action, self.env.params)
            self.states.append(state)
            self.time_steps.append(time_step)
            self.raw_steps.append(raw_step)

    def __getattr__(self, name):
        return getattr(self.gymnax_env, name)

    def step(self, *args):
        """gymnax's step, listened to: compiling it apart from ours would double the time of these tests."""
        self.heard = self.gymnax_env.step(*args)
        return self.heard

    def _play(self, *args):
        self.traces += 1
        state, time_step = self.env.step(*args)
        obs, _, _, terminated, truncated, info = self.heard
        return state, time_step, (obs, info["final_observation"], terminated, truncated)


played = functools.cache(Played)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


# One that is plain, one with an image, one whose observation is a number, one that both terminates and is cut.
FEW = ("CartPole-v1", "Breakout-MinAtar", "FrozenLake-misc", "DeepSea-bsuite")


def each(names):
    return pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.long) for n in names])


@each(DISCRETE)
def test_contract(name):
    played_env = played(name)
    env, (state, obs) = played_env.env, played_env.first
    assert env.spec.name == name
    assert env.spec.num_actions == gymnax.make(name)[0].num_actions >= 2
    assert env.spec.obs_dtype == (bool if name in BOOLEAN else jnp.float32)
    observed = (env.spec.obs_shape, env.spec.obs_dtype, False)
    assert avals(obs) == observed
    for time_step in played_env.time_steps:
        assert avals(time_step.obs) == avals(time_step.final_obs) == observed
        assert avals(time_step.reward) == ((), jnp.float32, False)
        assert avals(time_step.terminated) == avals(time_step.truncated) == ((), jnp.bool_, False)
        assert np.isfinite(time_step.reward)
        assert not (time_step.terminated & time_step.truncated)
        if not time_step.terminated | time_step.truncated:
            np.testing.assert_array_equal(time_step.obs, time_step.final_obs)
    # The same types after a reset and after a step, none of them weak: one trace serves both.
    for after in played_env.states:
        assert avals(after) == avals(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, env.params)))
    assert played_env.traces == 1


@each(DISCRETE)
def test_time_limit(name):
    """A limit of two steps cuts the second one, which still shows the episode's own observation."""
    played_env = played(name)
    limited = make_env(name, max_episode_steps=2)
    assert limited.spec.max_episode_steps == 2
    # In the types of the default (one environment's limit is a float), so that nothing is compiled again.
    params = jax.tree.map(lambda x, like: x.astype(like.dtype), limited.params, played_env.env.params)
    state, free = played_env.first[0], played_env.time_steps
    for t in range(2):
        state, time_step, _ = played_env.play(played_env.keys[t], state, played_env.actions[t], params)
        assert time_step.terminated == free[t].terminated
        assert time_step.truncated == (t == 1 and not free[t].terminated)
        if name not in SEES_THE_LIMIT:
            np.testing.assert_array_equal(time_step.final_obs, free[t].final_obs)
        if free[t].terminated:
            break
    assert state.time == 0  # The next episode has begun.
    assert played_env.traces == 1


@each(BOOLEAN)
def test_boolean_observations_lose_nothing(name):
    """gymnax's own observations hold nothing but 0 and 1 (FrozenLake: a cell's number), and packing keeps every bit."""
    played_env = played(name)
    for ours, (raw_obs, raw_final_obs, *_) in zip(played_env.time_steps, played_env.raw_steps, strict=True):
        for raw, obs in ((raw_obs, ours.obs), (raw_final_obs, ours.final_obs)):
            raw = np.arange(16) == raw if name == "FrozenLake-misc" else raw
            np.testing.assert_array_equal(np.asarray(obs).astype(np.float32), np.asarray(raw).astype(np.float32))
            assert obs.any() or ours.terminated
            bits = pack(obs)
            assert bits.nbytes == -(-obs.size // 8)
            np.testing.assert_array_equal(unpack(bits, obs), obs)


def test_discrete_environments():
    assert discrete_environments() == DISCRETE
    assert len(DISCRETE) + len(CONTINUOUS) + 1 == len(gymnax.registered_envs)


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_refuses_continuous_actions(name):
    with pytest.raises(InputError, match=f"env is '{name}', whose actions are continuous"):
        make_env(name)


def test_refuses_a_download():
    with pytest.raises(InputError, match=f"env is '{DOWNLOAD}', which downloads"):
        make_env(DOWNLOAD)


@pytest.mark.parametrize(
    ("name", "close"), [("Cartpole-v1", "CartPole-v1"), ("breakout", "Breakout-MinAtar"), ("FrozenLake", "FrozenLake-misc")]
)
def test_unknown_name_suggests_a_close_one(name, close):
    with pytest.raises(InputError, match=f"env is '{name}', which gymnax does not know: did you mean {close}\\?"):
        make_env(name)


def test_unknown_name_lists_all_where_none_is_close():
    with pytest.raises(InputError, match=r"env is 'zzzz'.* choose one of CartPole-v1, .*FrozenLake-misc") as error:
        make_env("zzzz")
    # Names that would be refused in turn are no help.
    assert not any(name in str(error.value) for name in (*CONTINUOUS, DOWNLOAD))


def test_a_termination_at_the_time_limit_is_a_termination():
    """DeepSea's last row and its limit of eight steps come together, and gymnax raises both flags."""
    deep_sea = played("DeepSea-bsuite")
    assert deep_sea.env.spec.max_episode_steps == 8
    *_, terminated, truncated = deep_sea.raw_steps[7]
    assert terminated
    assert truncated
    assert [bool(x.terminated) for x in deep_sea.time_steps] == [t == 7 for t in range(12)]
    assert not any(x.truncated for x in deep_sea.time_steps)


def test_cartpole_limit_of_five():
    """From standing still, alternating pushes keep the pole up, so only the limit can end an episode."""
    free, limited = played("CartPole-v1").env, make_env("CartPole-v1", max_episode_steps=5)
    assert (free.spec.max_episode_steps, limited.spec.max_episode_steps) == (500, 5)
    keys, pushes = jax.random.split(jax.random.key(0), 12), jnp.arange(12) % 2

    @jax.jit
    def play(params):
        def step(state, x):
            state, time_step = free.step(x[0], state, x[1], params)
            return state, (time_step, state.time)

        return jax.lax.scan(step, free.init(jax.random.key(1), params)[0], (keys, pushes))[1]

    cut, clock = play(limited.params)
    uncut, _ = play(free.params)
    np.testing.assert_array_equal(cut.truncated, [t in (4, 9) for t in range(12)])
    assert not cut.terminated.any()
    assert not (uncut.terminated | uncut.truncated).any()
    np.testing.assert_array_equal(clock, [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2])
    # The observation at the cut is where the uncut episode goes on from; the next one to act on is a fresh start.
    np.testing.assert_array_equal(cut.final_obs[:5], uncut.obs[:5])
    assert jnp.abs(cut.obs[4]).max() < 0.05 < jnp.abs(cut.final_obs[4]).max()


def test_parameters_may_differ_from_lane_to_lane():
    env = played("CartPole-v1").env
    gravities = jnp.array([9.8, 30.0])
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (2,)), env.params).replace(gravity=gravities)

    def play(params):
        # A push and some steps without correction, enough for gravity to tell.
        def step(state, key):
            state, time_step = env.step(key, state, jnp.int32(1), params)
            return state, time_step

        return jax.lax.scan(step, env.init(jax.random.key(1), params)[0], jax.random.split(jax.random.key(0), 6))[1].final_obs

    lanes = jax.jit(jax.vmap(play))(params)
    single = jax.jit(play)
    for lane, gravity in enumerate(gravities):
        np.testing.assert_allclose(lanes[lane], single(env.params.replace(gravity=gravity)), rtol=1e-5, atol=1e-6)
    # Only the pole feels gravity at first: its angular velocity differs, and more so with time.
    difference = jnp.abs(lanes[0] - lanes[1])[:, 3]
    assert difference[-1] > 0.01
