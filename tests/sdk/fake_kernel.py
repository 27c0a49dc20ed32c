"""A kernel in a thread, for the SDK's tests: speaks the wire, checks every request by the table.

`answers[name]` is what a call is answered with: a record, an OSError, or a function of (connection,
id, args) that answers itself, now or later. `seen` is a queue of the calls that came, in order.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aiosd.abi import LEVEL, wire
from aiosd.abi.call import Call
from aiosd.abi.process import Identity, Started
from aiosd.abi.system import Hello, Ping, Pong, Welcome
from aiosd.abi.table import TABLE

Answer = Callable[["Connection", int, Any], None] | OSError | Any
DEADLINE = 60.0


class Connection:
    """The kernel's end of one connection."""

    def __init__(self, kernel: FakeKernel, peer: socket.socket) -> None:
        self.kernel = kernel
        self.peer = peer
        self.aid = 0

    def reply(self, id: int, body: object = None, *, more: bool = False) -> None:
        self.peer.sendall(wire.reply(id, 0, more, body))

    def fail(self, id: int, error: OSError) -> None:
        self.peer.sendall(wire.reply(id, error.errno or errno.EIO, False, error.strerror))

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        frames = wire.Frames()
        with self.peer, contextlib.suppress(OSError):
            while data := self.peer.recv(65536):
                for payload in frames.feed(data):
                    self.take(wire.decode_request(payload))

    def take(self, request: wire.Request) -> None:
        call = TABLE[request.number]
        args: Call = msgspec.msgpack.decode(request.body, type=call.args)
        answer = self.kernel.answers.get(call.name)
        self.kernel.seen.put((call.name, args))
        if isinstance(answer, OSError):
            self.fail(request.id, answer)
        elif callable(answer):
            answer(self, request.id, args)
        else:
            self.reply(request.id, answer)


class FakeKernel:
    """Listens at `path` between `start` and `stop`; knows agents by their credentials."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.credentials: dict[str, int] = {}
        self.level = LEVEL
        self.max_frame = wire.MAX_FRAME
        self.connections: list[Connection] = []
        self.threads: list[threading.Thread] = []
        self.answers: dict[str, Answer] = {
            "hello": self.hello,
            "ping": self.ping,
            "register_agent": self.register,
            "get_aid": self.get_aid,
        }

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.spawn(self.accept, self.listener)

    def spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                connection = Connection(self, peer)
                self.connections.append(connection)
                self.spawn(connection.serve)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.path.unlink(missing_ok=True)
        for connection in self.connections:
            connection.hang_up()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(DEADLINE)
        self.threads.clear()
        self.connections.clear()

    def expect(self, name: str) -> Any:
        """Return the arguments of the next call, which must be `name`."""
        came, args = self.seen.get(timeout=DEADLINE)
        assert came == name, f"{came} came, {name} was expected"
        return args

    def hello(self, connection: Connection, id: int, args: Hello) -> None:
        if args.credential and args.credential not in self.credentials:
            connection.fail(id, OSError(errno.EACCES, "credential: not valid"))
            return
        connection.aid = self.credentials.get(args.credential, 0)
        connection.reply(
            id,
            Welcome(
                level=self.level,
                version="0",
                pid=1,
                uid=0,
                boot_id="b",
                max_frame=self.max_frame,
                aid=connection.aid,
                credential=self.fresh(connection.aid) if connection.aid else "",
            ),
        )

    def ping(self, connection: Connection, id: int, args: Ping) -> None:
        connection.reply(id, Pong(args.payload))

    def register(self, connection: Connection, id: int, args: Any) -> None:
        connection.aid = 7
        connection.reply(id, Started(aid=7, credential=self.fresh(7)))

    def get_aid(self, connection: Connection, id: int, args: Any) -> None:
        connection.reply(id, Identity(connection.aid, "spawned", 1, 0, 1))

    def fresh(self, aid: int) -> str:
        credential = f"secret-{aid}-{len(self.credentials)}"
        self.credentials[credential] = aid
        return credential
