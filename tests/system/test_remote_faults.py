"""What agents meet when the way to providers breaks, not one provider: at the daemon's door."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import psutil
import pytest

from aiosd.abi.accounts import GetQuota, SetQuota
from aiosd.abi.chat import Turn
from aiosd.abi.cores import DrainCore, ListCores, MoveContext, RemoveCore
from aiosd.abi.inference import LlmEmbed
from tests.conftest import World
from tests.daemon import PATIENCE, Daemon, answer
from tests.frontier import Act, Frontier
from tests.system.agents import until
from tests.system.providers import KEY, TEXT, ask, await_ready, cores
from tests.system.writer import Watcher, Writer, core

LOCAL = """
[kernel]
endpoints_timeout = 600
[[cores]]
name = "tiny"
driver = "fake"
model = "fake"
slots = 2
n_ctx = 256
[cores.options]
eog = 0.0
[routing.rules.pair]
cores = ["mute"]
fallback = ["rest"]
[routing.rules.rest]
cores = ["spare"]
[routing.rules.away]
cores = ["leaver"]
fallback = ["rest"]
[routing.rules.home]
cores = ["shy"]
fallback = ["here"]
[routing.rules.here]
cores = ["tiny"]
"""
NAMES = ("busy", "mute", "spare", "shy", "calm", "read", "leaver", "vec")


@pytest.fixture(scope="module")
def daemon(world: World, frontier: Frontier) -> Iterator[Daemon]:
    """A daemon with remote cores and a local one."""
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    config = cores(frontier, *NAMES, slots=8) + cores(frontier, "many", slots=8, retries=0)
    config += cores(frontier, "one", slots=1) + LOCAL
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # nobody listens there
    nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    config += cores(frontier, "nowhere", base_url=nowhere, check=False)
    made = Daemon(*places, config=config)
    made.environ["FRONTIER_KEY"] = KEY
    with closed, made as daemon:
        await_ready(daemon, *NAMES, "many", "one", "tiny")
        yield daemon


def limit(daemon: Daemon, writer: Writer) -> None:
    """Give an agent a dollar."""
    with daemon.connect() as person:
        person.call(SetQuota(f"agent:{writer.aid}", "dollars", 1.0))


def paid(writer: Writer) -> float:
    """Return what an agent has paid, when nothing of its is reserved."""
    [quota] = writer.call(GetQuota())
    assert quota.reserved == 0
    return float(quota.used)


def requests(daemon: Daemon, name: str) -> int:
    """Return how many requests a core has."""
    return core(daemon, name).requests


def names(daemon: Daemon) -> list[str]:
    """Return the names of all cores."""
    with daemon.connect() as client:
        return [row.name for row in client.call(ListCores())]


def links(daemon: Daemon) -> int:
    """Return how many sockets and pipes a daemon has."""
    found = 0
    for each in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            found += os.readlink(each).startswith(("socket:", "pipe:"))
        except FileNotFoundError:  # closed since
            continue
    return found


def test_a_killed_process_of_endpoints_ends_each_request_by_the_rules(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.then("busy", *[Act(after=3, then="hang")] * 6)
    frontier.then("mute", *[Act(after=0, then="hang")] * 2)
    frontier.then("one", Act(after=2, then="hang"))
    frontier.then("leaver", Act(after=0, then="hang"))
    with Writer(daemon) as a, Writer(daemon, "b") as b, Writer(daemon, "c") as c:
        limit(daemon, a)
        limit(daemon, b)
        streams = [a.begin("Hello", raw=False, core="busy") for _ in range(6)]
        for wanted in streams:
            a.read_tokens(wanted, 3)
        streams.append(a.begin("Hello", raw=False, core="one"))
        a.read_tokens(streams[-1], 2)
        queued = a.submit("Later", raw=False, core="one")
        until(lambda: core(daemon, "one").queued == 1, "one waits for another's end")
        other = b.submit("Hello", raw=False, route="pair")
        named = c.submit("Hello", raw=False, core="mute")
        draining = b.submit("Hello", raw=False, route="away")
        frontier.hung("mute", 2)
        frontier.hung("leaver", 1)
        with daemon.connect() as person:
            person.call(DrainCore("leaver"))
        pid, opened = core(daemon, "busy").pid, links(daemon)
        os.kill(pid, signal.SIGKILL)
        replies = [a.finish(wanted) for wanted in streams]
        assert [reply.text for reply in replies] == ["w0 w1 w2 "] * 6 + ["w0 w1 "]
        assert all("speaks to providers died" in reply.reason for reply in replies)
        assert {reply.finish_reason for reply in replies} == {"cancelled"}
        replies.append(a.finish(queued))
        assert replies[-1].text == TEXT
        rerouted = b.finish(other)
        assert (rerouted.text, rerouted.core) == (TEXT, "spare")
        with pytest.raises(OSError, match="not known"):
            c.finish(named)
        assert paid(a) == pytest.approx(sum(reply.usage.dollars for reply in replies))
        last = b.finish(draining)
        assert (last.text, last.core) == (TEXT, "spare")
        assert paid(b) == pytest.approx(2 * rerouted.usage.dollars)  # nothing for the first ones
        until(lambda: "leaver" not in names(daemon), "what has nothing left goes")
        assert not psutil.pid_exists(pid) and core(daemon, "busy").pid != pid
        for name in ("busy", "mute", "one"):  # providers are not blamed for it
            assert (core(daemon, name).state, core(daemon, name).restarts) == ("ready", 0)
        until(lambda: links(daemon) <= opened, "what led to the dead one is closed")
    assert frontier.billed["spare"] == 2 and len(frontier.bodies["busy"]) == 6
    children = psutil.Process(daemon.process.pid).children()
    assert sum("aiosd.endpoints" in child.cmdline() for child in children) == 1


def test_nothing_else_waits_for_a_process_of_endpoints_that_stands_still(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.then("calm", Act(after=2, then="hang"), Act(after=1, then="hang"))
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        kept = a.begin("Hello", raw=False, core="calm")
        a.read_tokens(kept, 2)
        dropped = a.begin("Hello", raw=False, core="calm")
        a.read_tokens(dropped, 1)
        process = psutil.Process(core(daemon, "calm").pid)
        process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: process.status() == psutil.STATUS_STOPPED, "it stands still")
            assert len(b.ask("Hello", core="tiny", max_tokens=5).token_ids) == 5
            limit(daemon, b)
            vectors = b.send(LlmEmbed(["abc"], core="vec"))
            until(lambda: requests(daemon, "vec") == 1, "it is asked")
            with daemon.connect() as person:
                person.call(RemoveCore("vec"))
            reply = b.read()
            assert reply.id == vectors
            with pytest.raises(OSError, match="removed"):
                answer(reply)
            assert paid(b) > 0  # what was done of it is not known
            a.cancel(dropped)
            assert a.finish(dropped).text == "w0 "
            frontier.release("calm")
        finally:
            process.send_signal(signal.SIGCONT)
        assert a.finish(kept).text == TEXT


def test_vectors_that_nobody_was_asked_for_cost_nothing(daemon: Daemon) -> None:
    with Writer(daemon) as writer:
        limit(daemon, writer)
        with pytest.raises(OSError, match="can't be reached") as found:
            writer.call(LlmEmbed(["abc"], core="nowhere"))
        assert found.value.errno == errno.EHOSTUNREACH
        assert paid(writer) == 0


def test_a_local_core_takes_over_what_a_provider_has_not_begun(
    daemon: Daemon, frontier: Frontier
) -> None:
    options = {"raw": False, "max_tokens": 12}
    frontier.then("shy", Act(after=0, then="close"), Act(), Act(after=0, then="close"))
    with Writer(daemon) as writer, Writer(daemon, "b") as solo:
        limit(daemon, writer)
        wanted = writer.begin("Hello", route="home", **options)
        reply = writer.finish(wanted)
        assert (reply.core, writer.text[wanted]) == ("tiny", reply.text)
        alone = solo.ask("Hello", core="tiny", **options)
        assert (reply.token_ids, reply.text) == (alone.token_ids, alone.text)
        assert reply.token_ids == writer.seen[wanted] and len(reply.token_ids) == 12
        assert "shy" in reply.route and paid(writer) == 0
        more = writer.ask("And?", context=reply.context, **options)
        assert (more.core, len(more.token_ids)) == ("tiny", 12)
        first = writer.ask("Hello", route="home", **options)
        assert (first.core, first.text) == ("shy", TEXT)
        spent = paid(writer)
        second = writer.ask("And?", context=first.context, route="home", **options)
        assert (second.core, len(second.token_ids)) == ("tiny", 12)
        assert second.usage.prompt_tokens > more.usage.cached_tokens  # all that was said before
        assert paid(writer) == spent
    assert len(frontier.bodies["shy"]) == 3


def test_a_context_that_is_its_turns_goes_to_any_core(daemon: Daemon, frontier: Frontier) -> None:
    with Writer(daemon) as writer, Writer(daemon, "b") as solo:
        cid = ask(writer, "calm").context
        assert writer.call(MoveContext(cid, "busy")).core == "busy"
        before = len(frontier.bodies.get("busy", ()))
        reply = writer.ask("And?", raw=False, context=cid)
        assert (reply.core, reply.text) == ("busy", TEXT)
        said = frontier.asked("busy", before + 1)[-1]["messages"]
        assert [turn["content"] for turn in said] == ["Hello", TEXT, "And?"]
        assert writer.call(MoveContext(cid, "tiny")).core == "tiny"
        reply = writer.ask("Then?", raw=False, context=cid, max_tokens=6)
        turns = [Turn(turn["role"], turn["content"]) for turn in said]
        turns += [Turn("assistant", TEXT), Turn("user", "Then?")]
        options = {"raw": False, "core": "tiny", "max_tokens": 6}
        alone = solo.ask("", messages=turns, **options)
        assert (reply.core, reply.token_ids) == ("tiny", alone.token_ids)
        with pytest.raises(OSError, match="takes no tokens") as found:
            writer.call(MoveContext(cid, "calm"))
        assert found.value.errno == errno.ENOTSUP


def test_a_failing_provider_keeps_nobody_else_waiting(daemon: Daemon, frontier: Frontier) -> None:
    writers = [Writer(daemon, f"w{n}") for n in range(16)]
    a, b = writers[:2]
    with Watcher(daemon, "core.lost", "core.ready") as watcher:
        frontier.down.add("many")
        failing = [writer.submit("Hello", raw=False, core="many") for writer in writers]
        assert ask(a, "calm").text == TEXT
        assert len(b.ask("Hello", core="tiny", max_tokens=5).token_ids) == 5
        for writer, wanted in zip(writers, failing, strict=True):
            with pytest.raises(OSError, match="core many"):
                writer.finish(wanted)
        watcher.await_event("core.lost", name="many")
        frontier.down.discard("many")
        watcher.await_event("core.ready", name="many")
        frontier.then("many", *[Act(after=1, then="hang")] * 8)
        probing = [writer.submit("Hello", raw=False, core="many") for writer in writers]
        frontier.hung("many", 1)  # half open, it gets one
        assert len(b.ask("Hello", core="tiny", max_tokens=5).token_ids) == 5
        assert ask(a, "calm").text == TEXT
        frontier.release("many")
        for writer, wanted in zip(writers, probing, strict=True):
            assert writer.finish(wanted).text == TEXT
    assert frontier.billed["many"] == 16
    for writer in writers:
        writer.close()


def test_a_reader_of_a_providers_stream_goes_on_under_the_next_kernel(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.then("read", Act(), Act(after=4, then="hang"))
    with Writer(daemon) as a:
        assert ask(a, "read", key="done", stream=True).text == TEXT
        wanted = a.begin("Hello", raw=False, core="read", key="cut")
        a.read_tokens(wanted, 4)
        until(lambda: recorded(daemon) == 4, "what was read is on record")
    daemon.stop(signal.SIGKILL)
    frontier.release("read")
    daemon.start()
    with Writer(daemon, credential=a.credential) as a:
        for key, start, end in (("done", 5, 8), ("cut", 2, 4), ("cut", 4, 4)):
            wanted = a.begin("Hello", raw=False, core="read", key=key, resume=start)
            reply = a.finish(wanted)
            assert a.text[wanted] == "".join(f"w{n} " for n in range(start, end))
            assert len(a.seen[wanted]) == end - start
            assert reply.text == "".join(f"w{n} " for n in range(end))
        assert "restarted" in reply.reason
        with pytest.raises(OSError, match="resume 0"):
            a.finish(a.begin("Hello", raw=False, core="read", key="cut", resume=5))
    await_ready(daemon, *NAMES, "many", "one", "tiny")
    assert len(frontier.bodies["read"]) == 2


def recorded(daemon: Daemon) -> int:
    """Return how many pieces of the request that is open are on disk."""
    with closing(sqlite3.connect(daemon.state_dir / "aios.db", timeout=PATIENCE)) as db:
        found = db.execute("select progress from open_requests").fetchall()
    progress = [msgspec.msgpack.decode(row[0]) for row in found if row[0]]
    return max((len(each.get("tokens", ())) for each in progress), default=0)
