"""tools/launch.py: ranks start together, and all end when one fails, on one machine or two."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import train_sh, wait_until
from projects.SegFormer.engine.launcher.watch import Record, parse, state_of, suspect

LAUNCH = (sys.executable, "tools/launch.py")
# Rank 1 does what it is told, the others sleep.
ONE_FAILS = 'if [ "$RANK" = 1 ]; then sleep 1; {}; fi; sleep {}'
ENVIRONMENT = "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT"


@pytest.fixture
def port() -> int:
    """A port that is free, as is the next."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            try:
                second.bind(("", first.getsockname()[1] + 1))
            except OSError:
                continue
            return first.getsockname()[1]


def sleepers(mark: str) -> list[int]:
    """Processes that sleep as long as `mark` says."""
    found = subprocess.run(["pgrep", "-fx", f"sleep {mark}"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def launch(start, port: int, script: str, ranks: int = 3, **node) -> subprocess.Popen:
    options = [word for name, value in node.items() for word in (f"--{name}", str(value))]
    options = [word.replace("_", "-") for word in options]
    shell = ("bash", "-c", script)
    environment = os.environ | {"SEGFORMER_TOKEN": "2f0a7c5e"}
    command = (*LAUNCH, "--ranks", str(ranks), *options, "--port", str(port), *shell)
    return start(*command, env=environment)


def test_each_rank_gets_its_environment(start, port):
    process = launch(start, port, f"echo {ENVIRONMENT}")
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0 and not stderr
    expected = [f"{rank} {rank} 3 127.0.0.1 {port}" for rank in range(3)]
    assert sorted(stdout.splitlines()) == expected


def test_all_ranks_end_before_the_launcher(start, port):
    began = time.monotonic()
    process = launch(start, port, "sleep $RANK")
    assert process.wait(30) == 0 and time.monotonic() - began >= 2


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("exit 3", 3, "rank 1 ended with exit code 3"),
        ("kill -KILL $$", 137, "rank 1 ended by SIGKILL"),
        ("kill -ABRT $$", 134, "rank 1 ended by SIGABRT"),
    ],
)
def test_one_rank_ends_all(start, port, how, code, words):
    process = launch(start, port, ONE_FAILS.format(how, f"301.{port}"))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert [line for line in stderr.splitlines() if words in line and line.startswith("launch:")]
    wait_until(lambda: not sleepers(f"301.{port}"), timeout=5)


def test_killed_rank_is_the_cause_and_not_those_that_abort(start, port):
    """OneFlow's ranks abort when one of them is gone."""
    script = 'if [ "$RANK" = 2 ]; then kill -KILL $$; fi; kill -ABRT $$'
    _, stderr = launch(start, port, script).communicate(timeout=30)
    assert "rank 2 ended by SIGKILL" in stderr


@pytest.mark.slow
def test_rank_that_does_not_want_to_end_is_killed(start, port):
    script = "trap '' TERM; if [ $RANK = 1 ]; then sleep 1; exit 3; fi; while :; do sleep 1; done"
    process = launch(start, port, script)
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, 138),
        (signal.SIGHUP, 129),
        (signal.SIGKILL, -9),
    ],
)
def test_signal_to_the_launcher_ends_its_ranks(start, port, number, code):
    mark = f"303.{port}"
    process = launch(start, port, f"exec sleep {mark}")
    wait_until(lambda: len(sleepers(mark)) >= 3, timeout=20)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert f"launch: the run was stopped by {number.name}" in stderr
    wait_until(lambda: not sleepers(mark), timeout=5)


# Ranks that take a signal as a training does: they note it, save for RANK seconds, and exit.
SAVES = """
trap 'echo "$RANK" >> {folder}/came; stop=1' {signal}
touch {folder}/rank$RANK
while [ -z "$stop" ]; do sleep 0.1; done
sleep $RANK
touch {folder}/saved$RANK
exit {code}
"""


