"""Two hosts with a network of their own: namespaces of Linux and a cable between them.

Nothing leaves them. Making them takes root; without it these tests are left out.
"""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from conftest import wait_until

pytestmark = pytest.mark.slow

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
ELSEWHERE = "10.78.0.1"  # another address of the first host, on the same cable
PORT = 12345
TOKEN = {"SEGFORMER_TOKEN": "2f0a7c5e"}


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts():
    """The names of two namespaces: the first has FIRST and ELSEWHERE, the second SECOND."""
    names = [f"segformer-{os.getpid()}-{index}" for index in (0, 1)]
    try:
        made = ip("netns", "add", names[0])
    except FileNotFoundError:
        pytest.skip("left out: two hosts are made by `ip netns` of iproute2, which is not here")
    if made.returncode:
        pytest.skip(f"left out: two hosts take root, with `ip netns`: {made.stderr.strip()}")
    try:
        for words in (
            f"netns add {names[1]}",
            f"-n {names[0]} link add cable type veth peer name cable netns {names[1]}",
            f"-n {names[0]} address add {FIRST}/24 dev cable",
            f"-n {names[0]} address add {ELSEWHERE}/24 dev cable",
            f"-n {names[1]} address add {SECOND}/24 dev cable",
            *(f"-n {name} link set {device} up" for name in names for device in ("lo", "cable")),
            f"-n {names[1]} route add 10.78.0.0/24 dev cable",
        ):
            assert not ip(*words.split()).stderr
        yield names
    finally:
        for name in names:
            pids = ip("netns", "pids", name).stdout.split()
            subprocess.run(["kill", "-KILL", *pids], capture_output=True)
            ip("netns", "delete", name)


@pytest.fixture
def network(hosts, start):
    """Commands on two hosts that are connected, and launches on them as two machines."""

    def on(host: int, *command: str, **environment: str) -> subprocess.Popen:
        return start(*("ip", "netns", "exec", hosts[host], *command), env=os.environ | environment)

    def launch(host: int, *command: str, options: tuple = (), **environment) -> subprocess.Popen:
        return on(
            host,
            *(sys.executable, "tools/launch.py", "--ranks", "1", "--nodes", "2"),
            *("--node-rank", str(host), "--addr", FIRST, "--port", str(PORT), *options),
            *command,
            **TOKEN | environment,
        )

    def stranger(script: str) -> str:
        """Run Python on the second host; what it prints."""
        process = on(1, sys.executable, "-c", f"import socket, time\n{script}")
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stdout

    def cut() -> None:
        assert not ip("-n", hosts[1], "link", "set", "cable", "down").stderr

    def listens(host: int, port: int) -> bool:
        found = on(host, "ss", "-Hltn", f"sport = :{port}").communicate(timeout=20)[0]
        return bool(found.strip())

    return SimpleNamespace(on=on, launch=launch, stranger=stranger, cut=cut, listens=listens)


def ends(process: subprocess.Popen, timeout: float = 30) -> tuple[int, list[str]]:
    """Its exit code, and the lines of what it says about errors."""
    stderr = process.communicate(timeout=timeout)[1]
    assert "Traceback" not in stderr
    return process.returncode, stderr.splitlines()


def test_two_machines(network, tmp_path):
    """The first host hears of the end of the other; the ranks do not see the token."""
    command = (
        "bash",
        "-c",
        f'echo "$RANK $LOCAL_RANK $MASTER_ADDR $SEGFORMER_TOKEN" > {tmp_path}/$RANK',
    )
    first = network.launch(0, *command)
    second = network.launch(1, *command)
    assert ends(first) == (0, []) and ends(second) == (0, [])
    assert (tmp_path / "0").read_text() == f"0 0 {FIRST} \n"
    assert (tmp_path / "1").read_text() == f"1 0 {FIRST} \n"


