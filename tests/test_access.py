"""What access decides: the rules alone, with a process table that is four lines long."""

from __future__ import annotations

import errno

import msgspec
import pytest

from aiosd.abi.accounts import GrantRecord
from aiosd.abi.call import Syscall
from aiosd.abi.process import Kill, ListAgents
from aiosd.abi.system import Ping
from aiosd.abi.table import BY_NAME, TABLE
from aiosd.access import Access, Caller
from aiosd.rights import CAPABILITIES, Book, Party, Verdict

UIDS = {2: 1000, 3: 1000, 4: 1000, 5: 1001}
LINEAGE = {3: (2,), 4: (2, 3)}


class Kin:
    """2 is the parent of 3, 3 of 4; 5 is another user's."""

    def uid_of(self, aid: int) -> int:
        if aid not in UIDS:
            raise ProcessLookupError(errno.ESRCH, f"there is no agent {aid}")
        return UIDS[aid]

    def lineage(self, aid: int) -> tuple[int, ...]:
        return LINEAGE.get(aid, ())


@pytest.fixture
def access() -> Access:
    access = Access(owner=900)
    access.kin = Kin()
    return access


def agent(aid: int) -> Caller:
    return Caller(UIDS[aid], 0, 0, aid)


def person(uid: int) -> Caller:
    return Caller(uid, 0, 0)


def give(
    access: Access,
    subject: str,
    capability: str,
    object: str,
    mode: str = "allow",
    expires: float = 0,
) -> int:
    id = len(access.book) + 1
    access.book.put(GrantRecord(id, subject, capability, object, mode, "uid:0", 0.0, expires))
    access.changed()
    return id


def test_every_capability_of_the_table_is_known() -> None:
    assert {call.needs for call in TABLE.values() if call.needs} <= CAPABILITIES


@pytest.mark.parametrize("who", [person(0), person(900), person(1000), agent(2)])
def test_an_unknown_capability_never_passes(access: Access, who: Caller) -> None:
    call: Syscall = msgspec.structs.replace(BY_NAME["ping"], needs="fly")
    with pytest.raises(PermissionError, match="'fly'"):
        access.permit(who, call, Ping())


@pytest.mark.parametrize(
    ("who", "target", "may"),
    [
        (person(0), 5, True), (person(900), 5, True), (person(1000), 2, True),
        (person(1000), 5, False), (person(1001), 5, True), (agent(2), 2, True),
        (agent(2), 3, True), (agent(2), 4, True), (agent(3), 4, True), (agent(3), 2, False),
        (agent(4), 3, False), (agent(2), 5, False), (agent(5), 2, False),
    ],
)  # fmt: skip
def test_the_rules_without_grants(access: Access, who: Caller, target: int, may: bool) -> None:
    for _ in range(2):  # decided, and remembered
        assert access.may(who, target, "signal") is may
        assert access.may_see(who, target) is may


def test_a_child_may_write_to_its_parent_and_no_further(access: Access) -> None:
    assert access.may(agent(3), 2, "message")
    assert access.may(agent(4), 3, "message")
    assert not access.may(agent(4), 2, "message")
    assert not access.may(agent(3), 2, "observe")


def test_what_is_decided_is_told_once_and_only_about_others(access: Access) -> None:
    told: list[tuple[str, int, str]] = []
    access.witness = lambda kind, caller, target, data: told.append((kind, target, data["call"]))
    kill = BY_NAME["kill"]
    access.permit(agent(2), kill, Kill(2))
    access.permit(agent(2), BY_NAME["list_agents"], ListAgents())
    access.may_see(agent(2), 3)
    assert told == []
    access.permit(agent(2), kill, Kill(3))
    with pytest.raises(PermissionError) as caught:
        access.permit(agent(2), kill, Kill(5))
    access.refused(agent(2), kill, Kill(5), errno.EPERM, str(caught.value))
    assert told == [("access.allow", 3, "kill"), ("access.deny", 5, "kill")]


