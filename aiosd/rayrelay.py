"""The relay between a kernel and an engine on another machine: frames pass, files are carried.

    relay = Relay(kernel, node, directory, shelf, silence, where)
    heard = await relay.run(frames)      # until one of the two has gone

Both sides speak `aiosd.engine.protocol` and know nothing of each other's machine. A command that
names a snapshot file of the kernel's gets the name of the node's own copy, which is carried there
first when the node has none; what the engine has written is carried to the kernel's file before the
kernel is told that it is there. So what the kernel counts on outlives the node.

What must hold: commands arrive in the order sent. Events do too, but for what is computed and
answered, which overtakes what waits for a file: none of that is about a sequence that has to wait.
The kernel's file is whole or it says that it is not (see engine/snapshot.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from collections import OrderedDict, deque
from typing import Final, Protocol

import msgspec

from aiosd.abi.wire import Frames, frame
from aiosd.engine import protocol as p
from aiosd.engine.snapshot import MAGIC, PRELUDE
from aiosd.raynode import Heard, write
from aiosd.rayshelf import Shelf

log = logging.getLogger(__name__)

PIECE: Final = 16 << 20
"""Bytes of a file that are carried in one object."""
POLL: Final = 2.0
"""Seconds after which a node whose engine has nothing to say shows that it lives."""
HELD: Final = 4 << 20
"""Bytes of commands that wait for the node before the kernel's are left in the socket."""
NAMED: Final = 4096
"""Files of commands under way whose names at the kernel are known."""


class Gone(Exception):
    """The node is of no use any more; the message says why."""


class Refused(Exception):
    """The core can't be had, now or later. code: an errno."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Node(Protocol):
    """What the relay asks of the actor (see raynode.Node). Each may raise Gone."""

    async def send(self, data: bytes) -> None:
        """Give frames to the engine."""

    async def receive(self, patience: float) -> Heard:
        """Return what the engine has said."""

    async def fetch(self, name: str, start: int, end: int) -> bytes:
        """Return bytes of a file, fewer at its end."""

    async def store(self, name: str, start: int, data: bytes) -> str:
        """Write bytes into a file; returns why that can't be, or ""."""

    async def remove(self, names: list[str]) -> None:
        """Delete files."""


class Kernel(Protocol):
    """The relay's end of the socket to the kernel."""

    async def receive(self) -> bytes:
        """Return what the kernel has sent, b"" when it has gone."""

    async def send(self, data: bytes) -> None:
        """Send to the kernel; waits while it does not read."""


