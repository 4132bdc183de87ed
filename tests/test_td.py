"""TD errors and losses equal numbers worked by hand, with and without jit, and so do their gradients."""

import chex
import hypothesis
import hypothesis.strategies as st
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
        np.testing.assert_allclose(self.variant(td.double_q_learning)(*args), expected, rtol=1e-6)

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


def lambda_return_slowly(r_t, discount_t, v_t, lambda_):
    """The first lambda return of a sequence by definition: the mean of its k-step returns, weighed by powers of lambda."""
    returns = []
    for k in range(1, len(r_t) + 1):
        total, discount = 0.0, 1.0
        for r, step in zip(r_t[:k], discount_t[:k], strict=True):
            total, discount = total + discount * float(r), discount * float(step)
        returns.append(total + discount * float(v_t[k - 1]))
    weights = [(1 - lambda_) * lambda_**k for k in range(len(returns) - 1)]
    return sum(w * g for w, g in zip([*weights, lambda_ ** len(weights)], returns, strict=True))


class TestLambdaReturns(chex.TestCase):
    ARGS = tuple(jnp.array(x, jnp.float32) for x in ([1, 2, 4], [0.5, 0.5, 0.5], [8, 16, 32]))

    @everyway
    @parameterized.named_parameters(
        # 4 + 16 = 20; 2 + 0.5 * (0.75 * 16 + 0.25 * 20) = 10.5; 1 + 0.5 * (0.75 * 8 + 0.25 * 10.5) = 5.3125.
        ("no_end", [1, 2, 4], [0.5, 0.5, 0.5], [8, 16, 32], [5.3125, 10.5, 20]),
        # What follows a termination counts for nothing: 2; 1 + 0.5 * (0.75 * 8 + 0.25 * 2) = 4.25.
        ("termination_in_the_middle", [1, 2, 0], [0.5, 0, 1], [8, 16, 16], [4.25, 2, 16]),
        # After a time limit its own value alone: 2 + 0.5 * 16 = 10; 1 + 0.5 * (0.75 * 8 + 0.25 * 10) = 5.25.
        ("time_limit_in_the_middle", [1, 2, 0], [0.5, 0.5, 1], [8, 16, 16], [5.25, 10, 16]),
        ("one_step", [1], [0.5], [8], [5]),
    )
    def test_hand_worked(self, r_t, discount_t, v_t, expected):
        args = (jnp.array(x, jnp.float32) for x in (r_t, discount_t, v_t))
        np.testing.assert_array_equal(self.variant(td.lambda_returns)(*args, 0.25), expected)

    @hypothesis.given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
    def test_it_is_the_slow_one_on_whole_episodes(self, seed, length, lambda_):
        rng = np.random.default_rng(seed)
        r_t, v_t = rng.normal(size=(2, length)).astype(np.float32)
        discount_t = np.full(length, 0.9, np.float32)
        discount_t[-1] *= rng.random() < 0.5
        found = td.lambda_returns(*map(jnp.asarray, (r_t, discount_t, v_t)), lambda_)
        slow = [lambda_return_slowly(r_t[t:], discount_t[t:], v_t[t:], lambda_) for t in range(length)]
        np.testing.assert_allclose(found, slow, rtol=1e-5, atol=1e-5)

    @everyway
    @parameterized.named_parameters(
        # G_1 = r_1 + d_1 (0.75 v_1 + 0.25 (r_2 + d_2 (0.75 v_2 + 0.25 (r_3 + d_3 v_3)))), d = 0.5.
        ("on_request", False, [0.375, 0.046875, 0.0078125]),
        ("constant", True, [0, 0, 0]),
    )
    def test_gradients(self, stop, expected):
        fn = lambda r_t, discount_t, v_t: td.lambda_returns(r_t, discount_t, v_t, 0.25, stop_target_gradients=stop)[0]  # noqa: E731
        np.testing.assert_array_equal(self.variant(jax.grad(fn, argnums=2))(*self.ARGS), expected)

    def test_by_default_it_is_the_return_with_gradients(self):
        found, slope = jax.value_and_grad(lambda v_t: td.lambda_returns(*self.ARGS[:2], v_t)[0])(self.ARGS[2])
        # 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 32.
        assert found == 7
        np.testing.assert_array_equal(slope, [0, 0, 0.125])

    def test_refuses_a_batch_other_lengths_and_whole_numbers(self):
        with pytest.raises(AssertionError, match="rank"):
            td.lambda_returns(*(x[None] for x in self.ARGS), 0.5)
        with pytest.raises(AssertionError, match="shape"):
            td.lambda_returns(self.ARGS[0], self.ARGS[1], self.ARGS[2][:1], 0.5)
        with pytest.raises(AssertionError, match="type"):
            td.lambda_returns(*self.ARGS, 1)


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


