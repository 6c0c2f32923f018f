"""How the launchers of several machines meet before their ranks start.

The launcher of machine 0 listens at the training's address, one port above rank 0's, until all
others are there, and no longer. Both sides prove that they have the token, which never travels:

    machine 0: segformer NONCE
    machine n: join N NODES RANKS NONCE PROOF       HMAC-SHA256 with the token, of all of it
    machine 0: PROOF welcome, or PROOF refused: WHY, or: wrong token
    machine 0: go, when all are there

Whoever does not is a stranger and dropped: it has HANDSHAKE seconds, one line, and of many at once
the oldest make room.
"""

import argparse
import hmac
import os
import re
import secrets
import select
import socket
import time

from projects.SegFormer.engine.launcher.machines import FAIL, Connection, Machines, say
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

TOKEN = "SEGFORMER_TOKEN"
HANDSHAKE = 5  # seconds
GUESTS = 64  # connections at once that have not proved anything
REMIND = 30  # seconds between words on who is missing

WRONG_TOKEN = "wrong token"
GO = "go"
HELLO = r"(join ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) [0-9a-f]{32}) ([0-9a-f]{64})"


class Missing(Exception):
    """A machine did not come in time."""


def meet(args: argparse.Namespace) -> Machines:
    """The other machines, once all are there: of `args.nodes` this is `args.node_rank`.

    Raises InputError for what has to be put right first, and Missing after `args.wait` seconds.
    """
    if args.nodes == 1:
        return Machines({})
    token = os.fsencode(os.environ.get(TOKEN, ""))
    if not token:
        raise InputError(
            f"{args.nodes} machines need {TOKEN}, the same on all: "
            f"`export {TOKEN}=$(openssl rand -hex 16)` on one makes it, give it to the others"
        )
    try:
        host = socket.gethostbyname(args.addr)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"address {args.addr!r} cannot be resolved: {reason(error)}; ADDR is the name or the "
            "IPv4 address of the machine whose NODE_RANK is 0"
        ) from error
    if host == "0.0.0.0":
        raise InputError(f"address {args.addr!r} is not one that other machines reach")
    address = host, args.port + 1
    return (_Host if args.node_rank == 0 else _Guest)(args, token, address).meet()


class _Host:
    """The launcher of machine 0."""

    def __init__(self, args: argparse.Namespace, token: bytes, address: tuple[str, int]):
        self.args, self.token, self.address = args, token, address
        self.there: dict[int, Connection] = {}
        self.guests: dict[Connection, str] = {}  # and the nonce that each got, the oldest first
        self.said = set()

    def meet(self) -> Machines:
        start = time.monotonic()
        remind = start + REMIND
        with self._listen() as door:
            while missing := set(range(1, self.args.nodes)) - set(self.there):
                heard = [door, *self.guests, *self.there.values()]
                for ready in select.select(heard, [], [], 0.2)[0]:
                    if ready is door:
                        self._let_in(door)
                    elif ready in self.guests:
                        self._examine(ready)
                    elif ready in self.there.values():
                        self._lose(ready)
                now = time.monotonic()
                for guest in [guest for guest in self.guests if now > guest.born + HANDSHAKE]:
                    self._drop(guest, "it did not introduce itself")
                if now > start + self.args.wait:
                    news = f"{_list(missing)} did not come within {self.args.wait} s"
                    Machines(self.there).tell(FAIL, news)
                    raise Missing(
                        f"{news} to {_place(self.address)}: start the same command there, with "
                        "the same NODE, ADDR and PORT; can it reach this address?"
                    )
                if now > remind:
                    remind += REMIND
                    say(f"waiting at {_place(self.address)} for {_list(missing)}")
        for guest in self.guests:
            guest.close()
        for connection in self.there.values():
            connection.send(GO)
        return Machines(self.there)

    def _listen(self) -> socket.socket:
        try:
            door = socket.create_server(self.address)
        except OSError as error:
            raise InputError(
                f"{_place(self.address)} cannot be used: {os.strerror(error.errno)}; "
                "PORT + 1 has to be free, and ADDR an address of this machine, whose NODE_RANK is 0"
            ) from error
        door.setblocking(False)
        return door

    def _let_in(self, door: socket.socket) -> None:
        try:
            plug, (host, _) = door.accept()
            guest = Connection(plug, host)
        except OSError:  # it is gone again
            return
        if len(self.guests) >= GUESTS:
            self._drop(next(iter(self.guests)), "too many at once")
        self.guests[guest] = secrets.token_hex(16)
        guest.send(f"segformer {self.guests[guest]}")

    def _examine(self, guest: Connection) -> None:
        try:
            guest.receive()
        except OSError as error:
            return self._drop(guest, reason(error))
        line = guest.line()
        if line is None:
            return
        words = re.fullmatch(HELLO, line)
        if not words:
            return self._drop(guest, "it is no launcher of this project")
        hello = f"{words[1]} {self.guests[guest]}"
        if not hmac.compare_digest(words[5], _proof(self.token, hello)):
            guest.send(WRONG_TOKEN)
            return self._drop(guest, f"it has another {TOKEN}")
        machine, nodes, ranks = (int(words[index]) for index in (2, 3, 4))
        refused = self._why_not(machine, nodes, ranks)
        answer = f"refused: {refused}" if refused else "welcome"
        guest.send(f"{_proof(self.token, f'{answer} {hello}')} {answer}")
        if refused:
            return self._drop(guest, refused)
        del self.guests[guest]
        self.there[machine] = guest

    def _why_not(self, machine: int, nodes: int, ranks: int) -> str:
        if nodes != self.args.nodes:
            return f"NODE is {nodes} on machine {machine} and {self.args.nodes} on machine 0"
        if ranks != self.args.ranks:
            return f"machine {machine} has {ranks} ranks and machine 0 has {self.args.ranks}"
        if not 0 < machine < nodes:
            return f"NODE_RANK {machine} is not one of 1 to {nodes - 1}"
        if machine in self.there:
            return f"there are two machines with NODE_RANK {machine}"
        return ""

    def _drop(self, guest: Connection, why: str) -> None:
        if why not in self.said:
            self.said.add(why)
            say(f"a connection from {guest.name} is dropped: {why}")
        del self.guests[guest]
        guest.close()

    def _lose(self, connection: Connection) -> None:
        """One that was there said something before its time, which is left, or is gone."""
        try:
            connection.receive()
        except OSError as error:
            (machine,) = (n for n, other in self.there.items() if other is connection)
            say(f"machine {machine} is gone again: {reason(error)}")
            del self.there[machine]
            connection.close()


