"""Each transform equals numbers worked by hand and a plain numpy version of itself, loses nothing, and is billed as sent."""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.helpers import jit_in_a_hurry, refusal
from laws.common import assert_bitwise, assert_close

from dqn_jax.config import InputError
from dqn_jax.federated.transforms import (
    Payload,
    Transform,
    chain,
    clip,
    from_optax,
    int8,
    make_transforms,
    payload_of,
    round_to_int8,
    top_k,
)

KEY = jax.random.key(0)
PARAMS = {"b": np.zeros(3, np.float32), "w": np.zeros((4, 5), np.float32)}

# One compiled update of each kind, all on leaves of the same shapes.
CLIP = clip(1.0)
INT8 = int8()
TOP_5 = top_k(0.2)
TOP_5_INT8 = chain(TOP_5, INT8)
INT8_TOP_5 = chain(INT8, TOP_5)
UPDATES = {transform: jit_in_a_hurry(transform.update) for transform in (CLIP, INT8, TOP_5, TOP_5_INT8, INT8_TOP_5)}
# As it is in training: how its division ends matters.
rounded = jax.jit(round_to_int8)
rounded_often = jit_in_a_hurry(jax.vmap(round_to_int8, in_axes=(0, None)))


def delta(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32), PARAMS)


def like_params(entries):
    """The first entries of the parameters, in the order of their leaves; zeros after them."""
    flat = np.zeros(23, np.float32)
    flat[: len(entries)] = entries
    return {"b": flat[:3], "w": flat[3:].reshape(4, 5)}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def run(transform, seeds, key=KEY):
    """Sent deltas of successive rounds, and the last state."""
    state = transform.init(PARAMS)
    sent = []
    for number, seed in enumerate(seeds):
        state, out = UPDATES[transform](jax.random.fold_in(key, number), state, delta(seed))
        sent.append(out)
    return sent, state


def test_clip_by_hand():
    # The norm over both leaves is 5.
    _, sent = UPDATES[CLIP](KEY, CLIP.init(PARAMS), like_params([3, 0, 0, -4]))
    np.testing.assert_allclose(flat(sent)[:4], [0.6, 0, 0, -0.8], rtol=1e-6)
    # Half of it is within the norm, and stays as it is.
    short = like_params([0.3, 0, 0, -0.4])
    assert_bitwise(UPDATES[CLIP](KEY, CLIP.init(PARAMS), short)[1], short)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clip_is_a_projection_on_the_ball(scale):
    long = delta(1, scale)
    _, sent = UPDATES[CLIP](KEY, CLIP.init(PARAMS), long)
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in long.values()))
    assert_close(sent, jax.tree.map(lambda x: x / max(norm, 1.0), long))


def test_int8_by_hand():
    # A level is 12.7 / 127 = 0.1, so every entry here is a whole number of levels, but for the last two: 2.5 and -2.5 levels.
    x = np.float32([12.7, -12.7, 0.5, -1.0, 0.0, 0.25, -0.25])
    out = np.asarray(rounded_often(jax.random.split(KEY, 200), x))
    np.testing.assert_allclose(out[:, :5], np.tile(x[:5], (200, 1)), atol=1e-5)
    levels = out[:, 5:] / 0.1
    assert set(np.round(levels[:, 0]).astype(int)) == {2, 3}
    assert set(np.round(levels[:, 1]).astype(int)) == {-2, -3}


def test_int8_is_stochastic_rounding_of_each_leaf_by_its_own_largest():
    """With the uniform numbers of its own keys, plain numpy rounds the same way."""
    wanted = delta(2)
    wanted["w"] *= 1000
    error, sent = UPDATES[INT8](KEY, INT8.init(PARAMS), wanted)
    for key, name in zip(jax.random.split(KEY, 2), ("b", "w"), strict=True):
        x = wanted[name]
        uniform = np.asarray(jax.random.uniform(key, x.shape))
        level = np.abs(x).max() / np.float32(127)
        steps = x / level
        below = np.floor(steps)
        expected = level * (below + (uniform < steps - below))
        np.testing.assert_allclose(sent[name], expected, rtol=1e-6, atol=1e-6 * level, err_msg=name)
        np.testing.assert_allclose(error[name], x - expected, atol=1e-5 * level * 127, err_msg=name)


def test_int8_keeps_the_mean_and_is_off_by_at_most_a_level():
    x = np.float32([1.0, -0.9, 0.123, -0.0456, 0.0019, -0.0001, 0.5, 0.0])
    out = np.asarray(rounded_often(jax.random.split(KEY, 4000), x), np.float64)
    level = 1.0 / 127
    # A Bernoulli variable deviates by half a level at most.
    assert np.abs(out.mean(0) - x).max() < 5 * 0.5 * level / np.sqrt(4000)
    assert np.abs(out - x).max() <= level * (1 + 1e-5)
    # Negative control: to the nearest level, the mean of some entry is far off.
    nearest = level * np.round(x / level)
    assert np.abs(nearest - x).max() > 10 * 0.5 * level / np.sqrt(4000)