class TestMunchausen(chex.TestCase):
    @everyway
    @parameterized.named_parameters(
        # pi(a|s) = 1/4, log pi = -1.386, clipped to -1, half of it is taken; V = 0 + log 2.
        ("clipped", 0, 1.0 - 0.5 + 0.5 * np.log(2) - 2.0),
        # pi(a|s) = 3/4.
        ("not_clipped", 1, 1.0 + 0.5 * np.log(0.75) + 0.5 * np.log(2) - 7.0),
    )
    def test_hand_worked(self, action, expected):
        args = q_args([2, 7], action, 1, 0.5, [0, 0], [0, np.log(3)])
        np.testing.assert_allclose(self.variant(td.munchausen_q_learning)(*args, 1.0, 0.5, -1.0), expected, rtol=1e-6)

    def test_at_a_low_temperature_without_the_bonus_it_is_q_learning(self):
        args = q_args([2, 7, 0], 1, 0.5, 0.9, [4, -1, 3.9])
        error = td.munchausen_q_learning(*args, args[-1], 1e-3, 0.0, -1.0)
        np.testing.assert_allclose(error, td.q_learning(*args), rtol=1e-5)

    def test_target_is_a_constant_to_the_gradient(self):
        args = q_args([2, 7], 1, 1, 0.9, [3, 5], [1, 2])
        grad = jax.grad(td.munchausen_q_learning, argnums=(0, 2, 4, 5))(*args, 0.5, 0.9, -1.0)
        assert [np.asarray(x).tolist() for x in grad] == [[0, -1], 0, [0, 0], [0, 0]]


def projected_slowly(z_p, probs, z_q):
    """Atom by atom, as algorithm 1 of Bellemare et al. (2017) is written, for gaps of any width."""
    result = np.zeros(len(z_q))
    for z, p in zip(np.clip(z_p, z_q[0], z_q[-1]), probs, strict=True):
        right = min(np.searchsorted(z_q, z, side="right"), len(z_q) - 1)
        left = right - 1
        share = (z - z_q[left]) / (z_q[right] - z_q[left])
        result[left] += p * (1 - share)
        result[right] += p * share
    return result


