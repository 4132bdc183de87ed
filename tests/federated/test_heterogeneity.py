"""Environments are drawn from the ranges they should be, each from its own number alone, and stay consistent."""

import functools
import sys
import types

import jax
import numpy as np
import pytest
from federated.helpers import jit_in_a_hurry, refusal
from laws.common import assert_bitwise

from dqn_jax.envs import make_env
from dqn_jax.federated.heterogeneity import DISTRIBUTIONS, Distribution, distribution_of, draw_envs, varied_fields

SEEN, UNSEEN = 2000, 500
DRAWN = [name for name, distribution in DISTRIBUTIONS.items() if distribution.ranges]


@functools.cache
def drawer(name, num_clients=SEEN, num_unseen=UNSEEN):
    env = make_env(DISTRIBUTIONS[name].env)
    return jit_in_a_hurry(lambda env_seed, level: draw_envs(env, name, env_seed, num_clients, num_unseen, level))


@functools.cache
def drawn(name, env_seed=0, level=1.0, num_clients=SEEN, num_unseen=UNSEEN):
    return jax.device_get(drawer(name, num_clients, num_unseen)(env_seed, level))


def shares(name, params):
    """u of each environment and field, by plain inversion of low + u (high - low): {field: [N]}."""
    return {
        field: (np.asarray(getattr(params, field), np.float64) - low) / (high - low)
        for field, (low, high) in DISTRIBUTIONS[name].ranges.items()
    }


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_uniform_inside_and_beyond(name):
    envs = drawn(name)
    for params, low, high in ((envs.seen, 0, 1), (envs.inside, 0, 1), (envs.beyond, 1, 1.5)):
        for u in shares(name, params).values():
            # float32 parameters, such as a force of 0.0008 to 0.0014, know u to about this.
            assert low - 1e-6 <= u.min() <= u.max() <= high + 1e-6
            u = (u - low) / (high - low)
            assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
            # The farthest of n is within 15 / n of the end but once in three million times.
            assert u.min() < 15 / u.size
            assert u.max() > 1 - 15 / u.size
            tenths = np.histogram(u, np.linspace(0, 1, 11))[0]
            assert np.abs(tenths - u.size / 10).max() < 5 * np.sqrt(0.09 * u.size)


def test_fields_are_drawn_independently():
    one, other = shares("acrobot-links", drawn("acrobot-links").seen).values()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(SEEN)


@pytest.mark.parametrize(
    ("name", "field", "ends"),
    [
        ("cartpole-length", "length", (0.1, 0.9, 1.3)),
        ("cartpole-gravity", "gravity", (4.9, 14.7, 19.6)),
        ("cartpole-force", "force_mag", (5, 15, 20)),
        ("acrobot-links", "link_length_1", (0.6, 1.4, 1.8)),
        ("acrobot-links", "link_length_2", (0.6, 1.4, 1.8)),
        ("mountaincar-force", "force", (0.0008, 0.0014, 0.0017)),
        ("mountaincar-gravity", "gravity", (0.0018, 0.0028, 0.0033)),
    ],
)
def test_ranges_by_hand(name, field, ends):
    """Lowest, highest, and what is half a range beyond the highest; the environment's own value is among the trained."""
    low, high, far = ends
    envs = drawn(name)
    width = (high - low) * 0.03
    for values, least, most in ((envs.seen, low, high), (envs.inside, low, high), (envs.beyond, high, far)):
        values = getattr(values, field)
        assert least * (1 - 1e-6) <= values.min() < least + width
        assert most - width < values.max() <= most * (1 + 1e-6)
    assert low < getattr(make_env(DISTRIBUTIONS[name].env).params, field) < high


@pytest.mark.parametrize("name", DRAWN)
def test_only_the_named_fields_and_what_follows_from_them_vary(name):
    derived = {
        "cartpole-length": {"polemass_length"},
        "acrobot-links": {"link_com_pos_1", "link_com_pos_2"},
    }.get(name, set())
    params = drawn(name).seen
    varying = {field for field, values in vars(params).items() if np.ptp(values, axis=0).any()}
    assert varying == set(DISTRIBUTIONS[name].ranges) | derived
    own = make_env(DISTRIBUTIONS[name].env).params
    for field in set(vars(own)) - varying:
        expected = np.broadcast_to(getattr(own, field), np.shape(getattr(params, field)))
        np.testing.assert_allclose(getattr(params, field), expected, rtol=1e-6, err_msg=field)