class Relay:
    """See the head of this file.

    directory: where the node keeps its files. silence: seconds after which it counts as gone.
    where: what the node is called.
    """

    def __init__(
        self, kernel: Kernel, node: Node, directory: str, shelf: Shelf, silence: float, where: str
    ) -> None:
        self._kernel = kernel
        self._node = node
        self._directory = directory
        self._shelf = shelf
        self._silence = silence
        self._where = where
        self._out = bytearray()  # commands on their way to the node
        self._more = asyncio.Event()
        self._less = asyncio.Event()
        self._lane: asyncio.Queue[p.Event] = asyncio.Queue()
        self._names: OrderedDict[tuple[int, str], str] = OrderedDict()
        self._writing: dict[int, deque[str]] = {}  # files of commands under way, by context

    async def run(self, commands: Frames) -> Heard | None:
        """Relay until the kernel has gone (None), or the engine (its last words).

        commands: what has come from the kernel beside its first frame. Raises Gone, ValueError.
        """
        ends = [self._obey(commands), self._forward(), self._hear(), self._deliver()]
        tasks = [asyncio.ensure_future(end) for end in ends]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # From the kernel to the node.

    async def _obey(self, commands: Frames) -> None:
        """Pass on the kernel's commands, in order, until it has gone."""
        while True:
            while (payload := commands.take()) is not None:
                command = p.decode_command(payload)
                if isinstance(command, p.Quit):
                    return
                if (translated := await self._translated(command)) is not None:
                    await self._put(frame(p.encode_command(translated)))
            data = await self._kernel.receive()
            if not data:
                return
            commands.add(data)

    async def _put(self, data: bytes) -> None:
        while len(self._out) > HELD:
            self._less.clear()
            await self._less.wait()
        self._out += data
        self._more.set()

    async def _forward(self) -> None:
        """Send what there is in one call, then what has come meanwhile."""
        while True:
            self._more.clear()
            if not self._out:
                await self._more.wait()
            data, self._out = bytes(self._out), bytearray()
            self._less.set()
            await self._node.send(data)

    async def _translated(self, command: p.Command) -> p.Command | None:
        """Name the node's files in a command; None for one that can't be given to the engine."""
        if isinstance(command, (p.Evict, p.Save)) and command.path:
            name = self._shelf.write(command.path)
            self._writing.setdefault(command.cid, deque()).append(name)
            await self._tidy()
            return self._named(command, name)
        if isinstance(command, (p.Admit, p.Share)) and command.path:
            try:
                return self._named(command, await self._brought(command.path))
            except OSError as error:
                self._stranded(command, error)
                return None
        return command

    def _stranded(self, command: p.Admit | p.Share, error: OSError) -> None:
        """A sound file can't be brought to the node: the sequence does without."""
        why = f"{command.path} can't be brought to {self._where}: {error.strerror or error}"
        log.warning("context %d: %s", command.cid, why)
        if isinstance(command, p.Admit):  # one that was to share goes on computing by itself
            self._lane.put_nowait(p.Lost(command.cid, error.errno or errno.EIO, why))

    def _named(
        self, command: p.Evict | p.Save | p.Admit | p.Share, name: str
    ) -> p.Evict | p.Save | p.Admit | p.Share:
        """Name the node's file in a command, and remember what the kernel calls it."""
        local = f"{self._directory}/{name}"
        self._names[command.cid, local] = command.path
        self._names.move_to_end((command.cid, local))
        if len(self._names) > NAMED:
            self._names.popitem(last=False)
        return msgspec.structs.replace(command, path=local)

    async def _brought(self, path: str) -> str:
        """Return the node's name of a file of the kernel's; it is carried there if need be.

        One that is not there, or not whole, is not on the node either: the engine finds that out.
        """
        mark, size = await asyncio.to_thread(_look, path)
        if name := self._shelf.find(path, mark):
            return name
        name = self._shelf.add(mark, size)
        await self._tidy()
        if not size:
            await self._node.remove([name])
            return name
        try:
            await self._carry(path, name, size)
        except OSError:
            self._shelf.written(name, b"", 0)
            raise
        log.info("carried %s to %s: %d bytes", path, self._where, size)
        return name

    async def _carry(self, path: str, name: str, size: int) -> None:
        for start in range(0, size, PIECE):
            data = await asyncio.to_thread(_read, path, start, min(size, start + PIECE))
            if why := await self._node.store(name, start, data):
                raise OSError(errno.ENOSPC, why)

    async def _tidy(self) -> None:
        if names := self._shelf.surplus():
            await self._node.remove(names)

    # From the node to the kernel.

    async def _hear(self) -> Heard:
        """Take up what the engine says, until it has ended."""
        frames = Frames(p.MAX_MESSAGE)
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    heard = await self._node.receive(POLL)
            except TimeoutError:
                raise Gone(f"nothing was heard of it for {self._silence:g} s") from None
            for line in heard.lines:
                sys.stderr.write(line + "\n")
            sys.stderr.flush()
            out = bytearray()
            for payload in frames.feed(heard.data):
                event = p.decode_event(payload)
                if isinstance(event, p.Step | p.Begun | p.Answer):
                    out += frame(bytes(payload))
                else:
                    self._lane.put_nowait(event)
            if out:
                await self._kernel.send(bytes(out))
            if heard.ended is not None:
                await self._lane.join()
                return heard

    async def _deliver(self) -> None:
        """Tell the kernel in order what becomes of sequences, a file first."""
        while True:
            event = await self._lane.get()
            match event:
                case p.Evicted() | p.Saved() | p.Kept():
                    self._settle(event)
                case p.Lost() if event.errno == errno.ESRCH:
                    self._settle(event)
                case p.Loaded():
                    setting = f"{event.setting}; on {self._where}"
                    event = msgspec.structs.replace(event, setting=setting)
            if isinstance(event, p.Evicted | p.Saved) and event.path:
                event = await self._kept(event)
            event = self._original(event)
            await self._kernel.send(frame(p.encode_event(event)))
            self._lane.task_done()

    def _settle(self, event: p.Evicted | p.Saved | p.Kept | p.Lost) -> None:
        """Take a file that was to be written off the list; unless named, nothing is in it."""
        names = self._writing.get(event.cid)
        if not names:
            return
        name = os.path.basename(event.path) or names[0]
        if name in names:
            names.remove(name)
        if not event.path or isinstance(event, p.Kept):
            self._shelf.written(name, b"", 0)
        if not names:
            del self._writing[event.cid]

    async def _kept(self, event: p.Evicted | p.Saved) -> p.Evicted | p.Saved:
        """Bring what the engine has written into the kernel's file, then say so."""
        name = os.path.basename(event.path)
        path = self._names.get((event.cid, event.path), "")
        mark = b""
        try:
            if not path:
                raise OSError(errno.ENOENT, f"nobody asked for {event.path}")
            mark = await self._fetched(name, path, event.size)
        except OSError as error:
            why = error.strerror or str(error)
            log.warning("context %d is not saved: %s", event.cid, why)
            event = _nothing(event, error.errno or errno.EIO, why)
        self._shelf.written(name, mark, event.size)
        await self._tidy()
        return event

    async def _fetched(self, name: str, path: str, size: int) -> bytes:
        """Carry a file here, its beginning last, which is what makes it whole; returns its mark."""
        first = await self._node.fetch(name, 0, min(size, PIECE))
        await asyncio.to_thread(write, path, 0, bytes(PRELUDE.size))
        await asyncio.to_thread(write, path, PRELUDE.size, first[PRELUDE.size :])
        at = len(first)
        while at < size:
            data = await self._node.fetch(name, at, min(size, at + PIECE))
            if not data:
                raise OSError(errno.EIO, f"it is cut short on the node: {at} of {size} bytes")
            await asyncio.to_thread(write, path, at, data)
            at += len(data)
        await asyncio.to_thread(write, path, 0, first[: PRELUDE.size])
        return bytes(first[: PRELUDE.size])

    def _original(self, event: p.Event) -> p.Event:
        """Name the kernel's files in an event, where it names one."""
        if not isinstance(event, p.Evicted | p.Saved | p.Kept | p.Restored | p.Lost):
            return event
        if not event.path:
            return event
        path = self._names.pop((event.cid, event.path), "")
        if isinstance(event, p.Lost | p.Kept):
            message = event.message.replace(event.path, path or event.path)
            return msgspec.structs.replace(event, path=path, message=message)
        return msgspec.structs.replace(event, path=path)


def _nothing(event: p.Evicted | p.Saved, code: int, why: str) -> p.Evicted | p.Saved:
    """Say that a file is of no use."""
    if isinstance(event, p.Saved):
        return msgspec.structs.replace(event, path="", size=0, errno=code, message=why)
    return msgspec.structs.replace(event, path="", kv=0, size=0)


def _look(path: str) -> tuple[bytes, int]:
    """Return a file's beginning and how many bytes of it mean something: none of one not whole."""
    try:
        with open(path, "rb") as file:
            mark = file.read(PRELUDE.size)
            held = os.fstat(file.fileno()).st_size
    except OSError:
        return b"", 0
    if len(mark) < PRELUDE.size:
        return b"", 0
    magic, _, _, offset, payload, _, _ = PRELUDE.unpack(mark)
    return (mark, min(offset + payload, held)) if magic == MAGIC else (b"", 0)


def _read(path: str, start: int, end: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), end - start, start)
