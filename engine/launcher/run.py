"""The ranks of one machine, from their start until the run is over."""

import argparse
import ctypes
import glob
import os
import signal
import socket
import subprocess
import time
from typing import NamedTuple

from projects.SegFormer.engine.launcher.machines import DONE, FAIL, GRACE, STOP, Machines, say
from projects.SegFormer.engine.launcher.meeting import TOKEN
from projects.SegFormer.engine.launcher.watch import Watch

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
