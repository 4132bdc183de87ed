"""Proves that processes join, share or refuse a run directory and end together, each failure with one sentence in bounded time.

What they train is laws/test_law9_hosts.py's. Most scripts here use no jax: the launcher does not know what it starts.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dqn_jax.config import InputError, TrainingError
from dqn_jax.runner import peers
from dqn_jax.runner.hosts import Hosts, join, parse_hosts
from dqn_jax.runner.launch import Processes

pytestmark = pytest.mark.long

LIMIT_SECONDS = 300
PLACE = ["--coordinator", "localhost:1234", "--num-processes", "2", "--process-id", "1"]
DATA_PARALLEL = Path(__file__).parents[2] / "experiments" / "data_parallel.py"


def test_a_place_is_taken_out_of_the_flags():
    assert parse_hosts(["--seed", "3"]) == (None, ["--seed", "3"])
    hosts, rest = parse_hosts(["--seed", "3", *PLACE, "--resume"])
    assert hosts == Hosts("localhost:1234", 2, 1)
    assert rest == ["--seed", "3", "--resume"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (PLACE[:2], "--num-processes, --process-id not given: --coordinator, --num-processes and --process-id go together"),
        (PLACE[2:], "--coordinator not given: "),
        ([*PLACE, "--process-id", "2"], "--process-id is 2: give each process its own number from 0 to 1"),
        ([*PLACE, "--process-id", "-1"], "--process-id is '-1': give a whole number"),
        ([*PLACE, "--num-processes", "two"], "--num-processes is 'two': give a whole number"),
        ([*PLACE, "--num-processes", "0"], "--num-processes is 0: give a whole number from 1"),
        ([*PLACE, "--coordinator", "localhost"], "--coordinator is 'localhost': give HOST:PORT"),
        ([*PLACE, "--coordinator", "localhost:65536"], "--coordinator is 'localhost:65536': give HOST:PORT"),
        ([*PLACE, "--coordinator", ":80"], "--coordinator is ':80': give HOST:PORT"),
    ],
)
def test_a_bad_place_is_one_sentence(flags, sentence):
    with pytest.raises(InputError) as refused:
        parse_hosts(flags)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_a_taken_port_is_one_sentence():
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        taken = rf"--coordinator is 127\.0\.0\.2:{port}, and process 0 cannot listen there .*in use.*: give an address of its"
        with pytest.raises(InputError, match=taken):
            join(Hosts(f"127.0.0.2:{port}", 2, 0))


@pytest.mark.parametrize("host", ["198.51.100.1", "nobody.invalid"])
def test_a_coordinator_on_another_host_is_one_sentence(host):
    with pytest.raises(
        InputError, match=rf"--coordinator is {host}:1234, and process 0 cannot .*: give an address of its host"
    ):
        join(Hosts(f"{host}:1234", 2, 0))


def test_the_coordinator_listens_at_its_address_alone(tmp_path):
    """Linux writes 127.0.0.1 as 0100007F, also behind 20 digits for IPv6, and a socket that listens as 0A."""
    code = """
import os, sys
from pathlib import Path
from dqn_jax.runner.hosts import join, parse_hosts
join(parse_hosts()[0])
files = os.listdir("/proc/self/fd")
mine = {os.readlink(f"/proc/self/fd/{file}")[8:-1] for file in files if os.path.exists(f"/proc/self/fd/{file}")}
rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net/", table).read_text().splitlines()[1:]]
print(*sorted(row[1] for row in rows if row[3] == "0A" and row[9] in mine))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "1", "--process-id", "0"]
    status, out, err = ended(started(tmp_path, code, *flags, launched=False))
    assert status == 0, err
    assert f":{port:04X}" in out
    assert {address.rpartition(":")[0][-8:] for address in out.split()} == {"0100007F"}


def test_a_process_on_its_own_talks_to_nobody(tmp_path):
    join(None)
    assert peers.is_first()
    assert peers.gather({"a": 1}, "test") == [{"a": 1}]
    assert peers.agreed(lambda: 7, "test") == 7
    peers.wait("test")
    peers.check_same({"seed": 1})
    peers.check_shared(tmp_path / "not there")
    with pytest.raises(TrainingError, match="no"), peers.together():
        raise TrainingError("no")


