"""Proves that a checkpoint comes back bit for bit, or is refused in a short sentence and the one before it is used."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, SIZES

from dqn_jax.agent import make_agent
from dqn_jax.algorithms import fields_of
from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError, NetworkConfig
from dqn_jax.distributed.config import ActorLearnerExperiment, ServerExperiment
from dqn_jax.federated.config import FederatedExperiment
from dqn_jax.mapping import over, place
from dqn_jax.replay import ReplayState
from dqn_jax.runner import checkpoint
from dqn_jax.runner.checkpoint import MANIFEST, DamagedCheckpoint, newest_valid, read, save
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.policy import POLICY
from dqn_jax.types import Clock

ARRAYS, REPLAY = checkpoint.ARRAYS.format(0), checkpoint.REPLAY.format(0)

DEVICES = jax.local_devices()
POLICY_OF = {"trunk": {}, "head": {"bias": np.arange(2, dtype=np.float32)}}
"""What is played of every state here."""


def small_state(value: float = 0.5) -> dict:
    return {"x": jnp.full(3, float(value)), "key": jax.random.key(7)}


def save_at(directory, *steps: int, keep: int = 10) -> list:
    """A checkpoint at each number of frames, its value that number."""
    return [save(directory, small_state(step), POLICY_OF, step, {"frames": step}, {"env": "E"}, keep) for step in steps]


def bits(tree) -> list[tuple[str, tuple, bytes]]:
    leaves = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)]
    return [(str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_tree_comes_back_bit_for_bit_where_it_was(tmp_path):
    floats = np.array([0.1, -0.0, np.inf, np.nan, 1e-45, np.float32(1) + np.finfo(np.float32).eps], np.float32)
    rows = np.arange(4, dtype=np.float32)
    state = {
        "float32": jnp.asarray(floats),
        "int32": jnp.array([[2**31 - 1], [-(2**31)]], jnp.int32),
        "uint8": jnp.arange(256, dtype=jnp.uint8),
        "bool": jnp.array([True, False, True]),
        "empty": jnp.zeros((0, 5)),
        "scalar": jnp.float32(3.14),
        "keys": jax.random.split(jax.random.key(3), 4),
        "rbg": jax.random.key(1, impl="rbg"),
        "elsewhere": jax.device_put(jnp.ones(2), DEVICES[3]),
        "rows": over(jnp.sin, "i", DEVICES)(place(rows, DEVICES)),
        "pair": over(lambda x: (x, x > 0), "i", DEVICES[2:])(place(rows[:2], DEVICES[2:])),
        "row_keys": over(jax.random.split, "i", DEVICES)(place(jax.random.split(jax.random.key(5), 4), DEVICES)),
    }
    path = save(tmp_path, state, POLICY_OF, 20, {"frames": 20, "sizes": {"a": 1}}, {"env": "E", "agent": {"n_step": 1}}, keep=1)
    found, problems = newest_valid(tmp_path)
    assert path == found.path == tmp_path / "step_000000000020"
    assert problems == []
    assert found.progress == {"frames": 20, "sizes": {"a": 1}}
    assert found.config == {"env": "E", "agent": {"n_step": 1}}

    template = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.zeros_like(x), state)
    template = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), template, state)
    restored = found.restore(template)
    assert bits(restored) == bits(state) != bits(template)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for after, before in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert after.dtype == before.dtype
        assert after.sharding == before.sharding
    draws = [jax.random.normal(tree["keys"][2], (3,)) for tree in (restored, state)]
    chex.assert_trees_all_equal(*draws)


def test_a_restored_state_goes_on_as_the_saved_one(tmp_path):
    """Sharded leaves, keys among them, go straight into the program that made them."""
    step = over(lambda key, x: (jax.random.fold_in(key, 1), x + jax.random.normal(key, x.shape)), "i", DEVICES[:2], donate=True)
    start = place((jax.random.split(jax.random.key(0), 2), np.zeros((2, 3), np.float32)), DEVICES[:2])
    state = step(*start)
    save(tmp_path, state, POLICY_OF, 1, {}, {}, keep=1)
    restored = newest_valid(tmp_path)[0].restore(state)
    assert bits(step(*restored)) == bits(step(*state))
    assert restored[0].is_deleted()


def test_the_newest_are_kept(tmp_path):
    save_at(tmp_path, 5, 10, 900, 1000, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:012d}" for step in (10, 900, 1000)]
    assert newest_valid(tmp_path)[0].progress == {"frames": 1000}


def with_replay(value: float) -> dict:
    return small_state(value) | {"replay": ReplayState(jnp.full(4, value), Clock(jnp.int32(value)))}


def test_replays_are_in_all_checkpoints_in_the_newest_or_in_none(tmp_path):
    """What is left out stays as the template has it, and the checkpoint says so."""
    there = {"all": [True] * 3, "newest": [False, False, True], "none": [False] * 3}
    for replays, has_replay in there.items():
        directory = tmp_path / replays
        paths = [save(directory, with_replay(step), POLICY_OF, step, {}, {}, 3, replays) for step in (1, 2, 3)]
        assert [(path / REPLAY).exists() for path in paths] == has_replay
        for path, has in zip(paths, has_replay, strict=True):
            step = int(path.name.removeprefix("step_"))
            found = read(path)
            assert found.has_replay == has
            restored = found.restore(with_replay(9))
            assert bits(restored["x"]) == bits(jnp.full(3, float(step)))
            assert bits(restored["replay"]) == bits(with_replay(step if has else 9)["replay"])


def test_a_replay_that_is_damaged_or_missing_is_not_taken_for_one_left_out(tmp_path):
    older, newer = (save(tmp_path, with_replay(step), POLICY_OF, step, {}, {}, 3) for step in (1, 2))
    (newer / REPLAY).unlink()
    assert newest_valid(tmp_path)[0].path == older
    (newest,) = [save(tmp_path / "large", with_replay(1), POLICY_OF, 1, {}, {}, 3, "newest")]
    flip(newest / REPLAY, 300)
    with pytest.raises(DamagedCheckpoint, match=r"replay-0\.npz is not what was written"):
        read(newest)


def test_no_checkpoint_is_no_problem(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "not there") == (None, [])


@pytest.mark.parametrize("at", ["savez", "fsync", "dump", "rename"])
def test_a_save_that_dies_leaves_the_one_before(tmp_path, monkeypatch, at):
    save_at(tmp_path, 10)

    def die(*_, **__):
        raise OSError("disk full")

    module = {"savez": np, "fsync": os, "dump": json, "rename": os}[at]
    with monkeypatch.context() as patch:
        patch.setattr(module, at, die)
        with pytest.raises(OSError, match="disk full"):
            save_at(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing_step_000000000020", "step_000000000010"]
    found, problems = newest_valid(tmp_path)
    assert (found.progress, problems) == ({"frames": 10}, [])
    # The run comes by again: what was left is cleaned away and does not leak into the new one.
    (tmp_path / ".writing_step_000000000020" / "stale").touch()
    save_at(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000000010", "step_000000000020"]
    assert sorted(path.name for path in (tmp_path / "step_000000000020").iterdir()) == [ARRAYS, MANIFEST, POLICY]
    assert newest_valid(tmp_path)[0].progress == {"frames": 20}


def test_nothing_is_renamed_before_it_is_on_disk(tmp_path, monkeypatch):
    """Arrays, policy and manifest are flushed, then renamed, then the rename is flushed."""
    log = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("rename"), rename(a, b)))
    save_at(tmp_path, 10)
    assert log == [ARRAYS, POLICY, MANIFEST, "rename", tmp_path.name]


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST, POLICY])
def test_every_byte_counts(tmp_path, name):
    """One flipped bit anywhere in any file is found, and told in a line."""
    (path,) = save_at(tmp_path, 20)
    whole = (path / name).read_bytes()
    read(path)
    for position in range(len(whole)):
        flip(path / name, position)
        with pytest.raises(DamagedCheckpoint) as damage:
            read(path)
        message = str(damage.value)
        assert "step_000000000020 is damaged" in message, position
        assert name in message
        assert len(message) < 200
        assert "\n" not in message
        (path / name).write_bytes(whole)
    read(path)


DAMAGE = {
    "bit in arrays": lambda path: flip(path / ARRAYS, 300),
    "bit in manifest": lambda path: flip(path / MANIFEST, -40),
    "arrays cut": lambda path: os.truncate(path / ARRAYS, (path / ARRAYS).stat().st_size // 2),
    "arrays empty": lambda path: os.truncate(path / ARRAYS, 0),
    "manifest cut": lambda path: os.truncate(path / MANIFEST, (path / MANIFEST).stat().st_size - 1),
    "manifest empty": lambda path: os.truncate(path / MANIFEST, 0),
    "manifest not a dict": lambda path: (path / MANIFEST).write_text("[1]"),
    "manifest not text": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "arrays longer": lambda path: (path / ARRAYS).write_bytes((path / ARRAYS).read_bytes() + b"\0"),
    "no arrays": lambda path: (path / ARRAYS).unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "empty directory": lambda path: [file.unlink() for file in path.iterdir()],
    "a file": lambda path: (shutil.rmtree(path), path.touch()),
    "arrays of another": lambda path: shutil.copy(path.parent / "step_000000000010" / ARRAYS, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_used(tmp_path, damage):
    paths = save_at(tmp_path, 10, 20)
    damage(paths[1])
    found, problems = newest_valid(tmp_path)
    assert found.progress == {"frames": 10}
    assert bits(found.restore(small_state())) == bits(small_state(10))
    assert len(problems) == 1
    assert problems[0].startswith("step_000000000020 is damaged (")
    assert len(problems[0]) < 200
    assert "\n" not in problems[0]


def test_only_damaged_ones_are_refused_all_named(tmp_path):
    paths = save_at(tmp_path, 10, 20, 30)
    for path, damage in zip(paths, list(DAMAGE.values())[2:5], strict=True):
        damage(path)
    with pytest.raises(InputError, match="can be used") as refused:
        newest_valid(tmp_path)
    assert [path.name for path in paths if path.name not in str(refused.value)] == []
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"x": jnp.zeros(4), "key": jax.random.key(0)}, ("['x']", "[3]", "[4]")),
        ({"x": jnp.zeros(3, jnp.int32), "key": jax.random.key(0)}, ("['x']", "float32", "int32")),
        ({"y": jnp.zeros(3), "key": jax.random.key(0)}, ("['x']", "['y']")),
        ({"x": jnp.zeros(3), "key": jax.random.key(0, impl="rbg")}, ("['key']", "rbg")),
        ({"x": jnp.zeros(3), "key": jax.random.key(0), "z": jnp.zeros(1)}, ("nothing", "['z']")),
        ({"key": jax.random.key(0)}, ("['x']", "nothing")),
    ],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path, template, words):
    save_at(tmp_path, 10)
    found, _ = newest_valid(tmp_path)
    with pytest.raises(InputError) as refused:
        found.restore(template)
    assert [word for word in (*words, "step_000000000010") if word not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


def rewritten(path, change):
    """Writes a checkpoint's manifest anew, its own digest right, with a body that `change` makes of its body."""
    manifest = path / MANIFEST
    body = change(json.loads(manifest.read_text())["body"])
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest(), "body": body}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: [body],
        lambda body: "body",
        *(lambda body, name=name: {key: body[key] for key in body if key != name} for name in ("progress", "config", "leaves")),
        lambda body: body | {"progress": [1]},
        lambda body: body | {"config": None},
        lambda body: body | {"leaves": {"name": 1}},
        lambda body: body | {"leaves": [{"name": "x"}]},
        lambda body: body | {"arrays_sha256": None},
    ],
)
def test_a_manifest_of_something_else_is_damage(tmp_path, change):
    """Its digest is right: somebody wrote it so."""
    older, newer = save_at(tmp_path, 10, 20)
    rewritten(newer, change)
    with pytest.raises(DamagedCheckpoint, match=r"^step_000000000020 is damaged \(manifest\.json "):
        read(newer)
    assert newest_valid(tmp_path)[0].path == older


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ((np.array([{"a": 1}], object), np.zeros(2, np.uint32)), r"arrays-0\.npz cannot be read \(ValueError\)"),
        ((np.zeros(2, np.uint32),), r"arrays-0\.npz cannot be read \(KeyError\)"),
        ((np.zeros(2, np.uint32), np.zeros(4, np.float32)), r"has another \['x'\] float32 \[3\] than its manifest"),
        ((np.zeros(2, np.uint32), np.zeros(3)), r"has another \['x'\] float32 \[3\] than its manifest"),
        ((np.zeros(3, np.uint32), np.zeros(3, np.float32)), r"has another \['key'\] key<fry> \[\] than its manifest"),
        (None, r"arrays-0\.npz cannot be read \(ValueError\)"),
    ],
)
def test_arrays_that_are_not_the_manifests_are_refused_and_never_unpickled(tmp_path, arrays, sentence):
    (path,) = save_at(tmp_path, 10)
    if arrays is None:
        (path / ARRAYS).write_bytes(b"not an archive")
    else:
        np.savez(path / ARRAYS, *arrays)
    digest = hashlib.sha256((path / ARRAYS).read_bytes()).hexdigest()
    rewritten(path, lambda body: body | {"arrays_sha256": [digest]})
    with pytest.raises(InputError, match=f"{sentence}.*: move this checkpoint away to go on from the one before it$"):
        read(path).restore(small_state())