def test_the_largest_entry_is_never_beyond_127_levels():
    largest = np.linspace(0.5, 1.0, 1000, dtype=np.float32)
    level = largest / np.float32(127)
    # Division there and back is not exact; where it ends above 127, rounding up would go to level 128, once in 131072.
    above = np.flatnonzero(largest / level > 127)
    assert len(above) > 0
    chosen, level = largest[above[0]], level[above[0]]
    x = np.full(2**21, chosen, np.float32)
    x[::2] *= -1
    out = np.asarray(rounded(KEY, x))
    np.testing.assert_array_equal(out, np.sign(x) * np.float32(127) * level)


@pytest.mark.parametrize("transform", [CLIP, INT8, TOP_5, TOP_5_INT8], ids=["clip", "int8", "top-k", "both"])
def test_a_zero_delta_stays_zero(transform):
    zero = jax.tree.map(np.zeros_like, PARAMS)
    state, sent = UPDATES[transform](KEY, transform.init(PARAMS), zero)
    assert not flat(sent).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state))


def test_top_k_by_hand():
    # A fifth of 23 entries is 4.6, so 5 go; sign does not matter, and neither does the leaf.
    entries = [1, -9, 2, 8, -7, 0.5, 6, -5, 4]
    error, sent = UPDATES[TOP_5](KEY, TOP_5.init(PARAMS), like_params(entries))
    assert_bitwise(sent, like_params([0, -9, 0, 8, -7, 0, 6, -5, 0]))
    assert_bitwise(error, like_params([1, 0, 2, 0, 0, 0.5, 0, 0, 4]))
    # What was kept back counts the next time: 4 + 4 is now the largest, and 1 + 1 is among the rest.
    error, sent = UPDATES[TOP_5](KEY, error, like_params([1, 0, 2.5, 3, 7, 0, -5, 0, 4]))
    assert_bitwise(sent, like_params([0, 0, 4.5, 3, 7, 0, -5, 0, 8]))
    assert_bitwise(error, like_params([2, 0, 0, 0, 0, 0.5]))


@pytest.mark.parametrize("seed", range(5))
def test_top_k_keeps_exactly_the_largest(seed):
    wanted = delta(seed)
    _, sent = UPDATES[TOP_5](KEY, TOP_5.init(PARAMS), wanted)
    expected = flat(wanted)
    expected[np.argsort(-np.abs(expected), kind="stable")[5:]] = 0
    np.testing.assert_array_equal(flat(sent), expected)


@pytest.mark.parametrize(("share", "kept"), [(1e-9, 1), (0.5, 2), (0.74, 3), (1, 4)])
def test_a_share_is_of_all_entries_and_at_least_one(share, kept):
    x = {"w": np.float32([1, -4, 3, 2])}
    transform = top_k(share)
    _, sent = transform.update(KEY, transform.init(x), x)
    assert np.count_nonzero(sent["w"]) == kept
    assert transform.payload(payload_of(x)).entries == kept


@pytest.mark.parametrize("transform", [INT8, TOP_5], ids=["int8", "top-k"])
def test_nothing_is_lost(transform):
    """Seide et al. (2014): what was sent plus what is still owed is all that there was to send."""
    sent, error = run(transform, range(6))
    wanted = sum(flat(delta(seed)).astype(np.float64) for seed in range(6))
    total = sum(flat(tree).astype(np.float64) for tree in sent)
    np.testing.assert_allclose(total + flat(error), wanted, atol=1e-5)
    # Negative control: something is owed.
    assert np.abs(flat(error)).max() > 1e-3


def test_nothing_is_lost_in_a_chain():
    sent, errors = run(TOP_5_INT8, range(6))
    wanted = sum(flat(delta(seed)).astype(np.float64) for seed in range(6))
    total = sum(flat(tree).astype(np.float64) for tree in sent)
    # Compressors in a row owe together.
    (error,) = errors
    np.testing.assert_allclose(total + flat(error), wanted, atol=1e-5)
    assert np.abs(flat(error)).max() > 1e-3
    # With a memory of its own, int8 would send what it rounded away in other rounds beside the five.
    assert all(1 <= np.count_nonzero(flat(tree)) <= 5 for tree in sent)