@pytest.mark.parametrize("name", ["cartpole-length", "cartpole-gravity", "cartpole-force"])
def test_cartpole_stays_consistent(name):
    for params in drawn(name):
        np.testing.assert_allclose(params.polemass_length, params.masspole * params.length, rtol=1e-6)
        np.testing.assert_allclose(params.total_mass, params.masscart + params.masspole, rtol=1e-6)


def test_acrobot_stays_consistent():
    for params in drawn("acrobot-links"):
        np.testing.assert_allclose(params.link_com_pos_1, params.link_length_1 / 2, rtol=1e-6)
        np.testing.assert_allclose(params.link_com_pos_2, params.link_length_2 / 2, rtol=1e-6)


def test_an_environment_depends_on_the_seed_and_its_number_alone():
    large, small = drawn("cartpole-length"), drawn("cartpole-length", num_clients=5, num_unseen=3)
    assert_bitwise(small.seen, jax.tree.map(lambda x: x[:5], large.seen))
    assert_bitwise(small.inside, jax.tree.map(lambda x: x[:3], large.inside))
    assert_bitwise(small.beyond, jax.tree.map(lambda x: x[:3], large.beyond))
    other = drawn("cartpole-length", env_seed=1, num_clients=5, num_unseen=3)
    assert not np.isin(other.seen.length, large.seen.length).any()


