"""Semantic memory through the daemon: kept, found, bounded, each owner's own."""

from __future__ import annotations

import errno
import math
import signal
from typing import Any

import pytest

from aiosd.abi.memory import AddMemory, DeleteMemory, GetMemory, SearchMemory, UpdateMemory
from aiosd.abi.process import RegisterAgent
from tests.daemon import Client, Daemon
from tests.stores.conftest import FAKE, Start
from tests.stores.test_working import code

MODES = ("keyword", "vector", "hybrid")
TEXTS = (
    "Lighthouse keys hang here.",
    "Bread is baked at four in the morning.",
    "A lighthouse warns ships of rocks.",
)


def texts(client: Client, query: str, **more: Any) -> list[str]:
    """Return what a search finds."""
    return [memory.text for memory in client.call(SearchMemory(query, **more))]


def fill(client: Client, *more: str) -> list[int]:
    """Add the texts; return their ids."""
    return [client.call(AddMemory(text)).id for text in (*TEXTS, *more)]


def test_what_was_added_is_found_at_once(agent: Client) -> None:
    ids = fill(agent)
    for mode in MODES:
        found = agent.call(SearchMemory("lighthouse keys", k=2, mode=mode))
        assert [memory.id for memory in found] == [ids[0], ids[2]]
        assert found[0].text == TEXTS[0] and found[0].created > 0
        assert found[0].score > found[1].score > 0


def test_a_record_is_changed_and_deleted(agent: Client) -> None:
    first = fill(agent)[0]
    changed = agent.call(UpdateMemory(first, text="Cheese ripens in the cellar."))
    assert changed == agent.call(GetMemory(first))
    for mode in MODES:
        assert texts(agent, "cheese cellar", k=1, mode=mode) == [changed.text]
        assert texts(agent, "keys hang", mode=mode, k=1) != [changed.text]
    agent.call(DeleteMemory(first))
    for mode in MODES:
        assert changed.text not in texts(agent, "cheese cellar", mode=mode)
    for call in (GetMemory(first), DeleteMemory(first), UpdateMemory(first, text="x")):
        assert code(agent, call) == errno.ENOENT


@pytest.mark.parametrize("mode", MODES)
def test_filters_are_on_metadata_and_time(agent: Client, mode: str) -> None:
    facts: list[dict[str, Any]] = [
        {"n": 1}, {"n": 1.0}, {"n": True}, {"n": "1"}, {"n": None}, {"n": [1, "a"], 'q"uo.te': 2},
    ]  # fmt: skip
    added = [agent.call(AddMemory(f"fact {i}", metadata=each)) for i, each in enumerate(facts)]

    def found(**more: Any) -> list[int]:
        return sorted(
            added.index(m) if m in added else [a.id for a in added].index(m.id)
            for m in agent.call(SearchMemory("fact", mode=mode, **more))
        )

    assert found(metadata={"n": 1}) == [0, 1]
    assert found(metadata={"n": True}) == [2]
    assert found(metadata={"n": "1"}) == [3]
    assert found(metadata={"n": None}) == [4]
    assert found(metadata={"n": [1, "a"], 'q"uo.te': 2}) == [5]
    assert found(metadata={"n": "1' or 1=1 --"}) == []
    assert found(since=added[3].created) == [3, 4, 5]
    assert found(until=added[1].created) == [0, 1]


@pytest.mark.parametrize("mode", MODES)
def test_only_the_owners_records_are_searched(daemon: Daemon, agent: Client, mode: str) -> None:
    ids = fill(agent)
    with daemon.connect() as other:
        assert texts(other, "lighthouse", mode=mode) == []  # a person's are his own, too
        other.call(RegisterAgent(name="keeper"))  # nor does a name inherit
        other.call(AddMemory("My lighthouse."))
        assert texts(other, "lighthouse", mode=mode) == ["My lighthouse."]
        for call in (GetMemory(ids[0]), DeleteMemory(ids[0]), UpdateMemory(ids[0], text="x")):
            assert code(other, call) == errno.ENOENT
        assert code(other, SearchMemory("x", pool="club")) == errno.EPERM
        assert code(other, AddMemory("x", pool="club")) == errno.EPERM
    assert agent.call(GetMemory(ids[0])).text == TEXTS[0]


SYNTAX = (
    '"', "text:lighthouse NOT", "owner : 1", "a AND (b", "*", "lighthouse*", "\0", "'; drop--", "",
)  # fmt: skip


