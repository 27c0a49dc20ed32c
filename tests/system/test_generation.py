"""llm_generate at the daemon's door: keys, cancelling, back-pressure, contexts, limits, times."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi import wire
from aiosd.abi.inference import ClrContext, GetContext, ListContexts, LlmGenerate, Turn
from aiosd.abi.process import (
    Attach,
    Fork,
    Kill,
    QueryHistory,
    ResumeAgent,
    SuspendAgent,
    Watched,
)
from aiosd.abi.system import Ping
from aiosd.abi.table import BY_ARGS
from aiosd.audience import WATCHED_MOST
from tests.conftest import World
from tests.daemon import PATIENCE, Client, Daemon, answer
from tests.system.agents import agent, until
from tests.system.writer import Watcher, Writer, core, info, kill_worker

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 4
n_ctx = 40_960
options = {step_ms = 1, eog = 0.0}
"""
SHORT = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 128
options = {eog = 0.0}
"""
SLOW_START = """
[[cores]]
name = "c"
driver = "fake"
options = {load_ms = 60000}
"""
LONG: dict[str, Any] = {"max_tokens": 40_000}  # which takes most of a minute


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Daemon]:
    """A daemon for all tests that ask for nothing special; it ends with nothing in its hands."""
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon
        assert info(daemon).requests == 0


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The shared daemon, on which every test ends all that it has begun."""
    yield shared
    with shared.connect() as person:
        for row in person.call(ListContexts()):
            kill(person, row.aid)
    nothing_left(shared)


@pytest.fixture
def make(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Any]:
    """Make a daemon of one's own: `make(config, key=value of [context])`."""
    with ExitStack() as stack:

        def start(config: str, **context: int) -> Daemon:
            daemon = Daemon(state_dir, runtime_dir, kv_dir, config=config)
            with daemon.config.open("a") as file:
                file.writelines(f"{key} = {value}\n" for key, value in context.items())
            return stack.enter_context(daemon)

        yield start


def kill(person: Client, aid: int) -> None:
    """End an agent, if it has not ended."""
    try:
        person.call(Kill(aid, "KILL"))
    except ProcessLookupError:
        return


def nothing_left(daemon: Daemon) -> None:
    """Return once no request, slot, buffer or context is in use."""

    def used() -> tuple[int, ...]:
        now, row = info(daemon), core(daemon)
        return now.requests, now.kv_ram, row.resident, row.running, row.queued

    until(lambda: not any(used()), "nothing requests, holds KV, is resident, runs or queues")
    with daemon.connect() as person:
        assert person.call(ListContexts()) == []


@contextmanager
def error_of(number: int, *words: str) -> Iterator[None]:
    """Expect an OSError with this errno, whose sentence has these words."""
    with pytest.raises(OSError, match=words[0] if words else None) as found:
        yield
    assert found.value.errno == number, found.value
    for word in words:
        assert word in str(found.value), found.value


# Keys.


