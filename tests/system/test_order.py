"""Requests that wait for others (`after`), and what those inherit from them."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.cores import AddCore, RemoveCore
from aiosd.abi.process import Fork, GetSched, SetPriority
from tests.daemon import Daemon
from tests.system.agents import agent, until
from tests.system.writer import Watcher, Writer, held, info

MakeDaemon = Callable[..., Daemon]
LONG = 40_000  # tokens, which take most of a minute


@pytest.fixture
def make(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[MakeDaemon]:
    """Make a daemon with one fake core whose steps take a millisecond."""
    with ExitStack() as stack:

        def start(policy: str = "rr", slots: int = 4) -> Daemon:
            text = f"""
                [sched]
                policy = "{policy}"
                quantum = 8
                [[cores]]
                name = "c"
                driver = "fake"
                slots = {slots}
                n_ctx = 40960
                options = {{eog = 0.0, step_ms = 1}}
            """
            return stack.enter_context(Daemon(state_dir, runtime_dir, kv_dir, config=text))

        yield start


def begun(writer: Writer, **options: Any) -> tuple[int, int]:
    """Begin a stream; return its id on the connection and the kernel's."""
    wanted = writer.begin(**options)
    writer.read_tokens(wanted, 1)
    return wanted, writer.request[wanted]


def refused(writer: Writer, *after: int) -> None:
    with pytest.raises(FileNotFoundError, match="after: no earlier request") as caught:
        writer.ask(after=list(after))
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("end", ["done", "cancelled", "failed"])
def test_it_runs_when_the_others_have_ended_however(make: MakeDaemon, end: str) -> None:
    daemon = make()
    with Writer(daemon) as a, Writer(daemon, credential=a.credential) as same, ExitStack() as stack:
        watcher = stack.enter_context(Watcher(daemon, "sched.", "request."))
        person = stack.enter_context(daemon.connect())
        person.call(AddCore("fake", name="d", driver="fake", options={"eog": 0.0, "step_ms": 1}))
        first, request = begun(a, core="d", max_tokens=900 if end == "done" else 1900)
        with held(daemon, "d"):
            wanted = same.submit("then", core="c", after=[request, request], max_tokens=5)
            told = watcher.await_event("sched.wait", after=[request])
            (row,) = [row for row in person.call(GetSched()).rows if row.after]
            assert (row.state, row.aid, row.place) == ("S", a.aid, -1)
        if end == "cancelled":
            a.cancel(first)
        elif end == "failed":
            person.call(RemoveCore("d"))
        reply = same.finish(wanted)
        assert (len(reply.token_ids), reply.request) == (5, told.data["request"])
        watcher.await_event("request.start", request=reply.request)
        if end == "failed":
            with pytest.raises(OSError, match="removed"):
                a.finish(first)
        else:
            assert a.finish(first).finish_reason == ("length" if end == "done" else "cancelled")
        assert not any(row.after for row in person.call(GetSched()).rows)


def test_one_that_waits_sleeps_and_can_be_cancelled(make: MakeDaemon) -> None:
    daemon = make()
    with Writer(daemon) as a, daemon.connect() as person:
        first, request = begun(a, max_tokens=LONG)
        child = person.call(Fork(a.aid, name="child"))
        with Writer(daemon, credential=child.credential) as other:
            mine = other.submit(max_tokens=1, after=[])
            assert len(other.finish(mine).token_ids) == 1
            refused(other, request)  # its parent's is not its to see
        with Writer(daemon, credential=a.credential) as same:
            second = same.submit(after=[request], deadline=600, max_tokens=5)
            third = same.submit(after=[request], deadline=0.05)
            assert same.finish(third).reason == "deadline"
            a.cancel(first)
            a.finish(first)
            same.finish(second)


def test_the_wait_channel(make: MakeDaemon) -> None:
    daemon = make()
    with Writer(daemon, "parent") as a, daemon.connect() as person:
        child = person.call(Fork(a.aid, name="child"))
        with Writer(daemon, credential=child.credential) as b:
            first, request = begun(b, max_tokens=LONG)
            wanted = a.submit(after=[request], max_tokens=3)

            def asleep() -> bool:
                row = agent(person, a.aid)
                return (row.state, row.waiting) == ("S", f"after:{request}")

            until(asleep, "the parent sleeps")
            b.cancel(first)
            assert len(a.finish(wanted).token_ids) == 3