class _Guest:
    """The launcher of another machine."""

    def __init__(self, args: argparse.Namespace, token: bytes, address: tuple[str, int]):
        self.args, self.token, self.address = args, token, address
        self.where = f"machine 0 at {_place(address)}"

    def meet(self) -> Machines:
        deadline = time.monotonic() + self.args.wait
        remind = time.monotonic() + REMIND
        while True:
            left = deadline - time.monotonic()
            try:
                plug = socket.create_connection(self.address, min(HANDSHAKE, max(0.1, left)))
                connection = Connection(plug, self.address[0])
                self._introduce(connection)
                break
            except OSError as error:
                why = reason(error)
            if left <= 0:
                raise Missing(
                    f"{self.where} did not answer within {self.args.wait} s: {why}; start the same "
                    "command there, with the same NODE, ADDR and PORT"
                )
            if time.monotonic() > remind:
                remind += REMIND
                say(f"waiting for {self.where}: {why}")
            time.sleep(0.5)
        self._wait_for_go(connection)
        return Machines({0: connection})

    def _introduce(self, connection: Connection) -> None:
        """Raises OSError for what may pass, and InputError for what has to be put right."""
        greeting = connection.wait_for_line(HANDSHAKE)
        if not re.fullmatch(r"segformer [0-9a-f]{32}", greeting):
            raise InputError(
                f"{self.where} is no launcher of this project: are ADDR and PORT right?"
            )
        args = self.args
        hello = f"join {args.node_rank} {args.nodes} {args.ranks} {secrets.token_hex(16)}"
        bound = f"{hello} {greeting.split()[1]}"
        connection.send(f"{hello} {_proof(self.token, bound)}")
        proof, _, answer = connection.wait_for_line(HANDSHAKE).partition(" ")
        expected = _proof(self.token, f"{answer} {bound}")
        if not hmac.compare_digest(proof.encode(), expected.encode()):
            raise InputError(
                f"{self.where} has another {TOKEN} than this machine: it must be the same on all"
            )
        if answer != "welcome":
            raise InputError(f"{self.where} {answer}")

    def _wait_for_go(self, connection: Connection) -> None:
        """Machine 0 knows how long to wait for the others, and says so by closing."""
        while True:
            try:
                kind, _, news = connection.wait_for_line(REMIND).partition(" ")
            except TimeoutError as error:
                if error.errno:  # of the network
                    raise Missing(f"{self.where} is gone: {reason(error)}") from error
                say(f"{self.where} waits for other machines")
            except OSError as error:
                raise Missing(f"{self.where} is gone: {reason(error)}") from error
            else:
                if kind == GO:
                    return
                if kind == FAIL:
                    raise Missing(news)


def _proof(token: bytes, words: str) -> str:
    return hmac.new(token, words.encode(), "sha256").hexdigest()


def _list(machines: set[int]) -> str:
    names = ", ".join(map(str, sorted(machines)))
    return f"machine {names}" if len(machines) == 1 else f"machines {names}"


def _place(address: tuple[str, int]) -> str:
    return f"{address[0]} port {address[1]}"
