"""Losses of Munchausen DQN, C51 and quantiles equal numbers worked by hand, whoever's network and noise is meant."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig
from dqn_jax.heads import Categorical, Quantiles, middles
from dqn_jax.losses import make_loss
from dqn_jax.networks import Network, QValues
from dqn_jax.types import Transition

KEY = jax.random.key(0)
BIG = 100.0
everyway = chex.variants(with_jit=True, without_jit=True, with_device=True)


def of_table(outputs):
    """A network whose parameters are a table: the number of a row is the observation, its outputs are made of row and key."""
    return Network(init=None, apply=lambda params, obs, key: outputs(params[obs[0].astype(int)], key))


def batch_of(a_tm1, r_t, discount_t):
    """Transitions from row 0 to row 1."""
    size = len(a_tm1)
    obs = jnp.zeros((size, 1))
    return Transition(obs, jnp.int32(a_tm1), jnp.float32(r_t), jnp.float32(discount_t), obs + 1)


def made(outputs, loss, **fields):
    """(loss of the network, its numbers)."""
    config = AgentConfig(loss=loss, **fields)
    return make_loss(of_table(outputs), config), hyperparams_of(config).loss


def plain(row, key):
    return QValues(row)


def atoms(row, key):
    """Distributions [2, 3] on 0, 1, 2."""
    return Categorical(jax.nn.softmax(row) @ jnp.float32([0, 1, 2]), row, jnp.float32([0, 1, 2]))


def quarters(row, key):
    """Two quantiles [2, A]."""
    return Quantiles(jnp.mean(row, axis=0), row, middles(2))


class TestMunchausen(chex.TestCase):
    # What the online network makes of the next state counts nowhere.
    online, target = jnp.float32([[2, 7], [50, 60]]), jnp.float32([[0, np.log(3)], [0, 0]])
    # Of row 0 the policies are 1/4 and 3/4, of row 1 both 1/2; with temperature 1 the next value is 0 + log 2. The
    # log-probability of action 0 is -1.386, clipped to -1; half of it is taken. The last transition is terminal.
    batch = batch_of([0, 1, 1], [1, 1, -1], [0.5, 0.5, 0])
    errors = np.array([1 - 0.5 + 0.5 * np.log(2) - 2, 1 + 0.5 * np.log(0.75) + 0.5 * np.log(2) - 7, -8 + 0.5 * np.log(0.75)])

    @everyway
    def test_by_hand(self):
        loss, numbers = made(plain, "munchausen:1:0.5:1")
        output = self.variant(loss)(self.online, self.target, self.batch, KEY, numbers)
        np.testing.assert_allclose(output.loss, self.errors**2, rtol=1e-5)
        np.testing.assert_allclose(output.priority, np.abs(self.errors), rtol=1e-5)
        np.testing.assert_array_equal(output.q_tm1, [[2, 7]] * 3)

    def test_only_the_online_values_of_the_actions_taken_are_differentiated(self):
        loss, numbers = made(plain, "munchausen:1:0.5:1")
        grads = jax.grad(lambda *params: jnp.sum(loss(*params, self.batch, KEY, numbers).loss), (0, 1))(
            self.online, self.target
        )
        np.testing.assert_allclose(grads[0], [[-2 * self.errors[0], -2 * self.errors[1:].sum()], [0, 0]], rtol=1e-5)
        np.testing.assert_array_equal(grads[1], np.zeros((2, 2)))

    def test_the_numbers_are_the_papers(self):
        numbers = hyperparams_of(AgentConfig(loss="munchausen")).loss
        assert {name: round(float(x), 6) for name, x in numbers.items()} == {"temperature": 0.03, "bonus": 0.9, "clip": 1.0}


class TestCategorical(chex.TestCase):
    online = jnp.log(jnp.float32([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]))
    # Of the next state, action 0 is surely worth 0, and action 1 0 or 2, each half of the time.
    target = jnp.float32([[[0, 0, BIG], [BIG, 0, 0]], [[BIG, 0, 0], [BIG, 0, BIG]]])
    batch = batch_of([1, 0, 1], [0.25, -0.5, 1.5], [0.5, 0.5, 0])

    @everyway
    def test_by_hand(self):
        loss, numbers = made(atoms, "categorical")
        output = self.variant(loss)(self.online, self.target, self.batch, KEY, numbers)
        # By the target's own means action 1 is chosen: 0.25 and 1.25; -0.5, which is beyond, and 0.5; 1.5 alone.
        expected = [
            -np.log([0.2, 0.3, 0.5]) @ [0.375, 0.125 + 0.375, 0.125],
            -np.log([0.5, 0.25, 0.25]) @ [0.5 + 0.25, 0.25, 0],
            -np.log([0.2, 0.3, 0.5]) @ [0, 0.5, 0.5],
        ]
        np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
        np.testing.assert_array_equal(output.priority, output.loss)
        np.testing.assert_allclose(output.info["clipped_mass"], [0, 0.5, 0], atol=1e-6)
        np.testing.assert_allclose(output.q_tm1, [[0.75, 1.3]] * 3, rtol=1e-5)

    @everyway
    def test_double_by_hand(self):
        loss, numbers = made(atoms, "categorical", double_q=True)
        # The online network prefers action 0 of the next state: 0.25; -0.5, all of it beyond; 3, beyond too.
        batch = self.batch._replace(r_t=jnp.float32([0.25, -0.5, 3]))
        output = self.variant(loss)(self.online, self.target, batch, KEY, numbers)
        expected = [-np.log([0.2, 0.3]) @ [0.75, 0.25], -np.log(0.5), -np.log(0.5)]
        np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
        np.testing.assert_allclose(output.info["clipped_mass"], [0, 1, 1], atol=1e-6)

    def test_gradients_by_hand(self):
        """Of the logits of the actions taken: probabilities less those of the target, which is a constant."""
        for double in (False, True):
            loss, numbers = made(atoms, "categorical", double_q=double)
            total = lambda *params: jnp.sum(loss(*params, self.batch, KEY, numbers).loss)  # noqa: B023, E731
            of_online, of_target = jax.grad(total, (0, 1))(self.online, self.target)
            assert np.abs(of_online[1]).max() == np.abs(of_target).max() == 0
            if not double:
                taken_twice = 2 * np.array([0.2, 0.3, 0.5]) - [0.375, 0.5, 0.125] - np.array([0, 0.5, 0.5])
                np.testing.assert_allclose(of_online[0], [[-0.25, 0, 0.25], taken_twice], atol=1e-6)


class TestQuantiles(chex.TestCase):
    online, target = jnp.float32([[[0, 5], [2, 5]], [[2, 3], [0, 3]]]), jnp.float32([[[7, 7], [7, 7]], [[9, 0], [1, 4]]])
    batch = batch_of([0, 1], [1, -1], [0.5, 0])

    @everyway
    def test_by_hand(self):
        loss, numbers = made(quarters, "quantile")
        output = self.variant(loss)(self.online, self.target, self.batch, KEY, numbers)
        # The target prefers action 0, of mean 5: 1 + 9 / 2 and 1 + 1 / 2. Errors of quantile 0: 5.5 and 1.5, of 2: 3.5 and
        # -0.5; Huber's losses 5, 1, 3 and 0.125, all weighed by their tau, but the negative one by 1 - 3/4.
        first = 0.25 * (5 + 1) / 2 + (0.75 * 3 + 0.25 * 0.125) / 2
        # Both samples -1, both quantiles 5: errors of -6, weighed by 3/4 and 1/4.
        np.testing.assert_allclose(output.loss, [first, 5.5], rtol=1e-5)
        np.testing.assert_array_equal(output.priority, output.loss)
        np.testing.assert_array_equal(output.q_tm1, [[1, 5]] * 2)

    @everyway
    def test_double_and_another_kappa_by_hand(self):
        loss, numbers = made(quarters, "quantile:2", double_q=True)
        output = self.variant(loss)(self.online, self.target, self.batch, KEY, numbers)
        # The online network prefers action 1, of mean 3: 1 + 0 and 1 + 4 / 2. Errors 1 and 3, -1 and 1: over 2, Huber's losses
        # with bound 2 are 0.25, 2 and 0.25, 0.25.
        first = 0.25 * (0.25 + 2) / 2 + (0.25 * 0.25 + 0.75 * 0.25) / 2
        np.testing.assert_allclose(output.loss, [first, 5.0], rtol=1e-5)

    def test_the_target_is_a_constant_to_the_gradient(self):
        for double in (False, True):
            loss, numbers = made(quarters, "quantile", double_q=double)
            total = lambda *params: jnp.sum(loss(*params, self.batch, KEY, numbers).loss)  # noqa: B023, E731
            of_online, of_target = jax.grad(total, (0, 1))(self.online, self.target)
            assert np.abs(of_online[0]).min() > 0
            assert np.abs(of_online[1]).max() == np.abs(of_target).max() == 0

    def test_the_bound_is_the_papers(self):
        assert {name: float(x) for name, x in hyperparams_of(AgentConfig(loss="quantile")).loss.items()} == {"kappa": 1.0}


def streams(key):
    """A number from each of the streams that losses name: learning online, target, choosing online."""
    return [float(jax.random.normal(jax.random.fold_in(key, stream))) for stream in range(3)]


ONE = batch_of([0], [0.0], [1.0])
ZEROS = jnp.zeros((2, 2))
LEARNS, TARGET, CHOOSES = streams(KEY)


def noisy(row, key):
    """Values that are noise alone."""
    return QValues(row + jax.random.normal(key) * jnp.float32([1, -1]))


def test_online_and_target_have_noise_of_their_own():
    """Q is e and -e: of the online network, of the target, and of the online network that chooses."""
    for double, next_value in ((False, abs(TARGET)), (True, TARGET if CHOOSES > 0 else -TARGET)):
        loss, numbers = made(noisy, "squared", double_q=double)
        np.testing.assert_allclose(loss(ZEROS, ZEROS, ONE, KEY, numbers).loss, (next_value - LEARNS) ** 2, rtol=1e-5)
    # Munchausen's target has one draw for both states: at a low temperature, and clipped, its next value is the largest.
    loss, numbers = made(noisy, "munchausen:0.001:1:0.5")
    bonus = 0.0 if TARGET > 0 else -0.5
    expected = (bonus + abs(TARGET) - LEARNS) ** 2
    np.testing.assert_allclose(loss(ZEROS, ZEROS, ONE, KEY, numbers).loss, expected, rtol=1e-4)


def test_distributions_have_noise_of_their_own():
    def outputs(row, key):
        logits = jax.random.normal(key) * jnp.float32([[1, 0], [-1, 0]])
        return Categorical(logits[:, 0], logits, jnp.float32([0, 1]))

    for double, chosen in ((False, abs(TARGET)), (True, TARGET if CHOOSES > 0 else -TARGET)):
        loss, numbers = made(outputs, "categorical", double_q=double)
        # Action 0's logits are e and 0.
        share = 1 / (1 + np.exp(-chosen))
        expected = share * np.log1p(np.exp(-LEARNS)) + (1 - share) * np.log1p(np.exp(LEARNS))
        np.testing.assert_allclose(loss(ZEROS, ZEROS, ONE, KEY, numbers).loss, [expected], rtol=1e-5)


def test_each_transition_has_probabilities_of_its_own_where_quantiles_are_drawn():
    """One quantile, which is the noise itself; action 1's is its negative."""

    def outputs(row, key):
        drawn = jax.random.normal(key)
        return Quantiles(drawn * jnp.float32([1, -1]), drawn * jnp.float32([[1, -1]]), jnp.float32([0.25]))

    batch = batch_of([0] * 8, [0.0] * 8, [1.0] * 8)
    for double in (False, True):
        loss, numbers = made(outputs, "quantile:1e-6", double_q=double)
        found = loss(ZEROS, ZEROS, batch, KEY, numbers).loss
        expected = []
        for key in jax.random.split(KEY, 8):
            learns, target, chooses = streams(key)
            error = (abs(target) if not double else target if chooses > 0 else -target) - learns
            expected.append(abs(error) * (0.75 if error < 0 else 0.25))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("loss", "outputs"), [("squared", noisy), ("munchausen", noisy)])
def test_noise_of_weights_is_one_draw_for_a_batch(loss, outputs):
    """As Fortunato et al. (2018), section 3.1: transitions that are alike have the same loss."""
    fn, numbers = made(outputs, loss)
    assert np.ptp(fn(ZEROS, ZEROS, batch_of([0] * 8, [0.0] * 8, [1.0] * 8), KEY, numbers).loss) == 0