def test_held_out_means_not_trained_in():
    """Neither the same draws, nor draws that go together."""
    envs = drawn("cartpole-length")
    seen, inside, beyond = (shares("cartpole-length", params)["length"][:UNSEEN] for params in envs)
    for one, other in ((seen, inside), (seen, beyond), (inside, beyond)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(UNSEEN)


def test_level_zero_puts_everybody_in_the_middle():
    cartpole, acrobot = drawn("cartpole-length", level=0.0), drawn("acrobot-links", level=0.0)
    for params in cartpole:
        np.testing.assert_allclose(params.length, 0.5, rtol=1e-6)
        np.testing.assert_allclose(params.polemass_length, 0.05, rtol=1e-6)
    for params in acrobot:
        np.testing.assert_allclose(params.link_length_1, 1.0, rtol=1e-6)
        np.testing.assert_allclose(params.link_com_pos_2, 0.5, rtol=1e-6)


def test_level_half_is_half_the_range_around_the_middle():
    half, whole = drawn("cartpole-length", level=0.5), drawn("cartpole-length")
    for narrow, wide in zip(half, whole, strict=True):
        np.testing.assert_allclose(narrow.length - 0.5, (wide.length - 0.5) / 2, atol=1e-6)
    assert 0.3 <= half.seen.length.min() < 0.31
    assert 0.69 < half.seen.length.max() <= 0.7
    # Beyond begins where training ends, and is half a (smaller) range wide.
    assert 0.7 <= half.beyond.length.min() < 0.71
    assert 0.89 < half.beyond.length.max() <= 0.9


@pytest.mark.parametrize("env_name", ["CartPole-v1", "Breakout-MinAtar"])
def test_none_is_the_same_for_all(env_name):
    env = make_env(env_name)
    envs = draw_envs(env, "none", 0, 3, 2, 1.0)
    for params, count in zip(envs, (3, 2, 2), strict=True):
        for field, value in vars(env.params).items():
            np.testing.assert_array_equal(getattr(params, field), np.full(count, value), err_msg=field)
    assert varied_fields(envs.seen, "none") == [{}, {}, {}]
    assert distribution_of("none", env_name) is None


def test_listed_environments_come_in_order_and_again():
    env = make_env("Breakout-MinAtar", wrappers=("view",))
    params = draw_envs(env, "views", 0, 6, 0, 0.5).seen
    assert params.mirrored.tolist() == [0, 1, 0, 0, 0, 1]
    np.testing.assert_allclose(params.dimmed, [0, 0, 0.6, 0, 0, 0])
    assert params.sticky.tolist() == [0, 0, 0, 0.25, 0, 0]
    np.testing.assert_array_equal(params.own.max_steps_in_episode, [1000] * 6)
    assert varied_fields(params, "views")[3] == {"mirrored": 0, "dimmed": 0, "sticky": 0.25}
    assert refusal(lambda: draw_envs(env, "views", 0, 4, 1)) == (
        "federated.unseen_envs is 1, and federated.heterogeneity 'views' lists environments: make it 0"
    )
    message = refusal(lambda: draw_envs(make_env("Breakout-MinAtar"), "views", 0, 4, 0))
    assert message.endswith("Breakout-MinAtar has no parameter mirrored, dimmed, sticky: add --wrappers view")


def test_parameters_behind_a_wrapper_are_found_and_varied():
    env = make_env("Breakout-MinAtar", wrappers=("view", "view"))
    params = draw_envs(env, "range:max_steps_in_episode:5:9", 0, 20, 0).seen
    limits = params.own.own.max_steps_in_episode
    assert 5 <= limits.min() < 6
    assert 8 < limits.max() <= 9
    dimmed = draw_envs(env, "range:dimmed:0.5:0.9", 0, 3, 0).seen
    assert dimmed.dimmed.min() >= 0.5
    assert not dimmed.own.dimmed.any()


def test_no_unseen_environments():
    envs = drawn("acrobot-links", num_clients=2, num_unseen=0)
    assert envs.seen.link_length_1.shape == (2,)
    assert envs.inside.link_com_pos_1.shape == envs.beyond.link_com_pos_1.shape == (0,)
    assert varied_fields(envs.inside, "acrobot-links") == []


def test_varied_fields_are_the_drawn_numbers():
    params = drawn("acrobot-links", num_clients=2, num_unseen=0).seen
    fields = varied_fields(params, "acrobot-links")
    assert [sorted(one) for one in fields] == [["link_length_1", "link_length_2"]] * 2
    for i, one in enumerate(fields):
        for field, value in one.items():
            assert type(value) is float
            assert abs(value - getattr(params, field)[i]) < 1e-6


@pytest.mark.parametrize(
    ("name", "env_name", "remedy"),
    [
        ("cartpole-lenght", "CartPole-v1", "did you mean cartpole-length?"),
        ("nonne", "CartPole-v1", "did you mean none?"),
        ("zzz", "CartPole-v1", "choose one of none, " + ", ".join(DISTRIBUTIONS) + ", or give module:attribute"),
        ("cartpole-length", "Acrobot-v1", "choose none or acrobot-links"),
        ("acrobot-links", "CartPole-v1", "choose none or cartpole-length or cartpole-gravity or cartpole-force"),
        ("mountaincar-force", "Breakout-MinAtar", "choose none"),
    ],
)
def test_bad_names_are_refused(name, env_name, remedy):
    message = refusal(lambda: draw_envs(make_env(env_name), name, 0, 2, 2))
    assert message.startswith(f"federated.heterogeneity is {name!r}, ")
    assert message.endswith(remedy)
    if "which is for" in message:
        assert f"which is for {DISTRIBUTIONS[name].env}, and env is {env_name!r}" in message


def test_a_users_own_distribution(monkeypatch):
    module = types.ModuleType("own_distributions")
    module.heavy = lambda low=1.0, high=2.0: Distribution("CartPole-v1", {"masscart": (low, high)})
    monkeypatch.setitem(sys.modules, "own_distributions", module)
    env = make_env("CartPole-v1")
    envs = draw_envs(env, "own_distributions:heavy:3:4", 0, 64, 2)
    assert 3 <= envs.seen.masscart.min() < 3.2 < 3.8 < envs.seen.masscart.max() <= 4
    assert envs.beyond.masscart.min() >= 4
    # What does not vary is the environment's own.
    assert (envs.seen.length == env.params.length).all()
    assert varied_fields(envs.seen, "own_distributions:heavy:3:4")[0].keys() == {"masscart"}
    module.misspelt = Distribution("CartPole-v1", {"masscrt": (1.0, 2.0)})
    message = refusal(lambda: draw_envs(env, "own_distributions:misspelt", 0, 2, 2))
    assert message.endswith("and CartPole-v1 has no parameter masscrt: correct it")
    message = refusal(lambda: draw_envs(make_env("Acrobot-v1"), "own_distributions:heavy", 0, 2, 2))
    assert "which is for CartPole-v1, and env is 'Acrobot-v1'" in message