def files(folder, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_ranks_that_stop_in_order_are_waited_for(start, port, tmp_path, name):
    """The last is ready two seconds after the first. A second signal at once is the same one."""
    number = signal.Signals[f"SIG{name}"]
    script = SAVES.format(folder=tmp_path, signal=name, code=128 + number)
    process = launch(start, port, script)
    wait_until(lambda: files(tmp_path, "rank*") == 3, timeout=20)
    for _ in range(2):
        os.kill(process.pid, number)
        time.sleep(0.5)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr == f"launch: the run was stopped by {number.name}\n"
    assert files(tmp_path, "saved*") == 3
    assert sorted((tmp_path / "came").read_text().split()) == ["0", "1", "2"]


def test_rank_that_fails_while_it_stops_is_the_cause(start, port, tmp_path):
    script = f"""
trap 'stop=1' TERM
touch {tmp_path}/rank$RANK
while [ -z "$stop" ]; do sleep 0.1; done
case $RANK in 0) exit 143;; 1) sleep 1; exit 5;; 2) exec sleep 306.{port};; esac
"""
    process = launch(start, port, script)
    wait_until(lambda: files(tmp_path, "rank*") == 3, timeout=20)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 5
    assert stderr == "launch: rank 1 ended with exit code 5; the other ranks are ended\n"
    wait_until(lambda: not sleepers(f"306.{port}"), timeout=5)


@pytest.mark.slow
def test_same_signal_some_seconds_later_ends_ranks_at_once(start, port, tmp_path):
    script = f"trap : USR1; touch {tmp_path}/rank$RANK; while :; do sleep 0.1; done"
    process = launch(start, port, script)
    wait_until(lambda: files(tmp_path, "rank*") == 3, timeout=20)
    for pause in (1, 5, 0):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(pause)
        assert pause == 0 or process.poll() is None
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 138 and "ended by SIGUSR1; the other ranks are ended" in stderr


def test_signal_that_the_launcher_was_started_to_ignore(start, port, tmp_path):
    """By nohup, for one."""
    script = (
        f"trap '' HUP; exec {' '.join(LAUNCH)} --ranks 2 sh -c 'touch {tmp_path}/$RANK; sleep 2'"
    )
    process = start("bash", "-c", script)
    wait_until(lambda: files(tmp_path, "*") == 2, timeout=20)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(20) == 0


def test_port_in_use(start, port):
    with socket.create_server(("", port)):
        process = launch(start, port, "echo started")
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and not stdout
    assert stderr == f"error: port {port} cannot be used: Address already in use; set PORT\n"


def test_port_that_is_none(start):
    process = launch(start, 1 << 17, "echo started")
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and not stdout
    assert stderr.startswith("error: port 131072 cannot be used: ") and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ranks", "two", "true"), "--ranks"),
        (("--ranks", "2"), "no such command"),
        (("--ranks", "2", "a-command-that-is-not-there"), "no such command"),
        (("--ranks", "0", "true"), "--ranks"),
        (("--ranks", "1", "--nodes", "2", "--node-rank", "2", "true"), "NODE_RANK 2"),
        (("--ranks", "1", "--nodes", "2", "true"), "--port"),
        (
            ("--ranks", "1", "--nodes", "2", "--port", "9", "--addr", "x.invalid", "true"),
            "x.invalid",
        ),
        (
            ("--ranks", "1", "--nodes", "2", "--port", "9999", "--addr", "0.0.0.0", "true"),
            "0.0.0.0",
        ),
        (("--ranks", "1", "--nodes", "2", "--port", "9999", "--addr", "192.0.2.1", "true"), "ADDR"),
    ],
)
def test_options_that_cannot_be(start, options, words):
    process = start(*LAUNCH, *options, env=os.environ | {"SEGFORMER_TOKEN": "2f0a7c5e"})
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and not stdout
    assert stderr.startswith("error: ") and words in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["NODE", "NODE_RANK", "PORT", "NODE_WAIT"])
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "08", "a[$(touch {marker})]"])
def test_train_sh_with_something_that_is_no_number(tmp_path, name, value):
    marker = tmp_path / "marker"
    environment = {"ADDR": "127.0.0.1", name: value.format(marker=marker)}
    code, _, stderr = train_sh("configs/segformer_camvid.py", "2", **environment)
    assert code == 2 and stderr == f"train: {name}={environment[name]} is no number\n"
    assert not marker.exists()


