"""Q(lambda) lies between the one-step and the n-step target, and both ends are these targets to the last bit."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import refusal
from laws.common import assert_bitwise
from test_td import lambda_return_slowly

from dqn_jax.actor import make_actor
from dqn_jax.agent import example_of, hyperparams_of, make_agent
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvSpec, TimeStep
from dqn_jax.losses import make_loss
from dqn_jax.networks import Network, QValues

NUM_ENVS, STEPS = 4, 60
KEY = jax.random.key(0)


def drawn(key, fresh):
    """An observation of two multiples of 1/8 in [-1, 1), and whether it comes from a reset."""
    return jnp.append(jax.random.randint(key, (2,), -8, 8) / 8.0, 1.0 - fresh)


def step(key, state, action, params):
    """Rewards are multiples of 1/4; a step in five terminates the episode, another one truncates it."""
    keys = jax.random.split(key, 4)
    luck = jax.random.uniform(keys[0])
    terminated, truncated = luck < 0.2, (luck >= 0.2) & (luck < 0.4)
    final_obs = drawn(keys[1], fresh=False)
    obs = jnp.where(terminated | truncated, drawn(keys[2], fresh=True), final_obs)
    reward = jax.random.randint(keys[3], (), -8, 8) / 4.0 + action
    return state, TimeStep(obs, final_obs, reward, terminated, truncated)


ENV = Environment(
    EnvSpec("random ends", (3,), np.dtype(np.float32), 3, STEPS), lambda key, params: ((), drawn(key, fresh=True)), step, ()
)
NETWORK = Network(
    init=lambda key: {"trunk": {}, "head": jax.random.randint(key, (3, 3), -4, 5) / 4.0},
    apply=lambda params, obs, key: QValues(params["head"] @ obs),
)
# Each pass has noise of its own, as it has a key of its own.
NOISY = NETWORK._replace(
    apply=lambda params, obs, key: QValues(params["head"] @ obs + jax.random.randint(key, (3,), -4, 5) / 4)
)
ONLINE, TARGET = (NETWORK.init(jax.random.key(seed)) for seed in (1, 2))


def config_of(**changes):
    # All numbers are small multiples of powers of two, so sums are exact in float32 in any order.
    settings = {"num_envs": NUM_ENVS, "batch_size": 32, "replay_capacity": 400, "discount": 0.5, "epsilon_end": 1.0}
    return AgentConfig(**(settings | changes))


@functools.partial(jax.jit, static_argnames="config")
def act(config):
    actor = make_actor(ENV, NETWORK, config)
    state = actor.init(KEY, ENV.params, hyperparams_of(config).actor)
    return jax.lax.scan(lambda state, _: actor.act(state, ONLINE)[:2], state, length=STEPS)[1]


@functools.cache
def collected(**changes):
    """Transitions [T - n + 1, E, ...] of a config, the first of each environment being the one that begins with its first."""
    config = config_of(**changes)
    return jax.device_get(jax.tree.map(lambda x: x[config.n_step - 1 :], act(config)))


def learnt(transitions, network=NETWORK, **changes):
    """The loss of transitions [T, E, ...], its leaves [T, E, ...]."""
    config = config_of(**changes)
    loss, numbers = make_loss(network, config), hyperparams_of(config).loss
    return jax.device_get(jax.jit(jax.vmap(lambda batch: loss(ONLINE, TARGET, batch, KEY, numbers)))(transitions))


def first(output, length):
    return jax.tree.map(lambda x: x[:length], output)


VARIANTS = [
    {"n_step": n, "time_limit": time_limit, "double_q": double}
    for n, time_limit, double in [(2, "bootstrap", False), (4, "bootstrap", True), (4, "terminal", False)]
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_lambda_1_it_is_the_n_step_target(variant):
    of_windows = learnt(collected(**variant, return_lambda=1.0), NOISY, **variant, return_lambda=1.0)
    of_sums = learnt(collected(**variant), NOISY, **variant)
    assert_bitwise(of_windows, of_sums)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_lambda_0_it_is_the_one_step_target(variant):
    of_windows = learnt(collected(**variant, return_lambda=0.0), **variant, return_lambda=0.0)
    single = variant | {"n_step": 1}
    of_steps = learnt(collected(**single), **single)
    assert_bitwise(of_windows, first(of_steps, len(of_windows.loss)))


@pytest.mark.parametrize("return_lambda", [0.5, 0.8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_between_it_is_the_mean_of_all_returns_by_definition(variant, return_lambda):
    n = variant["n_step"]
    given = variant | {"return_lambda": return_lambda}
    output = learnt(collected(**given), **given)
    singles = collected(**variant | {"n_step": 1})
    q = {name: singles.s_t @ np.asarray(params["head"]).T for name, params in (("online", ONLINE), ("target", TARGET))}
    chosen = np.argmax(q["online" if variant["double_q"] else "target"], axis=-1)
    values = np.take_along_axis(q["target"], chosen[..., None], axis=-1)[..., 0]
    ended = singles.s_tm1[1:, :, 2] == 0
    kinds = set()
    for begin, env in np.ndindex(*output.loss.shape):
        ends = np.flatnonzero(ended[begin : begin + n - 1, env])
        part = np.s_[begin : begin + (ends[0] + 1 if len(ends) else n), env]
        kinds.add((len(singles.r_t[part]), bool(singles.discount_t[part][-1] == 0)))
        target = lambda_return_slowly(singles.r_t[part], singles.discount_t[part], values[part], return_lambda)
        error = target - output.q_tm1[begin, env, singles.a_tm1[begin, env]]
        np.testing.assert_allclose(output.priority[begin, env], abs(error), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(output.loss[begin, env], error**2, rtol=1e-5, atol=1e-6)
    # Windows of every length end with a termination and without; where limits terminate, only whole ones end without.
    unended = range(1, n + 1) if variant["time_limit"] == "bootstrap" else [n]
    assert kinds == {(length, True) for length in range(1, n + 1)} | {(length, False) for length in unended}


def test_lambda_in_between_is_neither_end():
    """The control of the laws above: the three differ on the same windows."""
    windows = collected(**VARIANTS[1], return_lambda=1.0)
    found = [learnt(windows, **VARIANTS[1], return_lambda=value).priority for value in (0.0, 0.5, 1.0)]
    for x, y in ((0, 1), (1, 2), (0, 2)):
        assert np.mean(np.abs(found[x] - found[y]) > 1e-3) > 0.3


class TestGradient(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_only_the_value_that_is_learnt_has_one(self):
        """Even where the target network is the online one."""
        config = config_of(n_step=2, return_lambda=0.5, double_q=True)
        loss, numbers = make_loss(NETWORK, config), hyperparams_of(config).loss
        batch = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), collected(n_step=2, return_lambda=0.5))

        def gradient(of_target):
            return jax.grad(lambda params: jnp.sum(loss(params, of_target(params), batch, KEY, numbers).loss))

        shared = self.variant(gradient(lambda params: params))(ONLINE)["head"]
        np.testing.assert_allclose(shared, gradient(lambda params: ONLINE)(ONLINE)["head"], rtol=1e-5)
        assert np.abs(shared).min() > 1e-2


def test_lambda_is_a_number_of_the_state():
    """A sweep over it is a `vmap`, whose lane i is the config's with that number."""
    config = config_of(n_step=2, return_lambda=0.5, loss="huber")
    numbers = hyperparams_of(config).loss
    assert {name: (float(x), x.dtype, x.weak_type) for name, x in numbers.items()} == {
        "delta": (1.0, jnp.float32, False),
        "return_lambda": (0.5, jnp.float32, False),
    }
    loss = make_loss(NETWORK, config)
    batch = jax.tree.map(lambda x: x[0], collected(n_step=2, return_lambda=0.5))
    lanes = jax.vmap(lambda value: loss(ONLINE, TARGET, batch, KEY, numbers | {"return_lambda": value}).loss)
    for value, lane in zip((0.0, 0.25, 1.0), jax.jit(lanes)(jnp.array([0.0, 0.25, 1.0])), strict=True):
        alone = learnt(jax.tree.map(lambda x: x[None], batch), n_step=2, return_lambda=value, loss="huber")
        np.testing.assert_allclose(lane, alone.loss[0], rtol=1e-6)


