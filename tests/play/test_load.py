"""Proves that what is loaded is what was trained: it plays the run's own evaluation, and an export of it says nothing else."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import killed_run
from runner.helpers import run_in

import dqn_jax
from dqn_jax.commands import export
from dqn_jax.commands import play as play_command
from dqn_jax.config import InputError
from dqn_jax.distributed import data_parallel
from dqn_jax.federated import driver as federated
from dqn_jax.federated.config import FederatedExperiment
from dqn_jax.play.episodes import play, with_env_params
from dqn_jax.play.load import load
from dqn_jax.runner import loop
from dqn_jax.runner.checkpoint import MANIFEST, newest_valid
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.policy import POLICY, write_policy
from dqn_jax.runner.records import CHECKPOINTS, SUMMARY, read_returns

pytestmark = pytest.mark.long

FRAMES = killed_run.INITIAL_FRAMES + 6 * killed_run.FRAMES_PER_CHUNK
"""Two checkpoints."""
ROUNDS = 4


def config_of(run_dir: Path):
    return dataclasses.replace(killed_run.config_of(run_dir), total_frames=FRAMES)


def federated_config_of(run_dir: Path):
    return killed_run.federated_config_of(run_dir, rounds=ROUNDS)


def trained_in(directory: Path, config_of, kind) -> Path:
    """A run without its plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_run", lambda run_dir: None)
        return run_in(directory, config_of, kind.from_config(config_of(Path("unused"))))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """One agent over two devices, seeds 0 and 1."""
    return trained_in(tmp_path_factory.mktemp("run"), config_of, data_parallel)


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Path:
    """Three clients, each with a head of its own; seeds 3 and 4."""
    return trained_in(tmp_path_factory.mktemp("run"), federated_config_of, federated)


def written(path: Path, config, params, **changes) -> Path:
    """An exported file of a config, and of some parameters."""
    with open(path, "wb") as file:
        write_policy(file, params, config_dict(config) | changes, 40)
    return path


def shapes_of(trained) -> dict:
    """Parameters of the network, zeros, of one seed."""
    return jax.tree.map(lambda x: np.zeros((1, *x.shape), np.float32), trained.params)


def test_a_loaded_run_plays_its_last_evaluation_to_the_last_bit(run_dir):
    policies = [load(run_dir, seed) for seed in (0, 1)]
    result = play(policies, policies[0].config.runner.eval_episodes)
    means = jnp.mean(result.returns, axis=1)
    assert [float(mean) for mean in means] == json.loads((run_dir / SUMMARY).read_text())["final_returns"]
    # A control: as many episodes by another key are others.
    other = play([trained._replace(key=jax.random.key(0)) for trained in policies], 32)
    assert not np.array_equal(result.returns, other.returns)


def test_each_clients_policy_plays_its_last_evaluation_to_the_last_bit(federation):
    who = [(seed, client) for seed in (3, 4) for client in range(3)]
    policies = [load(federation, seed, client) for seed, client in who]
    means = jnp.mean(play(policies, 32).returns, axis=1)
    last = [row for row in read_returns(federation) if (row["rounds"], row["split"]) == (ROUNDS, "seen")]
    rows = {(row["seed"], row["client"]): row for row in last}
    assert [float(mean) for mean in means] == [rows[name]["return"] for name in who]
    lengths = [json.loads(rows[name]["env_params"])["length"] for name in who]
    assert [float(trained.env.params.length) for trained in policies] == pytest.approx(lengths, rel=1e-5)
    assert len({np.asarray(trained.params["head"]["kernel"]).tobytes() for trained in policies}) == 6
    assert len({jax.tree.leaves(trained.params["trunk"])[1].tobytes() for trained in policies}) == 2


def test_act_is_greedy_on_one_observation_and_on_many(run_dir):
    trained = dqn_jax.load(run_dir)
    assert trained.config == config_of(run_dir)
    batch = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    q_values = np.stack([trained.network.apply(trained.params, obs, None).q_values for obs in batch])
    assert set(q_values.argmax(axis=1)) == {0, 1}
    np.testing.assert_array_equal(trained.act(batch), q_values.argmax(axis=1))
    assert [int(trained.act(obs)) for obs in batch] == trained.act(batch.tolist()).tolist()
    for wrong in (batch[:, :3], batch[0, :3], batch[None], np.array(["a", "b", "c", "d"])):
        with pytest.raises(InputError, match=r"^obs has shape .* give numbers of shape \(4,\), or of several .*\(B, 4,\)$"):
            trained.act(wrong)


