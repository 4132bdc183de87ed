"""The server's rules equal numbers worked by hand and plain numpy versions written from the papers."""

import sys
import types

import jax
import numpy as np
import optax
import pytest
from federated.helpers import jit_in_a_hurry, one_line, refusal
from laws.common import assert_bitwise, assert_close

from dqn_jax.federated.config import FederatedConfig, MergeConfig
from dqn_jax.federated.server import SERVER_RULES, apply_delta, init_server, make_server_rule

TAU = 1e-3
steps = {
    name: jit_in_a_hurry(lambda state, delta, rule=rule: apply_delta(rule, state, delta)) for name, rule in SERVER_RULES.items()
}


def in_numpy(name, params, deltas, rate):
    """The server's parameters after these deltas: McMahan et al. (2017), Hsu et al. (2019), Reddi et al. (2021), algorithm 2.

    Adam and Yogi divide both moments by 1 - b^t; Yogi begins both at 1e-6. Adagrad's tau is in its accumulator alone.
    """
    x = params.astype(np.float64)
    if name == "fedavg":
        for delta in deltas:
            x = x + rate * delta
    if name == "fedavgm":
        velocity = np.zeros_like(x)
        for delta in deltas:
            velocity = 0.9 * velocity + delta
            x = x + rate * velocity
    if name == "fedadagrad":
        v = np.full_like(x, TAU**2)
        for delta in deltas:
            v = v + delta**2
            x = x + rate * delta / np.sqrt(v)
    if name in ("fedadam", "fedyogi"):
        # The optimizer descends along -delta, so its first moment is minus the paper's.
        m = np.full_like(x, -1e-6 if name == "fedyogi" else 0.0)
        v = np.full_like(x, 1e-6 if name == "fedyogi" else 0.0)
        for t, delta in enumerate(deltas, 1):
            m = 0.9 * m + 0.1 * delta
            v = 0.99 * v + 0.01 * delta**2 if name == "fedadam" else v - 0.01 * delta**2 * np.sign(v - delta**2)
            x = x + rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + TAU)
    return x


def started(name, params, rate=1.0, **settings):
    config = FederatedConfig(server_optimizer=name, server_learning_rate=rate, **settings)
    return init_server(config, make_server_rule(name), params, opt_state=())


# Deltas that are about as large as tau, much larger and smaller, and that change signs; Yogi's second moment falls in places.
RNG = np.random.default_rng(0)
PARAMS = {"b": RNG.standard_normal(3).astype(np.float32), "w": RNG.standard_normal((4, 5)).astype(np.float32)}
DELTAS = [
    jax.tree.map(lambda x: (10.0 ** RNG.uniform(-4, 0, x.shape) * RNG.choice([-1, 1], x.shape)).astype(np.float32), PARAMS)
    for _ in range(3)
]


@pytest.mark.parametrize("rate", [1.0, 0.03])
@pytest.mark.parametrize("name", SERVER_RULES)
def test_three_steps_equal_numpy(name, rate):
    state = started(name, PARAMS, rate)
    for taken in range(1, 4):
        state = steps[name](state, DELTAS[taken - 1])
        expected = {leaf: in_numpy(name, x, [d[leaf] for d in DELTAS[:taken]], rate) for leaf, x in PARAMS.items()}
        # The step itself, not only a sum that the parameters dominate.
        for leaf, x in PARAMS.items():
            np.testing.assert_allclose(state.params[leaf] - x, expected[leaf] - x, rtol=2e-4, atol=3e-7)


def test_rules_are_different():
    """Negative control: no rule passes for another."""
    ends = [in_numpy(name, PARAMS["w"], [d["w"] for d in DELTAS], 1.0) for name in SERVER_RULES]
    for i, one in enumerate(ends):
        assert all(np.abs(one - other).max() > 1e-2 for other in ends[:i])


@pytest.mark.parametrize(
    ("name", "delta", "change"),
    [
        ("fedavg", 0.25, 0.25),
        ("fedavgm", 0.25, 0.25),
        # sqrt(0.001^2 + 0.00075^2) = 0.00125.
        ("fedadagrad", 0.00075, 0.6),
        ("fedadagrad", -0.00075, -0.6),
        # Bias-corrected, the moments are the delta and its square: 0.009 / (0.009 + 0.001).
        ("fedadam", 0.009, 0.9),
        ("fedadam", -0.001, -0.5),
        # Second moment (1e-6 + 0.01 * 0.0075^2) / 0.01 = 0.0125^2; first (0.1 * 0.0075 - 0.9e-6) / 0.1 = 0.007491.
        ("fedyogi", 0.0075, 0.007491 / 0.0135),
        # And (-0.1 * 0.0075 - 0.9e-6) / 0.1 = -0.007509.
        ("fedyogi", -0.0075, -0.007509 / 0.0135),
        # The delta is smaller than the moment, which falls: (1e-6 - 0.01 * 0.0008^2) / 0.01 = 0.00996795^2.
        ("fedyogi", 0.0008, 0.000791 / 0.01096795),
    ],
)
def test_first_step_by_hand(name, delta, change):
    rate = 0.5
    state = apply_delta(SERVER_RULES[name], started(name, np.float32(2), rate), np.float32(delta))
    np.testing.assert_allclose(state.params, 2 + rate * change, rtol=1e-6)


