"""Proves that flags become the config they name, and that bad input ends a script with one sentence and its exit status."""

import dataclasses
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import dqn_jax
from dqn_jax.commands import __main__ as command
from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError, NetworkConfig, RunnerConfig, TrainingError
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.runner.command_line import exit_code_of, parse, with_flags
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.signals import Stopped

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "experiments" / "data_parallel.py"
PRESETS = {
    "first": DataParallelExperiment(agent=AgentConfig(num_envs=8), run_dir=Path("runs/first")),
    "second": DataParallelExperiment(num_seeds=3, agent=AgentConfig(num_envs=4, double_q=True), run_dir=Path("runs/second")),
}


def test_no_flags_give_the_first_preset():
    assert parse(PRESETS, "Text.", []) == PRESETS["first"]


@pytest.mark.parametrize("flags", [["--preset", "second"], ["--preset=second"]])
def test_a_preset_gives_its_defaults(flags):
    assert parse(PRESETS, "Text.", flags) == PRESETS["second"]


def test_flags_change_single_fields_of_the_preset():
    flags = ["--seed", "5", "--agent.n-step", "3", "--agent.learning-rate", "1e-4", "--network.hidden-sizes", "8", "9"]
    flags += ["--preset", "second", "--agent.no-double-q", "--runner.eval-episodes", "40", "--run-dir", "a/b", "--resume"]
    flags += ["--agent.max-grad-norm", "10", "--num-devices", "None", "--agent.epsilon-schedule", "exponential"]
    agent = AgentConfig(num_envs=4, n_step=3, learning_rate=1e-4, max_grad_norm=10.0, epsilon_schedule="exponential")
    assert parse(PRESETS, "Text.", flags) == DataParallelExperiment(
        num_seeds=3,
        seed=5,
        agent=agent,
        network=NetworkConfig(hidden_sizes=(8, 9)),
        runner=RunnerConfig(eval_episodes=40),
        run_dir=Path("a/b"),
        resume=True,
    )
    # A preset is a value: reading flags leaves it as it was.
    assert PRESETS["second"].agent.n_step == 1


def test_flags_are_those_of_the_process_by_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--seed", "9"])
    assert parse(PRESETS, "Text.").seed == 9