def test_syntax_in_a_query_is_data(agent: Client) -> None:
    fill(agent, "text NOT owner")
    for query in SYNTAX:
        for mode in MODES:
            assert set(texts(agent, query, mode=mode)) <= {*TEXTS, "text NOT owner"}
    assert texts(agent, "owner : 2", mode="keyword") == ["text NOT owner"]
    assert len(texts(agent, "lighthouse", mode="keyword")) == 2


def test_bad_arguments_are_named(agent: Client) -> None:
    assert code(agent, AddMemory("")) == errno.EINVAL
    assert code(agent, AddMemory("x", metadata={"a": math.nan})) == errno.EINVAL
    assert code(agent, AddMemory("x", metadata={"a": [{"b": math.inf}]})) == errno.EINVAL
    assert code(agent, AddMemory("x", metadata={"a": b"bytes"})) == errno.EINVAL
    assert code(agent, AddMemory("x", metadata={"a": "y" * 20_000})) == errno.EINVAL
    assert code(agent, AddMemory("x", metadata={str(i): i for i in range(65)})) == errno.EINVAL
    assert code(agent, SearchMemory("x", mode="telepathy")) == errno.EINVAL
    assert code(agent, SearchMemory("x", since=math.nan)) == errno.EINVAL
    assert texts(agent, "x", mode="keyword") == []


def test_limits_on_records_and_bytes(start: Start) -> None:
    daemon = start(FAKE + "records = 3\nbytes = 2000\n")
    with daemon.connect() as client:
        client.call(RegisterAgent(name="a"))
        assert code(client, AddMemory("x" * 2000)) == errno.EDQUOT
        first = client.call(AddMemory("one"))
        client.call(AddMemory("two"))
        client.call(AddMemory("three"))
        assert code(client, AddMemory("four")) == errno.EDQUOT
        assert code(client, UpdateMemory(first.id, text="x" * 2000)) == errno.EDQUOT
        client.call(DeleteMemory(first.id))
        client.call(AddMemory("four"))
    daemon.stop()
    again = start(FAKE + "records = 3\n")
    with again.connect() as client:
        client.call(RegisterAgent(name="b"))  # another owner, another limit
        client.call(AddMemory("five"))


def test_many_at_once_never_exceed_a_limit(start: Start) -> None:
    daemon = start(FAKE + "records = 10\n")
    with daemon.connect() as client:
        for n in range(40):
            client.send(AddMemory(f"text {n}"))
        results = [client.read().errno for _ in range(40)]
        assert (results.count(0), results.count(errno.EDQUOT)) == (10, 30)
        assert len(texts(client, "text", mode="keyword", k=100)) == 10


def test_acknowledged_records_outlive_sigkill(start: Start) -> None:
    daemon = start()
    acknowledged: list[int] = []
    with daemon.connect() as client:
        for n in range(200):
            client.send(AddMemory(f"number{n} of many", key=f"k{n}"))
        acknowledged.extend(client.read().id for _ in range(100))
        daemon.stop(signal.SIGKILL)
    daemon = start()
    with daemon.connect() as client:
        kept = texts(client, "many", mode="keyword", k=1000)
        assert len(kept) == len(set(kept)) >= 100
        for id in acknowledged:  # the hello had id 1
            assert f"number{id - 2} of many" in kept
        again = [client.call(AddMemory(f"number{n} of many", key=f"k{n}")).id for n in range(200)]
        assert len(set(again)) == 200  # asked again by key: none is there twice
        assert len(texts(client, "many", mode="vector", k=1000)) == 200


def test_changes_asked_again_by_their_key_are_done_once(start: Start) -> None:
    daemon = start(FAKE + "records = 2\n")
    with daemon.connect() as client:
        first, second = client.call(AddMemory("one")), client.call(AddMemory("two", key="a"))
        changed = client.call(UpdateMemory(first.id, text="three", key="u"))
        client.call(UpdateMemory(first.id, text="four"))
        client.call(DeleteMemory(first.id, key="d"))
    daemon.stop(signal.SIGKILL)
    daemon = start(FAKE + "records = 1\n")
    with daemon.connect() as client:
        assert client.call(AddMemory("two", key="a")) == second  # though no other would fit
        assert code(client, AddMemory("five", key="b")) == errno.EDQUOT
        assert client.call(UpdateMemory(first.id, text="three", key="u")) == changed
        assert client.call(DeleteMemory(first.id, key="d")) is None
        assert texts(client, "two three four", mode="keyword") == ["two"]
