"""A table of attacks, each refused and on record: what one agent may try against another.

The attacker is an agent of the same user, or another user's person; the victim is an agent with a
child, a context, a snapshot and a secret. After every attack the victim is as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi import inference as abi
from aiosd.abi.accounts import (
    Approve,
    DecryptData,
    EncryptData,
    Grant,
    ListGrants,
    ListPending,
    ReadAudit,
    Revoke,
)
from aiosd.abi.call import Call
from aiosd.abi.cores import AddCore, DrainCore, RemoveCore
from aiosd.abi.memory import (
    AddMemory,
    DeleteMemory,
    GetMemory,
    MemRead,
    MemWrite,
    SearchMemory,
    UpdateMemory,
)
from aiosd.abi.messages import Publish, RecvMessage, SendMessage
from aiosd.abi.process import (
    Attach,
    AuthenticateAgent,
    Fork,
    GetPriority,
    GetStatus,
    Kill,
    ListAgents,
    LogEvent,
    QueryHistory,
    ReadLog,
    ResumeAgent,
    SetAid,
    SetPriority,
    SetSched,
    SetStatus,
    Spawn,
    SuspendAgent,
    UpdateAgentConfig,
    Wait,
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
from aiosd.audit import FLOOD, REPEAT_S
from tests.daemon import Client, Daemon, answer
from tests.system.agents import end_all, hello, log, processes_below, spawn, until
from tests.system.parties import audit, child, grant, register
from tests.system.test_uids import GROUP, as_nobody

CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 2\n'


@dataclass
class Scene:
    """Who is there, and what the victim has."""

    daemon: Daemon
    owner: Client
    victim: Client
    v: int
    mallory: Client
    m: int
    mine: int  # a context of the attacker's own
    cid: int
    snapshot: int
    sealed: bytes
    grant: int
    question: int
    record: int  # of its memory
    shared: int  # of its family's
    attacks: list[float] = field(default_factory=list)  # when they were

    def pace(self) -> None:
        """Wait where so many attacks would be counted as a flood, not recorded each."""
        recent = self.attacks[-FLOOD // 2 :]
        while len(recent) == FLOOD // 2 and time.monotonic() < recent[0] + 2 * REPEAT_S:
            time.sleep(0.05)
        self.attacks.append(time.monotonic())

    def kept(self) -> object:
        """Return what the victim has in memory and storage, its family's too."""
        return (
            [self.victim.call(GetMemory(id)) for id in (self.record, self.shared)],
            self.victim.call(MemRead("note")),
            [self.victim.call(StoHistory("diary", pool=pool)) for pool in ("", "family")],
        )

    def state(self) -> object:
        """Return what no attack may change."""
        rows = self.owner.call(ListAgents(all=True))
        [row] = [row for row in rows if row.aid == self.v]
        return (
            row.state, row.name, row.nice, row.note, [r.aid for r in rows],
            [(c.cid, c.tokens) for c in self.owner.call(abi.ListContexts(self.v))],
            self.owner.call(abi.ListSnapshots(self.cid)), self.owner.call(ListGrants()),
            self.owner.call(ListPending()), self.kept(),
        )  # fmt: skip


def generate(client: Client, **more: Any) -> int:
    wanted = client.send(abi.LlmGenerate(prompt="my secret", max_tokens=4, **more))
    reply = client.read()
    assert (reply.id, reply.errno) == (wanted, 0)
    return int(answer(reply)["context"])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    base = Path(tempfile.mkdtemp(prefix="aios-", dir="/tmp"))  # where other users come, too
    base.chmod(0o755)
    places = [base / name for name in ("state", "run", "kv")]
    for place in (places[0], places[2]):
        place.mkdir(0o700)
    group = f'[kernel]\ngroup = "{GROUP}"\n' if os.geteuid() == 0 else ""
    memory = '[memory]\nembedder = "fake"\n'
    ask = '[access]\nask_timeout = "1h"\n'  # the question stays open all the while
    with Daemon(*places, config=group + memory + ask + CORE) as daemon:
        owner = daemon.connect()
        (victim, v), (mallory, m) = register(daemon, "victim"), register(daemon, "mallory")
        young, y = child(daemon, victim, v)
        cid, mine = generate(victim), generate(mallory)
        snapshot = victim.call(abi.GenSnapshot(cid)).id
        given = grant(owner, f"agent:{y}", "spawn", f"agent:{y}", "ask")
        young.send(Spawn(["true"]))
        until(lambda: bool(owner.call(ListPending())), "a request waits")
        [question] = owner.call(ListPending())
        sealed = victim.call(EncryptData(b"secret"))
        grant(owner, f"agent:{v}", "member", "group:family")
        victim.call(MemWrite("note", b"my secret"))
        record = victim.call(AddMemory("my secret")).id
        shared = victim.call(AddMemory("our secret", pool="family")).id
        for pool, text in (("", b"my secret"), ("family", b"our secret")) * 2:
            victim.call(StoWrite("diary", text, pool=pool, content_type="text/plain"))
        yield Scene(
            daemon, owner, victim, v, mallory, m, mine, cid, snapshot, sealed, given.id,
            question.id, record, shared,
        )  # fmt: skip
        for client in (owner, victim, mallory, young):
            client.close()
    shutil.rmtree(base)


