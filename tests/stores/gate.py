"""A gate between the kernel and a server: it breaks transfers off, or answers in its place.

with Gate(server.port) as gate: Daemon(..., config=server.config(gate.port))
gate.cut_up(1000, times=2)      # two connections end after 1,000 bytes to the server, ...
gate.cut_down(1000)             # ... or each of them after so many from it
gate.say(b"HTTP/1.1 503 ...")   # each request gets this answer
gate.mend()
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Final, Self

ALWAYS: Final = 1 << 30
CHUNK: Final = 16 << 10


class Gate:
    """Listens on `port` of the loopback interface. A change counts for bytes that come after it.

    broken: connections that were cut off, or answered here.
    """

    def __init__(self, server: int) -> None:
        self.broken = 0
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.mend()

    def mend(self) -> None:
        """Let everything through."""
        with self._lock:
            self._most: dict[bool, int] = {}  # bytes that pass, by whether they go to the server
            self._answer = b""
            self._times = 0

    def cut_up(self, most: int, times: int = ALWAYS) -> None:
        """Break off what sends more bytes to the server."""
        self._set({True: most}, b"", times)

    def cut_down(self, most: int, times: int = ALWAYS) -> None:
        """Break off what receives more bytes from the server."""
        self._set({False: most}, b"", times)

    def say(self, answer: bytes, times: int = ALWAYS) -> None:
        """Answer in the server's place, and hang up."""
        self._set({True: 0}, answer, times)

    def _set(self, most: dict[bool, int], answer: bytes, times: int) -> None:
        self.mend()
        self._hang_up()  # those that are open have passed bytes already
        with self._lock:
            self._most, self._answer, self._times = most, answer, times

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._open |= {client, server}
                for up, source, sink in ((True, client, server), (False, server, client)):
                    work = (up, source, sink)
                    threading.Thread(target=self._pass_on, args=work, daemon=True).start()

    def _pass_on(self, up: bool, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(CHUNK):
                passed += len(data)
                if self._breaks(up, passed):
                    if self._answer:
                        source.sendall(self._answer)
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _breaks(self, up: bool, passed: int) -> bool:
        """Whether a connection is to be broken off now."""
        with self._lock:
            if passed <= self._most.get(up, ALWAYS) or self._times <= 0:
                return False
            self._times -= 1
            self.broken += 1
            return True

    def _hang_up(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()
