"""What the launchers of several machines tell each other: how their ranks ended.

A star: each has a connection to machine 0, which passes on what it hears. meeting.py makes the
connections.
"""

import select
import socket
import sys
import time
from contextlib import suppress

from projects.SegFormer.modeling.errors import printable
from projects.SegFormer.modeling.files import reason

GRACE = 5  # seconds that others have to say what they see
LINE = 1024  # bytes of a line, at most
SILENCE = 30  # seconds until data that nobody acknowledges are a broken connection

# The words of a line's beginning; the rest of it is for people.
DONE = "done"  # all ranks ended with 0
STOP = "stop"  # ranks stop in order after a signal, those of all machines after the same step
FAIL = "fail"  # the run is over


class Connection:
    """Lines of text over TCP, none longer than LINE."""

    def __init__(self, plug: socket.socket, name: str):
        self.plug, self.name = plug, name
        self.born = time.monotonic()
        self._buffer = b""
        plug.setblocking(False)
        # A machine that loses its power or its cable says nothing: after 40 s it is gone.
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 10),
            (socket.TCP_KEEPINTVL, 10),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, SILENCE * 1000),
        ):
            plug.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        return self.plug.fileno()

    def close(self) -> None:
        self.plug.close()

    def send(self, line: str) -> None:
        # What cannot be sent is not missed: the other side notices that the connection is broken.
        with suppress(OSError):
            self.plug.send(line.encode()[: LINE - 1] + b"\n")

    def receive(self) -> None:
        """Take what has come. Raises OSError when the connection has ended or says too much."""
        try:
            data = self.plug.recv(LINE)
        except BlockingIOError:
            return
        except ConnectionResetError:  # closed with words of ours unread
            data = b""
        if not data:
            raise ConnectionError("it closed the connection")
        self._buffer += data
        if len(self._buffer) >= LINE and b"\n" not in self._buffer[:LINE]:
            raise ConnectionError(f"it sent a line of more than {LINE} bytes")

    def line(self) -> str | None:
        """The next line of what was received, if it is whole."""
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        return line.decode("utf-8", "replace")

    def wait_for_line(self, seconds: float) -> str:
        """The next line. Raises OSError when it does not come."""
        deadline = time.monotonic() + seconds
        while (line := self.line()) is None:
            left = max(0, deadline - time.monotonic())
            if not select.select([self], [], [], left)[0]:
                raise TimeoutError("it says nothing")
            self.receive()
        return line


class Machines:
    """The launchers of the other machines, by the machine's number; none when there is one machine.

    `failure` is what ended the run elsewhere, `stop` which machine's ranks stop in order.
    """

    def __init__(self, connections: dict[int, Connection]):
        self.failure = self.stop = ""
        self._connections = connections
        self._heard = set()  # the machines that have said how their ranks ended

    def tell(self, kind: str, news: str, but: int | None = None) -> None:
        for machine, connection in self._connections.items():
            if machine != but:
                connection.send(f"{kind} {news}")

    def hear(self, seconds: float) -> None:
        """Wait so long at most for what others say."""
        if not self._connections:
            time.sleep(seconds)
            return
        ready = select.select(list(self._connections.values()), [], [], seconds)[0]
        for machine, connection in list(self._connections.items()):
            ended = None
            if connection in ready:
                try:
                    connection.receive()
                except OSError as error:
                    ended = reason(error)
            while (line := connection.line()) is not None:
                self._note(machine, *line.partition(" ")[::2])
            if ended:
                connection.close()
                del self._connections[machine]
                if machine not in self._heard:
                    self._note(machine, FAIL, f"machine {machine} is gone: {ended}")

    def cause(self, news: str) -> str:
        """What other machines say, after some seconds to say it, before what this one sees."""
        deadline = time.monotonic() + GRACE
        while self._connections and not (self.failure or self.stop):
            if time.monotonic() > deadline:
                break
            self.hear(0.1)
        return self.failure or self.stop or news

    def _note(self, machine: int, kind: str, news: str) -> None:
        news = printable(news)
        if kind in (DONE, STOP, FAIL):
            self._heard.add(machine)
        if kind == FAIL and not self.failure:
            self.failure = news
        elif kind == STOP and not self.stop:
            self.stop = news
        else:
            return
        self.tell(kind, news, but=machine)


def say(words: str) -> None:
    print(f"launch: {words}", file=sys.stderr, flush=True)
