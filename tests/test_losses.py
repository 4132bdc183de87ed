"""A loss of a batch is the one worked by hand, its numbers are leaves of the state, and a user's own is found wrong in time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import one_line, refusal
from laws.common import assert_bitwise
from test_learner import BATCH, KEY, TARGET_W, TRANSITIONS, config_of, linear_network, start, w_of

from dqn_jax.agent import hyperparams_of, make_agent, make_chunk
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.envs import make_env
from dqn_jax.learner import make_learner
from dqn_jax.losses import LossOutput, make_loss
from dqn_jax.networks import make_network

ENV = make_env("CartPole-v1")
NETWORK = make_network(NetworkConfig(hidden_sizes=(4,)), ENV.spec)
SMALL = {"num_envs": 2, "batch_size": 4, "replay_capacity": 16, "learning_starts": 4}


def cubic(network, config):
    """|y - Q|^3 with y = r, its priority the reward, its target what a number says."""

    def loss(params, target_params, batch, key, hyperparams):
        q_tm1 = jax.vmap(lambda obs: network.apply(params, obs, key).q_values)(batch.s_tm1)
        values = jnp.take_along_axis(q_tm1, batch.a_tm1[:, None], axis=1)[:, 0]
        error = jnp.abs(hyperparams["scale"] * batch.r_t - values) ** hyperparams["power"]
        return LossOutput(error, jnp.abs(batch.r_t), q_tm1, {"largest": jnp.max(error), "rewards": batch.r_t})

    return loss


cubic.numbers = {"power": 3.0, "scale": 1.0}


def test_the_numbers_of_a_name_are_leaves_of_the_state():
    assert hyperparams_of(AgentConfig()).loss == {}
    for spec, delta in (("huber", 1.0), ("huber:0.5", 0.5)):
        numbers = hyperparams_of(AgentConfig(loss=spec)).loss
        assert {name: (float(x), x.dtype, x.weak_type) for name, x in numbers.items()} == {"delta": (delta, jnp.float32, False)}
        _, state = start(config_of(loss=spec))
        assert_bitwise(state.loss_hyperparams, numbers)
    # A sweep gives the agent others than its config's.
    config = AgentConfig(**SMALL, loss="huber")
    swept = hyperparams_of(config)._replace(loss={"delta": jnp.float32(7)})
    assert make_agent(ENV, NETWORK, config).init(KEY, hyperparams=swept).learner.loss_hyperparams["delta"] == 7


@pytest.mark.parametrize(
    ("spec", "losses"),
    # |y - Q| = 1.8, 5, 0.2, 1.8: delta (|x| - delta / 2) beyond delta, x^2 / 2 within.
    [("huber", [1.3, 4.5, 0.02, 1.3]), ("huber:2", [1.62, 8.0, 0.02, 1.62]), ("squared", [3.24, 25, 0.04, 3.24])],
)
def test_losses_of_the_worked_batch(spec, losses):
    config = config_of(loss=spec)
    loss = jax.jit(make_loss(linear_network(), config))
    w = {"trunk": {}, "head": {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}}
    target = {"trunk": {}, "head": {"w": TARGET_W}}
    output = loss(w, target, TRANSITIONS, KEY, hyperparams_of(config).loss)
    np.testing.assert_allclose(output.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(output.priority, [1.8, 5, 0.2, 1.8], rtol=1e-5)
    np.testing.assert_array_equal(output.q_tm1, [[1, 2], [1, 4], [2, 0], [0, 2]])


def test_a_sweep_over_a_number_is_a_vmap():
    """Lane i is the learner whose config has the number."""
    learner, state = start(config_of(loss="huber"))
    deltas = jnp.array([0.5, 1.0, 2.0])
    lanes = jax.vmap(lambda delta: state.replace(loss_hyperparams={"delta": delta}))(deltas)
    after, _, _ = jax.jit(jax.vmap(learner.step, in_axes=(0, None, None)))(lanes, BATCH, KEY)
    for lane, delta in enumerate(deltas):
        alone, own = start(config_of(loss=f"huber:{delta}"))
        np.testing.assert_allclose(w_of(after.params)[lane], w_of(jax.jit(alone.step)(own, BATCH, KEY)[0].params), rtol=1e-5)
    assert not np.allclose(w_of(after.params)[0], w_of(after.params)[1])


def test_a_users_loss_by_name(mine):
    mine.cubic = cubic
    learner = make_learner(linear_network(), config_of(loss="mine:cubic:2"))
    state = learner.init(KEY, hyperparams_of(config_of()).learner)
    grads, priority, info = jax.jit(learner.grad)(state, BATCH, KEY)
    # Q(s, a) = 1, 4, 2, 2 and r = 1, -1, 0, 2: squares 0, 25, 4, 0; slopes 2 / 4 * 2 (2, 0) and 2 / 4 * 5 (1, 2).
    np.testing.assert_allclose(w_of(grads), [[2, 0], [2.5, 5]], rtol=1e-5)
    np.testing.assert_array_equal(priority, [1, 1, 0, 2])
    assert (info["loss"], info["priority"], info["largest"], info["rewards"]) == (7.25, 1.0, 25.0, 0.5)
    # In a notebook, the function itself.
    given = make_learner(linear_network(), config_of(), loss=cubic)
    numbers = given.init(KEY, hyperparams_of(config_of()).learner).loss_hyperparams
    assert {name: float(x) for name, x in numbers.items()} == {"power": 3.0, "scale": 1.0}


def test_what_a_loss_logs_is_averaged_over_steps(mine):
    def counting(network, config):
        squared = make_loss(network, AgentConfig())

        def loss(params, target_params, batch, key, hyperparams):
            output = squared(params, target_params, batch, key, {})
            return output._replace(info={"mine": output.loss, "three": jnp.full(4, 3.0)})

        return loss

    mine.counting = counting
    agent = make_agent(ENV, NETWORK, AgentConfig(**SMALL, loss="mine:counting"))
    _, info = jax.jit(lambda: make_chunk(agent, 3)(agent.warm_up(agent.init(KEY))))()
    assert info["three"] == 3.0
    np.testing.assert_allclose(info["mine"], info["loss"], rtol=1e-6)


def test_a_users_loss_sees_the_window_of_q_lambda_and_its_number(mine):
    seen = []

    def last(network, config):
        def loss(params, target_params, batch, key, hyperparams):
            seen.append(({name: x.shape for name, x in batch._asdict().items()}, set(hyperparams)))
            q_tm1 = jax.vmap(lambda obs: network.apply(params, obs, key).q_values)(batch.s_tm1)
            return LossOutput(batch.r_t[:, -1], batch.discount_t[:, -1], q_tm1)

        return loss

    mine.last = last
    mine.last.numbers = {"own": 1.0}
    make_agent(ENV, NETWORK, AgentConfig(**SMALL, loss="mine:last", n_step=3, return_lambda=0.5))
    shapes = {"s_tm1": (4, 4), "a_tm1": (4,), "r_t": (4, 3), "discount_t": (4, 3), "s_t": (4, 3, 4)}
    assert seen == [(shapes, {"own", "return_lambda"})]


def returning(change):
    """A loss whose output is changed."""

    def maker(network, config):
        squared = make_loss(network, AgentConfig())
        return lambda params, target_params, batch, key, hyperparams: change(squared(params, target_params, batch, key, {}))

    return maker


def raises(_):
    raise KeyError("tau")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda output: output._replace(loss=jnp.mean(output.loss)), "whose loss is float32[]: make it float32[4]"),
        (lambda output: output._replace(priority=output.q_tm1), "whose priority is float32[4, 2]: make it float32[4]"),
        (lambda output: output._replace(q_tm1=output.loss), "whose q_tm1 is float32[4]: make it float32[4, A]"),
        (lambda output: output._replace(loss=jnp.argmax(output.q_tm1, 1)), "whose loss is int32[4]: make it float32[4]"),
        (lambda output: output.loss, "gives something else than a LossOutput: return one"),
        (lambda output: output._replace(info={"mine": 1.0, "episodes": 2}), "whose info names episodes, which others measure"),
        (raises, f"which fails at {__file__}:{raises.__code__.co_firstlineno + 1} with KeyError: 'tau'"),
        (lambda output: output._replace(loss=output.loss @ jnp.ones((3, 3))), "with TypeError: dot_general requires"),
    ],
)
def test_a_loss_of_the_wrong_shape_is_one_sentence(mine, change, words):
    mine.wrong = returning(change)
    message = one_line(lambda: make_agent(ENV, NETWORK, AgentConfig(**SMALL, loss="mine:wrong")))
    assert message.startswith("agent.loss is 'mine:wrong', ")
    assert words in message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hubert", "did you mean huber?"),
        ("huber:1:2", "which takes 1 (delta): leave out the rest"),
        ("squared:1", "which takes none: leave out the rest"),
        ("huber:-1", "give numbers above 0"),
        ("json:dumps", "do not fit it"),
    ],
)
def test_a_loss_that_does_not_exist_is_one_sentence(spec, words):
    message = refusal(lambda: make_agent(ENV, NETWORK, AgentConfig(**SMALL, loss=spec)))
    assert message.startswith(f"agent.loss is {spec!r}")
    assert words in message


def test_a_loss_that_is_given_is_named_by_its_own_name():
    message = refusal(lambda: make_agent(ENV, NETWORK, AgentConfig(**SMALL), loss=returning(lambda output: output.loss)))
    assert message.endswith("returning.<locals>.maker', which gives something else than a LossOutput: return one")


@pytest.mark.parametrize("numbers", [[1.0], {"delta": "one"}])
def test_numbers_that_are_no_numbers_by_name(mine, numbers):
    mine.odd = lambda network, config: make_loss(network, AgentConfig())
    mine.odd.numbers = numbers
    assert "whose attribute numbers is" in refusal(lambda: hyperparams_of(AgentConfig(loss="mine:odd")))
