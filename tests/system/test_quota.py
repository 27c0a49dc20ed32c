"""Quotas through the daemon's door: who sets them, whom they stop, what a kill leaves of them."""

from __future__ import annotations

import errno
import math
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.accounts import GetQuota, GetUsage, Quota, SetQuota
from aiosd.abi.call import Call
from aiosd.abi.inference import (
    Generation,
    GenRestore,
    GenSnapshot,
    ListContexts,
    ListSnapshots,
)  # fmt: skip
from aiosd.abi.memory import AddMemory, DeleteMemory, MemAlloc, MemWrite
from aiosd.abi.process import Exit, Fork, ResumeAgent, Spawn, SuspendAgent
from aiosd.abi.storage import StoDelete, StoWrite
from aiosd.killpoint import VARIABLE
from tests.conftest import World
from tests.daemon import Client, Daemon
from tests.system.agents import SLEEPER, end_all, until
from tests.system.parties import audit, child, grant, register
from tests.system.writer import Watcher, Writer

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 4
n_ctx = 1024
price_in = 1.0
price_out = 10.0
options = {step_ms = 1, eog = 0.0}
[memory]
embedder = "none"
"""


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Daemon]:
    """A daemon with one core of four slots, at prices; for tests that leave it as it is."""
    places = [world.make(must_end_empty=empty) for empty in (False, True, True)]
    world.state_dirs.append(places[0])
    with Daemon(*places, config=CORE) as running:
        yield running


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The daemon that tests share; their agents end with them."""
    yield shared
    end_all(shared)


