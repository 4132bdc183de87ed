"""Means and medians equal numbers worked by hand and numpy's, never count who is absent, and are the same over devices."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from federated.helpers import jit_in_a_hurry, one_line, refusal
from laws.common import assert_bitwise, assert_close, assert_differs

from dqn_jax.federated import aggregation
from dqn_jax.federated.aggregation import (
    Aggregator,
    Report,
    from_function,
    make_aggregator,
    make_weighting,
    mean_of,
    median_of,
    stateless,
)
from dqn_jax.mapping import over, place

DEVICES = 4
TRIM = 0.2


def delta_of(aggregator, deltas, weights, axis_name=None):
    """What an aggregator that keeps no state makes of a round."""
    delta, state = aggregator.combine((), deltas, weights, axis_name)
    assert state == aggregator.init(None) == ()
    return delta


def both(values, weights, axis_name=None):
    trimmed = delta_of(aggregation.trimmed(TRIM), values, weights, axis_name)
    return {"mean": mean_of(values, weights, axis_name), "median": median_of(values, weights, axis_name), "trimmed": trimmed}


on_one = jit_in_a_hurry(both)
on_rows = jit_in_a_hurry(over(lambda values, weights: both(values, weights, "devices"), "devices"))


def updates(seed=0):
    rng = np.random.default_rng(seed)
    return {"b": rng.standard_normal(8).astype(np.float32), "w": rng.standard_normal((8, 3, 2)).astype(np.float32)}


WEIGHTS = {
    "everybody alike": [1, 1, 1, 1, 1, 1, 1, 1],
    "everybody": [0.5, 1, 2, 3, 0.25, 7, 1, 0.125],
    # A device holds two neighbours: here one has nobody at work, and another half of its clients.
    "odd": [0, 0, 2, 3, 0.25, 7, 0, 0.125],
    "even": [0, 0, 2, 0, 0.25, 7, 0, 0.125],
    "two": [0, 5, 0, 0, 0, 0, 0.5, 0],
    "one": [0, 0, 0, 0, 0, 0, 0.5, 0],
    "nobody": [0, 0, 0, 0, 0, 0, 0, 0],
}
JUNK = np.float32([np.nan, np.inf, -np.inf])


def with_junk(values, weights):
    """Absent clients hold nothing that a sum would survive."""

    def spoil(x):
        x = x.copy()
        absent = np.flatnonzero(weights == 0)
        x[absent] = np.resize(JUNK, x[absent].shape)
        return x

    return jax.tree.map(spoil, values)


def in_numpy(values, weights):
    present = weights > 0

    def mean(x):
        return np.average(x[present].astype(np.float64), axis=0, weights=weights[present]).astype(np.float32)

    if not present.any():
        zeros = jax.tree.map(lambda x: np.zeros_like(x[0]), values)
        return {"mean": zeros, "median": zeros, "trimmed": zeros}
    medians = jax.tree.map(lambda x: np.median(x[present], axis=0).astype(np.float32), values)
    trimmed = jax.tree.map(lambda x: scipy.stats.trim_mean(x[present], TRIM, axis=0).astype(np.float32), values)
    return {"mean": jax.tree.map(mean, values), "median": medians, "trimmed": trimmed}


def test_mean_by_hand():
    values = jnp.float32([[1, 2], [3, 6], [np.nan, -np.inf]])
    # (1 * 1 + 3 * 3) / 4 and (1 * 2 + 3 * 6) / 4.
    assert mean_of(values, jnp.float32([1, 3, 0])).tolist() == [2.5, 5.0]
    assert mean_of(values, jnp.zeros(3)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # The middle of 1, 4, 9, however heavy they are.
        ([1, 1, 1, 0, 0], 4),
        ([0.01, 100, 1, 0, 0], 4),
        # Half way between 4 and 9 of 1, 4, 9, 100.
        ([1, 1, 1, 1, 0], 6.5),
        ([0, 0, 0, 1, 0], 100),
        ([0, 0, 0, 0, 0], 0),
    ],
)
def test_median_by_hand(weights, expected):
    assert float(median_of(np.float32([9, 1, 4, 100, np.nan]), np.float32(weights))) == expected


def test_the_median_of_large_values_is_finite():
    # 3e38 + 2e38 is above the largest float32, 3.4e38; half way between them is not.
    assert float(median_of(np.float32([3e38, 2e38]), np.ones(2, np.float32))) == np.float32(2.5e38)


@pytest.mark.parametrize("name", WEIGHTS)
def test_on_one_device(name):
    weights = np.float32(WEIGHTS[name])
    assert_close(on_one(with_junk(updates(), weights), weights), in_numpy(updates(), weights), rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_over_devices(name):
    """Rows that each hold their share of the clients all end with what one that holds all of them has."""
    weights = np.float32(WEIGHTS[name])
    rows = jax.tree.map(lambda x: x.reshape(DEVICES, 2, *x.shape[1:]), (with_junk(updates(), weights), weights))
    out = on_rows(*rows)
    for device in range(DEVICES):
        assert_close(jax.tree.map(lambda x, d=device: x[d], out), in_numpy(updates(), weights), rtol=1e-6)


def test_negative_control_each_row_on_its_own_is_not_the_mean():
    weights = np.float32(WEIGHTS["odd"])
    on_the_second = np.where(np.arange(8) // 2 == 1, weights, 0)
    assert_differs(on_one(updates(), on_the_second), in_numpy(updates(), weights))


def in_order(deltas, weights):
    """An aggregator that knows how many clients there are and in which order."""
    return jax.tree.map(lambda x: jnp.tensordot(jnp.arange(1.0, len(weights) + 1) * weights, x, axes=1), deltas)


def test_over_real_devices():
    """`pmap` on four: named aggregators, and a plain function, which sees the clients of all devices in their order."""
    weights = np.float32(WEIGHTS["odd"])
    plain = from_function(in_order)

    def everything(values, weights):
        clipped = CLIPPED.combine(centre(), values, weights, "devices")
        return both(values, weights, "devices") | {"own": delta_of(plain, values, weights, "devices"), "clipped": clipped}

    devices = jax.local_devices()[:DEVICES]
    rows = jax.tree.map(lambda x: x.reshape(DEVICES, 2, *x.shape[1:]), (updates(), weights))
    out = jax.device_get(over(everything, "devices", devices)(*place(rows, devices)))
    own = jax.tree.map(lambda x: np.tensordot(np.arange(1, 9) * weights, x, axes=1).astype(np.float32), updates())
    for device in range(DEVICES):
        row = jax.tree.map(lambda x, d=device: x[d], out)
        # Both what it makes and what it keeps, the same on every device.
        clipped = (clipped_in_numpy(updates(), weights),) * 2
        assert_close(row, in_numpy(updates(), weights) | {"own": own, "clipped": clipped}, rtol=1e-6)


def test_a_plain_function_on_one_device_is_called_as_it_is():
    weights = np.float32(WEIGHTS["odd"])
    assert_close(delta_of(from_function(in_order), updates(), weights), in_order(updates(), weights))


def test_aggregators_by_name(monkeypatch):
    weights = np.float32(WEIGHTS["even"])
    for name in ("mean", "median"):
        found = make_aggregator(name)
        assert found.leaves_out_non_finite
        assert_close(delta_of(found, updates(), weights), in_numpy(updates(), weights)[name], rtol=1e-6)
    module = types.ModuleType("own_aggregators")
    module.function = in_order
    module.aggregator = stateless(mean_of, leaves_out_non_finite=True)
    monkeypatch.setitem(sys.modules, "own_aggregators", module)
    function = make_aggregator("own_aggregators:function")
    # It may not be able to leave anybody out, so a client that is not finite must end the run.
    assert not function.leaves_out_non_finite
    assert_close(delta_of(function, updates(), weights), in_order(updates(), weights))
    assert make_aggregator("own_aggregators:aggregator").leaves_out_non_finite


def report(**numbers):
    whole = {"frames": 160, "updates": 10, "episodes": 3}
    return Report(**{k: np.int32(v) for k, v in (whole | numbers).items()}, return_sum=np.float32(70), loss=np.float32(0.5))


def test_weightings_by_hand(monkeypatch):
    assert float(make_weighting("uniform")(report())) == 1
    assert float(make_weighting("samples")(report())) == 160
    assert float(make_weighting("episodes")(report())) == 3
    assert float(make_weighting("episodes")(report(episodes=0))) == 0
    # Weights are floats: of whole numbers, a mean would be rounded, and large sums would wrap.
    reports = jax.tree.map(lambda *leaves: np.stack(leaves), report(), report(frames=2**30))
    for name in aggregation.WEIGHTINGS:
        weights = jax.vmap(make_weighting(name))(reports)
        assert (weights.dtype, weights.shape) == (np.float32, (2,))
    module = types.ModuleType("own_weightings")
    module.mean_return = lambda report: report.return_sum / report.episodes
    monkeypatch.setitem(sys.modules, "own_weightings", module)
    np.testing.assert_allclose(make_weighting("own_weightings:mean_return")(report()), 70 / 3, rtol=1e-6)
    module.power = lambda report, exponent=1.0: report.updates**exponent
    assert make_weighting("own_weightings:power:2")(report()) == 100
    assert make_weighting("own_weightings:power")(report()) == 10


@pytest.mark.parametrize(
    ("make", "field"), [(make_aggregator, "federated.aggregator"), (make_weighting, "federated.weighting")]
)
@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("zzz", "choose one of {names}, or give module:attribute"),
        ("nomodule:thing", "no module nomodule: start in its folder, or set PYTHONPATH"),
        ("json:nothing", "module json has nothing of that name to use: correct it"),
        # It is there, and is neither a function nor an Aggregator.
        ("json.decoder:NaN", "module json.decoder has nothing of that name to use: correct it"),
    ],
)
def test_bad_names_are_refused(make, field, spec, remedy):
    names = aggregation.AGGREGATORS if make is make_aggregator else aggregation.WEIGHTINGS
    message = refusal(lambda: make(spec))
    assert message.startswith(f"{field} is {spec!r}")
    assert message.endswith(remedy.format(names=", ".join(names)))


def test_a_misspelt_name_is_recognised():
    assert refusal(lambda: make_aggregator("medain")).endswith("did you mean median?")
    assert refusal(lambda: make_weighting("sample")).endswith("did you mean samples?")


def test_a_trimmed_mean_by_hand():
    deltas = {"w": np.float32([[1, 9], [5, 1], [2, 2], [100, 3], [np.nan, 4]])}
    present = np.float32([1, 7, 1, 1, 0])
    # Of four clients a share of 0.25 is one at each end of each coordinate: (2 + 5) / 2 and (2 + 3) / 2; weights do not count.
    np.testing.assert_allclose(delta_of(make_aggregator("trimmed:0.25"), deltas, present)["w"], [3.5, 2.5])
    # A tenth of four is nobody; the default is a tenth.
    np.testing.assert_allclose(delta_of(make_aggregator("trimmed"), deltas, present)["w"], [27, 3.75])
    assert make_aggregator("trimmed:0.1").leaves_out_non_finite
    for share in (0.5, -0.1):
        assert f"'trimmed:{share}'" in refusal(lambda share=share: make_aggregator(f"trimmed:{share}"))
    assert "takes no numbers" in refusal(lambda: make_aggregator("mean:0.1"))


def test_a_users_own_must_keep_the_shapes(monkeypatch):
    module = types.ModuleType("own_aggregators")
    module.stacked = lambda deltas, weights: deltas
    monkeypatch.setitem(sys.modules, "own_aggregators", module)
    message = refusal(lambda: delta_of(make_aggregator("own_aggregators:stacked"), updates(), np.ones(8, np.float32)))
    assert message == "federated.aggregator is 'own_aggregators:stacked', and its['b'] has shape (8,): give ()"


@pytest.fixture
def own(monkeypatch):
    """A user's module of aggregators with a state, right and wrong."""
    module = types.ModuleType("own_aggregators")

    def momentum(state, deltas, weights, axis_name):
        delta = jax.tree.map(lambda last, new: 0.5 * last + new, state["last"], mean_of(deltas, weights, axis_name))
        return delta, {"last": delta, "rounds": state["rounds"] + 1}

    def keeping(change):
        return Aggregator(lambda state, *rest: (momentum(state, *rest)[0], change(momentum(state, *rest)[1])), init=init)

    init = lambda params: {"last": jax.tree.map(jnp.zeros_like, params), "rounds": 0}  # noqa: E731
    module.momentum = Aggregator(momentum, init=init)
    module.larger = keeping(lambda state: state | {"rounds": jnp.zeros(2)})
    module.other = keeping(lambda state: state | {"rounds": state["rounds"] + 0.5})
    module.alone = Aggregator(lambda state, deltas, weights, axis_name: mean_of(deltas, weights, axis_name))
    module.three = Aggregator(mean_of)
    module.fails = Aggregator(lambda state, deltas, weights, axis_name: deltas["missing"], leaves_out_non_finite=True)
    module.stacked = Aggregator(lambda state, deltas, weights, axis_name: (deltas, state))
    module.begins = Aggregator(momentum, init=lambda params: params["missing"])
    monkeypatch.setitem(sys.modules, "own_aggregators", module)


