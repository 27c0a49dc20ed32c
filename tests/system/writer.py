"""An agent for tests that asks for text: a raw client which has registered itself.

    with Writer(daemon, "a") as a:
        reply = a.ask("Once upon a time", max_tokens=9)
        wanted = a.begin("Tell on", context=reply.context)     # a stream
        a.read_tokens(wanted, 3)
        last = a.finish(wanted)

Tokens that a stream has brought are in `seen[wanted]`, each exactly once or a test fails;
`request[wanted]` is what the kernel calls a request that has brought some.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from aiosd.abi.cores import Core, ListCores
from aiosd.abi.inference import Chunk, Generation, LlmGenerate
from aiosd.abi.process import RegisterAgent
from aiosd.abi.system import Cancel, Event, Ping, Sysinfo, SystemInfo, Watch
from tests.daemon import Client, Daemon, answer
from tests.system.agents import until


class Writer(Client):
    """One connection that is an agent; a second one with the same credential is the same agent."""

    def __init__(self, daemon: Daemon, name: str = "a", *, credential: str = "") -> None:
        super().__init__(daemon.socket, credential=credential)
        self.credential = credential
        self.aid = self.welcome.aid
        if not credential:
            started = self.call(RegisterAgent(name))
            self.aid, self.credential = started.aid, started.credential
        self.seen: dict[int, list[int]] = {}
        self.text: dict[int, str] = {}
        self.request: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._answers: dict[int, Any] = {}

    def __enter__(self) -> Writer:
        return self

    def ask(self, prompt: str = "Hello", **options: Any) -> Generation:
        """Ask, and wait for the whole answer."""
        return self.finish(self.submit(prompt, **options))

    def submit(self, prompt: str = "Hello", **options: Any) -> int:
        """Ask, and return the request's id."""
        wanted = self.send(LlmGenerate(prompt, **{"raw": True, **options}))
        self.seen[wanted], self.text[wanted] = [], ""
        self._first[wanted] = options.get("resume", 0)
        return wanted

    def begin(self, prompt: str = "Hello", **options: Any) -> int:
        """Ask for a stream; return the request's id."""
        return self.submit(prompt, stream=True, **options)

    def read_tokens(self, wanted: int, count: int) -> list[int]:
        """Return a stream's tokens once there are so many."""
        while len(self.seen[wanted]) < count:
            assert wanted not in self._answers, f"ended early: {self._answers[wanted]}"
            self._take()
        return self.seen[wanted]

    def finish(self, wanted: int) -> Generation:
        """Return a request's answer; raises OSError for an error."""
        while wanted not in self._answers:
            self._take()
        found = self._answers.pop(wanted)
        if isinstance(found, OSError):
            raise found
        assert isinstance(found, Generation)
        return found

    def cancel(self, wanted: int) -> None:
        """Cancel a request."""
        self.send(Cancel(wanted))

    def _take(self) -> None:
        reply = self.read()
        if reply.id not in self.seen:
            return  # the answer to a cancel
        if reply.more:
            chunk = answer(reply, Chunk)
            seen = self.seen[reply.id]
            assert chunk.index == self._first[reply.id] + len(seen), "a token twice, or left out"
            seen += chunk.token_ids or [-1] * chunk.pieces
            self.request[reply.id] = chunk.request
            self.text[reply.id] += chunk.text
            return
        try:
            self._answers[reply.id] = answer(reply, Generation)
        except OSError as error:
            self._answers[reply.id] = error


class Watcher(Client):
    """A person who is told of events."""

    def __init__(self, daemon: Daemon, *kinds: str) -> None:
        super().__init__(daemon.socket)
        self.send(Watch(list(kinds)))
        begun = self.send(Ping())  # answered after the watch has begun
        assert self.read().id == begun

    def __enter__(self) -> Watcher:
        return self

    def await_event(self, kind: str, **data: Any) -> Event:
        """Return the next event of this kind with these data."""
        while True:
            event = answer(self.read(), Event)
            if event.kind == kind and all(event.data.get(k) == v for k, v in data.items()):
                assert isinstance(event, Event)
                return event


def info(daemon: Daemon) -> SystemInfo:
    """Return what the kernel says of itself."""
    with daemon.connect() as client:
        found = client.call(Sysinfo())
    assert isinstance(found, SystemInfo)
    return found


def core(daemon: Daemon, name: str = "c") -> Core:
    """Return a core's row."""
    with daemon.connect() as client:
        rows: list[Core] = client.call(ListCores())
    return next(row for row in rows if row.name == name)


@contextmanager
def held(daemon: Daemon, name: str = "c") -> Iterator[None]:
    """Keep a core from computing: whatever is done meanwhile comes before its next token."""
    until(lambda: core(daemon, name).state == "ready", "the core is ready")
    pid = core(daemon, name).pid
    os.kill(pid, signal.SIGSTOP)
    worker = psutil.Process(pid)
    until(lambda: worker.status() == psutil.STATUS_STOPPED, "its worker stands still")
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have been killed with its kernel
            os.kill(pid, signal.SIGCONT)


def kill_worker(daemon: Daemon, name: str = "c") -> None:
    """Kill a core's worker, if there is one just now: it may be starting, or the core gone."""
    with daemon.connect() as client:
        rows: list[Core] = client.call(ListCores())
    pid = next((row.pid for row in rows if row.name == name), 0)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