def test_a_changed_config_is_refused_field_by_field():
    saved = config_dict(DataParallelExperiment())
    changed = json.loads(json.dumps(saved))
    checkpoint.check_same_config(saved, changed)
    changed |= {"seed": 5, "total_frames": 1, "run_dir": "elsewhere", "resume": True, "num_devices": 2}
    changed["agent"]["batch_size"] = 64
    changed["network"]["hidden_sizes"] = [9]
    del changed["runner"]["log_every"]
    with pytest.raises(InputError) as refused:
        checkpoint.check_same_config(saved, changed)
    differences = str(refused.value).partition("(")[2].rpartition(")")[0].split("; ")
    assert differences == [
        "agent.batch_size was 32 and is 64",
        "network.hidden_sizes was [128, 128] and is [9]",
        "num_devices was None and is 2",
        "runner.log_every was 10000 and is None",
        "seed was 0 and is 5",
    ]


@pytest.mark.parametrize(
    "config", [DataParallelExperiment(), FederatedExperiment(), ServerExperiment(), ActorLearnerExperiment()]
)
def test_nothing_else_may_change(config):
    """Each field of each config, on its own, but for budgets, places, what a run says of itself, and numbers of the state."""
    said = ("run_dir", "resume", "threshold", "compilation_cache", "loggers", "checkpoint_replay", "patience", "ray_address")
    free = {*AgentConfig.NUMBERS, "total_frames", "rounds", *said}

    def changes(saved):
        for name, value in saved.items():
            if isinstance(value, dict):
                yield from (((name, *path), saved | {name: inner}) for path, inner in changes(value))
            else:
                yield (name,), saved | {name: "something else"}

    refused = set()
    saved = config_dict(config)
    for path, changed in changes(saved):
        if path[-1] in free:
            checkpoint.check_same_config(saved, changed)
        else:
            with pytest.raises(InputError, match=rf"\({'.'.join(path)} was "):
                checkpoint.check_same_config(saved, changed)
            refused.add(path[-1])
    assert {"n_step", "hidden_sizes", "eval_every", "seed", "env"} <= refused


