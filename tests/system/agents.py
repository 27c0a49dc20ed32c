"""What the system tests do with agents and look up about their processes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from aiosd.abi import LEVEL
from aiosd.abi.process import Agent, ExitStatus, Kill, ListAgents, LogRecord, ReadLog, Spawn, Wait
from aiosd.abi.system import Hello
from tests.daemon import PATIENCE, Client, Daemon, answer

SLEEPER = ["sleep", "600"]
FAMILY = ["sh", "-c", "sleep 600 & echo ready; wait"]
"""A shell with a child in its process group; it says when both are there."""


def spawn(client: Client, argv: Sequence[str], **more: Any) -> int:
    """Spawn an agent; return its aid."""
    aid = client.call(Spawn(list(argv), **more)).aid
    assert isinstance(aid, int)
    return aid


def agent(client: Client, aid: int) -> Agent:
    """Return an agent's row."""
    [row] = client.call(ListAgents(all=True, aid=aid))
    assert isinstance(row, Agent)
    return row


def wait(client: Client, aid: int) -> ExitStatus:
    """Wait for an agent's end."""
    status = client.call(Wait(aid, timeout=PATIENCE))
    assert isinstance(status, ExitStatus)
    return status


def log(client: Client, aid: int, until: str = "") -> str:
    """Return an agent's output: all of it once it has ended, or up to a text."""
    wanted = client.send(ReadLog(aid, follow=True))
    text = ""
    while True:
        reply = client.read()
        assert reply.id == wanted
        if not reply.more:
            answer(reply)
            return text
        text += "".join(record.text for record in answer(reply, list[LogRecord]))
        if until and until in text:
            client.close()  # nobody reads on: use a connection of its own
            return text


def hello(daemon: Daemon, credential: str) -> Client:
    """Return a connection that speaks for the agent of a credential."""
    client = daemon.connect(hello=False)
    try:
        client.welcome = client.call(Hello(level=LEVEL, credential=credential))
    except OSError:
        client.close()
        raise
    return client


def group(pid: int) -> list[psutil.Process]:
    """Return the processes of a process group that live."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def states(pid: int) -> set[str]:
    """Return the states of the processes of a group, as psutil names them."""
    return {process.status() for process in group(pid)}


def until(condition: Callable[[], bool], what: str) -> None:
    """Return once a condition that nothing announces holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.002)


def await_end(pid: int) -> None:
    """Return once a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], PATIENCE)[0], f"process {pid} lives on"
    finally:
        os.close(handle)


def await_starts(client: Client) -> None:
    """Return once the programs of all agents run."""
    until(lambda: all(row.pid for row in client.call(ListAgents())), "all programs run")


def processes_below(state_dir: Path) -> list[str]:
    """Describe the shims of a state directory and what runs below them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and belongs(process, state_dir):
                found.append(f"{process.pid} {process.cmdline()}")
        except psutil.Error:
            continue
    return found


def belongs(process: psutil.Process, state_dir: Path) -> bool:
    """Whether a process is a shim or below one of this state directory."""
    line = [process, *process.parents()]
    return any(
        str(state_dir / "agents") in relative.cwd()
        for relative in line
        if any("shim.py" in word for word in relative.cmdline())
    )


def end_all(daemon: Daemon) -> None:
    """Kill every agent and wait until the kernel has seen their ends."""
    if daemon.process.poll() is not None:
        return
    with daemon.connect() as client:
        for row in client.call(ListAgents()):
            if row.state != "Z":
                client.call(Kill(row.aid, "KILL"))
                wait(client, row.aid)
    until(lambda: processes_below(daemon.state_dir) == [], "all shims end")
