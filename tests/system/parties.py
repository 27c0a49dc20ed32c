"""Agents of two families and persons, for tests of who may do what."""

from __future__ import annotations

import time
from typing import Any

from aiosd.abi.accounts import AuditRecord, Grant, GrantRecord, ReadAudit
from aiosd.abi.call import Call
from aiosd.abi.process import Fork, RegisterAgent
from tests.daemon import Client, Daemon, answer
from tests.system.agents import hello


def register(daemon: Daemon, name: str) -> tuple[Client, int]:
    """Return a connection that is a new agent, and its aid."""
    client = daemon.connect()
    return client, client.call(RegisterAgent(name)).aid


def child(daemon: Daemon, parent: Client, aid: int) -> tuple[Client, int]:
    """Return a connection that is a new child of an agent, and its aid."""
    started = parent.call(Fork(aid))
    return hello(daemon, started.credential), started.aid


def grant(
    client: Client, subject: str, capability: str, object: str, mode: str = "allow", **more: Any
) -> GrantRecord:
    """Give a right."""
    given = client.call(Grant(subject, capability, object, mode, **more))
    assert isinstance(given, GrantRecord)
    return given


def until_refused(client: Client, args: Call, expires: float) -> int:
    """Make a call until it is refused; return the errno. expires: when the right to it does."""
    number, asked = 0, 0.0
    while not number:
        assert asked <= expires, "what was asked afterwards was done"
        asked = time.time()
        client.send(args)
        number = client.read().errno
    assert time.time() >= expires, "it was refused before"
    return number


def audit(client: Client, **filters: Any) -> list[AuditRecord]:
    """Return the audit records that match."""
    wanted = client.send(ReadAudit(**filters))
    found: list[AuditRecord] = []
    while True:
        reply = client.read()
        assert reply.id == wanted
        if not reply.more:
            answer(reply)
            return found
        found += answer(reply, list[AuditRecord])
