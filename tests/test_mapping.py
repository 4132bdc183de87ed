"""Proves that `over` is one thing by `vmap` and by `pmap`, and that rows go to, stay on and come from their own device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import InputError
from dqn_jax.mapping import devices_for, from_devices, lane_axes, local_devices, names_of, over, place, row, to_devices
from dqn_jax.types import Clock

DEVICES = jax.local_devices()


def tree(rows: int) -> dict:
    return {"a": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), "b": {"c": np.arange(rows, dtype=np.int32)}}


def collectives(tree, scale):
    """Uses the axis by its name in every way that training does."""
    return {
        "mean": jax.lax.pmean(tree["a"] * scale, "rows"),
        "sum": jax.lax.psum(tree["b"]["c"], "rows"),
        "index": jax.lax.axis_index("rows"),
        "own": tree["a"] - scale,
    }


def test_lane_axes_leaves_clocks_to_all_lanes():
    state = {"clock": Clock(jnp.int32(3)), "x": [jnp.ones(2), jnp.zeros((2, 3))]}
    axes = lane_axes(state)
    assert axes == {"clock": None, "x": [0, 0]}

    def one(state):
        count = state["clock"].count
        # A batched clock would batch the predicate too, and `cond` would become a `select`.
        return {"clock": Clock(count + 1), "x": [jax.lax.cond(count > 2, jnp.cos, jnp.sin, state["x"][0]), state["x"][1]]}

    mapped = over(one, in_axes=(axes,), out_axes=axes)
    result = mapped(state)
    assert result["clock"].count.shape == ()
    assert int(result["clock"].count) == 4
    chex.assert_trees_all_close(result["x"][0], np.cos(np.ones(2)))
    assert "cond" in str(jax.make_jaxpr(mapped)(state))
    # Lanes whose clocks differ have one each.
    own = lane_axes(state, share_clocks=False)
    assert own == {"clock": 0, "x": [0, 0]}
    batched = over(one, in_axes=(own,), out_axes=own)({"clock": Clock(jnp.full(2, 3)), "x": state["x"]})
    assert batched["clock"].count.shape == (2,)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_vmap_and_pmap_are_the_same_function(rows):
    args = (tree(rows), np.linspace(1, 2, rows, dtype=np.float32))
    on_one = over(collectives, "rows")(*args)
    on_each = over(collectives, "rows", DEVICES[:rows])(*place(args, DEVICES[:rows]))
    chex.assert_trees_all_equal(on_one, jax.device_get(on_each))
    expected = (args[0]["a"] * args[1][:, None]).mean(axis=0)
    np.testing.assert_allclose(on_each["mean"], np.tile(expected, (rows, 1)), rtol=1e-6)
    assert on_each["sum"].tolist() == [rows * (rows - 1) // 2] * rows
    assert on_each["index"].tolist() == list(range(rows))
    assert {shard.device for shard in on_each["own"].addressable_shards} == set(DEVICES[:rows])


def test_lanes_inside_devices_are_lanes_alone():
    """`vmap` inside `pmap`, with a collective over the devices only."""
    values = np.arange(8, dtype=np.float32).reshape(2, 4)

    def row_of(x):
        return over(lambda lane: lane - jax.lax.pmean(lane, "rows"))(x)

    both = over(row_of, "rows", DEVICES[:2])(place(values, DEVICES[:2]))
    np.testing.assert_array_equal(both, [[-2.0] * 4, [2.0] * 4])
    np.testing.assert_array_equal(both, over(row_of, "rows")(values))


@pytest.mark.parametrize(("rows", "leaf"), [(2, "['a']"), (4, "['a']")])
def test_a_wrong_leading_axis_names_leaf_and_number(rows, leaf):
    for use in (over(collectives, "rows", DEVICES[:3]), lambda tree, _: place(tree, DEVICES[:3])):
        with pytest.raises(ValueError, match="leading axis must be the number of devices, 3") as refused:
            use(tree(rows), np.ones(rows, np.float32))
        assert leaf in str(refused.value)
        assert f"({rows}, 3)" in str(refused.value)


def test_only_the_wrong_leaf_is_named():
    wrong = tree(3) | {"d": np.float32(1)}
    with pytest.raises(ValueError, match=r"\['d'\] has shape \(\): .* 3"):
        place(wrong, DEVICES[:3])
    with pytest.raises(ValueError, match=r"\[1\] has shape \(2,\): .* 3"):
        over(collectives, "rows", DEVICES[:3])(tree(3), np.ones(2, np.float32))


@pytest.mark.parametrize("devices", [DEVICES, DEVICES[:3][::-1], [DEVICES[2], DEVICES[0]]])
def test_place_puts_row_d_on_device_d_and_row_reads_it_there(devices):
    source = tree(len(devices)) | {"keys": jax.random.split(jax.random.key(1), len(devices))}
    placed = place(source, devices)
    for index, device in enumerate(devices):
        mine = row(placed, index)
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(mine))
        np.testing.assert_array_equal(mine["a"], source["a"][index])
        assert int(mine["b"]["c"]) == index
        assert mine["b"]["c"].shape == ()
        chex.assert_trees_all_equal(jax.random.key_data(mine["keys"]), jax.random.key_data(source["keys"][index]))
    by_row = {int(shard.data[0]): shard.device for shard in placed["b"]["c"].addressable_shards}
    assert by_row == dict(enumerate(devices))


def test_repetitions_divide_over_the_devices_that_none_stands_for():
    assert [len(devices_for(None, num_seeds)) for num_seeds in (1, 2, 3, 4, 6, 7)] == [1, 2, 3, 4, 3, 1]
    # A number is taken at its word.
    assert devices_for(2, 3) == DEVICES[:2]
    assert names_of(DEVICES[:2]) == ("cpu:0 cpu", "cpu:1 cpu")


def test_local_devices():
    assert local_devices(None) == DEVICES
    assert local_devices(2) == DEVICES[:2]
    with pytest.raises(InputError, match=r"num_devices is 5, and this process has 4 cpu device\(s\): ask for at most"):
        local_devices(5)


def test_donation_gives_the_buffers_away():
    state, other = place((tree(2), np.ones(2, np.float32)), DEVICES[:2])
    step = over(lambda tree, x: jax.tree.map(lambda leaf: leaf + leaf, tree), "rows", DEVICES[:2], donate=True)
    result = step(state, other)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not other.is_deleted()
    np.testing.assert_array_equal(result["a"], 2 * tree(2)["a"])
    # What comes out is placed, so a loop donates in every turn.
    again = step(result, other)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(result))
    np.testing.assert_array_equal(again["a"], 4 * tree(2)["a"])


def test_nothing_is_donated_unasked():
    state = place(tree(2), DEVICES[:2])
    over(lambda tree: jax.tree.map(lambda leaf: leaf + leaf, tree), "rows", DEVICES[:2])(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_rows_are_divided_in_order_and_come_back():
    whole = {"seeds": np.arange(6), "envs": np.arange(12).reshape(6, 2)}
    divided = to_devices(whole, 3)
    assert divided["seeds"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert divided["envs"].shape == (3, 2, 2)
    assert divided["envs"][1].tolist() == [[4, 5], [6, 7]]
    back = from_devices(place(divided, DEVICES[:3]))
    assert {name: values.tolist() for name, values in back.items()} == {name: x.tolist() for name, x in whole.items()}