# ---- Ranks that hang ----------------------------------------------------------------------------

RANK = """
import faulthandler, json, os, signal, sys, time

faulthandler.register(signal.SIGUSR2, all_threads=True, file=sys.stderr)
rank = int(os.environ["RANK"])


def write(record):
    os.pwrite(int(os.environ["SEGFORMER_PROGRESS"]), record.ljust(256), 0)


def tell(count, doing="training", limit=2):
    write(json.dumps(dict(limit=limit, step=count, doing=doing, count=count)).encode())


def train(seconds, limit=2):
    for count in range(int(seconds * 10)):
        tell(count, limit=limit)
        time.sleep(0.1)
"""


def watched(start, port, folder, *lines: str, **node) -> subprocess.Popen:
    """Ranks that train for a second and then do what the lines say."""
    script = folder / "rank.py"
    script.write_text("\n".join((RANK, *lines)))
    return launch(start, port, f"exec {sys.executable} {script}", node.pop("ranks", 2), **node)


HANGING = {
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "training; its process is stopped"),
    "waiting for data": ("tell(5, 'waiting for data')", "waiting for data; its process is sleep"),
    # A child of vfork runs in its parent's memory, and the parent waits for it as for a disk. The
    # child asks to be killed when its parent is.
    "waiting for the disk": (
        "import ctypes; libc = ctypes.CDLL(None); libc.syscall(58); libc.prctl(1, 9)",
        "its process is waiting for the disk",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "stopped",
        "waiting for data",
        pytest.param("waiting for the disk", marks=pytest.mark.slow),
    ],
)
def test_rank_that_hangs_is_named(start, port, tmp_path, kind):
    """The other waits for it and falls silent a moment earlier, as a rank at a collective does."""
    how, words = HANGING[kind]
    if kind == "waiting for the disk" and os.uname().machine != "x86_64":
        pytest.skip("the number of vfork is that of x86-64")
    process = watched(
        *(start, port, tmp_path, "train(0.5)"),
        *(f"def stand_still():\n    {how}\n    time.sleep(300)", "time.sleep(0.3 * rank)"),
        "if rank == 1: stand_still()",
        "time.sleep(300)",
    )
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and 2 < time.monotonic() - began < 20
    (line,) = (line for line in stderr.splitlines() if line.startswith("launch:"))
    assert line.startswith("launch: rank 1 hangs: no sign of life for 2 s after step ")
    assert words in line
    if kind != "waiting for the disk":  # which can do nothing else
        assert "in stand_still" in stderr


