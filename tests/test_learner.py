"""One update of DQN is the one worked by hand: loss, gradient, clipping, optimizer and target, in the right order."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig, InputError
from dqn_jax.learner import make_learner
from dqn_jax.networks import Network, QValues
from dqn_jax.types import Sample, Transition

KEY = jax.random.key(0)


def linear_network(w=((1.0, 0.0), (0.0, 2.0))):
    """Q(s, a) = w[a] . s for observations and actions of two kinds, w given."""
    return Network(
        init=lambda key: {"trunk": {}, "head": {"w": jnp.array(w)}},
        apply=lambda params, obs, key: QValues(params["head"]["w"] @ obs),
    )


# The worked batch of four. Online w = [[1, 0], [0, 2]], so Q(s) = (s_1, 2 s_2).
# Target w = [[2, 0], [0, 1]], so Q'(s) = (2 s_1, s_2). gamma = 0.9 and y = r + discount * max Q'(s'):
#
#      s       a   Q(s, a)   r   discount      s'      Q'(s')     y = r + ...            y - Q    (y - Q)^2
#   (1, 1)     0      1      1     0.9       (1, 1)    (2, 1)     1 + 0.9 * 2  =  2.8     1.8        3.24
#   (1, 2)     1      4     -1     0         (3, 3)    (6, 3)    -1            = -1      -5         25      terminal
#   (2, 0)     0      2      0     0.9       (0, 2)    (0, 2)     0 + 0.9 * 2  =  1.8    -0.2        0.04      time limit
#   (0, 1)     1      2      2     0.9     (-2, -2)   (-4, -2)    2 - 0.9 * 2  =  0.2    -1.8        3.24
#
# A time limit is no termination: it bootstraps.
# loss = (3.24 + 25 + 0.04 + 3.24) / 4 = 7.88, and as the target is a constant d loss / d w[a] = -2 / 4 * sum of (y - Q) s:
#   w[0]: -1/2 * (1.8 * (1, 1) - 0.2 * (2, 0)) = -1/2 * (1.4, 1.8)   = (-0.7, -0.9)
#   w[1]: -1/2 * (-5 * (1, 2) - 1.8 * (0, 1))  = -1/2 * (-5, -11.8)  = (2.5, 5.9)
# One step of SGD at 0.1: w = [[1.07, 0.09], [-0.25, 1.41]].
#
# Double Q-learning takes Q' of the action that is greedy online, which differs twice. First: Q(1, 1) = (1, 2), so action 1,
# y = 1 + 0.9 * 1 = 1.9, y - Q = 0.9. Last: Q(-2, -2) = (-2, -4), so action 0, y = 2 - 0.9 * 4 = -1.6, y - Q = -3.6. Then
# loss = (0.81 + 25 + 0.04 + 12.96) / 4 = 9.7025,
#   w[0]: -1/2 * (0.9 * (1, 1) - 0.2 * (2, 0)) = (-0.25, -0.45)
#   w[1]: -1/2 * (-5 * (1, 2) - 3.6 * (0, 1))  = (2.5, 6.8)
#
# Huber's loss is (1.3 + 4.5 + 0.02 + 1.3) / 4 = 1.78, and its slope is y - Q cut to [-1, 1]:
#   w[0]: -1/4 * (1 * (1, 1) - 0.2 * (2, 0))   = (-0.15, -0.25)
#   w[1]: -1/4 * (-1 * (1, 2) - 1 * (0, 1))    = (0.25, 0.75)
TRANSITIONS = Transition(
    s_tm1=jnp.array([[1.0, 1], [1, 2], [2, 0], [0, 1]]),
    a_tm1=jnp.array([0, 1, 0, 1]),
    r_t=jnp.array([1.0, -1, 0, 2]),
    discount_t=jnp.array([0.9, 0, 0.9, 0.9]),
    s_t=jnp.array([[1.0, 1], [3, 3], [0, 2], [-2, -2]]),
)
TARGET_W = jnp.array([[2.0, 0], [0, 1]])


def sample_of(transitions, weights=None):
    size = len(transitions.r_t)
    weights = jnp.ones(size) if weights is None else jnp.array(weights, jnp.float32)
    return Sample(transitions, jnp.zeros(size, jnp.int32), weights, age=jnp.arange(size))


BATCH = sample_of(TRANSITIONS)


def config_of(**changes):
    return AgentConfig(**({"optimizer": "sgd", "learning_rate": 0.1, "target_period": 1000} | changes))


def start(config, w=((1.0, 0.0), (0.0, 2.0)), axis_name=None):
    """-> (learner, its first state, with the target network of the worked batch)."""
    learner = make_learner(linear_network(w), config, axis_name)
    state = learner.init(KEY, hyperparams_of(config).learner)
    return learner, state.replace(target_params={"trunk": {}, "head": {"w": TARGET_W}})


def w_of(params):
    return np.asarray(params["head"]["w"])


def grads_of(*rows):
    return {"trunk": {}, "head": {"w": jnp.array(rows, jnp.float32)}}


WORKED = {
    "squared": ({}, 7.88, [[-0.7, -0.9], [2.5, 5.9]], [1.8, 5, 0.2, 1.8]),
    "double": ({"double_q": True}, 9.7025, [[-0.25, -0.45], [2.5, 6.8]], [0.9, 5, 0.2, 3.6]),
    "huber": ({"loss": "huber"}, 1.78, [[-0.15, -0.25], [0.25, 0.75]], [1.8, 5, 0.2, 1.8]),
}


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
@pytest.mark.parametrize(("changes", "loss", "gradient", "priority"), WORKED.values(), ids=WORKED)
def test_the_worked_batch(changes, loss, gradient, priority, jit):
    learner, state = start(config_of(**changes))
    grads, found_priority, info = jit(learner.grad)(state, BATCH, KEY)
    np.testing.assert_allclose(w_of(grads), gradient, rtol=1e-5)
    np.testing.assert_allclose(found_priority, priority, rtol=1e-5)

    # Q(s) are (1, 2), (1, 4), (2, 0), (0, 2).
    expected_info = {"loss": loss, "priority": np.mean(priority), "q_mean": 1.5, "q_max": 4.0, "replay_age": 1.5}
    assert info.keys() == expected_info.keys()
    for name, value in expected_info.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-5, err_msg=name)

    after, step_priority, step_info = jit(learner.step)(state, BATCH, KEY)
    np.testing.assert_allclose(w_of(after.params), np.array([[1, 0], [0, 2]]) - 0.1 * np.array(gradient), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(w_of(after.target_params), TARGET_W)
    np.testing.assert_allclose(step_priority, priority, rtol=1e-5)
    norm = np.linalg.norm(gradient)
    for name, value in (expected_info | {"grad_norm": norm, "update_norm": 0.1 * norm}).items():
        np.testing.assert_allclose(step_info[name], value, rtol=1e-5, err_msg=name)
    assert after.updates.count == 1


@pytest.mark.parametrize("measured", [True, False])
def test_what_is_not_measured_is_zero_and_changes_nothing(measured):
    learner, state = start(config_of())
    step = jax.jit(lambda measured: learner.step(state, BATCH, KEY, None, measured))
    (after, priority, info), (whole, whole_priority, everything) = step(jnp.bool_(measured)), step(True)
    chex.assert_trees_all_close((after, priority, info["loss"]), (whole, whole_priority, everything["loss"]), rtol=1e-5)
    names = ("priority", "q_mean", "q_max", "replay_age", "grad_norm", "update_norm")
    for name in names:
        np.testing.assert_allclose(info[name], measured * everything[name], rtol=1e-5, err_msg=name)
    assert all(float(everything[name]) for name in names)


def test_weights_multiply_the_loss_before_its_mean():
    learner, state = start(config_of())
    grads, priority, info = jax.jit(learner.grad)(state, sample_of(TRANSITIONS, [1, 0.5, 2, 0]), KEY)
    # (3.24 + 0.5 * 25 + 2 * 0.04 + 0) / 4: divided by the size of the batch, not by the sum of the weights.
    np.testing.assert_allclose(info["loss"], 3.955, rtol=1e-5)
    # w[0]: -1/2 * (1.8 * (1, 1) - 2 * 0.2 * (2, 0)), w[1]: -1/2 * 0.5 * -5 * (1, 2).
    np.testing.assert_allclose(w_of(grads), [[-0.5, -0.9], [1.25, 2.5]], rtol=1e-5)
    # Priorities need the error itself.
    np.testing.assert_allclose(priority, [1.8, 5, 0.2, 1.8], rtol=1e-5)


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_both_networks_start_alike_in_buffers_of_their_own(jit):
    learner = make_learner(linear_network(), config_of(optimizer="adam"))
    state = jit(learner.init)(KEY, hyperparams_of(config_of()).learner)
    params, target = state.params["head"]["w"], state.target_params["head"]["w"]
    np.testing.assert_array_equal(params, target)
    assert params.unsafe_buffer_pointer() != target.unsafe_buffer_pointer()
    # Which is what donating needs.
    donated = jax.jit(lambda state: state, donate_argnums=0)(state)
    np.testing.assert_array_equal(w_of(donated.params), [[1, 0], [0, 2]])
    assert params.is_deleted()
    assert target.is_deleted()


@pytest.mark.parametrize("period", [1, 3])
def test_target_is_copied_every_period_and_never_between(period):
    learner, state = start(config_of(target_period=period, learning_rate=0.01))
    step = jax.jit(learner.step)
    expected = w_of(state.target_params)
    for update in range(1, 8):
        before = w_of(state.params)
        state, _, _ = step(state, BATCH, KEY)
        assert not np.array_equal(w_of(state.params), before)
        if update % period == 0:
            expected = w_of(state.params)
        np.testing.assert_array_equal(w_of(state.target_params), expected)
        assert state.updates.count == update


@pytest.mark.parametrize(
    ("period", "targets"),
    [
        # 3/4 of the old target and 1/4 of w = [[2, 1], [1, 3]], then of w = [[3, 2], [2, 4]].
        (1, [[[2, 0.25], [0.25, 1.5]], [[2.25, 0.6875], [0.6875, 2.125]]]),
        # Nothing at the first update, then 3/4 of [[2, 0], [0, 1]] and 1/4 of [[3, 2], [2, 4]].
        (2, [[[2, 0], [0, 1]], [[2.25, 0.5], [0.5, 1.75]]]),
    ],
)
def test_polyak_average(period, targets):
    learner, state = start(config_of(target_period=period, target_rate=0.25, learning_rate=1.0))
    apply = jax.jit(learner.apply)
    for update, expected in enumerate(targets, start=1):
        # Gradients of -1 move every online weight up by 1.
        state, _ = apply(state, grads_of([-1, -1], [-1, -1]))
        np.testing.assert_array_equal(w_of(state.params), np.array([[1, 0], [0, 2]]) + update)
        np.testing.assert_allclose(w_of(state.target_params), expected, rtol=1e-6)


RULES = {
    "sgd": (optax.sgd(0.1), {}),
    "adam": (optax.adam(0.1, b1=0.9, b2=0.999, eps=0.01), {}),
    "rmsprop": (optax.rmsprop(0.1, decay=0.8, eps=0.01, centered=True), {"rmsprop_decay": 0.8}),
}


@pytest.mark.parametrize("optimizer", RULES)
def test_optimizer_is_optaxs(optimizer):
    rule, changes = RULES[optimizer]
    learner, state = start(config_of(optimizer=optimizer, optimizer_eps=0.01, **changes))
    apply = jax.jit(learner.apply)
    params = np.array([[1.0, 0], [0, 2]], np.float32)
    rule_state = rule.init(params)
    for gradient in np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32):
        state, info = apply(state, grads_of(*gradient))
        deltas, rule_state = rule.update(gradient, rule_state, params)
        params = optax.apply_updates(params, deltas)
        np.testing.assert_allclose(w_of(state.params), params, rtol=1e-5)
        np.testing.assert_allclose(info["update_norm"], np.linalg.norm(deltas), rtol=1e-5)


def test_first_adam_and_rmsprop_steps_by_hand():
    gradient = np.array([[3.0, -4.0], [0.5, 0.0]])
    after = {}
    for optimizer in ("adam", "rmsprop"):
        learner, state = start(config_of(optimizer=optimizer, optimizer_eps=0.5, rmsprop_decay=0.75))
        after[optimizer] = w_of(learner.apply(state, grads_of(*gradient))[0].params) - [[1, 0], [0, 2]]
    # Adam's corrected moments are g and g^2: a step of g / (|g| + eps).
    np.testing.assert_allclose(after["adam"], -0.1 * gradient / (np.abs(gradient) + 0.5), rtol=1e-4, atol=1e-6)
    # Centred: moments g / 4 and g^2 / 4, so a variance of g^2 / 4 - g^2 / 16.
    np.testing.assert_allclose(after["rmsprop"], -0.1 * gradient / np.sqrt(gradient**2 * 3 / 16 + 0.5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("max_grad_norm", "step"),
    [(None, [[3, 0], [0, 4]]), (1.0, [[0.6, 0], [0, 0.8]]), (2.5, [[1.5, 0], [0, 2]]), (5.5, [[3, 0], [0, 4]])],
)
def test_clipping_scales_the_global_norm(max_grad_norm, step):
    # The gradient (3, 0, 0, 4) has norm 5.
    learner, state = start(config_of(max_grad_norm=max_grad_norm, learning_rate=1.0))
    state, info = jax.jit(learner.apply)(state, grads_of([3, 0], [0, 4]))
    np.testing.assert_allclose(w_of(state.params), np.array([[1, 0], [0, 2]]) - step, rtol=1e-5, atol=1e-6)
    assert info["grad_norm"] == 5
    np.testing.assert_allclose(info["update_norm"], np.linalg.norm(step), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        # Half of the clipped gradient; half of the gradient, of norm 2.5, would be clipped to (0.6, 0.8).
        ({"learning_rate": 0.5}, [[0.3, 0], [0, 0.4]]),
        # Adam's first step is rate * g / (|g| + eps), of the clipped g: (0.6 / 1.1, 0.8 / 1.3).
        ({"optimizer": "adam", "optimizer_eps": 0.5, "learning_rate": 4.0}, [[24 / 11, 0], [0, 32 / 13]]),
    ],
    ids=["sgd", "adam"],
)
def test_gradients_are_clipped_before_the_optimizer_sees_them(changes, step):
    learner, state = start(config_of(max_grad_norm=1.0, **changes))
    state, _ = jax.jit(learner.apply)(state, grads_of([3, 0], [0, 4]))
    np.testing.assert_allclose(w_of(state.params), np.array([[1, 0], [0, 2]]) - step, rtol=1e-4, atol=1e-6)


def test_gradients_are_averaged_before_they_are_clipped():
    """Two lanes pull apart with all their might; their mean is small and passes unclipped."""
    config = config_of(max_grad_norm=1.0, learning_rate=1.0)
    learner, state = start(config, w=((0.0, 0.0), (0.0, 0.0)), axis_name="lanes")
    # Terminal, so y = r; Q = 0; d loss / d w[0] = -2 r s: (-10, 0) and (9.5, 0), of mean (-0.25, 0).
    lanes = [
        Transition(jnp.array([[1.0, 0]]), jnp.array([0]), jnp.array([r]), jnp.array([0.0]), jnp.array([[1.0, 1]]))
        for r in (5.0, -4.75)
    ]
    samples = jax.tree.map(lambda *x: jnp.stack(x), *map(sample_of, lanes))
    mapped = jax.jit(jax.vmap(learner.step, in_axes=(None, 0, None), axis_name="lanes"))
    state, priority, info = mapped(state, samples, KEY)
    for lane in range(2):
        np.testing.assert_allclose(w_of(state.params)[lane], [[0.25, 0], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(info["grad_norm"], [0.25, 0.25], rtol=1e-5)
    # What is a lane's own stays so.
    np.testing.assert_allclose(priority, [[5], [4.75]])


def test_lanes_without_an_axis_name_keep_their_own_gradients():
    learner, state = start(config_of(learning_rate=1.0))
    samples = jax.tree.map(lambda x: jnp.stack([x, x]), BATCH)
    samples = samples._replace(weights=jnp.array([[1.0] * 4, [0.0] * 4]))
    state, _, _ = jax.jit(jax.vmap(learner.step, in_axes=(None, 0, None)))(state, samples, KEY)
    np.testing.assert_allclose(w_of(state.params), [[[1.7, 0.9], [-2.5, -3.9]], [[1, 0], [0, 2]]], rtol=1e-5)


def test_correction_comes_before_clipping():
    learner, state = start(config_of(max_grad_norm=1.0, learning_rate=1.0))

    def correction(grads, params, memory):
        # Gradients (0.3, 0, 0, 0) and parameters (1, 0, 0, 2) give (3, 0, 0, 4), of norm 5.
        return jax.tree.map(lambda g, p: jnp.where(g > 0, 10 * g, 2 * p), grads, params), memory

    apply = jax.jit(functools.partial(learner.apply, correction=correction))
    after, info = apply(state, grads_of([0.3, 0], [0, 0]))
    # Clipped to norm 1; the other way round the step would be (3, 0, 0, 4) whole.
    np.testing.assert_allclose(w_of(after.params), [[0.4, 0], [0, 1.2]], rtol=1e-5)
    np.testing.assert_allclose(info["grad_norm"], 5, rtol=1e-6)


def test_step_is_apply_after_grad_and_passes_the_correction_on():
    learner, state = start(config_of())
    correction = lambda grads, params, memory: (jax.tree.map(lambda g: -2 * g, grads), memory)  # noqa: E731
    after, _, _ = jax.jit(functools.partial(learner.step, correction=correction))(state, BATCH, KEY)
    np.testing.assert_allclose(w_of(after.params), [[0.86, -0.18], [0.5, 3.18]], rtol=1e-5)


def test_correction_follows_the_mean():
    """Every lane corrects the mean gradient: squaring tells the mean of squares from the square of the mean."""
    learner, state = start(config_of(learning_rate=1.0), axis_name="lanes")
    samples = jax.tree.map(lambda x: jnp.stack([x, x]), BATCH)._replace(weights=jnp.array([[2.0] * 4, [0.0] * 4]))
    squared = lambda grads, params, memory: (jax.tree.map(jnp.square, grads), memory)  # noqa: E731
    step = functools.partial(learner.step, correction=squared)
    state, _, _ = jax.jit(jax.vmap(step, in_axes=(None, 0, None), axis_name="lanes"))(state, samples, KEY)
    expected = np.array([[1, 0], [0, 2]]) - np.square([[-0.7, -0.9], [2.5, 5.9]])
    np.testing.assert_allclose(w_of(state.params), [expected, expected], rtol=1e-5)


def test_a_correction_remembers_from_update_to_update():
    """A running sum of gradients, from memory: steps of g1 and then of g1 + g2."""
    learner, state = start(config_of())
    running_sum = lambda grads, params, memory: (jax.tree.map(jnp.add, memory, grads),) * 2  # noqa: E731
    apply = jax.jit(functools.partial(learner.apply, correction=running_sum))
    state = state.replace(memory=grads_of([0, 0], [0, 1]))
    # (1, 0, 0, 1) of memory and gradient, so the step is a tenth of it.
    state, _ = apply(state, grads_of([1, 0], [0, 0]))
    np.testing.assert_allclose(w_of(state.params), [[0.9, 0], [0, 1.9]], rtol=1e-6)
    state, info = apply(state, grads_of([0, 0], [2, 0]))
    np.testing.assert_allclose(w_of(state.params), [[0.8, 0], [-0.2, 1.8]], rtol=1e-6)
    np.testing.assert_allclose(w_of(state.memory), [[1, 0], [2, 1]], rtol=1e-6)
    np.testing.assert_allclose(info["grad_norm"], np.sqrt(6), rtol=1e-6)
    # Without a correction it is kept as it is.
    after, _ = jax.jit(learner.apply)(state, grads_of([0, 0], [2, 0]))
    np.testing.assert_array_equal(w_of(after.memory), w_of(state.memory))


def trained(learner, hyperparams, updates=5):
    state = learner.init(KEY, hyperparams)
    return jax.lax.scan(lambda state, _: (learner.step(state, BATCH, KEY)[0], None), state, length=updates)[0]


def test_hyperparams_are_traced():
    config = config_of(max_grad_norm=1.0, target_period=2)
    learner, traces = make_learner(linear_network(), config), []

    @jax.jit
    def train(hyperparams):
        traces.append(hyperparams)
        return trained(learner, hyperparams)

    base = hyperparams_of(config).learner
    changed = [
        base,
        base._replace(learning_rate=jnp.float32(0.05)),
        base._replace(max_grad_norm=jnp.float32(0.01)),
        base._replace(target_rate=jnp.float32(0.5)),
    ]
    singles = [train(hyperparams) for hyperparams in changed]
    assert len(traces) == 1
    # Each number matters, to the target network at least.
    for state in singles[1:]:
        assert np.abs(w_of(state.target_params) - w_of(singles[0].target_params)).max() > 0.01

    swept = jax.jit(jax.vmap(lambda hyperparams: trained(learner, hyperparams)))(
        jax.tree.map(lambda *x: jnp.stack(x), *changed)
    )
    for lane, single in enumerate(singles):
        for x, y in zip(jax.tree.leaves(swept), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(x[lane], y, rtol=1e-5, atol=1e-7)


def test_a_new_learning_rate_does_not_retrace_a_step():
    learner, state = start(config_of())
    traces = []

    @jax.jit
    def step(state):
        traces.append(state)
        return learner.step(state, BATCH, KEY)[0]

    slow = state.replace(hyperparams=state.hyperparams._replace(learning_rate=jnp.float32(0.01)))
    moves = [w_of(step(x).params) - w_of(state.params) for x in (state, slow)]
    np.testing.assert_allclose(moves[0], 10 * moves[1], rtol=1e-4)
    step(step(slow))
    assert len(traces) == 1


def test_network_keys_differ_between_the_three_passes():
    """A noisy network must not see the same noise in Q(s), Q'(s') and the choice of the double target."""
    seen = []

    def apply(params, obs, key):
        seen.append(jax.random.key_data(key))
        return QValues(params["head"]["w"] @ obs)

    learner = make_learner(linear_network()._replace(apply=apply), config_of(double_q=True))
    state = learner.init(KEY, hyperparams_of(config_of()).learner)
    with jax.disable_jit():
        one = jax.tree.map(lambda x: x[:1], TRANSITIONS)
        learner.grad(state, sample_of(one), KEY)
    keys = {tuple(np.asarray(key).tolist()) for key in seen}
    assert len(keys) == len(seen) == 3


def test_the_learning_rate_falls_linearly_to_0():
    """Steps of SGD along a constant gradient of 1: 0.1 times 1, 3/4, 1/2, 1/4, 0, 0."""
    learner, state = start(config_of(learning_rate_decay_updates=4))
    steps = []
    for _ in range(6):
        before = w_of(state.params)[0, 0]
        state, _ = learner.apply(state, grads_of([1, 0], [0, 0]))
        steps.append(before - w_of(state.params)[0, 0])
    np.testing.assert_allclose(steps, [0.1, 0.075, 0.05, 0.025, 0, 0], atol=1e-6)
    assert state.hyperparams.learning_rate == jnp.float32(0.1)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("lion", optax.lion(0.1)), ("adamw:0.5:0.6", optax.adamw(0.1, 0.5, 0.6)), ("yogi", optax.yogi(0.1))],
)
def test_any_optimizer_of_optax_by_its_name(name, rule):
    learner, state = start(config_of(optimizer=name))
    params = {"trunk": {}, "head": {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}}
    rule_state = rule.init(params)
    for scale in (1.0, -0.5):
        grads = grads_of([3 * scale, -4], [0.5, 0.25])
        state, _ = learner.apply(state, grads)
        deltas, rule_state = rule.update(grads, rule_state, params)
        params = optax.apply_updates(params, deltas)
    np.testing.assert_allclose(w_of(state.params), w_of(params), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamm", "did you mean adam?"),
        ("adam:1", "do not fit it"),
        *((name, "has no meaning here") for name in ("chain", "lbfgs", "rprop", "scale_by_rprop")),
    ],
)
def test_optimizers_that_do_not_exist(name, words):
    with pytest.raises(InputError, match=r"^agent\.optimizer is .*" + re.escape(words)):
        make_learner(linear_network(), config_of(optimizer=name))