REFUSED = [
    (["--agent.num-envz", "3"], "--agent.num-envz is no flag of this command: did you mean --agent.num-envs?"),
    (["--agent.no-duoble-q"], "--agent.no-duoble-q is no flag of this command: did you mean --agent.no-double-q?"),
    (["--sed", "3"], "--sed is no flag of this command: did you mean --seed?"),  # no abbreviations
    (["--pre=second"], "--pre is no flag of this command: did you mean --preset?"),
    (["--xyz"], "--xyz is no flag of this command: see --help"),
    (["--preset", "third"], "--preset: invalid choice: 'third' (choose from 'first', 'second')"),
    (["--agent.num-envs", "0"], "--agent.num-envs is 0: give a whole number from 1 to 2147483647 (device counters are 32-bit)"),
    (["--agent.num-envs", "many"], "--agent.num-envs: 'many' is not a whole number"),
    (["--agent.num-envs", "8.5"], "--agent.num-envs: '8.5' is not a whole number"),
    (["--total-frames", "15e-1"], "--total-frames: '15e-1' is not a whole number"),
    (["--total-frames", "inf"], "--total-frames: 'inf' is not a whole number"),
    (["--seed"], "Missing value for argument '--seed'. Expected 1 values"),
    (["--agent.learning-rate", "nan"], "--agent.learning-rate is nan: give a finite number above 0"),
    (["--agent.learning-rate", "x"], "--agent.learning-rate: could not convert string to float: 'x'"),
    (
        ["--agent.memory", "newset"],
        "invalid choice 'newset' for argument '--agent.memory'. Expected one of ('uniform', 'prioritised', 'newest', "
        "'rollout')",
    ),
    (
        ["--agent.batch-size", "64", "--agent.replay-capacity", "48"],
        "--agent.batch-size is 64, larger than --agent.replay-capacity 48: shrink the batch or keep more transitions",
    ),
    (
        ["--network.hidden-sizes", "0"],
        "--network.hidden-sizes is (0,): give a tuple of at least one width, each a positive whole number",
    ),
    (
        ["--runner.eval-episodes", "0"],
        "--runner.eval-episodes is 0: give a whole number from 1 to 2147483647 (device counters are 32-bit)",
    ),
    (
        ["--total-frames", "2147483647"],
        "--total-frames is 2147483647, and device counters would wrap at 2147483647 frames or updates: train for fewer frames",
    ),
    (
        ["--total-frames", "5e3", "--agent.learning-starts", "9000"],
        "--total-frames is 5000, and gathering experience alone takes 9000: train for longer or lower --agent.learning-starts",
    ),
    (["--config", "/no/such"], "config /no/such cannot be read (No such file or directory): name a file"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_bad_flags_are_refused_in_one_sentence_that_names_flags(flags, sentence, capsys):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        parse(PRESETS, "Text.", flags)
    assert capsys.readouterr() == ("", "")


def test_words_are_no_flags():
    config = PRESETS["first"]
    message = "env is 'seed': run_dir /my_run_dir/run_dir-2 has no agent.n_step, so seed the env with a seed"
    expected = "--env is 'seed': --run-dir /my_run_dir/run_dir-2 has no --agent.n-step, so seed the env with a seed"
    assert with_flags(message, config) == expected


@pytest.mark.parametrize(("text", "number"), [("1e3", 1000), ("2.5E2", 250), ("1_000", 1000), ("4.0", 4)])
def test_whole_numbers_as_people_write_them(text, number):
    assert parse(PRESETS, "Text.", ["--num-seeds", text]).num_seeds == number


SHORT = {"first": dataclasses.replace(PRESETS["first"], agent=AgentConfig(num_envs=8, batch_size=64, learning_starts=10_000))}


def test_a_short_run_is_fitted_but_for_what_flags_say(capsys):
    config = parse(SHORT, "Text.", ["--total-frames", "5000", "--runner.eval-every", "700"])
    assert config.agent == dataclasses.replace(SHORT["first"].agent, learning_starts=500, epsilon_decay_frames=2500)
    assert config.runner == RunnerConfig(log_every=500, eval_every=700, checkpoint_every=2500)
    assert capsys.readouterr() == (
        "",
        "fitted to 5,000 frames: --agent.learning-starts 500, --agent.epsilon-decay-frames 2500, --runner.log-every 500, "
        "--runner.checkpoint-every 2500\n",
    )
    # What is short enough stays.
    brief = {"a": dataclasses.replace(SHORT["first"], runner=RunnerConfig(log_every=100, eval_every=50_000))}
    runner = RunnerConfig(log_every=100, eval_every=1000, checkpoint_every=2500)
    assert parse(brief, "Text.", ["--total-frames", "5000"]).runner == runner
    # At least a batch, and what flags say of it.
    assert parse(SHORT, "Text.", ["--total-frames", "1e3", "--agent.batch-size", "256"]).agent.learning_starts == 256


@pytest.mark.parametrize("length", [10_001, 499_999])
def test_a_run_with_room_enough_is_left_as_it_is(length, capsys):
    config = parse(SHORT, "Text.", ["--total-frames", str(length)])
    assert config == dataclasses.replace(SHORT["first"], total_frames=length)
    assert capsys.readouterr().err == ""


def test_workers_gather_experience_each(capsys):
    server = ServerExperiment(agent=AgentConfig(num_envs=4, learning_starts=1000), server=ServerConfig(num_workers=4))
    assert parse({"a": server}, "Text.", ["--total-frames", "4001", "--runner.log-every", "100"]).agent.learning_starts == 1000
    config = parse({"a": server}, "Text.", ["--total-frames", "4000", "--runner.log-every", "100"])
    assert config.agent.learning_starts == 100
    assert config.warm_up_frames < 4000


def test_a_config_file_or_a_part_of_one_is_changed_by_flags(tmp_path):
    saved = dataclasses.replace(PRESETS["second"], run_dir=tmp_path, resume=True, num_devices=7)
    whole, part, wrong = (tmp_path / name for name in ("whole", "part", "wrong"))
    whole.write_text(json.dumps(config_dict(saved) | {"versions": {}, "history": []}))
    config = parse(PRESETS, "Text.", ["--config", str(whole), "--seed", "9"])
    # Where results go, and on what, is said anew.
    assert config == dataclasses.replace(PRESETS["second"], run_dir=PRESETS["first"].run_dir, seed=9)
    part.write_text('{"network": {"hidden_sizes": [3]}, "runner": {"threshold": 5}}')
    config = parse(PRESETS, "Text.", ["--preset", "second", "--config", str(part)])
    runner = RunnerConfig(threshold=5)
    assert config == dataclasses.replace(PRESETS["second"], network=NetworkConfig(hidden_sizes=(3,)), runner=runner)
    for text, words in (
        ('{"agent": {"n_stop": 3}}', "agent.n_stop is no field of a AgentConfig: did you mean --agent.n-step"),
        ('{"agent": {"n_step": "3"}}', "--agent.n-step is 3: give a whole number"),
        ('{"agent": 3}', "agent is 3: give its fields by name"),
        ('{"seed": [1, 2]}', "seed is (1, 2): give a whole number"),
        ('{"env": "Cart', "is damaged (not JSON)"),
        ("[]", "is damaged (no config)"),
    ):
        wrong.write_text(text)
        with pytest.raises(InputError, match=re.escape(words)) as refused:
            parse(PRESETS, "Text.", ["--config", str(wrong)])
        assert str(wrong) in str(refused.value)


def test_a_resumed_run_keeps_what_flags_do_not_say(tmp_path):
    begun = parse(SHORT, "Text.", ["--total-frames", "5000", "--run-dir", str(tmp_path), "--agent.learning-rate", "1e-2"])
    (tmp_path / "config.json").write_text(json.dumps(config_dict(begun) | {"num_devices": 2, "history": []}))
    resumed = ["--run-dir", str(tmp_path), "--resume", "--total-frames", "6000"]
    expected = dataclasses.replace(begun, total_frames=6000, resume=True, num_devices=2)
    assert parse(SHORT, "Text.", resumed) == expected
    faster = parse(SHORT, "Text.", [*resumed, "--agent.learning-rate", "0.5"])
    assert faster == dataclasses.replace(expected, agent=dataclasses.replace(expected.agent, learning_rate=0.5))
    # A preset is said too: the run will refuse what differs, but for what was fitted, and numbers of the state.
    named = parse(SHORT | {"other": PRESETS["second"]}, "Text.", ["--preset", "other", *resumed])
    kept = {"learning_starts": 500, "epsilon_decay_frames": 2500, "learning_rate": 1e-2}
    assert named.agent == dataclasses.replace(PRESETS["second"].agent, **kept)
    assert named.runner == expected.runner
    # Where it is now: it may have been moved.
    here = {"first": dataclasses.replace(SHORT["first"], run_dir=tmp_path)}
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"run_dir": "elsewhere"}))
    assert parse(here, "Text.", ["--resume"]).run_dir == tmp_path
    # What is damaged is for the run to judge.
    (tmp_path / "config.json").write_text("{")
    assert parse(SHORT, "Text.", [*resumed, "--total-frames", "20000"]).agent == SHORT["first"].agent