def test_compressors_apart_have_a_memory_each():
    """What stands between them does not owe: its part is meant to be lost."""
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    assert len(chain(TOP_5, INT8, TOP_5).init(PARAMS)) == 1
    first, _, last = chain(TOP_5, CLIP, INT8).init(PARAMS)
    assert_bitwise(first, zeros)
    assert_bitwise(last, zeros)


def test_chain_applies_in_order():
    clip_1, top_1 = clip(1.0), top_k(0.5)
    x = {"w": np.float32([3, -4])}

    def last(*transforms):
        transform = chain(*transforms)
        return np.asarray(transform.update(KEY, transform.init(x), x)[1]["w"])

    np.testing.assert_allclose(last(clip_1, top_1), [0, -0.8], rtol=1e-6)
    np.testing.assert_allclose(last(top_1, clip_1), [0, -1], rtol=1e-6)


def test_an_empty_chain_sends_the_delta_as_it_is():
    nothing = make_transforms(())
    state, sent = nothing.update(KEY, nothing.init(PARAMS), delta(3))
    assert state == ()
    assert_bitwise(sent, delta(3))
    # 3 and 20 numbers.
    assert nothing.payload(payload_of(PARAMS)).num_bytes == 4 * 23


def noise(number):
    """Adds a random number and counts its uses, `number` at a time."""
    return Transform(
        init=lambda params: jnp.int32(0),
        update=lambda key, count, x: (count + number, x + jax.random.normal(key)),
        payload=lambda before: before._replace(extra_bytes=before.extra_bytes + number),
    )


def test_members_of_a_chain_have_keys_and_states_of_their_own():
    both = chain(noise(1), noise(10))
    state = both.init(jnp.float32(0))
    for _ in range(2):
        state, sent = both.update(KEY, state, jnp.float32(0))
    assert [int(count) for count in state] == [2, 20]
    first, second = (float(jax.random.normal(jax.random.fold_in(KEY, number))) for number in range(2))
    np.testing.assert_allclose(sent, first + second, rtol=1e-6)
    assert first != second
    assert both.payload(payload_of(jnp.float32(0))).extra_bytes == 11


def test_from_optax_keeps_the_rules_state():
    momentum = from_optax(optax.trace(decay=0.5))
    state = momentum.init(np.float32(0))
    sent = []
    for x in (1.0, 2.0, -3.0):
        state, out = momentum.update(KEY, state, np.float32(x))
        sent.append(float(out))
    # 1, then 2 + 1/2, then -3 + 2.5/2.
    assert sent == [1.0, 2.5, -1.75]
    before = Payload(parameters=9, leaves=2, entries=7, bits=8, indexed=True, extra_bytes=3)
    assert momentum.payload(before) == before


@pytest.mark.parametrize(
    ("specs", "num_bytes"),
    [
        ((), 400),
        (("clip:1",), 400),
        # A byte for each, and a scale for each of three leaves.
        (("int8",), 100 + 3 * 4),
        # Ten numbers and ten positions.
        (("top-k:0.1",), 10 * (4 + 4)),
        (("top-k:0.1", "int8"), 10 * (1 + 4) + 3 * 4),
        (("int8", "top-k:0.1"), 10 * (1 + 4) + 3 * 4),
        # One number is in one leaf, and the receiver knows nothing of that: all scales are sent.
        (("clip:0.5", "top-k:0.001", "int8"), 1 + 4 + 3 * 4),
        (("top-k:1",), 100 * (4 + 4)),
        # A share is of all parameters, not of what came through before: a second one that asks for more sends no more.
        (("top-k:0.1", "top-k:0.5"), 10 * (4 + 4)),
        (("top-k:0.5", "top-k:0.1"), 10 * (4 + 4)),
        (("top-k:0.1", "top-k:0.1"), 10 * (4 + 4)),
    ],
)
def test_payload_by_hand(specs, num_bytes):
    before = Payload(parameters=100, leaves=3, entries=100)
    after = make_transforms(specs).payload(before)
    assert after.num_bytes == num_bytes
    # What there is to send stays what it is, however little of it goes.
    assert (after.parameters, after.leaves) == (100, 3)


def test_the_payload_of_parameters_is_all_of_their_numbers():
    assert payload_of(PARAMS) == Payload(parameters=23, leaves=2, entries=23, bits=32, indexed=False, extra_bytes=0)
    # Only shapes matter.
    assert payload_of(jax.eval_shape(lambda: PARAMS)) == payload_of(PARAMS)
    assert payload_of(np.float32(1)).num_bytes == 4