@pytest.mark.slow
def test_hang_on_another_machine(start, port, tmp_path):
    """The launcher whose rank only waits leaves it to the other to name the one that hangs."""
    lines = ("train(0.5)", "if rank == 1: os.kill(os.getpid(), signal.SIGSTOP)", "time.sleep(300)")
    processes = [
        watched(start, port, tmp_path, *lines, ranks=1, nodes=2, node_rank=node) for node in (1, 0)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1 and "launch: rank 1 hangs" in stderr
        assert "rank 0 hangs" not in stderr


@pytest.mark.slow
def test_ranks_that_do_not_hang(start, port, tmp_path):
    """They say nothing, want no watch, or go on after a record that is none."""
    cases = ("tell(1, limit=0)", "write(b''); train(1)", "write(b'[1, 2'); train(1)", "pass")
    lines = (f"if rank == {rank}: {case}" for rank, case in enumerate(cases))
    # Those that trained say at last that they want no watch.
    process = watched(
        *(start, port, tmp_path, *lines, "if rank < 3: tell(99, limit=0)", "time.sleep(3)"), ranks=4
    )
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.slow
def test_time_that_the_launcher_was_stopped_does_not_count(start, port, tmp_path):
    """A batch system suspends a job with all its processes. Here the ranks go on a bit later."""
    lines = (f"open(r'{tmp_path}/' + str(rank), 'w')", "train(2, limit=3)")
    process = watched(start, port, tmp_path, *lines)
    wait_until(lambda: files(tmp_path, "[01]") == 2, timeout=20)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_which_rank_the_others_wait_for():
    """One that is stopped, then one that waits for the disk, for data, for others; by the count."""
    sleeping = [suspect(rank, Record(9, 4, "training", 50 - rank), "S") for rank in (0, 1)]
    data = suspect(2, Record(9, 4, "waiting for data", 90), "S")
    disk = suspect(3, Record(9, 4, "training", 91), "D")
    stopped = suspect(4, Record(9, 4, "training", 92), "T")
    assert "hangs: no sign of life for 9 s after step 4, waiting for data" in data.news
    assert "9 s before the first step" in suspect(2, Record(9, None, "training", 1), "S").news
    order = [stopped, disk, data, *reversed(sleeping)]
    assert sorted([*sleeping, data, disk, stopped]) == order
    assert [one.waits_for_others for one in order] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"limit": None},
        {"limit": -1},
        {"limit": float("nan")},
        {"limit": float("inf")},
        {"count": "many"},
        {"step": float("inf")},
        {"doing": 7},
        {"doing": ["training"]},
    ],
)
def test_foreign_records_are_none(change):
    record = {"limit": 9, "step": 4, "doing": "training", "count": 50}
    whole = json.dumps(record).encode().ljust(256)
    assert parse(whole) == Record(9, 4, "training", 50)
    assert parse(json.dumps(record | {"step": None}).encode()) == Record(9, None, "training", 50)
    assert parse(json.dumps(record | change).encode()) is None
    assert all(parse(whole[:end]) is None for end in range(len(json.dumps(record))))
    assert parse(b"\xff" * 256) is None and parse(b"[" * 256) is None and parse(bytes(256)) is None


def test_state_of_a_process(start):
    process = start("sleep", "300")
    wait_until(lambda: state_of(process.pid) == "S", timeout=5)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T", timeout=5)
    process.kill()
    process.wait()
    assert state_of(process.pid) == "Z"


# ---- Two launches as two machines ---------------------------------------------------------------


def two_machines(start, port: int, script: str, ranks: int = 2) -> list[subprocess.Popen]:
    return [launch(start, port, script, ranks, nodes=2, node_rank=node) for node in (1, 0)]


def test_ranks_of_two_machines(start, port):
    """Both are this machine here, whose ranks OneFlow wants to have local ranks of their own."""
    processes = two_machines(start, port, f"sleep 1; echo {ENVIRONMENT}")
    lines = "".join(process.communicate(timeout=30)[0] for process in processes).splitlines()
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(lines) == [f"{rank} {rank} 4 127.0.0.1 {port}" for rank in range(4)]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_both_machines_name_the_rank_that_was_killed(start, port, rank):
    """On the other the ranks abort, some before and some after the news are there."""
    mark = f"304.{port}"
    script = f'[ "$RANK" = {rank} ] && sleep 2 && kill -KILL $$; exec sleep {mark}'
    processes = two_machines(start, port, script)
    wait_until(lambda: len(sleepers(mark)) >= 3, timeout=20)
    for process in processes:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode != 0
        assert f"launch: rank {rank} ended by SIGKILL" in stderr
    wait_until(lambda: not sleepers(mark), timeout=5)


def test_machine_that_is_gone(start, port):
    mark = f"305.{port}"
    other, first = two_machines(start, port, f"exec sleep {mark}")
    wait_until(lambda: len(sleepers(mark)) >= 4, timeout=20)
    other.kill()
    _, stderr = first.communicate(timeout=30)
    assert first.returncode == 1 and "launch: machine 1 is gone" in stderr
    wait_until(lambda: not sleepers(mark), timeout=5)