class TestCategorical(chex.TestCase):
    @everyway
    def test_projection_by_hand(self):
        project = self.variant(td.categorical_l2_project)
        found = project(jnp.float32([-1, 0.25, 1.5, 5]), jnp.float32([0.1, 0.4, 0.2, 0.3]), jnp.float32([0, 1, 2]))
        np.testing.assert_allclose(found, [0.1 + 0.3, 0.1 + 0.1, 0.1 + 0.3], rtol=1e-6)
        np.testing.assert_allclose(project(jnp.float32([2]), jnp.float32([1]), jnp.float32([0, 1, 3])), [0, 0.5, 0.5])

    @hypothesis.given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 6))
    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
    def test_projection_is_the_slow_one(self, seed, atoms, others):
        rng = np.random.default_rng(seed)
        z_q = np.cumsum(rng.uniform(0.1, 2, others)).astype(np.float32) - 3
        # Some lie on atoms, some beyond the ends.
        z_p = np.where(rng.random(atoms) < 0.3, rng.choice(z_q, atoms), rng.uniform(-6, 6, atoms)).astype(np.float32)
        probs = rng.dirichlet(np.ones(atoms)).astype(np.float32)
        found = td.categorical_l2_project(jnp.asarray(z_p), jnp.asarray(probs), jnp.asarray(z_q))
        np.testing.assert_allclose(found, projected_slowly(z_p, probs, z_q), atol=1e-5)
        np.testing.assert_allclose(np.sum(found), 1, rtol=1e-5)

    @everyway
    def test_loss_by_hand(self):
        atoms, big = jnp.float32([0, 1, 2]), 100.0
        online = jnp.log(jnp.float32([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]))
        # Action 0 is surely worth 0, action 1 surely 2: r + discount * 2 = 1.25, three quarters of it at 1.
        target = jnp.float32([[big, 0, 0], [0, 0, big]])
        args = (atoms, online, jnp.int32(1), jnp.float32(0.25), jnp.float32(0.5), atoms, target)
        expected = -(0.75 * np.log(0.3) + 0.25 * np.log(0.5))
        np.testing.assert_allclose(self.variant(td.categorical_q_learning)(*args), expected, rtol=1e-5)
        # A selector that prefers action 0: r + 0 = 0.25.
        expected = -(0.75 * np.log(0.2) + 0.25 * np.log(0.3))
        double = self.variant(td.categorical_double_q_learning)(*args, jnp.float32([1, 0]))
        np.testing.assert_allclose(double, expected, rtol=1e-5)

    def test_target_is_a_constant_to_the_gradient(self):
        atoms = jnp.float32([0, 1])
        args = (atoms, jnp.float32([[0.0, 1.0]]), jnp.int32(0), jnp.float32(0.3), jnp.float32(0.5), atoms)
        grad = jax.grad(td.categorical_q_learning, argnums=(1, 6))(*args, jnp.float32([[2.0, 1.0]]))
        assert np.abs(grad[0]).min() > 0
        assert np.abs(grad[1]).max() == 0


class TestQuantiles(chex.TestCase):
    @everyway
    @parameterized.named_parameters(
        # Errors 1 and 3 weigh a quarter; -1 weighs a quarter and 1 three quarters.
        ("absolute", 0.0, 0.25 * 2 + 0.5 * (0.25 + 0.75)),
        # Huber's loss of 1 and 3 is 0.5 and 2.5.
        ("huber", 1.0, 0.25 * 1.5 + 0.5 * (0.25 + 0.75) * 0.5),
        # With 2 it is 0.5 and 4, and is divided by 2.
        ("huber_of_2", 2.0, 0.25 * 2.25 / 2 + 0.5 * (0.25 + 0.75) * 0.5 / 2),
    )
    def test_loss_by_hand(self, huber_param, expected):
        loss = self.variant(td.quantile_regression_loss)
        found = loss(jnp.float32([0, 2]), jnp.float32([0.25, 0.75]), jnp.float32([1, 3]), huber_param)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_its_minimum_are_the_quantiles(self):
        """Of 1 to 100, the quantile of tau is 100 tau."""
        samples, taus = jnp.arange(1, 101, dtype=jnp.float32), jnp.float32([0.1, 0.5, 0.9])
        grid = jnp.arange(0, 101, dtype=jnp.float32) + 0.5
        for tau in taus:
            losses = [td.quantile_regression_loss(x[None], tau[None], samples) for x in grid]
            assert abs(float(grid[np.argmin(losses)]) - 100 * float(tau)) <= 0.6

    @everyway
    def test_the_selector_chooses_and_the_target_is_a_constant(self):
        online, taus = jnp.float32([[0, 5], [2, 5]]), jnp.float32([0.25, 0.75])
        # The selector's means are 1 and 3: action 1, whose target quantiles are 0 and 4, so 1 and 3 with r = 1 and a half.
        selector, target = jnp.float32([[2, 3], [0, 3]]), jnp.float32([[9, 0], [9, 4]])
        args = (online, taus, jnp.int32(0), jnp.float32(1), jnp.float32(0.5), selector, target)
        loss = self.variant(td.quantile_q_learning)
        np.testing.assert_allclose(loss(*args), 1.0, rtol=1e-6)
        grads = self.variant(jax.grad(td.quantile_q_learning, argnums=(0, 5, 6)))(*args)
        # Of quantile 0: -0.25; of quantile 1: a half of (0.25 - 0.75).
        np.testing.assert_allclose(grads[0], [[-0.25, 0], [-0.25, 0]])
        assert np.abs(grads[1]).max() == np.abs(grads[2]).max() == 0