def test_an_export_is_parameters_and_config_alone(run_dir, tmp_path, monkeypatch, capsys):
    file = tmp_path / "policy.npz"
    monkeypatch.setattr(sys, "argv", ["dqn-jax export", str(run_dir), str(file)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert export.main() == 0
    assert "4 arrays" in capsys.readouterr().out
    names = [f"params/{group}/{leaf}" for group in ("head", "trunk/Dense_0") for leaf in ("bias", "kernel")]
    with np.load(file, allow_pickle=False) as entries:
        assert sorted(entries.files) == ["about.json", *names]
        about = json.loads(str(entries["about.json"]))
    assert about == {"config": config_dict(config_of(run_dir)), "done": FRAMES}
    one, other = load(run_dir, 1), load(file, 1)
    assert one.config == other.config
    assert one.key == other.key
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one.params, other.params)))

    monkeypatch.setattr(sys, "argv", ["dqn-jax export", str(run_dir), str(tmp_path / "not there" / "policy.npz")])
    assert export.main() == 2
    assert "cannot be written" in capsys.readouterr().err


def test_play_says_the_return_of_each_seed(run_dir, tmp_path, monkeypatch, capsys):
    flags = ["--seeds", "1", "--episodes", "3", "--env-params", "length=0.8", "--gif", str(tmp_path / "one.gif")]
    monkeypatch.setattr(sys, "argv", ["dqn-jax play", str(run_dir), *flags])
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert play_command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    returns = np.asarray(play([with_env_params(load(run_dir, 1), ["length=0.8"])], 3).returns[0])
    assert lines[0] == f"seed 1: return {returns.mean():.1f} (3 episode(s), {returns.min():g} to {returns.max():g})"
    # A reward of 1 a step: a picture for each, and one for the start.
    assert lines[2].endswith(f"{int(returns[0]) + 1} pictures of seed 1's first episode, return {returns[0]:g}")
    assert (tmp_path / "one.gif").read_bytes().startswith(b"GIF89a")


def test_other_parameters_of_the_environment(run_dir):
    """What depends on them follows: the mass of the pole, 0.1, times half its length."""
    trained = with_env_params(load(run_dir), ["length=0.8", "gravity=5"])
    params = trained.env.params
    assert (float(params.length), float(params.gravity)) == (pytest.approx(0.8), 5.0)
    assert float(params.polemass_length) == pytest.approx(0.08)
    for text in ("lenght=1", "length", "length=long", "length=nan"):
        with pytest.raises(InputError, match=rf"^env_params has '{text}'"):
            with_env_params(trained, [text])


def test_training_devices_are_not_needed(run_dir, tmp_path):
    """Of a run on 64 devices, of which there are four here; nor is the program that stepped its environment."""
    trained = load(run_dir)
    config = dataclasses.replace(trained.config, num_devices=64, num_seeds=1)
    for elsewhere in (config, dataclasses.replace(config, env="gymnasium:CartPole-v1")):
        assert load(written(tmp_path / "file.npz", elsewhere, shapes_of(trained))).act(np.ones(4)) == 0


def test_a_federation_has_one_policy_for_all_unless_heads_are_personal(run_dir, federation, tmp_path):
    params = shapes_of(load(run_dir))
    config = dataclasses.replace(load(federation, 3, 0).config, num_seeds=1)
    shared = dataclasses.replace(config, federated=dataclasses.replace(config.federated, personal="none"))
    file = written(tmp_path / "file.npz", shared, {"global": params})
    assert isinstance(load(file).config, FederatedExperiment)
    with pytest.raises(InputError, match=r"client is 1, and .* kept no client's own parameters"):
        load(file, client=1)
    own = jax.tree.map(lambda x: x[:, None] + np.arange(3, dtype=np.float32).reshape(1, 3, *[1] * (x.ndim - 1)), params)
    file = written(tmp_path / "both.npz", shared, {"global": params, "clients": own})
    assert [float(load(file, client=client).params["head"]["bias"][0]) for client in (None, 2)] == [0.0, 2.0]