def test_the_narrowest_subject_decides_and_ask_before_allow() -> None:
    book = Book()
    grants = [("group:g", "ask"), ("group:h", "allow"), ("agent:2", "allow")]
    for id, (subject, mode) in enumerate(grants, 1):
        book.put(GrantRecord(id, subject, "signal", "agent:5", mode, "", 0.0, 0.0))
    both = Party("agent:2", ("g", "h"))
    assert book.verdict(both, "signal", {"agent:5"}) is Verdict.ALLOW
    assert book.verdict(both, "observe", {"agent:5"}) is None
    book.drop(3)
    assert book.verdict(both, "signal", {"agent:5"}) is Verdict.ASK
    book.drop(1)
    assert book.verdict(both, "signal", {"agent:5"}) is Verdict.ALLOW
    assert (book.asks, len(book)) == (0, 1)


def test_a_line_is_as_strong_as_its_weakest(access: Access) -> None:
    give(access, "agent:4", "signal", "agent:5")
    assert not access.may(agent(4), 5, "signal")
    give(access, "agent:3", "signal", "uid:1001")
    assert not access.may(agent(4), 5, "signal")
    ask = give(access, "agent:2", "signal", "agent:5", "ask")
    assert access.permit(agent(4), BY_NAME["kill"], Kill(5)) is True
    access.book.drop(ask)
    give(access, "agent:2", "signal", "agent:5")
    assert access.may(agent(4), 5, "signal")
    access.set_policy(["signal"], "persons")
    assert access.permit(agent(3), BY_NAME["kill"], Kill(4)) is True  # kin, but it is to ask


def test_grants_end(access: Access) -> None:
    now = [100.0]
    access._clock = lambda: now[0]
    gone: list[object] = []
    access.on_expired = gone.extend
    give(access, "agent:5", "observe", "agent:2", expires=150.0)
    give(access, "uid:1001", "observe", "uid:1000", expires=200.0)
    assert access.may(agent(5), 2, "observe")
    assert access.may(person(1001), 3, "observe")
    now[0] = 150.0
    assert not access.may(agent(5), 2, "observe")
    assert access.may(person(1001), 3, "observe")
    now[0] = 200.0
    assert not access.may(person(1001), 3, "observe")
    assert len(gone) == 2


@pytest.mark.parametrize("grantors", ["owner", "persons", "agents"])
def test_who_may_grant(access: Access, grantors: str) -> None:
    access.set_policy([], grantors)
    access.group_owner["team"] = 1000
    assert access.may_grant(person(0), "kernel")
    assert access.may_grant(person(900), "agent:5")
    for object in ("agent:2", "uid:1000", "group:team"):
        assert access.may_grant(person(1000), object) is (grantors != "owner")
        assert not access.may_grant(person(1001), object)
    assert not access.may_grant(person(1000), "kernel")
    assert not access.may_grant(person(1000), "group:none")
    assert access.may_grant(agent(2), "agent:3") is (grantors == "agents")
    assert not access.may_grant(agent(3), "agent:2")
    give(access, "uid:1001", "grant", "agent:2")
    assert access.may_grant(person(1001), "agent:2")


def test_who_may_limit_what_others_use(access: Access) -> None:
    access.group_owner["team"] = 1000
    mine = ("agent:2", "agent:4", "uid:1000", "group:team")
    for subject in (*mine, "agent:5", "uid:1001", "group:other"):
        assert access.administers(person(0), subject) and access.administers(person(900), subject)
        assert access.administers(person(1000), subject) == (subject in mine)
    for subject in ("agent:2", "agent:5", "uid:1000", "group:team"):
        assert not access.administers(agent(2), subject)  # never itself, nor what it belongs to
    assert access.administers(agent(2), "agent:4") and not access.administers(agent(4), "agent:2")
    set_quota = BY_NAME["set_quota"]
    args = set_quota.args("agent:5", "tokens", 1)
    with pytest.raises(PermissionError):
        access.permit(person(1000), set_quota, args)
    give(access, "uid:1000", "admin", "kernel")
    assert access.permit(person(1000), set_quota, args) is False
    access.set_policy((), "owner")
    assert not access.administers(person(1000), "agent:2")
    with pytest.raises(OSError, match="is not agent:AID"):
        access.administers(person(1000), "agent:x")
