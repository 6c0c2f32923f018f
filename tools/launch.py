"""Start a command on several ranks, and end all of them as soon as one fails.

    python tools/launch.py --ranks 4 [--nodes 2 --node-rank 0 --addr HOST --port PORT] COMMAND

tools/train.sh calls it. Each rank gets the environment that OneFlow reads: MASTER_ADDR,
MASTER_PORT, WORLD_SIZE, RANK, LOCAL_RANK. OneFlow's own launcher ends its ranks only where it leads
a process group, does not say which rank failed, and does not learn what happens on other machines.

SIGTERM, SIGUSR1, SIGHUP and SIGINT are passed on to the ranks. Those of a training stop after the
same step, save a checkpoint and exit with 128 + signal; the launcher waits for them. The same
signal once more, some seconds later, ends them at once.
"""

import argparse
import ctypes
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from projects.SegFormer.engine.launcher.machines import DONE, FAIL, GRACE, STOP, Machines, say
from projects.SegFormer.engine.launcher.meeting import TOKEN, Missing, meet
from projects.SegFormer.engine.launcher.watch import Watch, show_threads
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

# GRACE is also how long ranks that are asked to end have until they are killed.
STOP_GRACE = 120  # seconds from the first rank that stopped in order until the others must have
REPEAT = 5  # seconds within which a signal that comes twice is one, to the process group and to us
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
NAMES = {number.value: number.name for number in signal.Signals}
STOPPED = {128 + number: number.name for number in SIGNALS}  # exit codes of ranks that stop
PR_SET_PDEATHSIG = 1


class Outcome(NamedTuple):
    """How the run ended: what other machines are told, the exit code, and a rank that hangs."""

    kind: str
    news: str
    code: int
    hanging: int | None = None


def main(arguments: list[str]) -> int:
    """The exit code: 0 when all ranks end with 0."""
    args = _parser().parse_args(arguments)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there are no ranks yet to look after
    try:
        _check(args)
        machines = meet(args)
    except (InputError, Missing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Missing) else 2
    run = Run(args, machines)
    try:
        run.start(args)
        outcome = run.wait()
        machines.tell(outcome.kind, outcome.news)
        if outcome.code:
            left = None in run.codes().values()
            say(outcome.news + ("; the other ranks are ended" if left else ""))
        if outcome.hanging is not None:
            show_threads(run.ranks[outcome.hanging])
        return outcome.code
    finally:
        run.end()


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
        except OSError as error:
            return reason(error)
    return None