@pytest.mark.parametrize("algorithm", ["c51", "qr_dqn"])
def test_other_supports_or_quantiles_are_refused(algorithm):
    """A federation averages logits atom by atom, and shapes alone would not tell one support from another."""
    head = fields_of(algorithm, "CartPole-v1")["network.head"]
    other = head.replace(":100:", ":200:").replace("quantile:51", "quantile:52")
    saved, changed = (config_dict(FederatedExperiment(network=NetworkConfig(head=name))) for name in (head, other))
    words = rf"^the run directory holds another config \(network\.head was {head} and is {other}\): undo that or use a new"
    with pytest.raises(InputError, match=words):
        checkpoint.check_same_config(saved, changed)


def test_what_may_change_may_change():
    saved = config_dict(DataParallelExperiment())
    checkpoint.check_same_config(saved, saved | {"total_frames": 1, "run_dir": "elsewhere", "resume": True})
    checkpoint.check_same_config(saved | {"rounds": 5}, saved | {"rounds": 10})


def test_numbers_of_the_state_may_change_and_are_named():
    saved = config_dict(DataParallelExperiment(agent=AgentConfig(loss="huber:1", exploration="boltzmann:2")))
    changed = json.loads(json.dumps(saved))
    changed["total_frames"] = 1
    changed["agent"] |= {"learning_rate": 0.5, "max_grad_norm": 10.0, "loss": "huber:0.5", "exploration": "boltzmann"}
    changes = checkpoint.check_same_config(saved, changed)
    assert {name: changes[name] for name in changes if name != "total_frames"} == {
        "agent.exploration": ["boltzmann:2", "boltzmann"],
        "agent.learning_rate": [0.001, 0.5],
        "agent.loss": ["huber:1", "huber:0.5"],
        "agent.max_grad_norm": [None, 10.0],
    }
    assert "total_frames" not in changes
    changed["agent"]["loss"] = "squared"
    with pytest.raises(InputError, match=r"holds another config \(agent\.loss was huber:1 and is squared\): undo"):
        checkpoint.check_same_config(saved, changed)


