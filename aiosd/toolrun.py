"""One call of a tool: what it is given, what came of it, and how a program carries it out.

    outcome = await Programs(settings).run(work)

A program gets its arguments as JSON on standard input and answers on standard output: JSON, or
text where it is declared so; anything but exit status 0 is a failure, and what it wrote to standard
error says why. Every failure is an OSError that names the tool: ETIMEDOUT (too slow), EMSGSIZE (too
much output), EPROTO (its result is not what it declared), EREMOTEIO (it failed or died), ENODEV (it
can't work here).

What must hold: whatever a program does, `run` ends within its time, and nothing of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any, Final, Protocol

import msgspec

from aiosd import boxview, toolproc
from aiosd.box import ALL, Box
from aiosd.deadline import Limited
from aiosd.declaration import Declaration
from aiosd.settings import Tools
from aiosd.toolfiles import Held, changed

TAIL: Final = 600
"""Characters of its standard error that a failed tool's error shows."""
OPEN_FILES: Final = 256
INSIDE: Final = "/workspace"
"""The workspace, as what is in the box sees it."""
BY_SIGNAL: Final = 128
ANY: Final = Held(1 << 62, 1 << 62)
LONGEST_CPU: Final = 86_400
"""Seconds of a host's, over all its calls."""


@dataclass(slots=True, eq=False)
class Work:
    """One call. subject: whose (agent:AID or uid:UID). workspace: on the host. environ: settings
    and secrets. seconds: that it may take, once its process is there; its caller's deadline ends it
    from outside (run_within). room: bytes that its workspace still takes; most: that it may hold.
    nice: of its caller, now. on_full: ends it at once with this error; set by what carries it out.
    """

    tool: Declaration
    arguments: dict[str, Any]
    subject: str
    workspace: str
    environ: dict[str, str]
    seconds: float
    room: int = 1 << 30
    most: Held = ANY
    nice: Callable[[], int] = field(default=lambda: 0)
    on_full: Callable[[OSError], None] | None = None


@dataclass(slots=True)
class Outcome:
    """What came of a call that did not fail. warm: its process had been there before.

    waited: seconds for its turn, where the runner has a queue of its own.
    """

    value: Any
    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    artefacts: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    warm: bool = False
    waited: float = 0.0


class Runner(Protocol):
    """What carries calls out: programs, Python hosts, MCP servers."""

    async def run(self, work: Work) -> Outcome:
        """Carry a call out, within its seconds. Raises OSError that names the tool."""


async def run_within(limited: Limited, runner: Runner, work: Work) -> Outcome:
    """Run a call within its caller's deadline. Raises OSError."""
    cut = False
    try:
        async with limited:
            try:
                return await runner.run(work)
            except asyncio.CancelledError:
                cut = True
                raise
    except TimeoutError:
        if not cut:  # the tool's own time was over, and that is what the error says
            raise
        raise too_slow(work.tool, limited.seconds) from None


class Programs:
    """Carries out tools that are programs, each call in a process of its own.

    hidden: paths that no tool may see, whatever it declares.
    """

    def __init__(self, settings: Callable[[], Tools], hidden: tuple[str, ...]) -> None:
        self._settings = settings
        self._hidden = hidden

    async def run(self, work: Work) -> Outcome:
        """Start the program, give it the arguments, and return what it answers."""
        tool, began = work.tool, time()
        process = await toolproc.start(spec(work, tool.command, self._hidden), stdin=True)
        flood, grace = process.flood, 0.0
        full: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
        work.on_full = lambda error: None if full.done() else full.set_result(error)
        try:
            process.feed(msgspec.json.encode(work.arguments))
            ends: set[asyncio.Future[Any]] = {process.exited, flood, full}
            await asyncio.wait(ends, timeout=work.seconds, return_when="FIRST_COMPLETED")
            if flood.done():
                raise flooded(tool)
            if full.done():
                raise full.result()
            if not process.exited.done():
                grace = self._settings().kill_timeout
                raise too_slow(tool, work.seconds)
        except asyncio.CancelledError:
            grace = self._settings().kill_timeout
            raise
        finally:
            stdout, stderr = process.stdout, process.stderr
            if grace:
                await asyncio.shield(process.end(grace))
        said, told = stdout.take(), _text(stderr.take())
        await process.end()
        if flood.done():
            raise flooded(tool)
        status = process.exited.result()
        if status:
            raise failed(tool, status, told or _text(said))
        value = _value(tool, said)
        artefacts = await changed(work.workspace, began)
        return Outcome(value, stderr=told, artefacts=artefacts)