def booleans(env):
    """An environment that shows signs alone, in a shape of two axes."""

    def seen(obs):
        return (obs > 0).reshape(3, 1)

    def init(key, params):
        state, obs = env.init(key, params)
        return state, seen(obs)

    def step(*args):
        state, time_step = env.step(*args)
        return state, time_step._replace(obs=seen(time_step.obs), final_obs=seen(time_step.final_obs))

    return env._replace(spec=env.spec._replace(obs_shape=(3, 1), obs_dtype=np.dtype(bool)), init=init, step=step)


@pytest.mark.parametrize("memory", ["uniform", "prioritised"])
def test_memories_give_back_windows_of_bits(memory):
    config = config_of(n_step=4, return_lambda=0.5, memory=memory, num_envs=2, batch_size=16, learning_starts=40)
    env, network = booleans(ENV), NETWORK._replace(apply=lambda params, obs, key: QValues(params["head"] @ obs[:, 0]))
    agent, actor = make_agent(env, network, config), make_actor(env, network, config)

    @jax.jit
    def run():
        state = agent.warm_up(agent.init(KEY))
        start = agent.init(KEY)
        _, added = jax.lax.scan(lambda s, _: actor.act(s, start.learner.params)[:2], start.actor, length=config.warm_up_acts)
        return agent.memory.sample(KEY, state.replay), added, state.replay.storage

    sample, added, storage = jax.device_get(run())
    # Twelve bits of a window, in two bytes.
    assert (storage.s_t.shape, storage.s_t.dtype) == ((400, 2), np.uint8)
    stored = jax.tree.map(lambda x: x[3:].reshape(-1, *x.shape[2:])[sample.indices], added)
    assert_bitwise(sample.transitions, stored)
    assert stored.s_t.shape == (16, 4, 3, 1)
    example = example_of(env, config)
    assert [(x.shape[1:], x.dtype) for x in stored] == [(x.shape, x.dtype) for x in example]


@pytest.mark.parametrize("loss", ["munchausen", "categorical", "quantile"])
def test_losses_without_a_lambda_return_refuse_it(loss):
    message = refusal(lambda: make_loss(NETWORK, AgentConfig(loss=loss, n_step=3, return_lambda=0.5)))
    assert message.startswith(f"agent.return_lambda is 0.5 with agent.loss '{loss}', ")