@pytest.fixture
def mortal(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """Such a daemon of a test's own, to be killed or to have a uid limited."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE) as running:
        yield running
        end_all(running)


@pytest.fixture
def root(shared: Daemon) -> Iterator[Client]:
    """The owner of the daemon that is shared."""
    with shared.connect() as client:
        yield client


@pytest.fixture
def master(mortal: Daemon) -> Iterator[Client]:
    """The owner of a test's own daemon."""
    with mortal.connect() as client:
        yield client


def limit(client: Client, subject: str, resource: str, most: float, **more: Any) -> Quota:
    """Set a limit."""
    row = client.call(SetQuota(subject, resource, most, **more))
    assert isinstance(row, Quota)
    return row


def quota(client: Client, subject: str, resource: str, by: str = "root", whose: str = "") -> Quota:
    """Return a limit as it stands, of those that bind its subject, or another one."""
    [row] = [
        row
        for row in client.call(GetQuota(whose or subject))
        if (row.subject, row.resource, row.by) == (subject, resource, by)
    ]
    assert isinstance(row, Quota)
    return row


def refused(client: Client, args: Call, number: int = errno.EDQUOT) -> str:
    """Make a call that is refused; return the sentence."""
    with pytest.raises(OSError, match=": ") as caught:
        client.call(args)
    assert caught.value.errno == number, caught.value
    return str(caught.value)


def too_much(a: Writer, prompt: str = "hello", **options: Any) -> str:
    """Ask for what a quota forbids; return the sentence."""
    with pytest.raises(OSError, match="quota of") as caught:
        a.ask(prompt, **options)
    assert caught.value.errno == errno.EDQUOT, caught.value
    return str(caught.value)


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """Look into the database beside the kernel."""
    with closing(sqlite3.connect(daemon.state_dir / "aios.db", timeout=20)) as db:
        return db.execute(query).fetchall()


def answers(a: Writer, asked: list[int]) -> list[Generation]:
    """Return what of several requests was answered; the others were refused by a quota."""
    found, refusals = [], []
    for each in asked:
        try:
            found.append(a.finish(each))
        except ConnectionError:  # the kernel died
            raise
        except OSError as error:
            refusals.append(error.errno)
    assert set(refusals) <= {errno.EDQUOT}
    return found


def spent(reply: Generation) -> int:
    """Return the tokens that a reply is charged."""
    usage = reply.usage
    return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens


# Requests.


def test_tokens_are_reserved_at_worst_and_settled_in_truth(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        assert limit(root, me, "tokens", 100).used == 0
        reply = a.ask("hello", max_tokens=30)
        assert (spent(reply), quota(root, me, "tokens").used) == (35, 35)
        said = too_much(a, max_tokens=61)  # 5 + 61 is one more than is left
        assert "66 more tokens are more than the 65" in said and "never resets" in said
        assert a.ask("hello", max_tokens=60).finish_reason == "length"
        row = quota(a, me, "tokens")
        assert (row.used, row.reserved) == (100, 0)
        assert "1 more tokens are more than the 0" in too_much(a, max_tokens=1)
        [use] = root.call(GetUsage(me))
        assert use.requests in [r.requests for r in root.call(GetUsage("kernel", by="agent"))]
        assert (use.core, use.tokens_in, use.tokens_out, use.requests) == ("c", 10, 90, 2)


def test_dollars_by_the_price_of_the_core(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        limit(root, me, "dollars", 0.0005)  # 5 tokens in, 30 out: 5 + 300 millionths
        reply = a.ask("hello", max_tokens=30)
        assert reply.usage.dollars == pytest.approx(305e-6)
        assert quota(a, me, "dollars").used == pytest.approx(305e-6)
        assert "0.000205 more dollars" in too_much(a, max_tokens=20)
        assert a.ask("hello", max_tokens=19).usage.dollars == pytest.approx(195e-6)
        [use] = a.call(GetUsage(by="day"))
        assert use.dollars == pytest.approx(500e-6) and use.until - use.since == 86400


def test_requests_in_a_period(mortal: Daemon, master: Client) -> None:
    with Writer(mortal) as a:
        me = f"agent:{a.aid}"
        row = limit(master, me, "requests", 2, period=3600.0)
        for _ in range(2):
            a.ask(max_tokens=2)
        said = too_much(a, max_tokens=2)
        assert "it resets at 20" in said and "requests 2 set by root" in said
        assert row.resets - 3600 < quota(a, me, "requests").resets <= row.resets + 3600
        credential = a.credential
        mortal.stop(signal.SIGKILL)
        with closing(sqlite3.connect(mortal.state_dir / "aios.db")) as db, db:
            db.execute("update limits set since = since - 7200")
    mortal.start()
    with Writer(mortal, credential=credential) as a:  # two periods later
        assert quota(a, me, "requests").used == 0
        a.ask(max_tokens=2)
        assert quota(a, me, "requests").used == 1
        assert quota(a, me, "requests").resets == pytest.approx(row.resets, abs=1e-3)


def test_requests_in_flight(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        limit(root, me, "concurrent", 2)
        root.call(SuspendAgent(a.aid))
        waiting = [a.submit(max_tokens=3) for _ in range(2)]
        assert "wait for one to end" in too_much(a, max_tokens=3)
        assert quota(root, me, "concurrent").reserved == 2
        root.call(ResumeAgent(a.aid))
        assert all(a.finish(each).finish_reason == "length" for each in waiting)
        assert quota(root, me, "concurrent").reserved == 0
        a.ask(max_tokens=3)


def test_64_at_once_never_overspend(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        limit(root, me, "tokens", 333)
        asked = [a.submit(f"p{n:03}", max_tokens=8) for n in range(64)]  # 12 tokens at worst
        answered = answers(a, asked)
        row = quota(a, me, "tokens")
        assert row.used == sum(map(spent, answered)) == 27 * 12 and row.reserved == 0


def test_a_limit_set_late_counts_what_is_in_flight(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        wanted = a.begin(max_tokens=400)
        a.read_tokens(wanted, 1)
        root.call(SuspendAgent(a.aid))
        assert limit(root, me, "tokens", 500).reserved == 405
        assert rows(daemon, "select count(*) from reservations") == [(1,)]
        said = too_much(a, max_tokens=100)
        assert "405 reserved" in said
        root.call(ResumeAgent(a.aid))
        a.finish(wanted)
        row = quota(a, me, "tokens")
        assert (row.used, row.reserved) == (405, 0)
        assert rows(daemon, "select count(*) from reservations") == [(0,)]


def test_a_soft_limit_tells_and_refuses_nothing(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a, Watcher(daemon, "quota.") as watcher:
        me = f"agent:{a.aid}"
        limit(root, me, "tokens", 20, hard=False)
        assert a.ask("hello", max_tokens=30).finish_reason == "length"
        told = watcher.await_event("quota.over", subject=me)
        assert (told.aid, told.data["resource"], told.data["limit"]) == (a.aid, "tokens", 20)
        row = quota(a, me, "tokens")
        assert (row.used, row.hard) == (35, False)


def test_the_kernels_own_thinking_is_charged(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        limit(root, me, "tokens", 100_000)
        limit(root, me, "requests", 100)
        first = a.ask("x" * 700, max_tokens=100, window="summarize")
        more = a.ask("y" * 700, max_tokens=10, context=first.context)
        row = quota(a, me, "tokens")
        assert row.used > spent(first) + spent(more) and row.reserved == 0
        assert quota(a, me, "requests").used == 2


# Whom a limit binds.


def test_a_child_never_escapes_its_parents_limit(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        limit(root, me, "tokens", 100)
        young = a.call(Fork(a.aid))
        with Writer(daemon, credential=young.credential) as b:
            b.ask("hello", max_tokens=55)
            assert f"quota of {me}" in too_much(b, max_tokens=36)
            assert (
                quota(b, me, "tokens", whose=f"agent:{b.aid}").used
                == quota(a, me, "tokens").used
                == 60
            )
            a.ask("hello", max_tokens=35)
            assert "more than the 0" in too_much(b, max_tokens=1)
            limit(a, f"agent:{b.aid}", "requests", 0)  # a parent limits its child
            assert f"requests 0 set by {me}" in too_much(b, max_tokens=1)
            refused(b, SetQuota(f"agent:{b.aid}", "requests", 9), errno.EPERM)
        [use] = a.call(GetUsage())
        assert (use.tokens_in + use.tokens_out, use.requests) == (100, 2)


def test_limits_of_uid_and_group(mortal: Daemon, master: Client) -> None:
    with Writer(mortal, "a") as a, Writer(mortal, "b") as b, Writer(mortal, "c") as c:
        for writer in (a, b):
            grant(master, f"agent:{writer.aid}", "member", "group:team")
        limit(master, "group:team", "tokens", 40)
        limit(master, f"uid:{a.welcome.uid}", "requests", 4)
        a.ask("hello", max_tokens=15)
        b.ask("hello", max_tokens=15)
        assert "quota of group:team" in too_much(b, max_tokens=1)
        c.ask("hello", max_tokens=15)
        c.ask("hello", max_tokens=15)
        assert f"quota of uid:{a.welcome.uid}" in too_much(c, max_tokens=1)
        [use] = master.call(GetUsage("group:team"))
        assert (use.tokens_in, use.tokens_out) == (10, 30)
        [use] = master.call(GetUsage(f"uid:{a.welcome.uid}"))
        assert use.requests == 4
        [use] = master.call(GetUsage(by="group"))
        assert (use.subject, use.tokens_out) == ("group:team", 30)
        rows = master.call(GetUsage(f"uid:{a.welcome.uid}", by="agent"))
        used = {row.subject: row.requests for row in rows}
        assert used == {f"agent:{a.aid}": 1, f"agent:{b.aid}": 1, f"agent:{c.aid}": 2}
        assert c.call(GetUsage(by="group")) == []
        refused(c, GetUsage("kernel"), errno.EPERM)
        refused(master, GetUsage("group:team", by="group"), errno.EINVAL)
        refused(c, GetQuota("group:team"), errno.EPERM)
        assert quota(b, "group:team", "tokens", whose=f"agent:{b.aid}").used == 40


def test_children(daemon: Daemon, root: Client) -> None:
    one, a = register(daemon, "one")
    limit(root, f"agent:{a}", "children", 2)
    two, b = child(daemon, one, a)
    three, _ = child(daemon, two, b)
    for client, aid in ((one, a), (two, b)):
        assert "let some end" in refused(client, Fork(aid))
        refused(client, Spawn(SLEEPER))
    assert quota(root, f"agent:{a}", "children").used == 2
    three.call(Exit(0))
    four, _ = child(daemon, one, a)
    for client in (one, two, three, four):
        client.close()


# What is held.


def test_memory_of_an_agent_and_all_below_it(mortal: Daemon, master: Client) -> None:
    one, a = register(mortal, "one")
    two, b = child(mortal, one, a)
    first = one.call(AddMemory("before there was a limit"))
    assert limit(master, f"agent:{a}", "memory_records", 2).used == 1
    two.call(AddMemory("mine"))
    for client in (one, two):
        assert f"quota of agent:{a}" in refused(client, AddMemory("too much"))
    assert quota(two, f"agent:{a}", "memory_records", whose=f"agent:{b}").used == 2
    mortal.stop(signal.SIGKILL)
    mortal.start()
    with mortal.connect() as person:
        assert quota(person, f"agent:{a}", "memory_records").used == 2
        one.close()
        two.close()
        assert first.id > 0


def test_storage_and_what_is_given_back(mortal: Daemon, master: Client) -> None:
    one, a = register(mortal, "one")
    limit(master, f"agent:{a}", "storage_bytes", 100)
    limit(master, f"uid:{one.welcome.uid}", "storage_objects", 2)
    one.call(StoWrite("x", b"x" * 60))
    assert "41 more bytes of storage are more than the 40" in refused(one, StoWrite("y", b"y" * 41))
    assert quota(one, f"agent:{a}", "storage_bytes").used == 60
    one.call(StoDelete("x"))
    one.call(StoWrite("y", b"y" * 100))
    master.call(StoWrite("z", b"z"))  # a person's count for his uid too
    assert f"quota of uid:{one.welcome.uid}" in refused(master, StoWrite("w", b"w"))
    one.close()


def test_root_lifts_what_the_configuration_says(mortal: Daemon, master: Client) -> None:
    with mortal.config.open("a") as file:
        file.write("[storage]\nbytes = 10\n")
    mortal.stop(signal.SIGTERM)
    mortal.start()
    one, a = register(mortal, "one")
    assert "[storage]" in refused(one, StoWrite("x", b"x" * 20))
    with mortal.connect() as person:
        limit(person, f"agent:{a}", "storage_bytes", 30)
    one.call(StoWrite("x", b"x" * 20))
    assert f"quota of agent:{a}" in refused(one, StoWrite("y", b"y" * 20))
    one.close()


def test_memory_is_counted_out_when_it_goes(daemon: Daemon, root: Client) -> None:
    one, a = register(daemon, "one")
    limit(root, f"agent:{a}", "memory_records", 1)
    record = one.call(AddMemory("one"))
    refused(one, AddMemory("two"))
    one.call(DeleteMemory(record.id))
    one.call(AddMemory("two"))
    one.close()


def test_working_memory(daemon: Daemon, root: Client) -> None:
    one, a = register(daemon, "one")
    limit(root, f"agent:{a}", "working_bytes", 1000)
    assert one.call(MemWrite("x", b"x" * 100)).limit == 1000  # what is left, not the default
    assert f"quota of agent:{a}" in refused(one, MemWrite("y", b"y" * 900))
    assert f"quota of agent:{a}" in refused(one, MemAlloc(1001))
    assert one.call(MemAlloc(500)).limit == 500
    two, _ = child(daemon, one, a)
    assert quota(root, f"agent:{a}", "working_bytes").used == 1000  # a fork has a copy
    assert "more than the 0" in refused(two, MemAlloc(501))
    for client in (one, two):
        client.close()


def test_kv_of_idle_contexts_goes_first(daemon: Daemon, root: Client) -> None:
    with Writer(daemon, "solo") as solo, Writer(daemon) as a:
        alone = solo.ask("x" * 20, max_tokens=10)
        alone_more = solo.ask("z", context=alone.context, max_tokens=10)
        first = a.ask("x" * 20, max_tokens=10)
        [row] = a.call(ListContexts(a.aid))
        per = (row.ram + row.disk) // row.kv
        limit(root, f"agent:{a.aid}", "kv_bytes", 45 * per)
        second = a.ask("y" * 20, max_tokens=10)
        tiers = {row.cid: row.tier for row in a.call(ListContexts(a.aid))}
        assert tiers[first.context] == "tokens" and tiers[second.context] != "tokens"
        more = a.ask("z", context=first.context, max_tokens=10)  # computed again, the same
        assert more.token_ids == alone_more.token_ids and more.exact
        assert "bytes of KV" in too_much(a, "w" * 40, max_tokens=10)
        assert quota(root, f"agent:{a.aid}", "kv_bytes").used <= 45 * per


def test_named_snapshots_count_as_kv(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        told = a.ask("x" * 20, max_tokens=10)
        size = a.call(GenSnapshot(told.context)).bytes
        held = int(limit(root, me, "kv_bytes", 1 << 40).used)
        assert held >= 2 * size  # its own file and the snapshot's
        limit(root, me, "kv_bytes", held + size - 1)
        assert "gen_snapshot" in refused(a, GenSnapshot(told.context))
        assert len(a.call(ListSnapshots(told.context))) == 1
        limit(root, me, "kv_bytes", held + size)
        mark = a.call(GenSnapshot(told.context))
        assert 2 * size < quota(root, me, "kv_bytes").used <= held + size
        a.call(GenRestore(told.context, mark.id))  # takes nothing more
        assert size <= quota(root, me, "kv_bytes").used <= held + size
        a.ask("y" * 20, max_tokens=10)  # the KV beside the snapshots goes
        assert 2 * size <= quota(root, me, "kv_bytes").used <= held + size


# Who may.


def test_who_may_set_a_limit(daemon: Daemon, root: Client) -> None:
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    for subject in (f"agent:{a}", f"agent:{b}", f"uid:{one.welcome.uid}"):
        refused(one, SetQuota(subject, "tokens", 10**9), errno.EPERM)
    refused(one, GetQuota(f"agent:{b}"), errno.EPERM)
    refused(one, GetUsage(f"agent:{b}"), errno.EPERM)
    grant(root, f"agent:{a}", "admin", "kernel")
    limit(one, f"agent:{b}", "tokens", 10)
    assert quota(two, f"agent:{b}", "tokens", by=f"agent:{a}").limit == 10
    for subject in (f"agent:{a}", f"uid:{one.welcome.uid}"):  # a right over all, never over itself
        assert "never sets its own" in refused(one, SetQuota(subject, "tokens", 9), errno.EPERM)
    denied = [record.data["call"] for record in audit(root, kind="access.deny", aid=a)]
    assert {"set_quota", "get_quota", "get_usage"} <= set(denied)
    for client in (one, two):
        client.close()


def test_a_limit_is_changed_and_taken_away(daemon: Daemon, root: Client) -> None:
    with Writer(daemon) as a:
        me = f"agent:{a.aid}"
        refused(root, SetQuota(me, "tokens", 0, remove=True), errno.ENOENT)
        limit(root, me, "tokens", 10)
        too_much(a, max_tokens=30)
        limit(root, me, "tokens", 50, key="k")
        assert limit(root, me, "tokens", 50, key="k").limit == 50
        a.ask("hello", max_tokens=30)
        row = limit(root, me, "tokens", 35)
        assert (row.used, row.limit) == (35, 35)  # what was used stays
        assert limit(root, me, "tokens", 0, remove=True).limit == 35
        assert root.call(GetQuota(me)) == []
        a.ask("hello", max_tokens=300)
        facts = [record.data for record in audit(root, kind="quota.set", aid=a.aid)]
        assert [fact.get("quota", {}).get("limit") for fact in facts] == [10, 50, 35, None]
        assert facts[1]["was"]["limit"] == 10 and facts[3]["removed"][0]["limit"] == 35


NONSENSE = [
    ("agent:{}", "token", 1, 0, "field 'resource': there is no 'token', did you mean 'tokens'"),
    ("agent:{}", "tokens", -1, 0, "field 'limit'"),
    ("agent:{}", "dollars", math.nan, 0, "field 'limit'"),
    ("agent:{}", "tokens", 0.5, 0, "field 'limit': 0.5 tokens: a whole number"),
    ("agent:{}", "tokens", 1, 1e9, "field 'period': 1e+09 s, it is 1 to"),
    ("agent:{}", "children", 1, 60, "field 'period': children are held"),
    ("agent:x", "tokens", 1, 0, "subject: 'agent:x' is not agent:AID"),
    ("kernel", "tokens", 1, 0, "field 'subject'"),
]


def test_what_means_nothing_is_refused(daemon: Daemon, root: Client) -> None:
    one, a = register(daemon, "one")
    for subject, resource, most, period, words in NONSENSE:
        args = SetQuota(subject.format(a), resource, most, period=float(period))
        assert words in refused(root, args, errno.EINVAL)
    refused(root, SetQuota("agent:99999", "tokens", 1), errno.ESRCH)
    refused(root, SetQuota("group:none", "tokens", 1), errno.ENOENT)
    assert "field 'by'" in refused(root, GetUsage(by="week"), errno.EINVAL)
    one.close()


# Kills.

REQUESTS = 14  # of 5 + 15 tokens each, and the limit has room for ten
MOST = 200


def _ask_all(a: Writer) -> list[int]:
    """Ask for all, by key; return the tokens of those answered. EOFError when the kernel dies."""
    asked = [a.submit(f"p{n:04}", max_tokens=15, key=f"k{n}") for n in range(REQUESTS)]
    return [spent(reply) for reply in answers(a, asked)]


@pytest.mark.parametrize(
    "point",
    ["journal.begin:3", "quota.reserve:1", "quota.reserve:4", "quota.reserved", "quota.settle:1",
     "quota.settle:3", "journal.end:2", "db.committed:9"],
)  # fmt: skip
def test_a_kill_at_any_moment_overspends_nothing(
    mortal: Daemon, master: Client, point: str
) -> None:
    a = Writer(mortal)
    me = f"agent:{a.aid}"
    limit(master, me, "tokens", MOST)
    mortal.stop(signal.SIGKILL)
    a.close()
    mortal.environ[VARIABLE] = point
    mortal.start()
    a = Writer(mortal, credential=a.credential)
    with pytest.raises((EOFError, ConnectionError)):
        _ask_all(a)
    a.close()
    mortal.process.wait(20)
    [(used,)] = rows(mortal, "select used from limits")
    held = "select coalesce(sum(json_extract(amounts, '$.tokens')), 0) from reservations"
    [(reserved,)] = rows(mortal, held)
    assert used + reserved <= MOST
    mortal.stop(signal.SIGKILL)
    mortal.environ.clear()
    mortal.start()
    a = Writer(mortal, credential=a.credential)
    answered = _ask_all(a)
    row = quota(a, me, "tokens")
    assert (answered, row.used, row.reserved) == ([20] * 10, MOST, 0)
    assert rows(mortal, "select count(*) from reservations") == [(0,)]
    a.close()


def test_who_does_not_ask_again_is_charged_what_is_on_record(
    mortal: Daemon, master: Client
) -> None:
    with Writer(mortal) as a:
        me = f"agent:{a.aid}"
        limit(master, me, "tokens", 1000)
        wanted = a.begin("hello", max_tokens=900)
        a.read_tokens(wanted, 5)
        until(lambda: rows(mortal, "select 1 from contexts where kv > 0") != [], "it is on record")
        mortal.stop(signal.SIGKILL)
        credential = a.credential
    assert rows(mortal, "select json_extract(amounts, '$.tokens') from reservations") == [(905,)]
    mortal.start()
    with Writer(mortal, credential=credential) as a:
        until(lambda: rows(mortal, "select 1 from requests") != [], "its end is on record")
        [(read, said)] = rows(mortal, "select prompt_tokens, completion_tokens from requests")
        row = quota(a, me, "tokens")
        assert (row.used, row.reserved) == (read + said, 0) and 5 < row.used <= 905
        assert rows(mortal, "select used from limits") == [(row.used,)]


def test_a_reservation_that_nobody_takes_up_counts_at_worst(mortal: Daemon, master: Client) -> None:
    with Writer(mortal) as a:
        me = f"agent:{a.aid}"
        limit(master, me, "tokens", 100)
        mortal.stop(signal.SIGKILL)
        with closing(sqlite3.connect(mortal.state_dir / "aios.db")) as db, db:
            values = (77, a.aid, f'["{me}"]', '{"tokens":40,"requests":1}')
            db.execute("insert into reservations values (?, ?, ?, ?)", values)
    mortal.start()
    with mortal.connect() as person:
        row = quota(person, me, "tokens")
        assert (row.used, row.reserved) == (40, 0)
        until(lambda: rows(mortal, "select used from limits") == [(40,)], "it is settled")


def test_a_limit_is_whole_or_not_there_after_a_kill(mortal: Daemon, master: Client) -> None:
    one, a = register(mortal, "one")
    mortal.stop(signal.SIGKILL)
    mortal.environ[VARIABLE] = "quota.set"
    mortal.start()
    with mortal.connect() as person, pytest.raises((EOFError, ConnectionError)):
        limit(person, f"agent:{a}", "tokens", 100)
    mortal.process.wait(20)
    mortal.stop(signal.SIGKILL)
    mortal.environ.clear()
    mortal.start()
    with mortal.connect() as person:
        assert person.call(GetQuota(f"agent:{a}")) == []
        assert audit(person, kind="quota.set") == []
        limit(person, f"agent:{a}", "tokens", 100)
        mortal.stop(signal.SIGKILL)
    mortal.start()
    with mortal.connect() as person:
        assert quota(person, f"agent:{a}", "tokens").limit == 100
        told = audit(person, kind="quota.set")  # after a kill perhaps twice, and known as one
        assert len({record.data["owed"] for record in told}) == 1
    one.close()