@pytest.mark.slow
def test_machine_that_is_stopped_in_order(start, port, tmp_path):
    """The signal comes to one of three. The ranks of the others stop by themselves, the first last.

    That is long after the third, which has heard by then whom the signal came to.
    """
    script = f"""
trap 'touch {tmp_path}/stop' TERM
touch {tmp_path}/rank$RANK
while [ ! -e {tmp_path}/stop ]; do sleep 0.1; done
[ $RANK != 0 ] || sleep 7
touch {tmp_path}/saved$RANK
exit 143
"""
    processes = [launch(start, port, script, 1, nodes=3, node_rank=node) for node in (2, 1, 0)]
    wait_until(lambda: files(tmp_path, "rank*") == 3, timeout=20)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 143
        assert stderr == "launch: machine 1 was stopped by SIGTERM\n"
    assert files(tmp_path, "saved*") == 3


def test_machine_whose_ranks_die_of_the_signal(start, port):
    mark = f"307.{port}"
    other, first = two_machines(start, port, f"exec sleep {mark}")
    wait_until(lambda: len(sleepers(mark)) >= 4, timeout=20)
    os.kill(other.pid, signal.SIGTERM)
    for process, code in ((other, 143), (first, 1)):
        _, stderr = process.communicate(timeout=30)
        assert "launch: machine 1 was stopped by SIGTERM" in stderr
        assert process.returncode == code
    wait_until(lambda: not sleepers(mark), timeout=5)


@pytest.mark.parametrize("node", [0, 1])
def test_signal_while_machines_meet(start, port, node):
    process = launch(start, port, "echo started", nodes=2, node_rank=node)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=5)
    assert (process.returncode, stdout, stderr) == (-signal.SIGTERM, "", "")


def test_news_between_machines_that_know_only_the_first(start, port, tmp_path):
    script = f"touch {tmp_path}/$RANK; [ $RANK = 2 ] && sleep 1 && kill -KILL $$; exec sleep 60"
    processes = [launch(start, port, script, 1, nodes=3, node_rank=node) for node in (2, 1, 0)]
    for process in processes:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode and "launch: rank 2 ended by SIGKILL" in stderr


def test_machines_that_do_not_fit_together(start, port):
    """Each says it in one line; the first goes on waiting for the right one."""
    first = launch(start, port, "true", 1, nodes=2, node_rank=0)
    for ranks, nodes, words in ((2, 2, "ranks"), (1, 3, "NODE")):
        process = launch(start, port, "true", ranks, nodes=nodes, node_rank=1)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 2 and stderr.startswith("error: machine 0 at 127.0.0.1")
        assert words in stderr and stderr.count("\n") == 1
    assert launch(start, port, "true", 1, nodes=2, node_rank=1).wait(30) == 0
    _, stderr = first.communicate(timeout=30)
    assert first.returncode == 0 and stderr.count("\n") == 2


def test_no_port_is_opened_for_one_machine(start, port):
    process = launch(start, port, "sleep 2", ranks=1)
    time.sleep(1)
    found = subprocess.run(["ls", "-l", f"/proc/{process.pid}/fd"], capture_output=True, text=True)
    assert process.poll() is None and "socket:" not in found.stdout
    assert process.wait(20) == 0


@pytest.mark.parametrize("code", [0, 3])
def test_parent_that_ignores_how_its_children_end(start, port, code):
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = ("tools/launch.py", "--ranks", "2", "--port", str(port), "bash", "-c", f"exit {code}")
    assert start(sys.executable, "-c", ignoring, *command).wait(30) == code


def test_address_of_another_run_is_not_that_of_one_machine(start, port):
    command = (*LAUNCH, "--ranks", "2", "--addr", "192.0.2.1", "--port", str(port))
    stdout, _ = start(*command, "bash", "-c", "echo $MASTER_ADDR").communicate(timeout=30)
    assert stdout.split() == ["127.0.0.1", "127.0.0.1"]
