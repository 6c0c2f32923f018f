"""Start a command on several ranks, and end all of them as soon as one fails.

    python tools/launch.py --ranks 4 [--nodes 2 --node-rank 0 --addr HOST --port PORT] COMMAND

tools/train.sh calls it. Each rank gets the environment that OneFlow reads: MASTER_ADDR,
MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK. OneFlow's own launcher ends its ranks only where it leads
a process group, does not say which rank failed, and does not learn what happens on other machines.
"""

import argparse
import ctypes
import glob
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

GRACE = 5  # seconds from asking the ranks to end until they are killed
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """The exit code: 0 when all ranks end with 0."""
    args = _parser().parse_args(arguments)
    args.port = args.port or free_port()
    if args.node_rank == 0:
        for port in range(args.port, args.port + (2 if args.nodes > 1 else 1)):
            if reason := why_taken(port):
                print(f"error: port {port} cannot be used: {reason}; set PORT", file=sys.stderr)
                return 2
    signal.signal(signal.SIGTERM, _interrupt)
    machines = OtherMachines(args)
    # OneFlow takes all ranks of one address for one machine, and then wants their local ranks to
    # differ: with two launches on one machine it would wait for ever.
    first = args.node_rank * args.ranks
    first_local = first if is_this_machine(args.addr) else 0
    ranks = {}
    try:
        for index in range(args.ranks):
            cores = cores_of(index, args.ranks)
            ranks[first + index] = start(args, first + index, first_local + index, cores)
        news, code = wait(ranks, machines)
        machines.tell(news)
        if code:
            print(f"launch: {news}; the other ranks are ended", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        machines.tell(f"machine {args.node_rank} was interrupted")
        return 130
    finally:
        end(ranks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def why_taken(port: int) -> str | None:
    """Why nobody can listen at `port`, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


def is_this_machine(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def start(
    args: argparse.Namespace, rank: int, local_rank: int, cores: set[int]
) -> subprocess.Popen:
    environment = {
        "MASTER_ADDR": args.addr,
        "MASTER_PORT": str(args.port),
        "WORLD_SIZE": str(args.ranks * args.nodes),
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
    }

    def in_the_rank():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when the launcher is killed
        os.sched_setaffinity(0, cores)

    return subprocess.Popen(args.command, env=os.environ | environment, preexec_fn=in_the_rank)


def cores_of(index: int, ranks: int) -> set[int]:
    """The cores for one of so many ranks that compute on them.

    Each has its own: OneFlow's threads wait by spinning, and two ranks that share their cores train
    no faster than one. With a GPU, or more ranks than cores, each may use all.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks or glob.glob("/dev/nvidia[0-9]*"):
        return set(cores)
    share = len(cores) // ranks
    return set(cores[index * share : (index + 1) * share])


class OtherMachines:
    """Tells the launchers of other machines how this one's ranks ended, and hears it from them.

    The launcher of machine 0 listens one port above rank 0's and passes on what it is told. A
    connection that breaks without a word is a machine that is gone.
    """

    DONE = "done"

    def __init__(self, args: argparse.Namespace):
        self.bad_news = ""
        self._launchers = []
        if args.nodes > 1:
            work = self._listen if args.node_rank == 0 else self._join
            Thread(target=work, args=(args.addr, args.port + 1), daemon=True).start()

    def tell(self, news: str) -> None:
        for launcher in self._launchers:
            with suppress(OSError):
                launcher.sendall(news.encode() + b"\n")

    def cause(self, news: str) -> str:
        """What other machines say, after some seconds to say it, before what this one sees."""
        deadline = time.monotonic() + (GRACE if self._launchers else 0)
        while not self.bad_news and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.bad_news or news

    def _listen(self, address: str, port: int) -> None:
        with socket.create_server(("", port)) as server:
            while True:
                launcher, _ = server.accept()
                Thread(target=self._hear, args=(launcher,), daemon=True).start()

    def _join(self, address: str, port: int) -> None:
        while True:
            with suppress(OSError):
                launcher = socket.create_connection((address, port))
                break
            time.sleep(0.5)
        self._hear(launcher)

    def _hear(self, launcher: socket.socket) -> None:
        # A machine that loses its power says nothing: after 40 s without an answer it is gone.
        launcher.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            launcher.setsockopt(socket.IPPROTO_TCP, option, 10)
        launcher.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._launchers.append(launcher)
        try:
            news = launcher.makefile().readline().strip()
        except OSError:
            news = ""
        if news != self.DONE:
            self.bad_news = self.bad_news or news or "another machine is gone"
            self.tell(self.bad_news)


def wait(ranks: dict[int, subprocess.Popen], machines: OtherMachines) -> tuple[str, int]:
    """What ended the run, and the exit code: DONE and 0 when all ranks ended with 0."""
    while True:
        codes = _codes(ranks)
        if any(codes.values()):
            # A rank that is gone makes others abort within moments; it is the cause and not they.
            time.sleep(0.5)
            failed = {rank: code for rank, code in _codes(ranks).items() if code}
            rank = min(failed, key=lambda rank: (failed[rank] == -signal.SIGABRT, rank))
            code = failed[rank]
            news = f"rank {rank} ended " + (
                f"with exit code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
            )
            if code == -signal.SIGABRT:
                news = machines.cause(news)
            return news, code if code > 0 else 128 - code
        if machines.bad_news:
            return machines.bad_news, 1
        if None not in codes.values():
            return OtherMachines.DONE, 0
        time.sleep(0.2)


def _codes(ranks: dict[int, subprocess.Popen]) -> dict[int, int | None]:
    return {rank: process.poll() for rank, process in ranks.items()}


def end(ranks: dict[int, subprocess.Popen]) -> None:
    """Ask the ranks that are left to end, and kill those that do not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in ranks.values():
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in ranks.values():
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--node-rank", type=int, default=0, help="which of them this is")
    parser.add_argument("--addr", default="127.0.0.1", help="address of the machine of rank 0")
    parser.add_argument("--port", type=int, help="where rank 0 listens; any that is free")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what each rank runs")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