REFUSED = {
    "no such directory": (lambda run: {"source": run / "nowhere"}, "nowhere is not there: name a run directory"),
    "no checkpoint": (lambda run: {"source": run / CHECKPOINTS}, "has no checkpoint yet"),
    "no such seed": (lambda run: {"source": run, "seed": 2}, r"^seed is 2, and .* has seeds 0 to 1"),
    "no federation": (lambda run: {"source": run, "client": 0}, "client is 0, and .* is no federation"),
    "another file": (lambda run: {"source": run / SUMMARY}, "summary.json is damaged, or no policy"),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_loaded_is_one_sentence(run_dir, given, said):
    with pytest.raises(InputError, match=said) as refused:
        load(**given(run_dir))
    assert "\n" not in str(refused.value)


def test_clients_are_named_in_a_federation_of_personal_policies(federation):
    with pytest.raises(InputError, match=r"has no policy for all, but one of each client: name a client, from 0 to 2$"):
        load(federation)
    for client in (-1, 3):
        with pytest.raises(InputError, match=rf"^client is {client}, and .* has clients 0 to 2"):
            load(federation, client=client)


def test_a_damaged_file_is_refused_and_a_damaged_checkpoint_passed_over(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    *_, before, newest = sorted(copy.glob(f"{CHECKPOINTS}/step_*"))
    data = bytearray((newest / POLICY).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / POLICY).write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged, or no policy"):
        load(newest / POLICY)
    used, expected = load(copy), load(before / POLICY)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, used.params, expected.params)))
    (before / POLICY).unlink()
    with pytest.raises(InputError, match=rf"^no checkpoint in .* {newest.name} is damaged .* {before.name} is damaged"):
        load(copy)


def test_nothing_is_unpickled(tmp_path):
    """An entry that would write a file while it is unpickled."""
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    np.savez(tmp_path / "file.npz", **{"about.json": np.array("{}"), "params/x": np.array([Trap()], object)})
    with pytest.raises(InputError, match="is damaged, or no policy"):
        load(tmp_path / "file.npz")
    assert not trap.exists()
    with np.load(tmp_path / "file.npz", allow_pickle=True) as entries:
        assert entries["params/x"] is not None
    assert trap.exists()


def test_a_checkpoint_without_a_policy_is_of_an_older_version(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    newest = max(copy.glob(f"{CHECKPOINTS}/step_*"))
    (newest / POLICY).unlink()
    body = json.loads((newest / MANIFEST).read_text())["body"]
    del body["policy_sha256"]
    sealed = {"sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest(), "body": body}
    (newest / MANIFEST).write_text(json.dumps(sealed))
    with pytest.raises(InputError, match=rf"{newest.name} is of an older version, without {POLICY}: load it with the one"):
        load(copy)
    found, problems = newest_valid(copy / CHECKPOINTS)
    assert (found.path, problems) == (newest, [])


def test_configs_and_networks_of_other_versions_are_refused(run_dir, tmp_path):
    trained = load(run_dir)
    config, params = dataclasses.replace(trained.config, num_seeds=1), shapes_of(trained)
    with pytest.raises(InputError, match="has the config of another version"):
        load(written(tmp_path / "file.npz", config, params, new_field=1))
    wider = jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), params)
    with pytest.raises(InputError, match=r"has parameters head/bias, .* unlike those of the network"):
        load(written(tmp_path / "file.npz", config, wider))


def test_modules_of_a_run_directory_are_never_imported(run_dir, tmp_path, monkeypatch):
    """A module beside the policy is not found; the same on the caller's path is."""
    trained = load(run_dir)
    config = dataclasses.replace(trained.config, num_seeds=1, env="planted:make", max_episode_steps=None)
    file = written(tmp_path / "file.npz", config, shapes_of(trained))
    (tmp_path / "planted.py").write_text(
        "from dqn_jax.envs import make_env\n\ndef make():\n    return make_env('CartPole-v1')\n"
    )
    with pytest.raises(InputError, match="has no module planted"):
        load(file)
    monkeypatch.syspath_prepend(tmp_path)
    assert load(file).env.spec.obs_shape == (4,)
    sys.modules.pop("planted")