def test_the_same_key_gives_the_same_answer(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        first = a.ask("tell", key="k", max_tokens=9)
        again = a.ask("tell", key="k", max_tokens=9)
        assert again == first
        assert a.ask("tell", max_tokens=9).request == first.request + 1
        assert agent(a, a.aid).usage.requests == 2
        with error_of(errno.EINVAL, "key"):
            a.ask("another", key="k", max_tokens=9)


def test_a_key_in_flight_is_joined_and_computed_once(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, credential=a.credential) as b:
        one = a.begin("tell", key="k", max_tokens=50)
        a.read_tokens(one, 3)
        two = b.submit("tell", key="k", stream=True, max_tokens=50)
        first, second = a.finish(one), b.finish(two)
        assert first == second
        assert a.seen[one] == b.seen[two] == first.token_ids
        assert a.text[one] == b.text[two] == first.text


def test_a_key_belongs_to_its_agent(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        assert a.ask(key="k", max_tokens=3).request != b.ask(key="k", max_tokens=3).request
        with error_of(errno.ESRCH, "register_agent"):
            person.call(LlmGenerate("x", key="k"))


def test_a_stream_resumes_after_a_lost_connection(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        one = a.begin("tell", key="k", max_tokens=400)
        got = list(a.read_tokens(one, 5))
        aid, credential = a.aid, a.credential
    with Writer(daemon, credential=credential) as b:
        assert b.aid == aid
        two = b.begin("tell", key="k", max_tokens=400, resume=len(got))
        reply = b.finish(two)
        assert [*got, *b.seen[two]] == reply.token_ids and len(reply.token_ids) == 400
        three = b.begin("tell", key="k", max_tokens=400, resume=len(got))
        assert b.finish(three) == reply
        assert b.seen[three] == b.seen[two] and b.text[three] == b.text[two]
        assert b.ask("tell", max_tokens=400, temperature=0).token_ids == reply.token_ids


def test_resume_past_the_tokens_or_without_a_request_is_refused(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        a.ask("tell", key="k", max_tokens=3, stream=True)
        with error_of(errno.EINVAL, "resume", "3 tokens"):
            a.ask("tell", key="k", max_tokens=3, stream=True, resume=4)
        assert a.ask("tell", key="k", max_tokens=3, stream=True, resume=3).finish_reason == "length"
        running = a.begin("tell", key="r", **LONG)
        a.read_tokens(running, 1)
        with error_of(errno.EINVAL, "resume"):
            a.ask("tell", key="r", stream=True, resume=40_000, **LONG)
        with error_of(errno.ENOENT, "key"):
            a.ask("tell", key="other", stream=True, resume=1)
        with error_of(errno.EINVAL, "resume"):
            a.ask("tell", stream=True, resume=1)


def test_a_failed_request_leaves_its_key_free(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        for core_name in ("nowhere", "nowhere", "c"):
            wanted = a.submit("tell", key="k", max_tokens=3, core=core_name)
            if core_name == "c":
                assert a.finish(wanted).finish_reason == "length"
            else:
                with error_of(errno.ENOENT, "nowhere", "c"):
                    a.finish(wanted)


# Cancelling.


def test_cancel_answers_with_the_text_that_there_is(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        wanted = a.begin(**LONG)
        a.read_tokens(wanted, 5)
        a.cancel(wanted)
        reply = a.finish(wanted)
        assert (reply.finish_reason, reply.reason) == ("cancelled", "cancelled")
        assert reply.token_ids == a.seen[wanted] and len(reply.token_ids) < 40_000
        assert reply.text == a.text[wanted]
        solo = a.ask(max_tokens=len(reply.token_ids))
        assert solo.token_ids == reply.token_ids


@pytest.mark.parametrize("how", ["INT", "TERM", "KILL"])
def test_signals_end_the_generation(daemon: Daemon, how: str) -> None:
    with Writer(daemon) as a, Watcher(daemon, "request.end") as watcher, daemon.connect() as person:
        wanted = a.begin(**LONG)
        got = a.read_tokens(wanted, 5)
        person.call(Kill(a.aid, how, generation=how == "INT"))
        end = watcher.await_event("request.end", aid=a.aid)
        assert end.data["finish"] == "cancelled" and end.data["completion_tokens"] >= 5
        if how == "INT":
            reply = a.finish(wanted)
            assert (reply.finish_reason, reply.reason) == ("cancelled", "interrupted")
            assert reply.token_ids[:5] == got[:5]
            assert a.ask("go on", context=reply.context, max_tokens=3).finish_reason == "length"
            kill(person, a.aid)
        nothing_left(daemon)
        assert agent(person, a.aid).state == "X"


def test_a_lost_connection_cancels_what_has_no_key(daemon: Daemon) -> None:
    with Watcher(daemon, "request.end") as watcher:
        with Writer(daemon) as a:
            wanted = a.begin(**LONG)
            a.read_tokens(wanted, 2)
        assert watcher.await_event("request.end", aid=a.aid).data["error"] == "connection lost"


def test_a_lost_connection_leaves_a_keyed_request_to_its_end(daemon: Daemon) -> None:
    with Watcher(daemon, "request.end") as watcher:
        with Writer(daemon) as a:
            wanted = a.begin(key="k", max_tokens=200)
            a.read_tokens(wanted, 2)
        end = watcher.await_event("request.end", aid=a.aid).data
        assert (end["finish"], end["completion_tokens"]) == ("length", 200)
        with Writer(daemon, credential=a.credential) as b:
            assert len(b.ask(key="k", stream=True, max_tokens=200).token_ids) == 200


def test_a_deadline_returns_the_partial_text(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        for deadline in (0.15, 1.0, 5.0, 20.0):  # a busy machine may not come to a token at first
            reply = a.ask(deadline=deadline, **LONG)
            assert (reply.finish_reason, reply.reason) == ("cancelled", "deadline")
            assert 0.9 * deadline <= reply.timing.turnaround_s < deadline + PATIENCE / 4
            if reply.token_ids:
                break
        assert 0 < len(reply.token_ids) < 1000 * deadline
        assert a.ask(deadline=0, **LONG).reason == "deadline"
        assert a.ask(deadline=60, max_tokens=3).finish_reason == "length"


def test_a_deadline_does_not_count_while_suspended(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        wanted = a.begin(deadline=3.0, **LONG)
        a.read_tokens(wanted, 2)
        person.call(SuspendAgent(a.aid))
        assert b.ask(deadline=3.1, **LONG).reason == "deadline"  # more than its time goes by
        assert agent(person, a.aid).state == "T" and info(daemon).requests == 1
        person.call(ResumeAgent(a.aid))
        reply = a.finish(wanted)
        assert reply.reason == "deadline" and reply.timing.turnaround_s > 6.0


def test_cancel_while_queued(daemon: Daemon) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(Writer(daemon, f"b{i}")) for i in range(4)]
        person = stack.enter_context(daemon.connect())
        a = stack.enter_context(Writer(daemon, "a"))
        running = [one.begin(**LONG) for one in busy]
        for one, wanted in zip(busy, running, strict=True):
            one.read_tokens(wanted, 1)
            person.call(SuspendAgent(one.aid))
        person.call(SuspendAgent(a.aid))
        wanted = a.begin(**LONG)
        until(lambda: info(daemon).requests == 5, "five requests")
        a.cancel(wanted)
        reply = a.finish(wanted)
        assert (reply.finish_reason, reply.token_ids) == ("cancelled", [])
        assert reply.timing.waiting_s == reply.timing.turnaround_s


@pytest.mark.parametrize("how", ["cancel", "deadline", "INT", "KILL", "close"])
def test_a_request_ends_at_once_while_its_core_loads(make: Any, how: str) -> None:
    daemon = make(SLOW_START)
    with Writer(daemon) as a, daemon.connect() as person:
        wanted = a.submit(deadline=0.1 if how == "deadline" else None)
        until(lambda: how == "deadline" or info(daemon).requests == 1, "the request is taken")
        if how == "cancel":
            a.cancel(wanted)
        elif how == "close":
            a.close()
        elif how != "deadline":
            person.call(Kill(a.aid, how, generation=how == "INT"))
        if how in ("cancel", "deadline", "INT"):
            assert a.finish(wanted).finish_reason == "cancelled"
        until(lambda: info(daemon).requests == 0, "the request has ended")
        assert person.call(ListContexts()) == []
        assert core(daemon).state == "loading"


def test_a_request_ends_at_once_while_its_core_restarts(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        wanted = a.begin(**LONG)
        a.read_tokens(wanted, 3)
        kill_worker(daemon)
        second = a.submit("another", max_tokens=3)
        a.cancel(wanted)
        assert a.finish(wanted).finish_reason == "cancelled"
        assert a.finish(second).finish_reason == "length"


# Back-pressure.


def clog(client: Client, person: Client) -> None:
    """Ask for more than the connection holds, and read nothing of it, until the kernel is stuck."""
    frame = wire.request(1 << 20, BY_ARGS[Ping].number, Ping(b"x" * 65_000))
    client.sock.setblocking(False)
    rest, looks = frame, 0
    while looks < 5:  # turns of the kernel's loop in which it took nothing
        person.call(Ping())
        try:
            rest = rest[client.sock.send(rest) :] or frame
            looks = 0
        except BlockingIOError:
            looks += 1
    client.sock.settimeout(PATIENCE)


def test_a_reader_that_stops_reading_pauses_its_agent(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        person.call(SuspendAgent(a.aid))  # else it might be done before its reader is stuck
        wanted = a.begin(max_tokens=400)
        until(lambda: info(daemon).requests == 1, "the request is taken")
        clog(a, person)
        person.call(ResumeAgent(a.aid))

        def paused() -> bool:
            row = agent(person, a.aid)
            return (row.state, row.waiting) == ("S", "reader")

        until(paused, "the agent waits for its reader")
        b.ask(max_tokens=20)  # whatever the core had begun is there now
        before = agent(person, a.aid).usage.tokens_out
        memory = daemon.resident()
        assert len(b.ask(max_tokens=200).token_ids) == 200
        assert agent(person, a.aid).usage.tokens_out == before < 400 - 200
        assert daemon.resident() - memory < 2 << 20
        reply = a.finish(wanted)
        assert a.seen[wanted] == reply.token_ids
        solo = b.ask(max_tokens=len(reply.token_ids))
        assert solo.token_ids == reply.token_ids


# Contexts.


def test_a_context_goes_on_where_it_stopped(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        one = a.ask("Once", max_tokens=20)
        two = a.ask("and then", context=one.context, max_tokens=20)
        assert two.context == one.context
        assert two.usage.cached_tokens == len("Once") + 20 - 1  # the last one was never computed
        assert two.usage.prompt_tokens == len("Once") + 20 + len("and then")
        row = a.call(GetContext(one.context))
        assert (row.tokens, row.busy, row.tier) == (two.usage.prompt_tokens + 20, False, "slot")
        a.call(ClrContext(one.context))
        with error_of(errno.ENOENT, "cleared"):
            a.ask(context=one.context)


def test_a_context_at_work_is_busy(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        wanted = a.begin(**LONG)
        a.read_tokens(wanted, 1)
        row = a_context(daemon, a.aid)
        assert row.busy
        with error_of(errno.EBUSY, "at work"):
            a.ask(context=row.cid)
        with Writer(daemon, credential=a.credential) as b, error_of(errno.EBUSY, "cancel"):
            b.call(ClrContext(row.cid))
        a.cancel(wanted)
        reply = a.finish(wanted)
        assert a.ask("on", context=reply.context, max_tokens=2).context == row.cid


def a_context(daemon: Daemon, aid: int) -> Any:
    with daemon.connect() as person:
        (row,) = person.call(ListContexts(aid))
    return row


def test_another_agents_context_is_out_of_reach(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        mine = a.ask(max_tokens=2).context
        with error_of(errno.EPERM, str(a.aid)):
            b.ask("what did it say?", context=mine)
        for call in (GetContext(mine), ClrContext(mine)):
            with error_of(errno.EPERM):
                b.call(call)
        assert b.call(ListContexts()) == []
        with error_of(errno.ENOENT):
            b.ask(context=mine + 1000)


def test_contexts_make_room_for_newer_ones(make: Any) -> None:
    daemon = make(CORE, max_per_agent=3)
    with Writer(daemon) as a:
        first, second, third = (a.ask(max_tokens=2).context for _ in range(3))
        a.ask("on", context=first, max_tokens=2)
        fourth = a.ask(max_tokens=2).context
        assert [row.cid for row in a.call(ListContexts())] == [first, third, fourth]
        with error_of(errno.ENOENT, "made room"):
            a.ask(context=second)
        busy = [a.begin(context=cid, **LONG) for cid in (first, third, fourth)]
        for wanted in busy:
            a.read_tokens(wanted, 1)
        with error_of(errno.EAGAIN, "max_per_agent"):
            a.ask()
        for wanted in busy:
            a.cancel(wanted)
            a.finish(wanted)


def test_the_window_and_its_edges(make: Any) -> None:
    daemon = make(SHORT)
    with Writer(daemon) as a:
        full = a.ask("x" * 127, max_tokens=50)
        assert (len(full.token_ids), full.finish_reason) == (1, "length")
        for length in (128, 129, 100_000):
            with error_of(errno.ENOSPC, str(length), "128"):
                a.ask("x" * length)
        with error_of(errno.ENOSPC, "128"):
            a.ask("y", context=full.context)
        assert len(a.ask("x" * 100).token_ids) == 28
        part = a.ask("x" * 50, max_tokens=50)
        assert len(a.ask("y" * 20, context=part.context).token_ids) == 8


def test_a_fork_goes_on_from_its_parents_contexts(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "solo") as solo:
        told = a.ask("Once upon", max_tokens=90)
        child = a.call(Fork(a.aid))
        with Writer(daemon, credential=child.credential) as b:
            copy = a_context(daemon, child.aid)
            assert copy.cid != told.context and copy.tokens == len("Once upon") + 90
            with error_of(errno.EPERM):
                b.ask("x", context=told.context)
            ids = told.context, copy.cid
            one, two = (
                client.submit(words, context=cid, max_tokens=40)
                for client, words, cid in zip((a, b), (" one", " two"), ids, strict=True)
            )
            replies = a.finish(one), b.finish(two)
            assert replies[1].usage.cached_tokens == replies[0].usage.cached_tokens > 0
            for words, reply in zip((" one", " two"), replies, strict=True):
                base = solo.ask("Once upon", max_tokens=90)
                alone = solo.ask(words, context=base.context, max_tokens=40)
                assert alone.token_ids == reply.token_ids


def test_a_fork_in_mid_generation(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "solo") as solo:
        wanted = a.begin("Once upon", max_tokens=600)
        a.read_tokens(wanted, 30)
        with daemon.connect() as person:
            child = person.call(Fork(a.aid))
        copy = a_context(daemon, child.aid)
        made = copy.tokens - len("Once upon")
        assert not copy.busy and made >= 30
        with Writer(daemon, credential=child.credential) as b:
            reply = b.ask(" but", context=copy.cid, max_tokens=40)
            assert len(a.finish(wanted).token_ids) == 600
            base = solo.ask("Once upon", max_tokens=made)
            assert base.token_ids == a.seen[wanted][:made]
            alone = solo.ask(" but", context=base.context, max_tokens=40)
            assert alone.token_ids == reply.token_ids
            assert solo.ask("Once upon", max_tokens=600).token_ids == a.seen[wanted]


def test_contexts_go_with_their_agent(daemon: Daemon) -> None:
    with Writer(daemon) as a, daemon.connect() as person:
        cids = [a.ask(max_tokens=2).context for _ in range(6)]
        assert [row.cid for row in person.call(ListContexts(a.aid))] == cids
        kill(person, a.aid)
        nothing_left(daemon)
        with error_of(errno.ENOENT):
            person.call(GetContext(cids[0]))


def test_no_number_is_given_again_after_a_sigkill(make: Any) -> None:
    daemon = make(CORE)
    with Writer(daemon) as a, Watcher(daemon, "request.submit") as watcher:
        a.read_tokens(a.begin(**LONG), 1)
        lost = watcher.await_event("request.submit").data
        daemon.stop(signal.SIGKILL)
    daemon.start()
    with Writer(daemon, "b") as b:
        reply = b.ask(max_tokens=1)
        assert reply.request > lost["request"] and reply.context > lost["context"]


# Limits and mistakes.


def test_queues_are_bounded(make: Any) -> None:
    limits = "\n[agents]\nmax_queue = 5\nmax_queue_per_agent = 3\n"
    daemon = make(CORE + limits)
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        mine = [a.submit(**LONG) for _ in range(3)]
        with error_of(errno.EAGAIN, "max_queue_per_agent", "3"):
            a.ask()
        yours = [b.submit(**LONG) for _ in range(2)]
        with error_of(errno.EAGAIN, "max_queue", "5"):
            b.ask()
        b.cancel(yours.pop())
        until(lambda: info(daemon).requests == 4, "one has ended")
        yours.append(b.submit(**LONG))
        with error_of(errno.EAGAIN, "try again in", " s"):
            b.ask()
        for client, ids in ((a, mine), (b, yours)):
            for wanted in ids:
                client.cancel(wanted)
            for wanted in ids:
                client.finish(wanted)
        assert a.ask(max_tokens=2).finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "number", "word"),
    [
        ({"prompt": ""}, errno.EINVAL, "prompt"),
        ({"messages": [Turn("user", "x")]}, errno.EINVAL, "messages"),
        ({"prompt": "", "messages": [Turn("user", "x")]}, errno.EINVAL, "raw"),
        ({"prompt": "", "raw": False, "messages": [Turn("judge", "x")]}, errno.EINVAL, "roles"),
        ({"core": "nowhere"}, errno.ENOENT, "there are: c"),
        ({"needs": "frontier"}, errno.ENODEV, "frontier"),
        ({"beams": 9}, errno.EINVAL, "beams: 9"),
        ({"schema": {"not": {}}}, errno.EINVAL, "not at #"),
        ({"grammar": "root ::= x"}, errno.EINVAL, "grammar: line 1"),
        ({"after": [10**9]}, errno.ENOENT, "after"),
        ({"tools": ["x"]}, errno.EINVAL, "raw"),
        ({"recall": "x"}, errno.EINVAL, "recall"),
        ({"beams": 2, "watermark": True}, errno.EINVAL, "watermark"),
        ({"context": 10**9}, errno.ENOENT, "1000000000"),
        ({"temperature": float("nan")}, errno.EINVAL, "temperature"),
        ({"temperature": float("inf")}, errno.EINVAL, "temperature"),
        ({"deadline": float("inf")}, errno.EINVAL, "deadline"),
        ({"min_p": float("nan")}, errno.EINVAL, "min_p"),
        ({"prompt": "x" * 50_000}, errno.ENOSPC, "40960"),
    ],
)
def test_mistakes_are_named(
    daemon: Daemon, options: dict[str, Any], number: int, word: str
) -> None:
    with Writer(daemon) as a:
        with error_of(number, "llm_generate", word):
            a.ask(**{"prompt": "x", **options})
        assert a.ask(max_tokens=1).finish_reason == "length"


# Times and figures.


def test_waiting_and_turnaround_are_recorded(daemon: Daemon) -> None:
    with Writer(daemon) as a, Watcher(daemon, "request.") as watcher:
        replies = [a.ask(max_tokens=400), a.ask("again " * 20, max_tokens=400)]
        ends = [watcher.await_event("request.end", aid=a.aid).data for _ in replies]
        usage = agent(a, a.aid).usage
        told = [h.data for h in a.call(QueryHistory(a.aid, "request.end"))]
        for reply, end in zip(replies, ends, strict=True):
            timing = reply.timing
            assert 0 <= timing.waiting_s <= timing.first_token_s <= timing.turnaround_s < PATIENCE
            # 400 steps of a millisecond, but the kernel may come late to hear of the first ones.
            assert timing.turnaround_s - timing.waiting_s >= 0.01
            assert end["waiting_s"] == timing.waiting_s
            assert end["turnaround_s"] == timing.turnaround_s
        assert sorted(t["id"] for t in told) == [reply.request for reply in replies]
        for total, name in ((usage.waiting_s, "waiting_s"), (usage.turnaround_s, "turnaround_s")):
            assert total == pytest.approx(sum(end[name] for end in ends), abs=1e-5)
        assert usage.tokens_out == 800 and usage.tokens_in == len("Hello") + len("again ") * 20


# Attach.


def test_an_onlooker_sees_the_same_text_until_the_agent_ends(daemon: Daemon) -> None:
    with Writer(daemon) as a, daemon.connect() as onlooker, daemon.connect() as person:
        watching = onlooker.send(Attach(a.aid))
        replies = [a.ask(max_tokens=40), a.ask("more", max_tokens=40)]
        kill(person, a.aid)
        pieces = []
        while (reply := onlooker.read()).more:
            assert reply.id == watching
            pieces.append(answer(reply, Watched))
        answer(reply)
        assert "".join(piece.text for piece in pieces) == "".join(r.text for r in replies)
        assert [p.finish for p in pieces if p.finish] == ["length", "length"]
        assert [p.prompt_tokens for p in pieces if p.prompt_tokens] == [5, 4]


def test_a_slow_onlooker_holds_up_nobody(daemon: Daemon) -> None:
    with Writer(daemon) as a, daemon.connect() as onlooker, daemon.connect() as person:
        onlooker.send(Attach(a.aid))
        clog(onlooker, person)
        memory = 0
        for _ in range(2):
            told = [a.submit(max_tokens=600) for _ in range(4)]
            assert [len(a.finish(each).token_ids) for each in told] == [600] * 4
            memory = memory or daemon.resident()
        assert WATCHED_MOST < 2 * 4 * 600  # more pieces than are kept for an onlooker
        assert daemon.resident() - memory < 4 << 20
        kill(person, a.aid)
