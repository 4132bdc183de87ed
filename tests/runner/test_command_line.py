"""Proves that flags become the config they name, and that bad input ends a script with one sentence and its exit status."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError, NetworkConfig, RunnerConfig, TrainingError
from dqn_jax.runner.command_line import exit_code_of, parse
from dqn_jax.runner.signals import Stopped

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "experiments" / "data_parallel.py"
PRESETS = {
    "first": DataParallelExperiment(agent=AgentConfig(num_envs=8), run_dir=Path("runs/first")),
    "second": DataParallelExperiment(num_seeds=3, agent=AgentConfig(num_envs=4, double_q=True), run_dir=Path("runs/second")),
}


def message_of(text: str) -> str:
    """A message without the box that is drawn around it, which breaks its lines."""
    return " ".join(re.sub(r"[╭╮╰╯─│]", " ", text).split())


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
    (["--agent.num-envz", "3"], ["--agent.num-envz", "Unrecognized"]),
    (["--sed", "3"], ["--sed", "Unrecognized"]),  # no abbreviations
    (["--pre", "second"], ["--pre", "Unrecognized"]),
    (["--preset", "third"], ["--preset", "'third'", "first", "second"]),
    (["--agent.num-envs", "0"], ["agent.num_envs is 0", "give a whole number from 1"]),
    (["--agent.num-envs", "many"], ["--agent.num-envs", "many"]),
    (["--agent.num-envs", "8.5"], ["--agent.num-envs", "8.5"]),
    (["--agent.learning-rate", "nan"], ["agent.learning_rate is nan", "give a finite number above 0"]),
    (["--agent.memory", "newset"], ["--agent.memory", "'newset'", "'newest'"]),
    (["--agent.batch-size", "64", "--agent.replay-capacity", "48"], ["agent.batch_size is 64", "shrink the batch"]),
    (["--network.hidden-sizes", "0"], ["network.hidden_sizes is (0,)", "at least one width"]),
    (["--runner.eval-episodes", "4"], ["runner.eval_episodes is 4", "from 32"]),
    (["--num-seeds", "0"], ["num_seeds is 0", "give a whole number from 1"]),
    (["--total-frames", "2147483647"], ["total_frames is 2147483647", "train for fewer frames"]),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_bad_flags_end_with_status_2_and_say_why(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PRESETS, "Text.", flags)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert [word for word in words if word not in message_of(err)] == []
    assert out == ""
    assert "Traceback" not in err


def test_help_shows_every_field_with_the_presets_values(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(PRESETS, "What it does.", ["--preset", "second", "--help"])
    text = message_of(capsys.readouterr().out)
    assert ended.value.code == 0
    for words in ("What it does.", "--preset {first,second}", "shown: second", "--agent.num-envs", "--runner.keep-checkpoints"):
        assert words in text
    assert "Environments stepped at once. (default: 4)" in text


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
    "an unknown environment": (["--env", "CartPole-v9"], "env is 'CartPole-v9'.*did you mean CartPole-v1"),
    "a continuous environment": (["--env", "Pendulum-v1"], "env is 'Pendulum-v1', whose actions are continuous"),
    "an environment with a download": (["--env", "MNISTBandit-bsuite"], "downloads a data set.*choose another"),
    "too many virtual devices": (["--num-devices", "65"], "num_devices is 65: ask for at most 64"),
    "sizes that do not divide": (["--num-devices", "3"], "agent.num_envs is 16, .* over 3 devices: make it a multiple of 3"),
    "seeds that do not divide": (
        ["--num-devices", "2", "--num-seeds", "3", "--seeds-over-devices"],
        "num_seeds is 3, .* over 2 devices: make it a multiple",
    ),
    "a convolution over a vector": (["--network.trunk", "conv"], "network.trunk is 'conv', .* use 'mlp'"),
    "a directory that cannot be made": (
        ["--run-dir", "{tmp}/file/run"],
        "run_dir .*/file/run cannot be written .* name another",
    ),
    "a directory that holds a run": (["--run-dir", "{tmp}/held"], "run_dir .*/held already holds a run: add --resume"),
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
    assert "agent.num_envs is 0" in message_of(done.stderr)
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


def test_one_command_has_all_jobs(monkeypatch, capsys):
    from dqn_jax.commands import __main__ as command
    from dqn_jax.commands import actor_learner

    monkeypatch.setattr(actor_learner, "train", lambda: print(sys.argv))
    monkeypatch.setattr(sys, "argv", ["dqn-jax", "actor-learner", "--num-seeds", "1"])
    assert command.main() == 0
    assert capsys.readouterr().out == "['dqn-jax actor_learner', '--num-seeds', '1']\n"
    for rest in ([], ["actor"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["dqn-jax", *rest])
        assert command.main() == 2
        assert capsys.readouterr().err.startswith("usage: dqn-jax JOB [flags], JOB one of data_parallel, parameter_server, ")


@pytest.mark.parametrize("name", ["actor_learner", "data_parallel", "federated", "parameter_server", "reference"])
def test_a_script_of_a_job_is_its_command(name, monkeypatch):
    module = importlib.import_module(f"dqn_jax.commands.{name}")
    monkeypatch.setattr(module, "main", lambda: 7)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT.with_stem(name)))
    assert ended.value.code == 7
