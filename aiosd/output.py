"""The output of an agent, as its shim keeps it: the files `log` and `log.1`, and `shim.err`.

Written by the shim in its working directory, the agent's own; read by the kernel (spawn.read_log).
Part of the shim: standard library only.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import time

PIECE = 8192  # characters of one log record
IDLE = 0.1  # seconds until a line without its end is written
NOTES_MAX = 65536  # bytes of shim.err
NEVER = math.inf

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Log:
    """The files `log` and `log.1`: together they hold at most `limit` bytes.

    `size` is the logical end: bytes ever written, the heads of the files included.
    """

    def __init__(self, limit: int) -> None:
        self.half = max(limit // 2, 1024)
        self.base = 0
        self.length = 0
        self.fd = -1
        self._open()

    @property
    def size(self) -> int:
        """The logical offset of the end."""
        return self.base + self.length

    def append(self, stream: str, pieces: list[str]) -> None:
        """Write one record for each piece of text, with the present time."""
        head = f'{{"t":{time.time():.6f},"s":"{stream}","d":'
        batch: list[bytes] = []
        room = self.half - self.length
        for piece in pieces:
            record = f"{head}{encode(piece)}}}\n".encode()
            if len(record) > room:
                self._write(b"".join(batch))
                batch.clear()
                self._rotate()
                room = self.half - self.length
            batch.append(record)
            room -= len(record)
        self._write(b"".join(batch))

    def _open(self) -> None:
        flags = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY
        self.fd = os.open("log", flags, 0o600)
        self.length = 0
        self._write(f'{{"base":{self.base}}}\n'.encode())

    def _rotate(self) -> None:
        try:
            os.rename("log", "log.1")
        except OSError as error:
            note(f"log not rotated: {error}")
            return
        os.close(self.fd)
        self.base += self.length
        self._open()

    def _write(self, data: bytes) -> None:
        """Append whole records. On a full disk they are lost: the agent must not wait for it."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self.fd, data[done:])
            self.length += done
        except OSError as error:
            note(f"output lost: {error}")
            os.ftruncate(self.fd, self.length)


class Stream:
    """One output pipe of the agent and the line that has not ended yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rest = ""
        self.flush_at = NEVER
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, now: float) -> list[str]:
        """Take bytes, none at the end of the stream; return the pieces that are complete."""
        text = self.rest + self._decoder.decode(data, not data)
        *lines, rest = text.split("\n")
        pieces = []
        for line in (f"{line}\n" for line in lines):
            pieces += [line[i : i + PIECE] for i in range(0, len(line), PIECE)]
        cut = len(rest) - len(rest) % PIECE if data else len(rest)
        pieces += [rest[i : min(i + PIECE, cut)] for i in range(0, cut, PIECE)]
        self.rest = rest[cut:]
        self.flush_at = now + IDLE if self.rest else NEVER
        return pieces

    def flush(self) -> list[str]:
        """Give up the line that has not ended yet."""
        pieces = [self.rest] if self.rest else []
        self.rest, self.flush_at = "", NEVER
        return pieces


def note(text: str) -> None:
    """Say something on shim.err, of which there are at most 64 KiB."""
    data = f"{text}\n".encode(errors="replace")
    if os.fstat(2).st_size + len(data) <= NOTES_MAX:
        os.write(2, data)
