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
import shutil
import signal
import socket
import sys

from projects.SegFormer.engine.launcher.machines import say
from projects.SegFormer.engine.launcher.meeting import Missing, meet
from projects.SegFormer.engine.launcher.run import Run
from projects.SegFormer.engine.launcher.watch import show_threads
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason


def main(arguments: list[str]) -> int:
    """The exit code: 0 when all ranks end with 0."""
    args = _parser().parse_args(arguments)
    # Whose parent ignores SIGCHLD hears of no rank how it ended, and Popen makes a 0 of that.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if args.nodes == 1:  # an ADDR that is left in the environment is of another run
        args.addr = "127.0.0.1"
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