def is_this_machine(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def start(args: argparse.Namespace, rank: int, local_rank: int, progress: int) -> subprocess.Popen:
    environment = os.environ | {
        "MASTER_ADDR": args.addr,
        "MASTER_PORT": str(args.port),
        "WORLD_SIZE": str(args.ranks * args.nodes),
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "SEGFORMER_PROGRESS": str(progress),
        # OneFlow's gRPC would look for the other ranks behind http_proxy. It leaves a host out that
        # ends with an entry of this list, which nothing else reads: any host, with an empty entry.
        "no_grpc_proxy": ",",
    }
    environment.pop(TOKEN, None)
    cores = cores_of(rank % args.ranks, args.ranks)
    launcher = os.getpid()

    def in_the_rank():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when the launcher is killed
        if os.getppid() != launcher:  # it has been already
            os._exit(1)
        os.sched_setaffinity(0, cores)

    return subprocess.Popen(
        args.command, env=environment, preexec_fn=in_the_rank, pass_fds=(progress,)
    )


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


class Signals:
    """Those that came to the launcher; one that it was started to ignore, as by nohup, stays so."""

    def __init__(self):
        self.came: dict[int, float] = {}  # and when, the first time
        self.again = 0  # the one that came again
        self._passed_on = set()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def pass_on(self, ranks: dict[int, subprocess.Popen]) -> None:
        for number in set(self.came) - self._passed_on:
            self._passed_on.add(number)
            for process in ranks.values():
                process.send_signal(number)

    def _note(self, number: int, frame) -> None:
        now = time.monotonic()
        if now > self.came.setdefault(number, now) + REPEAT:
            self.again = number


class Run:
    """The ranks of this machine, from their start until the run is over."""

    def __init__(self, args: argparse.Namespace, machines: Machines):
        self.who = f"machine {args.node_rank}" if args.nodes > 1 else "the run"
        self.ranks: dict[int, subprocess.Popen] = {}
        self.machines = machines
        self.signals = Signals()
        self.watch = Watch()
        self._stopping = None  # since when ranks stop in order, here or on other machines

    def start(self, args: argparse.Namespace) -> None:
        # OneFlow takes all ranks of one address for one machine, and then wants their local ranks
        # to differ: with two launches on one machine it would wait for ever.
        first = args.node_rank * args.ranks
        first_local = first if is_this_machine(args.addr) else 0
        for index in range(args.ranks):
            rank = first + index
            self.ranks[rank] = start(args, rank, first_local + index, self.watch.descriptor(rank))

    def wait(self) -> Outcome:
        """How the run ended, once it has."""
        while True:
            self.machines.hear(0.2)
            self.signals.pass_on(self.ranks)
            if outcome := self._outcome():
                return outcome

    def end(self) -> None:
        """Ask the ranks that are left to end, and kill those that do not."""
        for process in self.ranks.values():
            process.terminate()
        if not self._ended_within(GRACE):
            for process in self.ranks.values():
                process.kill()
            if not self._ended_within(GRACE):
                left = [str(rank) for rank, code in self.codes().items() if code is None]
                say(f"killed, and not gone yet: rank {', '.join(left)}")

    def codes(self) -> dict[int, int | None]:
        """The exit code of each rank; None: it runs, negative: the signal that it died of."""
        return {rank: process.poll() for rank, process in self.ranks.items()}

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := None in self.codes().values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not left

    def _outcome(self) -> Outcome | None:
        """How the run ended, or None while it goes on."""
        rank, code = self._first_cause()
        if code and code not in STOPPED:
            # A rank that is gone makes others abort within moments; it is the cause, and not they.
            time.sleep(0.5)
            rank, code = self._first_cause()
            if code not in STOPPED:
                return self._failure(rank, code)
        if self.machines.failure:
            return Outcome(FAIL, self.machines.failure, 1)
        if number := self.signals.again:
            return Outcome(FAIL, f"{self.who} was ended by {NAMES[number]}", 128 + number)
        if None not in self.codes().values():
            return self._stop(code) if code else Outcome(DONE, "", 0)
        if code or self.machines.stop:
            if self._stopping is None:
                self._stopping = time.monotonic()
                if self.signals.came:
                    self.machines.tell(STOP, self._stop_news(code))
            elif time.monotonic() > self._stopping + STOP_GRACE:
                return self._stop(code)
        return self._hang()

    def _first_cause(self) -> tuple[int, int]:
        """The rank that made others end, and its exit code. 0: none has failed."""
        failed = [
            (code == -signal.SIGABRT, code in STOPPED, rank, code)
            for rank, code in self.codes().items()
            if code
        ]
        return min(failed, default=(False, False, -1, 0))[2:]

    def _failure(self, rank: int, code: int) -> Outcome:
        if code > 0:
            return Outcome(FAIL, f"rank {rank} ended with exit code {code}", code)
        number = -code
        news = f"rank {rank} ended by {NAMES.get(number, f'signal {number}')}"
        if number in self.signals.came:  # which the rank does not handle
            news = self._stop_news(128 + number)
        elif number == signal.SIGABRT:
            news = self.machines.cause(news)
        return Outcome(FAIL, news, 128 + number)

    def _stop(self, code: int) -> Outcome:
        """Ranks stopped in order. The machine that the signal came to is the one to name."""
        news = self._stop_news(code)
        return Outcome(STOP, news if self.signals.came else self.machines.cause(news), code or 1)

    def _stop_news(self, code: int) -> str:
        return f"{self.who} was stopped by {STOPPED.get(code, 'a signal')}"

    def _hang(self) -> Outcome | None:
        suspect = self.watch.hanging(
            {rank: self.ranks[rank].pid for rank, code in self.codes().items() if code is None}
        )
        if not suspect:
            return None
        if suspect.waits_for_others and self.machines.cause("") and self.machines.failure:
            return Outcome(FAIL, self.machines.failure, 1)
        return Outcome(FAIL, suspect.news, 1, suspect.rank)


def _check(args: argparse.Namespace) -> None:
    """Raises InputError for what no run is possible with."""
    if not args.command or not shutil.which(args.command[0]):
        raise InputError(
            f"no such command: {' '.join(args.command[:1])!r}: what shall the ranks run?"
        )
    if args.ranks < 1 or args.nodes < 1 or args.wait < 0:
        raise InputError("--ranks and --nodes are 1 or more, --wait is 0 or more")
    if not 0 <= args.node_rank < args.nodes:
        raise InputError(
            f"NODE_RANK {args.node_rank} of {args.nodes} machines: expected 0 to {args.nodes - 1}"
        )
    if args.nodes > 1 and not args.port:
        raise InputError("several machines need --port, the same on all")
    args.port = args.port or free_port()
    last = 65534 if args.nodes > 1 else 65535  # several machines use the next one too
    if not 1 <= args.port <= last:
        raise InputError(f"port {args.port} cannot be used: expected 1 to {last}; set PORT")
    if args.node_rank == 0 and (why := why_taken(args.port)):
        raise InputError(f"port {args.port} cannot be used: {why}; set PORT")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--node-rank", type=int, default=0, help="which of them this is")
    parser.add_argument("--addr", default="127.0.0.1", help="address of the machine of rank 0")
    parser.add_argument("--port", type=int, help="where rank 0 listens; any that is free")
    parser.add_argument("--wait", type=int, default=600, help="seconds for all machines to come")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what each rank runs")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