Attack = Callable[[Scene], Call]

ATTACKS: dict[str, tuple[Attack, int]] = {
    "look at it": (lambda s: GetStatus(s.v), errno.EPERM),
    "look at its priority": (lambda s: GetPriority(s.v), errno.EPERM),
    "read its history": (lambda s: QueryHistory(s.v), errno.EPERM),
    "read what it asked": (lambda s: QueryHistory(s.v, "interaction"), errno.EPERM),
    "search what it asked": (lambda s: QueryHistory(s.v, text='my OR "*'), errno.EPERM),
    "read its output": (lambda s: ReadLog(s.v), errno.EPERM),
    "follow its tokens": (lambda s: Attach(s.v), errno.EPERM),
    "probe it": (lambda s: Kill(s.v, "0"), errno.EPERM),
    "end it": (lambda s: Kill(s.v, "TERM"), errno.EPERM),
    "kill it": (lambda s: Kill(s.v, "KILL"), errno.EPERM),
    "interrupt it": (lambda s: Kill(s.v, "INT", generation=True), errno.EPERM),
    "suspend it": (lambda s: SuspendAgent(s.v), errno.EPERM),
    "resume it": (lambda s: ResumeAgent(s.v), errno.EPERM),
    "suspend it by its status": (lambda s: SetStatus(s.v, "suspended"), errno.EPERM),
    "write its note": (lambda s: SetStatus(s.v, "pwned"), errno.EPERM),
    "slow it down": (lambda s: SetPriority(s.v, 19), errno.EPERM),
    "rename it": (lambda s: UpdateAgentConfig(s.v, name="mallory"), errno.EPERM),
    "reap it": (lambda s: Wait(s.v, timeout=0.0), errno.EPERM),
    "fork it": (lambda s: Fork(s.v), errno.EPERM),
    "fork it with a program": (lambda s: Fork(s.v, ["sh"]), errno.EPERM),
    "list its contexts": (lambda s: abi.ListContexts(s.v), errno.EPERM),
    "look at its context": (lambda s: abi.GetContext(s.cid), errno.EPERM),
    "change its context": (lambda s: abi.SetContext(s.cid, "slide"), errno.EPERM),
    "move its context": (lambda s: abi.ExpContext(s.cid, 128), errno.EPERM),
    "clear its context": (lambda s: abi.ClrContext(s.cid), errno.EPERM),
    "go on in its context": (lambda s: abi.LlmGenerate("and?", context=s.cid), errno.EPERM),
    "mark its context": (lambda s: abi.GenSnapshot(s.cid), errno.EPERM),
    "list its snapshots": (lambda s: abi.ListSnapshots(s.cid), errno.EPERM),
    "list all its snapshots": (lambda s: abi.ListSnapshots(aid=s.v), errno.EPERM),
    "roll it back": (lambda s: abi.GenRestore(s.cid, s.snapshot), errno.EPERM),
    "take its snapshot": (lambda s: abi.GenRestore(s.mine, s.snapshot), errno.ENOENT),
    "guess a context": (lambda s: abi.GetContext(2**50), errno.ENOENT),
    "write to it": (lambda s: SendMessage(s.v, "buy now"), errno.EPERM),
    "read its record": (lambda s: GetMemory(s.record), errno.ENOENT),
    "change its record": (lambda s: UpdateMemory(s.record, "pwned"), errno.ENOENT),
    "forget its record": (lambda s: DeleteMemory(s.record), errno.ENOENT),
    "read its family's record": (lambda s: GetMemory(s.shared), errno.ENOENT),
    "change its family's record": (lambda s: UpdateMemory(s.shared, "pwned"), errno.ENOENT),
    "guess a record": (lambda s: GetMemory(2**40), errno.ENOENT),
    "search its family's memory": (lambda s: SearchMemory("secret", pool="family"), errno.EPERM),
    "add to its family's memory": (lambda s: AddMemory("spam", pool="family"), errno.EPERM),
    "read its family's diary": (lambda s: StoRead("diary", pool="family"), errno.EPERM),
    "list its family's objects": (lambda s: StoList(pool="family"), errno.EPERM),
    "look at its family's versions": (lambda s: StoHistory("diary", pool="family"), errno.EPERM),
    "search its family's objects": (lambda s: StoSearch("secret", pool="family"), errno.EPERM),
    "write its family's diary": (lambda s: StoWrite("diary", b"", pool="family"), errno.EPERM),
    "begin to write its family's diary": (
        lambda s: StoWrite("diary", b"x", 0, False, "u", pool="family"), errno.EPERM
    ),
    "delete its family's diary": (lambda s: StoDelete("diary", pool="family"), errno.EPERM),
    "roll back its family's diary": (lambda s: StoRollback("diary", 1, pool="family"), errno.EPERM),
    "take its family's room": (lambda s: StoAlloc(1 << 30, pool="family"), errno.EPERM),
    "recall its family's secrets": (
        lambda s: abi.LlmGenerate("secret", recall="memory:family"), errno.EPERM
    ),
    "recall its family's diary": (
        lambda s: abi.LlmGenerate("secret", recall="storage:family"), errno.EPERM
    ),
    "guess a pool": (lambda s: StoList(pool="secrets"), errno.EPERM),
    "join its family": (
        lambda s: Grant(f"agent:{s.m}", "member", "group:family"), errno.EPERM
    ),
    "a right to its family's pool": (
        lambda s: Grant(f"agent:{s.m}", "pool.read", "group:family"), errno.EPERM
    ),
    "decrypt its data": (lambda s: DecryptData(s.sealed), errno.EBADMSG),
    "guess an aid": (lambda s: Kill(2**30, "TERM"), errno.ESRCH),
    "guess an aid to look at": (lambda s: GetStatus(2**30), errno.ESRCH),
    "guess its credential": (lambda s: SetAid(s.v, secrets.token_urlsafe(32)), errno.EACCES),
    "guess any credential": (lambda s: AuthenticateAgent("0" * 43), errno.EACCES),
    "its digest as a credential": (lambda s: AuthenticateAgent("e3b0" * 16), errno.EACCES),
    "raise its priority": (lambda s: SetPriority(s.m, -20), errno.EACCES),
    "an urgent child": (lambda s: Spawn(["true"], nice=-1), errno.EPERM),
    "grant itself a right": (
        lambda s: Grant(f"agent:{s.m}", "observe", f"agent:{s.v}"), errno.EPERM
    ),
    "grant itself everything": (
        lambda s: Grant(f"agent:{s.m}", "admin", "kernel"), errno.EPERM
    ),
    "join with it in a group": (
        lambda s: Grant(f"agent:{s.v}", "member", "group:trap"), errno.EPERM
    ),
    "take away a grant": (lambda s: Revoke(s.grant), errno.ENOENT),
    "approve for its owner": (lambda s: Approve(s.question, True), errno.EPERM),
    "read the audit log": (lambda s: ReadAudit(), errno.EPERM),
    "change the policy": (lambda s: SetSched("fifo"), errno.EPERM),
    "add a core": (lambda s: AddCore("/etc/passwd"), errno.EPERM),
    "drain the core": (lambda s: DrainCore("c"), errno.EPERM),
    "remove the core": (lambda s: RemoveCore("c"), errno.EPERM),
}  # fmt: skip