def combined(name):
    aggregator = make_aggregator(f"own_aggregators:{name}")
    state = aggregator.init(jax.tree.map(lambda x: x[0], updates()))
    return aggregator, aggregator.combine(state, updates(), np.ones(8, np.float32))


def test_a_users_aggregator_may_keep_a_state(own):
    aggregator, (delta, state) = combined("momentum")
    mean = mean_of(updates(), np.ones(8, np.float32))
    assert_close(delta, mean)
    # What a Python number begins as is what it stays.
    assert not aggregator.init(mean)["rounds"].weak_type
    delta, state = aggregator.combine(state, updates(), np.ones(8, np.float32))
    assert_close(delta, jax.tree.map(lambda x: 1.5 * x, mean))
    assert (int(state["rounds"]), aggregator.leaves_out_non_finite) == (2, False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("larger", ", and its['state']['rounds'] has shape (2,): give ()"),
        ("other", ", and its state changes its form or types: return one like init's"),
        ("alone", ", whose combine returns a dict: return a delta and a state"),
        ("three", ", called with 4 argument(s) and then its 0 number(s), which do not fit it ("),
        ("fails", f", which fails at {__file__}:"),
        ("begins", f", which fails at {__file__}:"),
        ("stacked", ", and its['b'] has shape (8,): give ()"),
    ],
)
def test_a_users_record_is_blamed_and_checked_too(own, name, words):
    message = one_line(lambda: combined(name))
    assert message.startswith(f"federated.aggregator is 'own_aggregators:{name}'{words}")