def test_those_that_have_ended_count_after_a_restart_too(make: MakeDaemon) -> None:
    daemon = make()
    with Writer(daemon) as a:
        done = a.ask(max_tokens=2).request
        assert len(a.ask(max_tokens=2, after=[done]).token_ids) == 2
        credential = a.credential
        refused(a, done + 1_000_000)
        own = a.ask(max_tokens=1).request + 1
        refused(a, own)
    daemon.stop()
    daemon.start()
    with Writer(daemon, credential=credential) as a, Writer(daemon, "b") as b:
        assert len(a.ask(max_tokens=2, after=[done]).token_ids) == 2
        refused(b, done)


@pytest.mark.parametrize("policy", ["priority", "mlfq", "fair"])
@pytest.mark.parametrize("awaited", [True, False])
def test_what_is_waited_for_inherits(make: MakeDaemon, policy: str, awaited: bool) -> None:
    """A request of nice 10 that one of nice -10 waits for overtakes those of nice 0."""
    daemon = make(policy, slots=1)
    with ExitStack() as stack:
        person = stack.enter_context(daemon.connect())
        urgent = stack.enter_context(Writer(daemon, "urgent"))
        slow = person.call(Fork(urgent.aid, name="slow"))
        lowly = stack.enter_context(Writer(daemon, credential=slow.credential))
        others = [stack.enter_context(Writer(daemon, f"w{n}")) for n in range(3)]
        watcher = stack.enter_context(Watcher(daemon, "request.end"))
        first, request = begun(lowly, max_tokens=300)
        with held(daemon):
            person.call(SetPriority(urgent.aid, -10))
            person.call(SetPriority(slow.aid, 10))
            wanted = {w: w.submit(max_tokens=400) for w in others}
            if awaited:
                last = urgent.submit(after=[request], max_tokens=2)
            count = 4 + awaited
            until(lambda: info(daemon).requests == count, "all are there")
        ends = [watcher.await_event("request.end").aid for _ in range(count)]
        if awaited:
            assert ends[:2] == [slow.aid, urgent.aid]
            assert len(urgent.finish(last).token_ids) == 2
        else:
            assert ends[-1] == slow.aid
        assert len(lowly.finish(first).token_ids) == 300
        for writer, one in wanted.items():
            writer.finish(one)


def test_one_that_waits_goes_on_waiting_after_a_kernel_was_killed(make: MakeDaemon) -> None:
    daemon = make()
    with Writer(daemon) as a, Watcher(daemon, "sched.wait") as watcher:
        first = a.begin(key="other", max_tokens=LONG)
        a.read_tokens(first, 1)
        request = a.request[first]
        a.submit("then", key="then", after=[request], max_tokens=3)
        watcher.await_event("sched.wait", after=[request])
        credential = a.credential
        daemon.stop(signal.SIGKILL)
    daemon.start()
    with Writer(daemon, credential=credential) as a, daemon.connect() as person:
        other = a.begin(key="other", max_tokens=LONG)
        wanted = a.submit("then", key="then", after=[request], max_tokens=3)
        until(lambda: any(row.after for row in person.call(GetSched()).rows), "it waits again")
        a.cancel(other)
        assert a.finish(other).finish_reason == "cancelled"
        assert len(a.finish(wanted).token_ids) == 3


def test_a_search_gets_its_slots_beside_a_backlog_that_keeps_them_busy(make: MakeDaemon) -> None:
    """A gang of three on four slots, while eight others are always ready to take each of them."""
    daemon = make("fair")
    with ExitStack() as stack:
        person = stack.enter_context(daemon.connect())
        others = [stack.enter_context(Writer(daemon, f"w{n}")) for n in range(8)]
        wanted = {w: w.submit(max_tokens=LONG) for w in others}
        until(lambda: len(person.call(GetSched()).rows) == 8, "all are there")
        wide = stack.enter_context(Writer(daemon, "wide"))
        assert len(wide.ask(beams=3, max_tokens=20).beams) == 3
        assert len(person.call(GetSched()).rows) == 8, "and nobody else had to end for it"
        for writer, one in wanted.items():
            writer.cancel(one)
            writer.finish(one)
