"""Pools of groups, and what an agent remembers: reached by grant only, whatever is asked how."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

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
from aiosd.abi.table import BY_ARGS
from tests.daemon import Client, Daemon
from tests.stores.test_storage import read
from tests.system.parties import audit, child, grant, register, until_refused


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A running daemon with the stand-in embedder."""
    with Daemon(state_dir, runtime_dir, kv_dir, config='[memory]\nembedder = "fake"\n') as daemon:
        yield daemon


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


READS = [
    SearchMemory("plan", mode="keyword", pool="team"), SearchMemory("plan", pool="team"),
    StoRead("plan", pool="team"), StoList(pool="team"), StoHistory("plan", pool="team"),
    StoSearch("harbour", mode="keyword", pool="team"), StoSearch("harbour", pool="team"),
]  # fmt: skip
WRITES = [
    AddMemory("spam", pool="team", key="again"), StoWrite("plan", b"spam", pool="team"),
    StoWrite("large", b"more", 4, True, "u", pool="team"), StoDelete("plan", pool="team"),
    StoRollback("plan", 1, pool="team"), StoAlloc(1 << 20, pool="team"),
]  # fmt: skip
"""What nobody may do in a pool who has no right to it any more."""


def test_two_members_share_what_they_keep(daemon: Daemon, owner: Client) -> None:
    """What one writes the other reads, finds and changes, by words and by meaning."""
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    for aid in (a, b):
        grant(owner, f"agent:{aid}", "member", "group:team")
    id = one.call(AddMemory("the plan is to leave the harbour", pool="team")).id
    one.call(StoWrite("plan", b"leave the harbour at dawn", pool="team", content_type="text/plain"))
    for mode in ("keyword", "vector", "hybrid"):
        (hit,) = two.call(SearchMemory("harbour plan", mode=mode, pool="team"))
        assert (hit.id, hit.text) == (id, "the plan is to leave the harbour")
        (passage,) = two.call(StoSearch("harbour dawn", mode=mode, pool="team"))
        assert (passage.name, passage.text) == ("plan", "leave the harbour at dawn")
    assert read(two, "plan", pool="team") == b"leave the harbour at dawn"
    two.call(UpdateMemory(id, "the plan is to stay"))
    assert found(one, "plan", "team") == ["the plan is to stay"]
    two.call(StoWrite("plan", b"stay", pool="team"))
    assert [row.version for row in one.call(StoHistory("plan", pool="team"))] == [2, 1]
    one.call(StoRollback("plan", 1, pool="team"))
    assert read(two, "plan", pool="team") == b"leave the harbour at dawn"
    two.call(DeleteMemory(id))
    two.call(StoDelete("plan", pool="team"))
    assert one.call(StoList(pool="team")) == [] == found(one, "plan", "team")
    assert found(one, "plan") == [] == one.call(StoList())  # nothing of it is one's own
    for client in (one, two):
        client.close()


def test_revoking_takes_effect_at_once(daemon: Daemon, owner: Client) -> None:
    """In the middle of a write in parts, and for what was answered under a key before."""
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    grant(owner, f"agent:{a}", "member", "group:team")
    given = grant(owner, f"agent:{b}", "member", "group:team")
    one.call(StoWrite("plan", b"leave", pool="team"))
    id = two.call(AddMemory("spam", pool="team", key="again")).id
    two.call(StoWrite("large", b"some", 0, False, "u", pool="team"))
    owner.call(Revoke(given.id))
    for deed in (*READS, *WRITES):
        refused(two, deed, errno.EPERM)
    for about in (GetMemory(id), UpdateMemory(id, "more"), DeleteMemory(id)):
        refused(two, about, errno.ENOENT)
    denied = {(r.data["call"], r.kind) for r in audit(owner, kind="access.") if r.aid == b}
    names = {BY_ARGS[type(deed)].name for deed in (*READS, *WRITES)}
    assert {(name, "access.deny") for name in names} <= denied
    assert {(f"{name}_memory", "access.miss") for name in ("get", "update", "delete")} <= denied
    assert read(one, "plan", pool="team") == b"leave"
    assert [row.name for row in one.call(StoList(pool="team"))] == ["plan"]
    assert found(one, "spam", "team") == ["spam"]
    for client in (one, two):
        client.close()


@pytest.mark.parametrize("right", ["member", "pool.read", "pool.write"])
def test_a_right_to_a_pool_expires(daemon: Daemon, owner: Client, right: str) -> None:
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    grant(owner, f"agent:{a}", "member", "group:team")
    one.call(StoWrite("plan", b"leave", pool="team"))
    expires = time.time() + 1.5
    grant(owner, f"agent:{b}", right, "group:team", expires=expires)
    tried = StoWrite("plan", b"x", pool="team") if right == "pool.write" else READS[0]
    assert until_refused(two, tried, expires) == errno.EPERM
    for deed in (*READS, *WRITES):
        refused(two, deed, errno.EPERM)
    [gone] = audit(owner, kind="grant.expire")
    assert gone.data["grant"]["capability"] == right
    for client in (one, two):
        client.close()