def test_wrong_token(network):
    """The machine that has it ends at once, and the other waits for the right one."""
    first = network.launch(0, "echo", "started")
    code, lines = ends(network.launch(1, "echo", "started", SEGFORMER_TOKEN="of another training"))
    assert code == 2 and len(lines) == 1 and "another SEGFORMER_TOKEN" in lines[0]
    assert ends(network.launch(1, "echo", "started"))[0] == 0
    code, lines = ends(first)
    assert code == 0 and len(lines) == 1
    assert SECOND in lines[0] and "another SEGFORMER_TOKEN" in lines[0]


def test_first_machine_with_a_wrong_token_gets_no_proof(network):
    """Whoever takes the first machine's place learns nothing to answer with."""
    liar = network.on(
        0,
        sys.executable,
        "-c",
        "import socket\n"
        f"plug = socket.create_server(('{FIRST}', {PORT + 1})).accept()[0]\n"
        "plug.sendall(b'segformer ' + b'0' * 32 + b'\\n')\n"
        "hello = plug.recv(1000)\n"
        "plug.sendall(hello.split()[-1] + b' welcome\\n')\n"
        "print(hello)\n",
    )
    code, lines = ends(network.launch(1, "echo", "started"))
    assert code == 2 and len(lines) == 1 and "SEGFORMER_TOKEN" in lines[0]
    assert TOKEN["SEGFORMER_TOKEN"] not in liar.communicate(timeout=20)[0]


@pytest.mark.parametrize("host", [0, 1])
def test_no_token(network, host):
    process = network.launch(host, "echo", "started", SEGFORMER_TOKEN="")
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and not stdout and stderr.count("\n") == 1
    assert stderr.startswith("error: ") and "SEGFORMER_TOKEN" in stderr


