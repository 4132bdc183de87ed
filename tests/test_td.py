"""TD errors and losses equal numbers worked by hand, with and without jit, and so do their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from dqn_jax import td

everyway = chex.variants(with_jit=True, without_jit=True, with_device=True)


def q_args(q_tm1, a_tm1, r_t, discount_t, *q_ts):
    q_ts = [jnp.array(q_t, jnp.float32) for q_t in q_ts]
    return jnp.array(q_tm1, jnp.float32), jnp.int32(a_tm1), jnp.float32(r_t), jnp.float32(discount_t), *q_ts


class TestQLearning(chex.TestCase):
    @everyway
    @parameterized.named_parameters(
        # y = 1 + 0.9 * 5 = 5.5, Q = 2.
        ("bootstraps_from_the_maximum", q_args([2, 7], 0, 1, 0.9, [3, 5]), 3.5),
        # y = -1 whatever the next values are, Q = 7.
        ("terminal", q_args([2, 7], 1, -1, 0, [1000, 3]), -8.0),
        # y = 0.5 + 0.5 * 4 = 2.5, Q = -1: a tie has one maximum.
        ("tie", q_args([-1, 0, 0], 0, 0.5, 0.5, [4, 4, 1]), 3.5),
        # y = 0 + 0.5 * -2 = -1, Q = 1: nothing clips a negative maximum at 0.
        ("all_negative", q_args([0, 0, 1], 2, 0, 0.5, [-6, -2, -4]), -2.0),
    )
    def test_hand_worked(self, args, expected):
        td_error = self.variant(td.q_learning)(*args)
        chex.assert_shape(td_error, ())
        np.testing.assert_allclose(td_error, expected, rtol=1e-6)

    @everyway
    def test_target_is_a_constant_to_the_gradient(self):
        grad = self.variant(jax.grad(td.q_learning, argnums=(0, 2, 3, 4)))
        d_q_tm1, d_r_t, d_discount_t, d_q_t = grad(*q_args([2, 7, 1], 1, 1, 0.9, [3, 5, 4]))
        # Only -Q(s, a) depends on anything.
        np.testing.assert_array_equal(d_q_tm1, [0, -1, 0])
        np.testing.assert_array_equal(d_q_t, [0, 0, 0])
        assert (d_r_t, d_discount_t) == (0, 0)

    @everyway
    def test_target_gradients_on_request(self):
        fn = lambda *args: td.q_learning(*args, stop_target_gradients=False)  # noqa: E731
        grad = self.variant(jax.grad(fn, argnums=(0, 2, 3, 4)))
        d_q_tm1, d_r_t, d_discount_t, d_q_t = grad(*q_args([2, 7, 1], 1, 1, 0.9, [3, 5, 4]))
        # y = r + discount * q_t[1]: d/dr = 1, d/d discount = 5, d/d q_t[1] = 0.9.
        np.testing.assert_array_equal(d_q_tm1, [0, -1, 0])
        np.testing.assert_allclose(d_q_t, [0, 0.9, 0], rtol=1e-6)
        assert (d_r_t, d_discount_t) == (1, 5)

    def test_refuses_a_batch(self):
        batch = jax.tree.map(lambda x: jnp.stack([x, x]), q_args([2, 7], 0, 1, 0.9, [3, 5]))
        with pytest.raises(AssertionError, match="rank"):
            td.q_learning(*batch)


class TestDoubleQLearning(chex.TestCase):
    @everyway
    @parameterized.named_parameters(
        # The online values choose action 0, which the target values at 3: y = 1 + 0.9 * 3 = 3.7, Q = 2.
        # Roles swapped it would be 1 + 0.9 * 1, with the maximum 1 + 0.9 * 5.
        ("selects_online_values_with_target", q_args([2, 7], 0, 1, 0.9, [3, 5], [8, 1]), 1.7),
        ("terminal", q_args([2, 7], 1, -1, 0, [1000, 3], [2, 1]), -8.0),
        # Both actions are greedy online; the first is taken: y = 0.5 * 2 = 1, Q = 4.
        ("tie_takes_the_first", q_args([4, 0, 0], 0, 0, 0.5, [9, 2, 6], [1, 7, 7]), -3.0),
    )
    def test_hand_worked(self, args, expected):
        td_error = self.variant(td.double_q_learning)(*args)
        chex.assert_shape(td_error, ())
        np.testing.assert_allclose(td_error, expected, rtol=1e-6)

    @everyway
    def test_equals_q_learning_where_both_networks_agree(self):
        args = q_args([2, 7], 0, 1, 0.9, [3, 5])
        np.testing.assert_array_equal(self.variant(td.double_q_learning)(*args, args[-1]), td.q_learning(*args))

    @everyway
    @parameterized.named_parameters(("constant_target", True, [0, 0]), ("target_gradients", False, [0.9, 0]))
    def test_gradients(self, stop, expected_d_value):
        fn = lambda *args: td.double_q_learning(*args, stop_target_gradients=stop)  # noqa: E731
        grad = self.variant(jax.grad(fn, argnums=(0, 4, 5)))
        d_q_tm1, d_value, d_selector = grad(*q_args([2, 7], 1, 1, 0.9, [3, 5], [8, 1]))
        np.testing.assert_array_equal(d_q_tm1, [0, -1])
        np.testing.assert_allclose(d_value, expected_d_value, rtol=1e-6)
        # Choosing is not differentiable either way.
        np.testing.assert_array_equal(d_selector, [0, 0])


class TestLosses(chex.TestCase):
    @everyway
    def test_squared_error_has_no_half(self):
        error = jnp.array([-3.0, 0.0, 0.5, 2.0])
        loss = self.variant(td.squared_error)
        np.testing.assert_allclose(loss(error), [9.0, 0.0, 0.25, 4.0], rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(loss))(error), [-6.0, 0.0, 1.0, 4.0], rtol=1e-6)

    @everyway
    @parameterized.named_parameters(
        # Inside |x| <= 1 it is x^2 / 2 with slope x; outside |x| - 1/2 with slope +-1; they meet at 1 in value and slope.
        ("threshold_1", 1.0, [-3, -1, -0.5, 0, 0.5, 1, 4], [2.5, 0.5, 0.125, 0, 0.125, 0.5, 3.5], [-1, -1, -0.5, 0, 0.5, 1, 1]),
        # Outside |x| <= 2 it is 2 (|x| - 1) with slope +-2.
        ("threshold_2", 2.0, [-5, -1, 0, 1, 2, 3], [8, 0.5, 0, 0.5, 2, 4], [-2, -1, 0, 1, 2, 2]),
    )
    def test_huber(self, delta, x, values, slopes):
        loss = self.variant(lambda x: td.huber_loss(x, delta))
        x = jnp.array(x, jnp.float32)
        np.testing.assert_allclose(loss(x), values, rtol=1e-6)
        # At the threshold the derivative of a minimum is a matter of convention, but both sides agree here.
        np.testing.assert_allclose(jax.vmap(jax.grad(loss))(x), slopes, rtol=1e-6)

    def test_huber_threshold_defaults_to_1(self):
        assert td.huber_loss(jnp.float32(3.0)) == 2.5
