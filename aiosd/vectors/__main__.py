"""The embedder: `python -m aiosd.vectors --fd N`, started by the kernel.

N is the inherited end of a socketpair that speaks `aiosd.vectors.protocol`. The process dies with
its kernel: by the socket's end, and by PR_SET_PDEATHSIG. It runs niced below the kernel
(AIOS_EMBEDDER_NICE, 19 unless set).

What has arrived meanwhile is embedded in one batch, whoever asked for it, and then carried out in
order. One thread does it all: what comes while it computes waits in the socket, and beyond that in
the kernel.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections import deque
from typing import Final, TypeGuard

import msgspec
import numpy as np

from aiosd.abi.wire import FrameError, Frames, frame
from aiosd.child import EX_PROTOCOL, begin
from aiosd.vectors import protocol as p
from aiosd.vectors.index import Index, open_index
from aiosd.vectors.model import Model, Vectors, load

BATCH: Final = 256  # texts embedded at once, from as many commands as there are
QUIET_S: Final = 2.0  # without work, before changed indexes are kept
CHANGED: Final = 5000  # vectors after which an index is kept although there is work
OPEN: Final = 1024  # spaces in memory; the longest unused makes room


class Embedder:
    """The model, the open spaces, and the commands that arrive."""

    def __init__(self, setup: p.Setup, model: Model, link: _Link) -> None:
        self._directory = setup.directory
        self._model = model
        self._link = link
        self._spaces: dict[str, Index] = {}  # the longest unused first

    def serve(self) -> None:
        """Carry out commands until told to leave. Raises EOFError when the kernel has gone."""
        while True:
            command = self._link.take(QUIET_S if self._changed() else None)
            if command is None:
                self.keep()
                continue
            commands, texts = [command], _texts(command)
            while texts < BATCH and (command := self._link.take(0.0)) is not None:
                commands.append(command)
                texts += _texts(command)
            self._run(commands)
            if any(isinstance(command, p.Quit) for command in commands):
                self.keep()
                return

    def keep(self) -> None:
        """Keep every index that has changed; one that can't be is made anew the next time."""
        for index in self._spaces.values():
            if index.changed:
                _keep(index)

    def _changed(self) -> bool:
        return any(index.changed for index in self._spaces.values())

    def _run(self, commands: list[p.Command]) -> None:
        texts: list[str] = []
        for command in commands:
            if isinstance(command, p.Embed):
                texts += command.texts
            elif isinstance(command, p.Search):
                texts.append(command.text)
        vectors, tokens = self._model.encode(texts) if texts else (np.zeros((0, 0)), 0)
        at = 0
        for command in commands:
            many = _texts(command)
            part, at = vectors[at : at + many], at + many
            if isinstance(command, p.Remove | p.Quit | p.Setup):
                self._remove(command)
                continue
            try:
                share = tokens * many // len(texts) if texts else 0
                self._link.send(self._answer(command, part.astype(np.float32), share))
            except OSError as error:
                number = error.errno or errno.EIO
                self._link.send(p.Failed(command.ticket, number, error.strerror or str(error)))

    def _answer(
        self, command: p.Embed | p.Open | p.Put | p.Search, vectors: Vectors, tokens: int
    ) -> p.Event:
        if _texts(command) and not (
            vectors.shape[1] == self._model.dim and np.isfinite(vectors).all()
        ):
            raise OSError(errno.EIO, "the model gave a vector of another length, or no numbers")
        if isinstance(command, p.Embed):
            return p.Embedded(command.ticket, vectors.tobytes(), tokens)
        if isinstance(command, p.Open):
            return self._open(command)
        index = self._spaces.pop(command.space, None)
        if index is None:
            raise OSError(errno.ESTALE, f"space {command.space} is not open")
        self._spaces[command.space] = index
        if isinstance(command, p.Put):
            return self._put(command, index)
        allowed = None if command.allowed is None else np.frombuffer(command.allowed, dtype="<i8")
        ids, scores = index.search(vectors[0], command.k, allowed)
        return p.Found(command.ticket, ids.tobytes(), scores.tobytes())

    def _open(self, command: p.Open) -> p.Opened:
        index = self._spaces.pop(command.space, None)
        if index is None or index.worn:
            index = open_index(self._directory, command.space, self._model.dim)
        if index.worn:
            index = Index(index.path, index.space, index.dim)
        self._spaces[command.space] = index
        while len(self._spaces) > OPEN:
            name = next(iter(self._spaces))
            _keep(self._spaces.pop(name))
        ids = np.frombuffer(command.ids, dtype="<i8").tolist()
        wanted = dict(zip(ids, np.frombuffer(command.revs, dtype="<i4").tolist(), strict=True))
        index.remove([id for id, rev in index.revs.items() if wanted.get(id) != rev])
        missing = [id for id in ids if id not in index.revs]
        return p.Opened(command.ticket, np.array(missing, dtype="<i8").tobytes())

    def _put(self, command: p.Put, index: Index) -> p.Done:
        ids = np.frombuffer(command.ids, dtype="<i8")
        if len(command.vectors) != len(ids) * self._model.dim * 4:
            raise OSError(errno.EINVAL, "vectors of another length")
        vectors = np.frombuffer(command.vectors, dtype="<f4").reshape(-1, self._model.dim)
        index.put(ids, np.frombuffer(command.revs, dtype="<i4"), vectors)
        if index.changed >= max(CHANGED, len(index) // 2):
            _keep(index)
        return p.Done(command.ticket)

    def _remove(self, command: p.Remove | p.Quit | p.Setup) -> None:
        if isinstance(command, p.Remove) and command.space in self._spaces:
            index = self._spaces[command.space]
            index.remove(np.frombuffer(command.ids, dtype="<i8").tolist())
            if index.worn:
                del self._spaces[command.space]


def _keep(index: Index) -> None:
    try:
        index.keep()
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"index {index.space} is not kept: {error}\n")