CLOSED, NO_LAUNCHER = "closed the connection", "no launcher of this project"
STRANGERS = {  # what it does, and what is said about it, by one line a kind
    "silence": ("plug = connect(); time.sleep(7)", {"did not introduce itself"}),
    "garbage": (
        "for n in range(3): plug = connect(); plug.sendall(b'GET / HTTP/1.1\\n\\n'); plug.recv(99)",
        {NO_LAUNCHER},
    ),
    "an endless line": (
        """
plug = connect()
try:
    for n in range(1000): plug.sendall(b'x' * 1000)
except OSError:
    pass
else:
    raise SystemExit('a megabyte was taken')""",
        {"a line of more than 1024 bytes"},
    ),
    "a flood": (
        "plugs = [connect() for n in range(200)]; time.sleep(1)",
        {"too many at once", CLOSED},
    ),
    "a port scan": ("for n in range(200): connect().close()", {CLOSED}),
    "half a hello": (
        "plug = connect(); plug.recv(99); plug.sendall(b'join 1 2 1 '); plug.shutdown(1)",
        {CLOSED},
    ),
    "a proof that is none": (
        """
plug = connect()
plug.recv(99)
plug.sendall(b'join 1 2 1 ' + b'0' * 32 + b' ' + b'0' * 64 + b'\\n')
assert plug.recv(99) == b'wrong token\\n'""",
        {"another SEGFORMER_TOKEN"},
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_stranger_before_the_training(network, kind):
    script, said = STRANGERS[kind]
    first = network.launch(0, "true")
    wait_until(lambda: network.listens(0, PORT + 1), timeout=20)
    connect = f"connect = lambda: socket.create_connection(('{FIRST}', {PORT + 1}))\n"
    network.stranger(connect + script)
    assert ends(network.launch(1, "true"))[0] == 0
    code, lines = ends(first)
    assert code == 0
    assert all(line.startswith(f"launch: a connection from {SECOND} is") for line in lines)
    assert len(lines) == len(said) and all(any(word in line for line in lines) for word in said)


def test_stranger_while_the_machines_meet_and_after(network, tmp_path):
    """A flood that does not end keeps nobody out. Once all are there, nothing listens any more."""
    flood = f"""
import socket, time
connect = lambda: socket.create_connection(('{FIRST}', {PORT + 1}), 1)
plugs = [connect() for n in range(100)]
print(flush=True)
while True:
    time.sleep(0.02)
    try:
        plugs.append(connect())
    except OSError:
        pass
"""
    command = ("bash", "-c", f"touch {tmp_path}/$RANK; sleep 4")
    first = network.launch(0, *command)
    wait_until(lambda: network.listens(0, PORT + 1), timeout=20)
    flooding = network.on(1, sys.executable, "-c", flood)
    assert flooding.stdout.readline()
    # It is let in sooner than a stranger that is silent has to go.
    second = network.launch(1, *command, options=("--wait", "3"))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, timeout=20)
    assert not network.listens(0, PORT + 1)
    assert ends(first)[0] == 0 and ends(second)[0] == 0


def test_listens_on_the_address_of_the_training_only(network):
    first = network.launch(0, "echo", "started")
    wait_until(lambda: network.listens(0, PORT + 1), timeout=20)
    answers = f"""
for address in ('{FIRST}', '{ELSEWHERE}'):
    print(socket.socket().connect_ex((address, {PORT + 1})) == 0)
"""
    assert network.stranger(answers).split() == ["True", "False"]
    here = network.on(0, "ss", "-Hltn").communicate(timeout=20)[0]
    assert [line.split()[3] for line in here.splitlines()] == [f"{FIRST}:{PORT + 1}"]
    assert ends(network.launch(1, "echo", "started"))[0] == 0 and ends(first)[0] == 0


def test_two_machines_with_one_number(network):
    """Of three, two say that they are the second."""
    three = ("--nodes", "3")
    processes = [network.launch(host, "sleep", "9", options=three) for host in (0, 1, 1)]
    wait_until(lambda: None in {p.poll() for p in processes[1:]} != {None}, timeout=20)
    refused = next(process for process in processes[1:] if process.poll() is not None)
    code, lines = ends(refused)
    assert code == 2 and len(lines) == 1 and "two machines with NODE_RANK 1" in lines[0]
    assert processes[0].poll() is None


@pytest.mark.parametrize("host", [0, 1])
def test_machine_that_never_comes(network, host):
    code, lines = ends(network.launch(host, "echo", "started", options=("--wait", "2")))
    assert code == 1 and len(lines) == 1
    assert f"machine {1 - host}" in lines[0] and "within 2 s" in lines[0]


@pytest.mark.slow
def test_cable_that_is_cut(network, tmp_path):
    """Each side ends within a minute, and says which machine is gone."""
    command = ("bash", "-c", f"touch {tmp_path}/$RANK; exec sleep 300")
    processes = [network.launch(host, *command) for host in (0, 1)]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, timeout=20)
    network.cut()
    deadline = time.monotonic() + 60
    for host, process in enumerate(processes):
        code, lines = ends(process, timeout=deadline - time.monotonic())
        print(f"machine {host} ended {60 - (deadline - time.monotonic()):.1f} s after the cut")
        assert code == 1 and len(lines) == 1
        assert f"machine {1 - host} is gone" in lines[0]


@pytest.mark.slow
def test_ranks_across_machines_do_not_ask_a_proxy(network, tmp_path):
    """OneFlow's gRPC obeys the proxy's variables, and would wait for ever for one that is not."""
    script = tmp_path / "sum.py"
    script.write_text(
        "import projects.SegFormer.engine.process\n"
        "import oneflow as flow\n"
        "ranks = flow.placement('cpu', [0, 1])\n"
        "own = flow.tensor([flow.env.get_rank() + 1.0])\n"
        "total = own.to_global(ranks, flow.sbp.partial_sum).to_global(ranks, flow.sbp.broadcast)\n"
        "print('total', total.to_local().numpy()[0], flush=True)\n"
    )
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://10.9.9.9:3128")
    processes = [network.launch(host, sys.executable, str(script), **proxy) for host in (0, 1)]
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "total 3.0" in stdout