def test_fedavgm_remembers():
    # Half of 1, then half of 2 + 0.9, then half of 0 + 0.9 * 2.9.
    state = started("fedavgm", np.float32(0), rate=0.5)
    seen = []
    for delta in (1.0, 2.0, 0.0):
        state = apply_delta(SERVER_RULES["fedavgm"], state, np.float32(delta))
        seen.append(float(state.params))
    np.testing.assert_allclose(seen, [0.5, 0.5 + 1.45, 0.5 + 1.45 + 1.305], rtol=1e-6)


def test_fedavg_with_rate_one_is_the_mean_of_the_clients():
    """x + (w - x) = w: the server ends where its clients are on average."""
    state = steps["fedavg"](started("fedavg", PARAMS), DELTAS[0])
    assert_close(state.params, jax.tree.map(np.add, PARAMS, DELTAS[0]))


def test_the_server_holds_only_what_is_asked_for():
    opt_state = {"mu": np.ones(2, np.float32)}
    rule = make_server_rule("fedavg")

    def held(**settings):
        return init_server(FederatedConfig(**settings), rule, PARAMS, opt_state)

    plain = held(merge=MergeConfig(target="global", moments="reset"))
    assert (plain.control, plain.moments, plain.target_params) == ((), (), ())
    assert_bitwise(plain.params, PARAMS)
    assert_bitwise(held(algorithm="scaffold").control, jax.tree.map(np.zeros_like, PARAMS))
    assert held(algorithm="fedprox").control == ()
    assert held(merge=MergeConfig(moments="average")).moments is opt_state
    assert held(merge=MergeConfig(moments="average")).target_params == ()
    target = held(merge=MergeConfig(target="average"))
    assert_bitwise(target.target_params, PARAMS)
    assert target.moments == ()
    rate = held(server_learning_rate=0.25).learning_rate
    assert (rate.dtype, float(rate)) == (np.float32, 0.25)


def test_a_step_leaves_the_rest_alone():
    state = started("fedadam", PARAMS, algorithm="scaffold", merge=MergeConfig(target="average"))
    after = steps["fedadam"](state, DELTAS[0])
    for name in ("control", "target_params", "learning_rate"):
        assert_bitwise(getattr(after, name), getattr(state, name))


def test_a_users_own_rule(monkeypatch):
    own = types.ModuleType("own_rules")
    # Signs alone, and weight decay, which needs the parameters.
    own.sign = lambda rate: optax.chain(optax.sign_sgd(rate), optax.add_decayed_weights(-0.5))
    monkeypatch.setitem(sys.modules, "own_rules", own)
    rule = make_server_rule("own_rules:sign")
    state = init_server(FederatedConfig(server_learning_rate=0.125), rule, np.float32([2, 4]), ())
    after = apply_delta(rule, state, np.float32([7, -0.01]))
    # 2 + 0.125 - 1 and 4 - 0.125 - 2.
    np.testing.assert_allclose(after.params, [1.125, 1.875], rtol=1e-6)


def test_numbers_of_a_users_rule_follow_the_learning_rate(monkeypatch):
    own = types.ModuleType("own_rules")
    own.scaled = lambda rate, factor=1.0: optax.sgd(rate * factor)
    monkeypatch.setitem(sys.modules, "own_rules", own)
    for spec, moved in (("own_rules:scaled", 0.5), ("own_rules:scaled:4", 2.0)):
        rule = make_server_rule(spec)
        state = init_server(FederatedConfig(server_learning_rate=0.5), rule, np.float32([0]), ())
        np.testing.assert_allclose(apply_delta(rule, state, np.float32([1])).params, [moved])


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("fedadma", "did you mean fedadam?"),
        ("zzz", "choose one of fedavg, fedavgm, fedadagrad, fedadam, fedyogi, or give module:attribute"),
        ("nomodule:thing", "no module nomodule: start in its folder, or set PYTHONPATH"),
        ("json:nothing", "module json has nothing of that name to use: correct it"),
        # It is there, and is no function of a learning rate.
        ("json.decoder:NaN", "module json.decoder has nothing of that name to use: correct it"),
    ],
)
def test_bad_names_are_refused(spec, remedy):
    message = refusal(lambda: make_server_rule(spec))
    assert message.startswith(f"federated.server_optimizer is {spec!r}")
    assert message.endswith(remedy)


def test_a_rule_that_makes_no_optimizer_is_refused(monkeypatch):
    own = types.ModuleType("own_rules")
    own.nothing = lambda rate: None
    monkeypatch.setitem(sys.modules, "own_rules", own)
    message = refusal(lambda: make_server_rule("own_rules:nothing")(np.float32(1)))
    assert message == "federated.server_optimizer is 'own_rules:nothing', which makes a NoneType: make an optimizer of optax"


def test_what_a_users_optimizer_raises_is_one_sentence(monkeypatch):
    """As in the agent, where optimizers go by name through the same function."""
    own = types.ModuleType("own_rules")
    own.fails = lambda rate: optax.GradientTransformation(lambda params: (), lambda updates, state, params: updates["missing"])
    monkeypatch.setitem(sys.modules, "own_rules", own)
    rule = make_server_rule("own_rules:fails")
    state = init_server(FederatedConfig(), rule, {"w": np.float32(0)}, ())
    message = one_line(lambda: apply_delta(rule, state, {"w": np.float32(1)}))
    assert message.startswith(f"federated.server_optimizer is 'own_rules:fails', which fails at {__file__}:")
    assert message.endswith("with KeyError: 'missing'")
