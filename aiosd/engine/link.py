"""A worker's end of the socket to its kernel: frames in, frames out.

A frame is a 4-byte little-endian length and that many bytes of msgpack. `receive` belongs to one
thread; `send` may be called from any. A frame that is longer than allowed or that can't be decoded
is a broken invariant between kernel and worker and raises ValueError.
"""

from __future__ import annotations

import socket
import threading

import msgspec

from aiosd.engine import protocol as p


class Link:
    """The socket to the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = sock.makefile("rb", buffering=1 << 16)
        self._lock = threading.Lock()

    def receive(self) -> p.Command | None:
        """The next command, or None when the kernel has gone. Raises ValueError."""
        try:
            head = self._reader.read(4)
            if len(head) < 4:
                return None
            length = int.from_bytes(head, "little")
            if length > p.MAX_MESSAGE:
                raise ValueError(f"frame of {length} bytes; at most {p.MAX_MESSAGE} are allowed")
            body = self._reader.read(length)
        except ConnectionError:
            return None
        if len(body) < length:
            return None
        try:
            command: p.Command = p.decode_command(body)
        except msgspec.MsgspecError as e:
            raise ValueError(f"frame of {length} bytes is not a command: {e}") from e
        return command

    def send(self, event: p.Event) -> None:
        """Send one event. Raises BrokenPipeError when the kernel has gone."""
        body = p.encode_event(event)
        frame = len(body).to_bytes(4, "little") + body
        with self._lock:
            self._sock.sendall(frame)
