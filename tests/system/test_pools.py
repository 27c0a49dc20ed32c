"""Pools of groups, and what an agent remembers: reached by grant only, whatever is asked how."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from aiosd.abi.accounts import Revoke
from aiosd.abi.call import Call
from aiosd.abi.memory import (
    AddMemory,
    DeleteMemory,
    GetMemory,
    MemRead,
    MemWrite,
    SearchMemory,
    UpdateMemory,
)
from aiosd.abi.storage import (
    StoAlloc,
    StoDelete,
    StoHistory,
    StoList,
    StoRead,
    StoRollback,
    StoSearch,
    StoWrite,
)
from tests.daemon import Client, Daemon
from tests.system.parties import audit, child, grant, register


@pytest.fixture
def owner(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect() as client:
        yield client


def refused(client: Client, args: Call, number: int) -> str:
    with pytest.raises(OSError, match=": ") as caught:
        client.call(args)
    assert caught.value.errno == number, caught.value
    return str(caught.value)


def found(client: Client, query: str, pool: str = "") -> list[str]:
    return [m.text for m in client.call(SearchMemory(query, mode="keyword", pool=pool))]


def test_a_pool_is_its_groups(daemon: Daemon, owner: Client) -> None:
    (one, a), (two, b), (out, c) = (register(daemon, name) for name in ("one", "two", "out"))
    young, _ = child(daemon, two, b)
    for aid in (a, b):
        grant(owner, f"agent:{aid}", "member", "group:team")
    id = one.call(AddMemory("the harbour is deep", pool="team")).id
    one.call(AddMemory("one's own harbour"))
    for member in (one, two, young, owner):
        assert found(member, "harbour", "team") == ["the harbour is deep"]
        assert member.call(GetMemory(id)).text == "the harbour is deep"
    assert found(two, "harbour") == []
    nothing = refused(out, SearchMemory("harbour", pool="no-such"), errno.EPERM)
    closed = refused(out, SearchMemory("harbour", pool="team"), errno.EPERM)
    assert nothing.replace("no-such", "team") == closed  # neither says what there is
    refused(out, AddMemory("spam", pool="team"), errno.EPERM)
    refused(out, GetMemory(id), errno.ENOENT)
    reading = grant(owner, f"agent:{c}", "pool.read", "group:team")
    assert found(out, "harbour", "team") == ["the harbour is deep"]
    refused(out, AddMemory("spam", pool="team"), errno.EPERM)
    for change in (UpdateMemory(id, "shallow"), DeleteMemory(id)):
        refused(out, change, errno.ENOENT)
    grant(owner, f"agent:{c}", "pool.write", "group:team")
    out.call(AddMemory("a harbour pilot", pool="team"))
    owner.call(Revoke(reading.id))
    refused(out, SearchMemory("harbour", pool="team"), errno.EPERM)
    assert len(found(two, "harbour", "team")) == 2
    denied = {(r.data["call"], r.kind) for r in audit(owner, kind="access.") if r.aid == c}
    assert {("search_memory", "access.deny"), ("add_memory", "access.deny"),
            ("get_memory", "access.miss"), ("update_memory", "access.miss"),
            ("delete_memory", "access.miss")} <= denied  # fmt: skip
    for client in (one, two, out, young):
        client.close()


SYNTAX = [
    "harbour OR 1", 'text:"harbour" NEAR(a b)', '"', "'; drop table memories; --", "harb*",
    "NOT harbour", "((", "memories_fts MATCH 'x'", "^harbour", "\x00", "-harbour", "{text}: x",
]  # fmt: skip


def test_nothing_of_anothers_memory_comes_out(daemon: Daemon, owner: Client) -> None:
    (one, a), (two, _) = register(daemon, "one"), register(daemon, "two")
    young, _ = child(daemon, one, a)
    id = one.call(AddMemory("the harbour is deep", {"place": "harbour"})).id
    one.call(MemWrite("note", b"secret"))
    for stranger in (two, young, owner):  # not even a child of the agent: memory is its own
        for query in SYNTAX:
            assert found(stranger, query) == []
        assert stranger.call(SearchMemory("x", metadata={"place": "harbour"}, mode="keyword")) == []
        for deed in (GetMemory(id), UpdateMemory(id, "shallow"), DeleteMemory(id)):
            refused(stranger, deed, errno.ENOENT)
    for stranger in (two, young):
        refused(stranger, MemRead("note"), errno.ENOENT)
    for hostile in ({"a') or 1=1 --": 1}, {"$.x": "%"}):
        assert two.call(SearchMemory("x", metadata=hostile, mode="keyword")) == []
        two.call(AddMemory("mine", hostile))
    for large in ({"x" * 20_000: 1}, {"x": "y" * 20_000}):
        refused(two, AddMemory("mine", large), errno.EINVAL)
    assert one.call(GetMemory(id)).text == "the harbour is deep"
    for client in (one, two, young):
        client.close()


def test_objects_of_a_pool(daemon: Daemon, owner: Client) -> None:
    (one, a), (out, c) = register(daemon, "one"), register(daemon, "out")
    grant(owner, f"agent:{a}", "member", "group:team")
    one.call(StoWrite("plan", b"first", pool="team"))
    one.call(StoWrite("plan", b"second", pool="team"))
    one.call(StoWrite("diary", b"secret"))
    here = [StoRead("plan", pool="team"), StoList(pool="team"), StoHistory("plan", pool="team"),
            StoSearch("first", mode="keyword", pool="team")]  # fmt: skip
    changes = [StoWrite("plan", b"spam", pool="team"), StoDelete("plan", pool="team"),
               StoRollback("plan", 1, pool="team"), StoAlloc(1 << 20, pool="team")]  # fmt: skip
    for deed in (*here, *changes):
        refused(out, deed, errno.EPERM)
    for mine in (StoRead("diary"), StoHistory("plan"), StoRollback("plan", 1), StoDelete("diary")):
        refused(out, mine, errno.ENOENT)  # names are each owner's own
    assert out.call(StoList()) == []
    grant(owner, f"agent:{c}", "pool.read", "group:team")
    assert [row.version for row in out.call(StoHistory("plan", pool="team"))] == [2, 1]
    for deed in changes:
        refused(out, deed, errno.EPERM)
    assert [row.name for row in one.call(StoList(pool="team"))] == ["plan"]
    denied = {r.data["call"] for r in audit(owner, kind="access.deny") if r.aid == c}
    assert {"sto_read", "sto_list", "sto_history", "sto_search", "sto_write", "sto_delete",
            "sto_rollback", "sto_alloc"} <= denied  # fmt: skip
    for client in (one, out):
        client.close()