RADIUS = 1.5
CLIPPED = make_aggregator(f"centred-clip:{RADIUS}")


def centre():
    """Where it begins in these tests: not at 0."""
    return jax.tree.map(lambda x: jnp.full(x.shape[1:], 0.25), updates())


def clipped_in_numpy(values, weights):
    """v + mean_i (delta_i - v) min(1, radius / |delta_i - v|), for the clients that count."""
    flat = np.concatenate([values["b"][:, None], values["w"].reshape(8, -1)], axis=1).astype(np.float64)
    distance = flat - 0.25
    norms = np.linalg.norm(distance, axis=1)
    # Some are cut and some are not.
    assert norms.min() < RADIUS < norms.max()
    cut = distance * np.minimum(1, RADIUS / norms)[:, None]
    new = (0.25 + np.average(cut, axis=0, weights=weights)).astype(np.float32)
    return {"b": new[0], "w": new[1:].reshape(3, 2)}


def test_centred_clipping_in_numpy():
    weights = np.float32(WEIGHTS["odd"])
    delta, state = CLIPPED.combine(centre(), with_junk(updates(), weights), weights)
    assert_close(delta, clipped_in_numpy(updates(), weights), rtol=1e-6)
    assert_bitwise(state, delta)
    assert CLIPPED.leaves_out_non_finite
    assert_bitwise(CLIPPED.init(centre()), jax.tree.map(np.zeros_like, centre()))


def test_centred_clipping_by_hand():
    """Around (1, 0): (4, 4) is 5 away and cut to 1; (1, 0.5) is within; who is there already stays."""
    aggregator = make_aggregator("centred-clip:1")
    deltas = {"w": np.float32([[4, 4], [1, 0.5], [1, 0], [np.nan, 7]])}
    delta, _ = aggregator.combine({"w": jnp.float32([1, 0])}, deltas, np.float32([1, 2, 1, 0]))
    # By weights 1, 2 and 1: (0.6, 0.8), (0, 0.5) and (0, 0).
    np.testing.assert_allclose(delta["w"], [1 + 0.6 / 4, (0.8 + 1.0) / 4], rtol=1e-6)


def test_a_radius_is_needed():
    for spec in ("centred-clip:0", "centred-clip:-1"):
        assert refusal(lambda spec=spec: make_aggregator(spec)).endswith("give a radius above 0")
    assert "'centred-clip', called with 0 argument(s)" in one_line(lambda: make_aggregator("centred-clip"))