@pytest.mark.parametrize("specs", [("top-k:0.2",), ("top-k:0.2", "top-k:0.5"), ("top-k:0.5", "top-k:0.2")])
def test_what_is_billed_is_what_is_sent(specs):
    """Chained, each share is of all 23 parameters: 4.6 and 11.5 of them, rounded."""
    transform = make_transforms(specs)
    state = transform.init(PARAMS)
    for seed in range(3):
        state, sent = transform.update(KEY, state, delta(seed))
        assert np.count_nonzero(flat(sent)) == transform.payload(payload_of(PARAMS)).entries == 5


def test_bits_are_rounded_up_to_bytes():
    nine = Payload(parameters=9, leaves=1, entries=9, bits=1)
    assert nine.num_bytes == 2
    # 9 * 33 bits are 37.125 bytes.
    assert nine._replace(indexed=True, extra_bytes=3).num_bytes == 38 + 3


def test_names_mean_the_transforms():
    x = {"w": np.float32([3, -4, 0.1, 0.2])}
    named = make_transforms(("clip:0.5", "top-k:0.5", "int8"))
    built = chain(clip(0.5), top_k(0.5), int8())
    assert_bitwise(named.update(KEY, named.init(x), x), built.update(KEY, built.init(x), x))


def test_a_users_own_transform_by_name(monkeypatch):
    half = types.ModuleType("half")
    half.transform = from_optax(optax.scale(0.5))
    monkeypatch.setitem(sys.modules, "half", half)
    own = make_transforms(("half:transform", "clip:1"))
    _, sent = own.update(KEY, own.init(np.float32(0)), np.float32(1.5))
    assert float(sent) == 0.75


def test_a_users_own_transform_is_made_of_its_numbers_and_blamed_for_what_it_raises(monkeypatch):
    def scaled(factor=2.0):
        def update(key, state, delta):
            return state, delta["missing"] if factor == 0 else jax.tree.map(lambda x: factor * x, delta)

        return Transform(lambda params: (), update, lambda before: before)

    module = types.ModuleType("own_transforms")
    module.scaled = scaled
    monkeypatch.setitem(sys.modules, "own_transforms", module)
    for spec, expected in (("own_transforms:scaled", 2.0), ("own_transforms:scaled:3", 3.0)):
        own = make_transforms((spec,))
        _, sent = own.update(KEY, own.init({}), {"w": np.float32(1)})
        assert float(sent["w"]) == expected
    broken = make_transforms(("own_transforms:scaled:0",))
    place = f"federated.transforms is 'own_transforms:scaled:0', which fails at {__file__}:"
    with pytest.raises(InputError, match=f"^{re.escape(place)}"):
        broken.update(KEY, broken.init({}), {"w": np.float32(1)})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clip:-1", ("clip:-1.0", "norm above 0")),
        ("clip:0", ("clip:0.0", "norm above 0")),
        ("clip:1e999", ("'clip:1e999'", "after clip give finite numbers")),
        ("clip:x", ("'clip:x'", "after clip give finite numbers")),
        ("clip", ("'clip'", "missing a required argument: 'max_norm'", "correct them")),
        ("clip:nan", ("'clip:nan'", "after clip give finite numbers")),
        ("top-k:0", ("top-k:0.0", "share above 0 and at most 1")),
        ("top-k:2", ("top-k:2.0", "share above 0 and at most 1")),
        ("top-k:", ("'top-k:'", "after top-k give finite numbers")),
        ("int9", ("'int9'", "did you mean int8?")),
        ("quantise", ("'quantise'", "choose one of clip, int8, top-k, or give module:attribute")),
        ("nomodule:thing", ("'nomodule:thing'", "no module nomodule", "set PYTHONPATH")),
        ("json:nothing", ("'json:nothing'", "module json has nothing of that name to use", "correct it")),
        # A function must make a Transform, of the numbers that follow alone.
        ("json:dumps", ("'json:dumps'", "do not fit it (missing a required argument: 'obj')", "correct them")),
        ("os:getpid", ("'os:getpid'", "makes a int", "make a Transform")),
        (":thing", ("':thing'", "has no meaning here")),
    ],
)
def test_bad_specs_are_refused(spec, words):
    message = refusal(lambda: make_transforms(("int8", spec)))
    assert message.startswith("federated.transforms ")
    assert [word for word in words if word not in message] == []


def test_a_users_transform_keeps_the_shapes(monkeypatch):
    module = types.ModuleType("own_transforms")
    module.mean = Transform(lambda params: (), lambda key, state, delta: (state, jax.tree.map(jnp.mean, delta)), lambda x: x)
    monkeypatch.setitem(sys.modules, "own_transforms", module)
    own = make_transforms(("own_transforms:mean",))
    message = refusal(lambda: own.update(KEY, own.init({}), {"w": np.ones(3, np.float32)}))
    assert message == "federated.transforms is 'own_transforms:mean', and its['w'] has shape (): give (3,)"