def test_help_shows_every_field_with_the_presets_values(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PRESETS, "What it does.", ["--preset", "second", "--help", "all"])
    text = " ".join(re.sub(r"[╭╮╰╯─│]", " ", capsys.readouterr().out).split())
    assert ended.value.code == 0
    for words in ("What it does.", "--preset {first,second}", "shown: second", "--agent.num-envs", "--runner.keep-checkpoints"):
        assert words in text
    assert "Environments stepped at once. (default: 4)" in text


def test_help_begins_with_the_common_flags_and_has_the_rest_by_group(capsys):
    def shown(*flags):
        with pytest.raises(SystemExit) as ended:
            parse(PRESETS, "What it does.", ["--help", *flags])
        assert ended.value.code == 0
        return capsys.readouterr().out

    common, network = shown(), shown("network")
    assert common.count("\n") <= 50
    assert "--total-frames INT" in common
    assert "--agent." not in common
    assert common.endswith("More flags: --help agent|network|runner, or --help all.\n")
    assert "--network.hidden-sizes" in network
    assert "--env" not in network + shown("runner")
    assert all(flag in shown("all") for flag in ("--env", "--agent.n-step", "--network.trunk", "--runner.threshold"))
    with pytest.raises(InputError, match=r"^--help agnt: there is agent, network, runner, or all$"):
        parse(PRESETS, "What it does.", ["--help", "agnt"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("env is 'x': no"), 2),
        (TrainingError("seed(s) [3]: no"), 1),
        (Stopped("stopped", 2), 130),
        (Stopped("s", 15), 143),
    ],
)
def test_errors_a_user_can_act_on_are_one_sentence(error, code, capsys):
    def main() -> None:
        raise error

    assert exit_code_of(main) == code
    assert capsys.readouterr() == ("", f"{error}\n")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x")])
def test_errors_of_the_program_keep_their_traceback(error):
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        exit_code_of(main)