def _texts(command: p.Command) -> int:
    if isinstance(command, p.Embed):
        return len(command.texts)
    return int(_is_search(command))


def _is_search(command: p.Command) -> TypeGuard[p.Search]:
    return isinstance(command, p.Search)


class _Link:
    """The socket to the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames(p.MAX_MESSAGE)
        self._arrived: deque[p.Command] = deque()

    def send(self, event: p.Event) -> None:
        """Send an event."""
        self._sock.sendall(frame(p.encode(event)))

    def take(self, seconds: float | None) -> p.Command | None:
        """Return the next command, or None when none comes for so long (None: wait for ever).

        Raises EOFError when the kernel has gone; FrameError, MsgspecError for what is no command.
        """
        while not self._arrived:
            if seconds is not None and not select.select([self._sock], [], [], seconds)[0]:
                return None
            data = self._sock.recv(1 << 18)
            if not data:
                raise EOFError
            self._arrived += map(p.decode_command, self._frames.feed(data))
        return self._arrived.popleft()


def _serve(link: _Link) -> int:
    setup = link.take(None)
    if not isinstance(setup, p.Setup):
        raise ValueError(f"the first command was {type(setup).__name__}, not Setup")
    try:
        model = load(setup.model, setup.options)
    except OSError as error:
        link.send(p.Failed(0, error.errno or errno.EIO, error.strerror or str(error)))
        return 1
    os.makedirs(setup.directory, mode=0o700, exist_ok=True)
    link.send(p.Ready(model.name, model.dim))
    Embedder(setup, model, link).serve()
    return 0


def main() -> int:
    """Run the embedder; returns its exit status."""
    sock = begin("aiosd.vectors", "AIOS embedder", "AIOS_EMBEDDER_NICE")
    try:
        return _serve(_Link(sock))
    except (EOFError, ConnectionError):  # the kernel has gone
        return 0
    except (FrameError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"aiosd.vectors: {error}\n")
        return EX_PROTOCOL


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