def started(tmp_path, code: str, *flags: str, launched: bool = True) -> subprocess.Popen:
    """A script of this code, as two processes or one."""
    script = tmp_path / "script.py"
    script.write_text(code)
    launcher = ["-m", "dqn_jax.runner.launch", "--num-processes", "2"] if launched else []
    command = [sys.executable, *launcher, str(script), *flags]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit status, stdout, stderr); TimeoutExpired if it hangs."""
    try:
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


ONE_FAILS = """
import os, signal, sys, time
mine = sys.argv[-1] == "1"
if mine:
    {ending}
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("ending", "status", "sentence"),
    [
        ("sys.exit(3)", 3, "process 1 failed with status 3: the others are ended; the same command with --resume goes on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 was ended by SIGKILL: the others are ended; the same"),
        ("sys.exit(2)", 2, "process 1 could not start (status 2): the others are ended\n"),
    ],
)
def test_the_launcher_ends_all_when_one_fails(tmp_path, ending, status, sentence, monkeypatch):
    # A launcher that is quick to lose patience with the one that sleeps.
    code = "import sys; from dqn_jax.runner import launch; launch.GRACE_SECONDS = 0.1; sys.argv[:1] = []; launch.main()"
    script = tmp_path / "script.py"
    script.write_text(ONE_FAILS.format(ending=ending))
    command = [sys.executable, "-c", code, "launch", "--num-processes", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == status
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_of_those_that_ended_together_the_one_that_was_killed_is_named(tmp_path, capfd):
    """Process 0 has noticed, and both have ended before the launcher looks."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nos.kill(os.getpid(), 9) if sys.argv[-1] == '1' else sys.exit(1)")
    processes = Processes()
    processes.start(2, [str(script)])
    for pid in processes._processes:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.wait() == 128 + signal.SIGKILL
    assert capfd.readouterr().err.startswith("process 1 was ended by SIGKILL: the others are ended")


def test_the_launcher_passes_signals_on(tmp_path):
    # One write a line: the two write to one pipe.
    code = "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nos.write(1, b'up\\n')\n"
    process = started(tmp_path, code + "signal.sigwait([signal.SIGTERM])\nsys.exit(143)")
    up = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "", "")
    assert up == ["up\n"] * 2


ORPHAN = """
import os, time
from dqn_jax.runner.hosts import end_with_launcher
end_with_launcher()
os.write(1, b'up\\n')
time.sleep(600)
"""


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    process = started(tmp_path, ORPHAN)
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    process.kill()
    # Their ends of the pipes are closed once both are gone.
    assert ended(process) == (-signal.SIGKILL, "", "")


JOIN = """
import sys
from pathlib import Path
from dqn_jax.runner import hosts
from dqn_jax.runner.command_line import exit_code_of
hosts.START_SECONDS = 2

def main():
    place, (first, second) = hosts.parse_hosts()
    hosts.join(place)
    import numpy as np
    from dqn_jax.config import InputError, TrainingError
    from dqn_jax.runner import peers
    from dqn_jax.runner.records import open_records
    mine = (first, second)[place.process_id]
    print(peers.gather(mine, "test"), flush=True)
    try:
        peers.check_same({"seed": place.process_id, "run_dir": mine})
    except InputError as error:
        print(error, flush=True)
    try:
        peers.check_equal(lambda: {"equal": np.zeros(2), "own": np.full(2, place.process_id)}, "parameters")
    except TrainingError as error:
        print(error, flush=True)
    open_records(Path(mine), resume=False)

sys.exit(exit_code_of(main))
"""


def test_processes_meet_and_refuse_what_they_do_not_share(tmp_path):
    status, out, err = ended(started(tmp_path, JOIN.replace("= 2", "= 60"), str(tmp_path / "a"), str(tmp_path / "b")))
    assert status == 2, err
    assert out.count(str([str(tmp_path / "a"), str(tmp_path / "b")])) == 2
    assert out.count("process 1 has another seed than process 0: start all with the same flags") == 2
    assert out.count("parameters of process(es) [1] are not bitwise those of process 0") == 2
    for path in "ab":
        refusal = rf"run_dir \S+/{path} is not shared, process\(es\) \[1\] do not see what process 0 writes there: name a"
        assert len(re.findall(refusal, err)) == 1, err
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "a" / ".shared").exists()


def test_a_process_that_nobody_joins_ends_in_time(tmp_path):
    place = ["--coordinator", "localhost:9", "--num-processes", "2", "--process-id", "1"]
    status, out, err = ended(started(tmp_path, JOIN, "a", "b", *place, launched=False))
    assert (status, out) == (1, "")
    assert err.startswith("process 1 of 2 has waited 2 s for the others at localhost:9: start all of them, each with its own")
    assert err.count("\n") == 1


INTERRUPTED = """
import signal, sys
from dqn_jax.runner import hosts
from dqn_jax.runner.command_line import exit_code_of

def main():
    place, _ = hosts.parse_hosts()
    hosts.join(place)
    if place.process_id == 1:
        signal.raise_signal(signal.SIGINT)
    signal.pause()

sys.exit(exit_code_of(main))
"""


def test_an_interrupt_before_training_is_no_failure(tmp_path):
    """Python alone would show a traceback, after jax has waited for the other process; the launcher ends that one here."""
    status, out, err = ended(started(tmp_path, INTERRUPTED))
    assert (status, out) == (128 + signal.SIGINT, "")
    assert err == "interrupted: nothing is saved since the last checkpoint\n"


LATE = """
import signal, sys
from dqn_jax.runner import hosts
from dqn_jax.runner.command_line import exit_code_of

def main():
    place, _ = hosts.parse_hosts()
    hosts.join(place)
    from dqn_jax.runner import peers
    peers.WAIT_SECONDS = 1
    if place.process_id == 1:
        signal.pause()
    with peers.together():
        peers.wait("next chunk")

sys.exit(exit_code_of(main))
"""


def test_a_process_that_is_late_is_not_waited_for_for_ever(tmp_path):
    """It loses its coordinator with process 0, and jax ends it."""
    status, _, err = ended(started(tmp_path, LATE))
    assert status == 1
    assert "process 0 lost another process (next chunk: waited 1 s): end those that are left and start all" in err
    assert "process 0 failed with status 1: the others are ended" in err


def test_the_script_takes_the_flags_before_jax_starts(tmp_path):
    code = f"import sys; sys.modules['jax'] = None; sys.argv = {[str(DATA_PARALLEL), *PLACE[:2]]!r}; import runpy; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("--num-processes, --process-id not given")
