"""Proves what the study of Rainbow's and DQN's parts compares, and that it measures overestimation as it says."""

import numpy as np
import pytest

from dqn_jax.algorithms import fields_of
from dqn_jax.commands.cells import make_cell
from experiments.studies import ingredients
from experiments.studies.ingredients import ARMS, DQN, ENVS, WITHOUT, cell_of

FIELDS = ("loss", "double_q", "n_step", "memory", "exploration", "target_period")


def settings(arm):
    config = cell_of(arm, "CartPole").config
    return {name: getattr(config.agent, name) for name in FIELDS} | {
        "head": config.network.head.partition(":")[0],
        "noisy": config.network.noisy,
    }


@pytest.mark.parametrize("arm", [arm for arm in WITHOUT if arm != "rainbow"])
def test_each_arm_lacks_one_part_of_rainbow(arm):
    whole, without = settings("rainbow"), settings(arm)
    parts = {
        "without double": {"double_q": False},
        "without dueling": {"head": "categorical"},
        "without n_step": {"n_step": 1},
        "without prioritised": {"memory": "uniform"},
        "without noisy": {"noisy": False, "exploration": "epsilon-greedy"},
        "without c51": {"loss": "squared", "head": "dueling"},
    }
    assert without == whole | parts[arm]
    assert without != whole


def test_the_arms_of_dqn_are_dqn_but_for_what_they_say():
    plain = settings("C = 100")
    assert plain == {**plain, "loss": "squared", "double_q": False, "memory": "uniform", "head": "linear", "target_period": 100}
    assert [settings(f"C = {period}")["target_period"] for period in (1, 10, 100, 1000)] == [1, 10, 100, 1000]
    assert settings("double, C = 100") == plain | {"double_q": True}
    assert settings("no replay, C = 100") == plain | {"memory": "newest"}


def test_no_two_arms_are_the_same_cell():
    cells = [cell_of(arm, env) for env in ENVS for arm in ARMS]
    assert len({cell.settings for cell in cells}) == len(cells) == len(ENVS) * (len(WITHOUT) + len(DQN))


def test_overestimation_by_hand():
    import jax
    import jax.numpy as jnp

    from dqn_jax.build import build

    cell = make_cell("dqn", "Catch", {"env": "Catch-bsuite", "network.hidden_sizes": (4,), **fields_of("dqn", "Catch-bsuite")})
    _, network = build(cell.config)
    # A network of zeros but for a bias: it gives every state 7 for staying, action 1.
    params = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), jax.eval_shape(network.init, jax.random.key(0)))
    params["head"]["bias"] = jnp.tile(jnp.array([0.0, 7.0, 0.0]), (2, 1))
    predicted, discounted = ingredients.values_of(cell, [0, 1], params)
    np.testing.assert_allclose(predicted, 7)
    # The ball falls for nine steps and pays 1 or -1 at the end: one of five columns is caught by staying.
    shares = (discounted / 0.99**8 + 1) / 2 * ingredients.EPISODES
    np.testing.assert_allclose(shares, np.round(shares), atol=1e-3)
    np.testing.assert_allclose(shares / ingredients.EPISODES, 0.2, atol=0.1)