def attempt(client: Client, args: Call) -> int:
    """Make a call; return the errno of its answer."""
    wanted = client.send(args)
    reply = client.read()
    assert (reply.id, reply.more) == (wanted, False)
    return reply.errno


@pytest.mark.parametrize("name", ATTACKS)
def test_an_agent_attacks_another(scene: Scene, name: str) -> None:
    attack, number = ATTACKS[name]
    before = scene.state()
    args = attack(scene)
    scene.pace()
    assert attempt(scene.mallory, args) == number
    assert scene.state() == before
    call = BY_ARGS[type(args)].name
    on_record = {  # what comes again within a second is counted in the record of the first
        (record.data["call"], record.data["errno"])
        for record in audit(scene.owner, kind="access.")
        if record.kind in ("access.deny", "access.miss") and record.aid == scene.m
    }
    assert (call, errno.errorcode[number]) in on_record


ALLOWED = (
    "raise",
    "urgent",
    "guess",
    "digest",
    "take its snapshot",
    "write its note",
    "read the a",
)
"""Attacks that another person may not try, may do, or that end otherwise."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
@pytest.mark.parametrize("name", [n for n in ATTACKS if not n.startswith(ALLOWED)])
def test_another_user_attacks_an_agent(scene: Scene, name: str) -> None:
    attack, number = ATTACKS[name]
    if name in ("go on in its context",):
        number = errno.ESRCH  # a person generates nothing
    with as_nobody():
        stranger = scene.daemon.connect()
    before = scene.state()
    assert attempt(stranger, attack(scene)) == number
    assert scene.state() == before
    assert stranger.call(ListAgents(all=True)) == []
    assert stranger.call(QueryHistory()) == stranger.call(QueryHistory(text="secret")) == []
    assert stranger.call(abi.ListContexts()) == []
    assert stranger.call(ListGrants()) == stranger.call(ListPending()) == []
    stranger.close()


def test_what_is_listed_is_the_attackers_own(scene: Scene) -> None:
    mallory = scene.mallory
    assert {row.aid for row in mallory.call(ListAgents(all=True))} == {scene.m}
    assert {row.aid for row in mallory.call(QueryHistory())} == {scene.m}
    assert {row.aid for row in mallory.call(QueryHistory(text="secret"))} == {scene.m}
    assert {row.aid for row in mallory.call(abi.ListContexts())} == {scene.m}
    assert mallory.call(ListGrants()) == mallory.call(ListPending()) == []
    assert mallory.call(Publish("everybody", "spam")).receivers == 0
    assert mallory.call(RecvMessage(timeout=0.0)) == []


SYNTAX = [
    "' or 1=1 --",
    '"; drop table agents; --',
    "% _ * ?",
    "\x00",
    "a' union select * from agents",
]


FOUND = [*SYNTAX, "secret OR 1", "text : secret", "owner : 1", "secret*", "NEAR(secret my)", '"']


@pytest.mark.parametrize("text", FOUND)
def test_syntax_in_a_query_finds_nothing_of_others(scene: Scene, text: str) -> None:
    before = scene.state()
    for mode in ("keyword", "vector", "hybrid"):
        assert scene.mallory.call(SearchMemory(text, mode=mode)) == []
        assert scene.mallory.call(StoSearch(text, mode=mode)) == []
    assert scene.mallory.call(SearchMemory("x", metadata={text: text}, mode="keyword")) == []
    assert scene.mallory.call(StoList(prefix=text)) == []
    assert attempt(scene.mallory, StoRead(text)) == errno.ENOENT
    assert attempt(scene.mallory, StoSearch("x", prefix=text, mode="keyword")) == 0
    assert scene.state() == before


@pytest.mark.parametrize("text", SYNTAX)
def test_sql_in_arguments_is_text(scene: Scene, text: str) -> None:
    before = scene.state()
    assert scene.mallory.call(QueryHistory(kind=text[:64])) == []
    assert scene.mallory.call(QueryHistory(text=text, core=text)) == []
    assert scene.mallory.call(ListGrants(subject=text[:64])) == []
    assert attempt(scene.mallory, Grant(text, "observe", "uid:0")) == errno.EINVAL
    assert attempt(scene.mallory, Grant("uid:0", "observe", text)) == errno.EINVAL
    assert attempt(scene.mallory, AuthenticateAgent(text)) == errno.EACCES
    assert attempt(scene.mallory, SetStatus(scene.m, text)) == 0
    assert scene.state() == before


LARGE = "y" * (65 << 10)
NAN = float("nan")
MALFORMED: dict[str, Call] = {
    "a large event": LogEvent("big", {"x": LARGE}),
    "a deep event": LogEvent("deep", {"x": [[[[[[1]]]]]] * 20_000}),
    "a large publication": Publish("t", ["x" * 1000] * 66),
    "a record's large metadata": AddMemory("x", {"x": LARGE}),
    "a record's large field": AddMemory("x", {LARGE: 1}),
    "a record's many fields": AddMemory("x", {str(n): n for n in range(65)}),
    "an object's large metadata": StoWrite("x", b"", metadata={"x": LARGE}),
    "a query's large metadata": SearchMemory("x", metadata={"x": LARGE}),
    "a large credential": AuthenticateAgent(LARGE),
    "a path up": StoWrite("../../aios.db", b"x"),
    "a path from the root": StoWrite("/etc/passwd", b"x"),
    "a path with NUL": StoWrite("a\0b", b"x"),
    "a long path": StoWrite("a/" * 600, b"x"),
    "no number in metadata": AddMemory("x", {"x": NAN}),
    "no number deep in metadata": StoWrite("x", b"", metadata={"x": [{"y": float("inf")}]}),
    "no number as a time": SearchMemory("x", since=NAN),
    "no number as a temperature": abi.LlmGenerate("x", temperature=NAN),
    "no number as a bias": abi.LlmGenerate("x", logit_bias={1: NAN}),
    "no number as a deadline": abi.LlmGenerate("x", deadline=NAN),
    "no number as an expiry": Grant("uid:1", "observe", "uid:1", expires=NAN),
    "no number as a timeout": Wait(1, timeout=NAN),
}
"""What the kernel itself is attacked with. Vectors come from the embedder alone (test_embedder)."""


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused(scene: Scene, name: str) -> None:
    args, before = MALFORMED[name], scene.state()
    assert attempt(scene.mallory, args) == errno.EINVAL
    assert scene.state() == before
    call = BY_ARGS[type(args)].name
    records = audit(scene.owner, kind="access.invalid", aid=scene.m)
    assert any((r.data["call"], r.data["errno"]) == (call, "EINVAL") for r in records)


def test_a_one_time_credential_is_used_once(scene: Scene) -> None:
    script = (
        "import os, time; print(os.read(int(os.environ['AIOS_CREDENTIAL_FD']), 999).decode());"
        "time.sleep(600)"
    )
    aid = spawn(scene.owner, [sys.executable, "-uc", script])
    ticket = log(scene.daemon.connect(), aid, until="\n").strip()
    hello(scene.daemon, ticket).close()
    last = audit(scene.owner)[-1].id
    with pytest.raises(PermissionError):
        hello(scene.daemon, ticket)
    (record,) = audit(scene.owner, since=last, kind="access.deny")
    assert record.data["call"] == "hello"
    assert ticket not in str(record)
    scene.owner.call(Kill(aid, "KILL"))
    scene.owner.call(Wait(aid))


def test_no_secret_is_in_the_audit_log(scene: Scene) -> None:
    guess = secrets.token_urlsafe(32)
    assert attempt(scene.mallory, SetAid(scene.v, guess)) == errno.EACCES
    audit(scene.owner)
    logs = Path(scene.daemon.state_dir, "audit").iterdir()
    assert not any(guess.encode() in path.read_bytes() for path in logs)


@pytest.mark.parametrize(
    "name", ["aios.db", "audit", "agents", "work", "indexes", "blobs", "aiosd.lock"]
)
def test_a_link_in_the_state_directory_is_not_followed(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, tmp_path: Path, name: str
) -> None:
    """Planted before the daemon starts: it refuses to, and what the link leads to is untouched."""
    victim = tmp_path / "victim"
    if name not in ("aios.db", "aiosd.lock"):
        victim.mkdir()
        (victim / "precious").write_text("precious")
    else:
        victim.write_text("precious")
    (state_dir / name).symlink_to(victim)
    done = Daemon(state_dir, runtime_dir, kv_dir).run()
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    left = sorted(victim.iterdir()) if victim.is_dir() else [victim]
    assert [path.read_text() for path in left] == ["precious"]


def test_a_link_in_an_agents_place_is_not_followed(daemon: Daemon, tmp_path: Path) -> None:
    """Aids can be guessed: the directories of the next agents are links to somebody's files."""
    (tmp_path / "precious").write_text("precious")
    for folder in ("agents", "work"):
        (daemon.state_dir / folder).mkdir(exist_ok=True)
        for aid in range(2, 6):
            (daemon.state_dir / folder / str(aid)).symlink_to(tmp_path)
    with daemon.connect() as owner:
        for _ in range(4):
            assert attempt(owner, Spawn(["true"])) != 0
        assert owner.call(ListAgents()) == []
        end_all(daemon)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert processes_below(daemon.state_dir) == []