def spec(
    work: Work,
    argv: tuple[str, ...],
    hidden: tuple[str, ...],
    *,
    environ: Mapping[str, str] | None = None,
    python: tuple[str, ...] = (),
    fd: int = -1,
    cpu_s: int = 0,
) -> toolproc.Spec:
    """Return how a call's process is started.

    hidden: paths that no box shows. environ: beside what the tool finds there anyway. python:
    directories that it imports from. fd: a descriptor that it inherits. cpu_s: seconds of processor
    time, 0: as its time allows.
    """
    tool = work.tool
    boxed = tool.isolation == "full"
    reach = {"AIOS_TOOL_NETWORK": " ".join(tool.needs.network)} if tool.needs.network else {}
    known = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": INSIDE if boxed else work.workspace,
        "LANG": "C.UTF-8",
        **reach,
        **(environ or {}),
        **work.environ,
    }
    box = _box(work, argv, hidden, known, python, cpu_s)
    return toolproc.Spec(tool=tool.name, box=box, limit=tool.limits.output, fd=fd)


def _box(
    work: Work,
    argv: tuple[str, ...],
    hidden: tuple[str, ...],
    environ: dict[str, str],
    python: tuple[str, ...],
    cpu_s: int,
) -> Box:
    tool = work.tool
    return Box(
        argv=argv,
        env=environ,
        workspace=work.workspace,
        read=(*_program(tool), *tool.needs.read),
        write=tool.needs.write,
        hidden=hidden,
        network=tool.needs.network,
        python=python,
        memory=tool.limits.memory,
        processes=tool.limits.processes,
        cpu_s=cpu_s or math.ceil(tool.limits.time) * (os.cpu_count() or 1),
        file_bytes=work.room,
        open_files=OPEN_FILES,
        layers=ALL if tool.isolation == "full" else frozenset(),
    )


def _program(tool: Declaration) -> tuple[str, ...]:
    """Return a tool's own program, where the box would not show it anyway."""
    if not tool.command or not os.path.isabs(tool.command[0]):
        return ()
    folder = os.path.dirname(tool.command[0]) + "/"
    usual = (*boxview.SYSTEM, *boxview.python_places())
    return () if folder.startswith(tuple(f"{place}/" for place in usual)) else tool.command[:1]


def _value(tool: Declaration, said: bytes) -> Any:
    if tool.kind == "text":
        return _text(said).removesuffix("\n")
    try:
        return msgspec.json.decode(said)
    except (msgspec.DecodeError, RecursionError) as error:
        shown = _text(said[:120])
        raise unlike(tool, f"is no JSON ({error}): {shown!r}") from None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


# How a call fails.


def too_slow(tool: Declaration, seconds: float) -> TimeoutError:
    """Return the error of a call that took too long."""
    if tool.server:
        how = f"MCP server {tool.server} did not answer within {seconds:.4g} s; it was cancelled"
    else:
        how = f"no result within {seconds:.4g} s; it was ended"
    return TimeoutError(errno.ETIMEDOUT, f"tool {tool.name}: {how}")


def flooded(tool: Declaration) -> OSError:
    """Return the error of a call that wrote too much."""
    return OSError(
        errno.EMSGSIZE,
        f"tool {tool.name}: wrote more than its {tool.limits.output} bytes (limits.output); "
        "it was ended",
    )


def unlike(tool: Declaration, wrong: str) -> OSError:
    """Return the error of a result that is not what was declared."""
    return OSError(errno.EPROTO, f"tool {tool.name}: its result {wrong}")


def failed(tool: Declaration, status: int, told: str) -> OSError:
    """Return the error of a process that ended with a status (above 128: by a signal)."""
    how = f"ended with status {status}"
    if status > BY_SIGNAL:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(status - BY_SIGNAL).name}"
    if status == BY_SIGNAL + signal.SIGXFSZ:
        how += " (a file beyond what is left of [tools] workspace_limit)"
    last = told.strip()[-TAIL:]
    return OSError(errno.EREMOTEIO, f"tool {tool.name}: {how}{f': {last}' if last else ''}")
