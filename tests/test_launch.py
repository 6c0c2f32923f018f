"""tools/launch.py: ranks start together, and all end when one fails, on one machine or two."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import wait_until

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
    found = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def launch(start, port: int, script: str, ranks: int = 3, **node) -> subprocess.Popen:
    options = [word for name, value in node.items() for word in (f"--{name}", str(value))]
    options = [word.replace("_", "-") for word in options]
    shell = ("bash", "-c", script)
    return start(*LAUNCH, "--ranks", str(ranks), *options, "--port", str(port), *shell)


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


def test_rank_that_does_not_want_to_end_is_killed(start, port):
    script = "trap '' TERM; if [ $RANK = 1 ]; then sleep 1; exit 3; fi; while :; do sleep 1; done"
    process = launch(start, port, script)
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_to_the_launcher_ends_its_ranks(start, port, number):
    mark = f"303.{port}"
    process = launch(start, port, f"exec sleep {mark}")
    wait_until(lambda: len(sleepers(mark)) >= 3, timeout=20)
    os.kill(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_until(lambda: not sleepers(mark), timeout=5)


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
    time.sleep(2)  # until the launchers know each other
    other.kill()
    _, stderr = first.communicate(timeout=30)
    assert first.returncode == 1 and "another machine is gone" in stderr
    wait_until(lambda: not sleepers(mark), timeout=5)