def test_a_main_that_ends_well_is_status_0(capsys):
    assert exit_code_of(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


BAD_INPUT = {
    "an unknown environment": (["--env", "CartPole-v9"], "--env is 'CartPole-v9'.*did you mean CartPole-v1"),
    "a continuous environment": (["--env", "Pendulum-v1"], "--env is 'Pendulum-v1', whose actions are continuous"),
    "an environment with a download": (["--env", "MNISTBandit-bsuite"], "downloads a data set.*choose another"),
    "too many virtual devices": (["--num-devices", "65"], "--num-devices is 65: ask for at most 64"),
    "sizes that do not divide": (["--num-devices", "3"], "--agent.num-envs is 16, .* over 3 devices: make it a multiple of 3"),
    "seeds that do not divide": (
        ["--num-devices", "2", "--num-seeds", "3", "--seeds-over-devices"],
        "--num-seeds is 3, .* over 2 devices: make it a multiple",
    ),
    "a convolution over a vector": (["--network.trunk", "conv"], "--network.trunk is 'conv', .* use 'mlp'"),
    "a directory that cannot be made": (
        ["--run-dir", "{tmp}/file/run"],
        "--run-dir .*/file/run cannot be written .* name another",
    ),
    "a directory that holds a run": (["--run-dir", "{tmp}/held"], "--run-dir .*/held already holds a run: add --resume"),
}


@pytest.fixture
def arguments(tmp_path):
    """Fills in the paths of flags, and makes what they point at."""
    (tmp_path / "file").touch()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "config.json").write_text("{}")

    def fill(flags: list[str]) -> list[str]:
        return ["--run-dir", str(tmp_path / "new"), *(flag.format(tmp=tmp_path) for flag in flags)]

    return fill


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_of_a_script_is_one_sentence(case, arguments, monkeypatch, capsys, tmp_path):
    flags, pattern = BAD_INPUT[case]
    # The script sets up devices for itself: started now, jax keeps those of all the tests.
    assert len(jax.local_devices()) == 4
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments(flags)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert re.search(pattern, err)
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("case", ["an unknown environment", "sizes that do not divide", "a directory that holds a run"])
def test_a_real_process_ends_so_too(case, arguments):
    """As a user starts it, with the devices that it sets up for itself."""
    flags, pattern = BAD_INPUT[case]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments(flags)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.search(pattern, done.stderr)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_process_with_a_bad_flag_ends_before_jax_starts(arguments):
    """Without jax in the way: a module that cannot be imported would be seen."""
    code = "import sys; sys.modules['jax'] = None; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = {[str(SCRIPT), *arguments(['--agent.num-envs', '0'])]!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--agent.num-envs is 0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_a_traceback_is_shown_where_it_is_asked_for(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])

    def main():
        config = parse({"one": DataParallelExperiment()}, "Trains.")
        raise InputError(f"seed is {config.seed}: take another")

    monkeypatch.setattr(sys, "path", [*sys.path])
    assert exit_code_of(main) == 2
    # The working directory is searched first.
    assert sys.path[0] == os.getcwd()
    err = capsys.readouterr().err
    assert err.endswith("seed is 0: take another\n")
    assert ("Traceback" in err) == bool(flags)
    assert err.count("\n") == 1 or flags


def dqn_jax_command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["dqn-jax", *args])
    return command.main()


def test_one_command_has_all_jobs(monkeypatch, capsys):
    from dqn_jax.commands import actor_learner

    monkeypatch.setattr(actor_learner, "train", lambda: print(sys.argv))
    assert dqn_jax_command(monkeypatch, "train", "actor-learner", "--num-seeds", "1") == 0
    assert capsys.readouterr().out == "['dqn-jax train actor-learner', '--num-seeds', '1']\n"
    assert dqn_jax_command(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{dqn_jax.__version__}\n"
    for name in (*(f"train.{job}" for job in command.TRAIN), *command.COMMANDS):
        module = importlib.import_module(f"dqn_jax.commands.{name.removeprefix('train.').replace('-', '_')}")
        assert callable(module.main)


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        ([], 2, ""),
        (["--help"], 0, ""),
        (["train"], 2, ""),
        (["train", "-h"], 0, ""),
        (["trian"], 2, "trian is no command of dqn-jax: did you mean train?"),
        (["train", "federate"], 2, "federate is no command of dqn-jax train: did you mean federated?"),
        (["train", "play"], 2, "play is no command of dqn-jax train: see dqn-jax --help"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_none_is_a_screen(args, code, sentence, monkeypatch, capsys):
    assert dqn_jax_command(monkeypatch, *args) == code
    out, err = capsys.readouterr()
    if sentence:
        assert (out, err) == ("", f"{sentence}\n")
    else:
        assert (out or err).startswith("usage: dqn-jax ")
        assert 8 < (out or err).count("\n") < 24
        assert bool(out) == (code == 0)


def test_presets_are_listed_with_their_job(monkeypatch, capsys):
    assert dqn_jax_command(monkeypatch, "presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train data-parallel     quickstart (default)      CartPole-v1, 500,000 frames, 8 seed(s)"
    assert [line.split()[1] for line in lines if "smoke" in line] == [name for name in command.TRAIN if name != "reference"]


@pytest.mark.parametrize("name", ["actor_learner", "data_parallel", "federated", "parameter_server", "reference"])
def test_a_script_of_a_job_is_its_command(name, monkeypatch):
    module = importlib.import_module(f"dqn_jax.commands.{name}")
    monkeypatch.setattr(module, "main", lambda: 7)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT.with_stem(name)))
    assert ended.value.code == 7