def test_numbers_of_a_restored_state_are_those_of_the_template_where_they_are_new(tmp_path):
    """Each name of the config is a number of the state, and no other leaf is taken; nor where a decay began."""

    def state_of(**fields):
        agent = make_agent(ENV, NETWORK, AgentConfig(**SIZES, memory="prioritised", loss="huber:1", **fields))
        return agent.init(jax.random.key(len(fields)))

    numbers = dict.fromkeys(AgentConfig.NUMBERS, 0.25) | {"epsilon_decay_frames": 7}
    old, new = state_of(), state_of(**numbers)
    old = old.replace(actor=old.actor.replace(hyperparams=old.actor.hyperparams._replace(epsilon_first_frame=jnp.int32(30))))
    checkpoint.save(tmp_path, old, POLICY_OF, 10, {}, {}, keep=1)
    found, _ = newest_valid(tmp_path)
    plain, restored = found.restore(state_of(**numbers)), found.restore(new, new_numbers=True)
    chex.assert_trees_all_equal(plain, old)
    hyperparams = {**restored.actor.hyperparams._asdict(), **restored.learner.hyperparams._asdict()}
    hyperparams |= restored.replay.priorities.hyperparams._asdict()
    assert {name: float(hyperparams[name]) for name in numbers} == pytest.approx(numbers)
    assert int(restored.actor.hyperparams.epsilon_first_frame) == 30
    chex.assert_trees_all_equal(restored.learner.params, old.learner.params)
    chex.assert_trees_all_equal(restored.stream, old.stream)


def test_a_damaged_checkpoint_does_not_crowd_out_good_ones(tmp_path):
    paths = save_at(tmp_path, 10, 20)
    flip(paths[1] / ARRAYS, 300)
    (saved,) = save_at(tmp_path, 15, keep=1)
    assert saved.exists()
    assert newest_valid(tmp_path)[0].progress == {"frames": 15}


def test_saving_a_step_again_never_leaves_less_than_before(tmp_path, monkeypatch):
    save_at(tmp_path, 10, keep=1)

    def die(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", die)
    save_at(tmp_path, 10, keep=1)
    found, _ = newest_valid(tmp_path)
    assert found is not None


def test_arrays_are_hashed_without_reading_them_whole(tmp_path, monkeypatch):
    whole = Path.read_bytes

    def read_bytes(path):
        assert "arrays" not in path.name
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    state = {"replay": jnp.arange(2**18)}
    path = save(tmp_path, state, POLICY_OF, 1, {}, {}, keep=1)
    assert newest_valid(tmp_path)[0].path == path
    monkeypatch.undo()
    digest = hashlib.sha256((path / ARRAYS).read_bytes()).hexdigest()
    assert json.loads((path / MANIFEST).read_text())["body"]["arrays_sha256"] == [digest]
