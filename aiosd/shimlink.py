"""The shim's end of the connection to the kernel: JSON lines, bounded in both directions.

Part of the shim: standard library only. The kernel's end is in spawn.py.
"""

from __future__ import annotations

import json
import os
import socket
import struct

from aiosd.output import encode

LINE_MAX = 65536  # bytes of one message in either direction


class Link:
    """The connection to the kernel. Both directions are bounded; errors are ConnectionError."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._in = b""
        self._out = b""

    @property
    def sending(self) -> bool:
        """Whether something waits until the socket takes it."""
        return bool(self._out)

    def send(self, event: dict[str, object]) -> None:
        """Queue a message and send what the socket takes."""
        self._out += encode(event).encode() + b"\n"
        if len(self._out) > LINE_MAX:
            raise ConnectionAbortedError("the kernel does not read")
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self._out:
                self._out = self._out[self.sock.send(self._out) :]
        except BlockingIOError:
            pass

    def receive(self) -> list[dict[str, object]]:
        """The complete messages that have arrived; garbage ends the connection."""
        try:
            data = self.sock.recv(LINE_MAX)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the kernel has gone")
        *lines, self._in = (self._in + data).split(b"\n")
        if max(map(len, (*lines, self._in))) > LINE_MAX:
            raise ConnectionAbortedError("a line is too long")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise ConnectionAbortedError(f"not JSON: {error}") from None
        if not all(isinstance(message, dict) for message in messages):
            raise ConnectionAbortedError("not an object")
        return messages


def may_connect(sock: socket.socket) -> bool:
    """Whether the peer is root or the user as whom we run."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = struct.unpack("iII", raw)[1]
    return uid in (0, os.getuid())
