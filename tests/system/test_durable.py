"""SIGKILL of aiosd: contexts, requests under way and kept answers outlive it."""

from __future__ import annotations

import errno
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.inference import ClrContext, GetContext, ListContexts, SetContext
from aiosd.abi.process import Fork, Kill, ListAgents, ResumeAgent, SuspendAgent
from tests.daemon import PATIENCE, Daemon
from tests.system.agents import agent, log, spawn, until, wait
from tests.system.writer import Writer, core, held

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 4
n_ctx = 4096
options = {step_ms = 1, eog = 0.0%s}
"""
LONG: dict[str, Any] = {"max_tokens": 600}


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A daemon with one exact core of four slots."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE % "") as running:
        yield running


def restart(daemon: Daemon, number: int = signal.SIGKILL, config: str = "") -> None:
    """End the kernel and start the next one, with another configuration if one is given."""
    daemon.stop(number)
    if config:
        daemon.configure(config)
    daemon.start()


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """Look into the database beside the kernel."""
    with closing(sqlite3.connect(daemon.state_dir / "aios.db", timeout=PATIENCE)) as db:
        return db.execute(query).fetchall()


def nothing_open(daemon: Daemon) -> None:
    """No request is left in the journal, and no context but those that are listed."""
    with daemon.connect() as person:
        listed = sorted(row.cid for row in person.call(ListContexts()))
    until(lambda: rows(daemon, "select rid from open_requests") == [], "no request is open")
    assert [cid for (cid,) in rows(daemon, "select cid from contexts order by cid")] == listed


def test_a_context_goes_on_under_the_next_kernel(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "solo") as solo:
        told = a.ask("Once upon", max_tokens=150)
        alone = solo.ask("Once upon", max_tokens=150)
        more = solo.ask(" and then", context=alone.context, max_tokens=50)
        credential = a.credential
    restart(daemon)
    with Writer(daemon, credential=credential) as a:
        row = a.call(GetContext(told.context))
        assert (row.tokens, row.busy) == (len("Once upon") + 150, False)
        reply = a.ask(" and then", context=told.context, max_tokens=50)
        assert reply.token_ids == more.token_ids and reply.exact
        assert reply.usage == more.usage and reply.context > 0
    nothing_open(daemon)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stream_goes_on_under_the_next_kernel(daemon: Daemon, number: int) -> None:
    with daemon.config.open("a") as file:
        file.write("[kernel]\ndrain_timeout = 0.0\n")
    restart(daemon)
    with Writer(daemon, "solo") as solo:
        alone = solo.ask("tell", temperature=0.8, seed=4, **LONG)
    ask: dict[str, Any] = {"key": "k", "temperature": 0.8, "seed": 4, **LONG}
    a = Writer(daemon)
    wanted = a.begin("tell", **ask)
    for _ in range(3):
        a.read_tokens(wanted, len(a.seen[wanted]) + 40)
        got = a.seen[wanted]
        restart(daemon, number)
        a.close()
        a = Writer(daemon, credential=a.credential)
        wanted = a.begin("tell", resume=len(got), **ask)
        a.seen[wanted] = got
        a._first[wanted] = 0
    reply = a.finish(wanted)
    assert reply.token_ids == a.seen[wanted] == alone.token_ids and reply.text == alone.text
    assert reply.exact and reply.usage == alone.usage
    assert rows(daemon, f"select count(*) from requests where id = {reply.request}") == [(1,)]
    assert agent(a, a.aid).usage.requests == 1
    a.close()
    nothing_open(daemon)


def test_an_answer_is_given_again_after_a_restart(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        first = a.ask("tell", key="k", max_tokens=30)
        credential = a.credential
    restart(daemon)
    with Writer(daemon, credential=credential) as a:
        assert a.ask("tell", key="k", max_tokens=30) == first
        stream = a.submit("tell", key="k", max_tokens=30, resume=9)
        assert a.finish(stream) == first
        with pytest.raises(OSError, match="other arguments"):
            a.ask("another", key="k", max_tokens=30)
        usage = agent(a, a.aid).usage
        assert (usage.requests, usage.tokens_out) == (1, 30)
    nothing_open(daemon)


def test_nobody_asks_again_for_a_request_without_a_key(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        wanted = a.begin("tell", **LONG)
        a.read_tokens(wanted, 5)
        with held(daemon):
            until(lambda: rows(daemon, "select 1 from contexts where kv > 0") != [], "on record")
            credential = a.credential
            restart(daemon)
    with Writer(daemon, credential=credential) as a:
        until(lambda: rows(daemon, "select 1 from requests") != [], "its end is on record")
        [(finish, why)] = rows(daemon, "select finish, error from requests")
        assert (finish, why) == ("cancelled", "aiosd restarted")
        [row] = a.call(ListContexts())
        assert not row.busy
        assert a.ask("on", context=row.cid, max_tokens=2).finish_reason == "length"
    nothing_open(daemon)


def test_a_suspended_agents_request_stays_where_it_is(daemon: Daemon) -> None:
    with Writer(daemon, "solo") as solo, Writer(daemon) as a, daemon.connect() as person:
        alone = solo.ask("tell", **LONG)
        wanted = a.begin("tell", key="k", **LONG)
        a.read_tokens(wanted, 20)
        person.call(SuspendAgent(a.aid))
        solo.ask("time", max_tokens=400)  # more than the time after which tokens are on record
        seen = agent(person, a.aid).usage.tokens_out
        aid, credential = a.aid, a.credential
        restart(daemon)
    with Writer(daemon, "solo") as solo, daemon.connect() as person:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        solo.ask("time passes", max_tokens=200)
        row = agent(person, aid)
        assert row.state == "T" and 0 < row.usage.tokens_out <= seen
        with Writer(daemon, credential=credential) as a:
            wanted = a.begin("tell", key="k", **LONG)
            person.call(ResumeAgent(aid))
            assert a.finish(wanted).token_ids == a.seen[wanted] == alone.token_ids
    nothing_open(daemon)


def test_contexts_of_agents_that_ended_are_gone(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        kept, cleared = (a.ask(max_tokens=3).context for _ in range(2))
        a.call(ClrContext(cleared))
        b.ask(max_tokens=3)
        person.call(Kill(b.aid, "KILL"))
        until(lambda: b.aid not in [row.aid for row in person.call(ListAgents())], "it ends")
        credential = a.credential
    restart(daemon)
    with Writer(daemon, credential=credential) as a:
        assert [row.cid for row in a.call(ListContexts())] == [kept]
    nothing_open(daemon)


def test_a_fork_is_there_with_its_contexts(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "solo") as solo:
        told = a.ask("Once upon", max_tokens=90)
        child = a.call(Fork(a.aid))
        base = solo.ask("Once upon", max_tokens=90)
        alone = solo.ask(" one", context=base.context, max_tokens=40)
    restart(daemon)
    with Writer(daemon, credential=child.credential) as b:
        [copy] = b.call(ListContexts())
        assert copy.cid != told.context and copy.tokens == len("Once upon") + 90
        assert b.ask(" one", context=copy.cid, max_tokens=40).token_ids == alone.token_ids


@pytest.mark.parametrize("recorded", [True, False])
def test_a_core_that_is_another_now_computes_anew_and_says_so(
    daemon: Daemon, recorded: bool
) -> None:
    ask: dict[str, Any] = {"key": "k", "stream": True, "max_tokens": 2000}
    with Writer(daemon) as a:
        told = a.ask("Once upon", max_tokens=90)
        wanted = a.submit("tell", **ask)
        got = list(a.read_tokens(wanted, 40))
        with held(daemon):
            if recorded:
                known = "select 1 from contexts where kv > 30 and cid > 1"
                until(lambda: rows(daemon, known) != [], "tokens are on record")
            credential = a.credential
            restart(daemon, config=CORE % ', name = "another"')
    with Writer(daemon, credential=credential) as a:
        reply = a.ask(" on", context=told.context, max_tokens=5)
        assert not reply.exact and reply.usage.cached_tokens == 0
        assert not a.call(GetContext(told.context)).exact
        with pytest.raises(OSError, match="on record, its caller has read 2000") as error:
            a.ask("tell", resume=2000, **ask)
        assert error.value.errno == errno.EIO
        wanted = a.submit("tell", **ask)  # from the beginning: nothing contradicts it
        reply = a.finish(wanted)
        assert a.seen[wanted] == reply.token_ids
        if recorded:
            assert not reply.exact and reply.token_ids[:30] == got[:30]


def test_a_core_that_is_not_exact_gives_no_other_tokens_than_were_read(daemon: Daemon) -> None:
    ask: dict[str, Any] = {"key": "k", "stream": True, "max_tokens": 1500}
    restart(daemon, config=CORE.replace("slots", "exact = false\nslots") % "")
    with Writer(daemon) as a:
        wanted = a.submit("tell", **ask)
        a.read_tokens(wanted, 300)
        with held(daemon):
            until(lambda: rows(daemon, "select 1 from contexts where kv > 9") != [], "on record")
            credential = a.credential
            restart(daemon)
    with Writer(daemon, credential=credential) as a:
        with pytest.raises(OSError, match="could not compute the others again exactly") as error:
            a.ask("tell", resume=1500, **ask)
        assert error.value.errno == errno.EIO
        wanted = a.submit("tell", resume=5, **ask)
        reply = a.finish(wanted)
        assert a.seen[wanted] == reply.token_ids[5:] and len(reply.token_ids) == 1500


def test_a_context_that_is_made_durable_at_work_fits_its_request(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "solo") as solo, daemon.connect() as person:
        alone = solo.ask("tell", **LONG)
        wanted = a.begin("tell", key="k", **LONG)
        a.read_tokens(wanted, 1)
        [row] = person.call(ListContexts(a.aid))
        for count in range(10, 100, 10):
            got = list(a.read_tokens(wanted, count))
            person.call(
                SetContext(row.cid, "truncate")
            )  # more often than tokens are written behind
        credential = a.credential
        restart(daemon)
    with Writer(daemon, credential=credential) as a:
        wanted = a.begin("tell", key="k", resume=len(got), **LONG)
        assert a.finish(wanted).token_ids == [*got, *a.seen[wanted]] == alone.token_ids
        assert a.call(GetContext(row.cid)).policy == "truncate"


def test_what_shapes_tokens_holds_over_restarts(daemon: Daemon) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 30}
    ask: dict[str, Any] = {
        "stream": True, "max_tokens": 900, "schema": schema, "logprobs": True, "temperature": 0.8,
        "seed": 3, "watermark": True, "repeat_penalty": 1.2, "top_logprobs": 2,
    }  # fmt: skip
    with Writer(daemon, "solo") as solo:
        alone = solo.finish(solo.submit("tell", **ask))
    a = Writer(daemon)
    wanted = a.submit("tell", key="k", **ask)
    for count in (30, 60):
        got = list(a.read_tokens(wanted, count))
        restart(daemon)
        a.close()
        a = Writer(daemon, credential=a.credential)
        wanted = a.submit("tell", key="k", resume=len(got), **ask)
        a.seen[wanted], a._first[wanted] = got, 0
    reply = a.finish(wanted)
    a.close()
    assert reply.token_ids == a.seen[wanted] == alone.token_ids
    assert (reply.text, reply.logprobs) == (alone.text, alone.logprobs)
    assert reply.top_logprobs == alone.top_logprobs
    assert reply.parsed == alone.parsed


def test_a_beam_search_is_done_again(daemon: Daemon) -> None:
    ask: dict[str, Any] = {"key": "k", "max_tokens": 600, "beams": 3}
    with Writer(daemon, "solo") as solo:
        alone = solo.ask("tell", **ask)
        more = solo.ask(" so", context=alone.context, max_tokens=20)
    with Writer(daemon) as a:
        a.submit("tell", **ask)
        until(
            lambda: rows(daemon, "select 1 from contexts where kv > 0 and cid > 1") != [], "begun"
        )
        credential = a.credential
        restart(daemon)
    with Writer(daemon, credential=credential) as a:
        reply = a.ask("tell", **ask)
        assert reply.token_ids == alone.token_ids and reply.beams == alone.beams
        assert a.ask(" so", context=reply.context, max_tokens=20).token_ids == more.token_ids


def test_a_deadline_counts_on(daemon: Daemon) -> None:
    until(lambda: core(daemon).state == "ready", "the core is ready")
    ask: dict[str, Any] = {"key": "k", "max_tokens": 4000, "deadline": 4.0}
    with Writer(daemon) as a:
        wanted = a.begin("tell", **ask)
        a.read_tokens(wanted, 50)
        with held(daemon):
            until(lambda: rows(daemon, "select 1 from contexts where kv > 9") != [], "on record")
            credential = a.credential
            restart(daemon)
    with Writer(daemon, credential=credential) as a:
        reply = a.ask("tell", stream=True, **ask)
        assert (reply.finish_reason, reply.reason) == ("cancelled", "deadline")
        # Timers count in milliseconds, so the end may come one early.
        assert 3.99 <= reply.timing.turnaround_s < PATIENCE and len(reply.token_ids) >= 9


def test_a_core_that_is_not_there_is_said(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        told = a.ask("Once upon", max_tokens=9)
        wanted = a.begin("tell", key="k", **LONG)
        a.read_tokens(wanted, 1)
        with held(daemon):
            credential = a.credential
            restart(daemon, config=(CORE % "").replace('"c"', '"d"'))
    with Writer(daemon, credential=credential) as a:
        row = a.call(GetContext(told.context))
        assert (row.core, row.tokens, row.tier) == ("c", len("Once upon") + 9, "tokens")
        with pytest.raises(OSError, match="no core 'c'") as error:
            a.ask("tell", context=told.context)
        assert error.value.errno == errno.ENODEV
        with pytest.raises(FileNotFoundError, match="failed when aiosd was restarted"):
            a.ask("tell", key="k", stream=True, resume=1, **LONG)
        assert a.ask("tell", key="k", **LONG).core == "d"  # nothing of it was read: a fresh start
        restart(daemon, config=CORE % "")
        a.close()
    with Writer(daemon, credential=credential) as a:
        assert a.ask("on", context=told.context, max_tokens=9).exact


LOADING = 400.0  # seconds that a model may take to load and be probed on a busy machine
REAL = """
[[cores]]
name = "c"
slots = 2
"""


@pytest.mark.model
@pytest.mark.timeout(1200)
def test_a_real_model_goes_on_with_the_same_tokens(
    state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    """Two conversations; the kernel dies while one prompt is read and while both answers come."""
    asks: list[dict[str, Any]] = [
        {"max_tokens": 24, "key": "a"},
        {"max_tokens": 24, "key": "b", "temperature": 0.8, "seed": 7},
    ]
    prompts = ["Tell me of the sea. " * 20, "A boat is"]
    with Daemon(state_dir, runtime_dir, kv_dir, config=REAL) as daemon:
        with Writer(daemon, "solo") as solo:
            solo.sock.settimeout(LOADING)
            alone = [
                solo.ask(prompt, **{**ask, "key": ""})
                for prompt, ask in zip(prompts, asks, strict=True)
            ]
            more = solo.ask(" So", context=alone[0].context, max_tokens=8)
        a = Writer(daemon)
        a.sock.settimeout(LOADING)
        for count in (0, 12):
            told = [a.begin(prompt, **ask) for prompt, ask in zip(prompts, asks, strict=True)]
            a.read_tokens(told[0 if count else 1], count or 1)
            restart(daemon)
            a.close()
            a = Writer(daemon, credential=a.credential)
            a.sock.settimeout(LOADING)
        told = [a.begin(prompt, **ask) for prompt, ask in zip(prompts, asks, strict=True)]
        replies = [a.finish(each) for each in told]
        assert [r.token_ids for r in replies] == [r.token_ids for r in alone]
        assert all(reply.exact for reply in replies)
        last = a.ask(" So", context=replies[0].context, max_tokens=8)
        assert last.token_ids == more.token_ids
        a.close()


HELLO = """
import sys, aios
with aios.connect() as kernel:
    reply = kernel.llm_generate("Hello", max_tokens=5)
    print("said", len(reply.token_ids), flush=True)
"""


def test_a_program_whose_hello_was_not_answered_is_let_in_by_the_next_kernel(
    daemon: Daemon,
) -> None:
    daemon.environ["AIOS_KILL_AT"] = "identity.answer"
    restart(daemon)
    with daemon.connect() as person:
        aid = spawn(person, [sys.executable, "-c", HELLO])
    daemon.process.wait(PATIENCE)  # at the point where the new credential is stored, not told
    del daemon.environ["AIOS_KILL_AT"]
    restart(daemon)
    with daemon.connect() as person:
        assert wait(person, aid).code == 0
        assert log(person, aid) == "said 5\n"
