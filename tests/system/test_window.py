"""What happens when a context's window is full, through the door: by policy, to the token."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import aios
from aiosd.abi.cores import ListCores
from aiosd.abi.inference import (
    ClrContext,
    Context,
    ExpContext,
    GetContext,
    ListContexts,
    SetContext,
    Turn,
)
from aiosd.abi.process import Fork, Kill
from tests.daemon import Daemon
from tests.system.agents import until
from tests.system.test_generation import error_of
from tests.system.writer import Watcher, Writer, info, kill_worker

WINDOW = 192
FAKE = f"""
[sched]
policy = "rr"
quantum = 4
[[cores]]
name = "c"
driver = "fake"
slots = 1
n_ctx = {WINDOW}
grid = 16
options = {{eog = 0.0}}
[[cores]]
name = "stiff"
driver = "fake"
slots = 1
n_ctx = {WINDOW}
options = {{eog = 0.0, shifts = false}}
"""
OTHERS = """
[[cores]]
name = "short"
driver = "fake"
slots = 1
n_ctx = 192
options = {eog = 0.0, n_ctx_train = 300}
[[cores]]
name = "huge"
driver = "fake"
n_ctx = 192
options = {kv_bytes = 1073741824}
"""
WIDE = 1024
SUMMING = f"""
[sched]
policy = "rr"
quantum = 8
[[cores]]
name = "c"
driver = "fake"
slots = 1
n_ctx = {WIDE}
options = {{eog = 0.0}}
"""
REPLACING = ["truncate", "slide"]
ENDLESS = [*REPLACING, "expand"]


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """Run a daemon whose core has one short slot, so that agents push each other out."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=FAKE) as running:
        yield running


def shown(a: Writer, context: int) -> Context:
    """Return what get_context says."""
    found = a.call(GetContext(context))
    assert isinstance(found, Context)
    return found


def text_of(tokens: list[int]) -> str:
    """Return what the fake core's tokens, which are bytes, say."""
    return bytes(tokens).decode("utf-8", "replace")


# n-1, n, n+1.


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1])
def test_error(daemon: Daemon, length: int) -> None:
    """A prompt needs a cell for what comes after it; a reply ends with the last one."""
    with Writer(daemon) as a:
        if length < WINDOW:
            reply = a.ask("x" * length, max_tokens=9, core="c")
            assert (len(reply.token_ids), reply.finish_reason, reply.reason) == (
                1,
                "length",
                "window",
            )
            with error_of(errno.ENOSPC, "set_context"):
                a.ask("y", context=reply.context)
            assert shown(a, reply.context).tokens == WINDOW
        else:
            with error_of(errno.ENOSPC, str(length), str(WINDOW)):
                a.ask("x" * length, core="c")


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("policy", REPLACING)
def test_a_prompt_about_as_long_as_the_window(daemon: Daemon, policy: str, length: int) -> None:
    with Writer(daemon) as a:
        reply = a.ask("x" * length, max_tokens=60, window=policy, core="c")
        assert (len(reply.token_ids), reply.finish_reason, reply.reason) == (60, "length", "")
        assert reply.text == text_of(reply.token_ids)
        now = shown(a, reply.context)
        assert now.policy == policy and now.tokens <= now.limit == WINDOW
        assert now.length == length + 60
        assert (now.slid if policy == "slide" else now.truncated) >= 1
        more = a.ask("y" * length, max_tokens=9, context=reply.context)
        assert len(more.token_ids) == 9
        assert shown(a, reply.context).length == 2 * length + 69


@pytest.mark.parametrize("short", [-1, 0, 1])
@pytest.mark.parametrize("policy", ["error", *REPLACING])
def test_a_reply_about_as_long_as_the_window(daemon: Daemon, policy: str, short: int) -> None:
    """The reply's last token takes the last cell but one, the last, and finds none."""
    with Writer(daemon) as a:
        reply = a.ask("x" * 100, max_tokens=WINDOW - 100 + short, window=policy, core="c")
        now = shown(a, reply.context)
        if policy == "error" and short == 1:
            assert (len(reply.token_ids), reply.reason) == (WINDOW - 100, "window")
        else:
            assert (len(reply.token_ids), reply.reason) == (WINDOW - 100 + short, "")
        made = now.slid if policy == "slide" else now.truncated
        assert made == (short == 1 and policy == "truncate"), "room is made when it is needed"
        assert now.length == 100 + len(reply.token_ids)


# The middle of a character.


@pytest.mark.parametrize("policy", REPLACING)
def test_characters_and_stops_across_the_edge(daemon: Daemon, policy: str) -> None:
    """Wherever the window ends, the text goes on in the middle of a character, and of a stop."""
    with Writer(daemon) as a:
        cut = 0
        for start in range(150, 182, 3):
            how: dict[str, Any] = {"window": policy, "temperature": 0.9, "seed": start, "core": "c"}
            wanted = a.begin("x" * start, max_tokens=120, **how)
            reply = a.finish(wanted)
            assert a.seen[wanted] == reply.token_ids and a.text[wanted] == reply.text
            assert reply.text == text_of(reply.token_ids)
            edge = reply.token_ids[: WINDOW - start]
            cut += "\ufffd" in text_of(edge)
            around = text_of(reply.token_ids)[len(text_of(edge)) - 2 :][:4]
            if "\ufffd" not in around:
                stopped = a.ask("x" * start, max_tokens=120, stop=[around], **how)
                assert stopped.finish_reason == "stop"
                assert stopped.text == reply.text[: reply.text.index(around)]
        assert cut, "no character was cut: take other prompts"


def test_an_error_in_the_middle_of_a_character_says_so(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        for start in range(150, 190):
            how: dict[str, Any] = {"temperature": 0.9, "seed": start, "core": "c"}
            reply = a.ask("x" * start, max_tokens=120, **how)
            assert reply.reason == "window" and reply.text == text_of(reply.token_ids)
            if reply.text.endswith("\ufffd"):
                return
        raise AssertionError("no character was cut: take other prompts")


# The middle of a grammar.


@pytest.mark.parametrize("policy", ENDLESS)
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_grammar_goes_on_across_the_edge(daemon: Daemon, policy: str, offset: int) -> None:
    """Every place of a word of five letters is the window's last one once."""
    with Writer(daemon) as a:
        for place in range(5):
            prompt = "x" * (WINDOW - 30 + offset - place)
            grammar = 'root ::= ("<" [a-z] [0-9] [a-z] ">"){30}'
            how: dict[str, Any] = {"window": policy, "core": "c", "grammar": grammar}
            reply = a.ask(prompt, max_tokens=200, **how)
            assert len(reply.token_ids) == 150 and reply.finish_reason == "stop"
            assert re.fullmatch(r"(<[a-z][0-9][a-z]>){30}", reply.text)


@pytest.mark.parametrize("policy", REPLACING)
def test_a_schema_is_kept_to_across_the_edge(daemon: Daemon, policy: str) -> None:
    word = {"type": "string", "minLength": 40, "maxLength": 40}
    schema = {"type": "array", "items": word, "minItems": 6, "maxItems": 6}
    with Writer(daemon) as a:
        reply = a.ask("x" * 100, max_tokens=2000, window=policy, core="c", schema=schema)
        assert reply.finish_reason == "stop"
        assert (
            [len(each) for each in reply.parsed]
            == [40] * 6
            == [len(w) for w in json.loads(reply.text)]
        )


# Turns.


@pytest.mark.parametrize("policy", REPLACING)
def test_a_chat_goes_on_for_ever(daemon: Daemon, policy: str) -> None:
    with Writer(daemon) as a:
        turns = [Turn("system", "Be brief."), Turn("user", "hello")]
        reply = a.ask("", messages=turns, raw=False, max_tokens=20, window=policy, core="c")
        for number in range(40):
            reply = a.ask(f"and {number}?", raw=False, max_tokens=20, context=reply.context)
            assert len(reply.token_ids) == 20
        now = shown(a, reply.context)
        assert now.tokens <= WINDOW < now.length
        assert (now.slid if policy == "slide" else now.truncated) > 3
        assert now.exact


def test_a_long_reply_of_a_chat_stays_a_reply(daemon: Daemon) -> None:
    """Its beginning goes, and the question; the system prompt is closed and a turn opened anew."""
    with Writer(daemon) as a:
        turns = [Turn("system", "Be brief."), Turn("user", "hello " * 9)]
        reply = a.ask("", messages=turns, raw=False, max_tokens=300, window="truncate", core="c")
        assert len(reply.token_ids) == 300 and reply.text == text_of(reply.token_ids)
        now = a.call(GetContext(reply.context, 1, 2))
        assert [(turn.number, turn.role) for turn in now.turns] == [(1, "user"), (2, "assistant")]
        assert "Be brief." in now.turns[0].text and "hello" not in now.turns[0].text
        assert reply.text.endswith(now.turns[1].text) and now.truncated >= 1
        between = len("<|end|>\n".replace("<|end|>", "x")) + len("xGo on.x\nx")
        assert now.tokens == sum(len(turn.token_ids) for turn in now.turns) + between


# Exactness.


@pytest.mark.parametrize("policy", ENDLESS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_equals_the_solo_run(daemon: Daemon, policy: str, temperature: float) -> None:
    """Preempted, evicted, its worker killed, and the kernel too, around the edge of the window."""
    how: dict[str, Any] = {"temperature": temperature, "seed": 3, "window": policy, "core": "c"}
    with Writer(daemon) as a:
        solo = a.ask("tell me of the sea " * 7, max_tokens=500, **how)
        second = a.ask("and of the wind " * 4, max_tokens=100, context=solo.context)
    with Writer(daemon, "b") as b, Writer(daemon, "other") as other:
        wanted = b.begin("tell me of the sea " * 7, max_tokens=500, **how)
        for count in (3, 57, 59, 61, 105, 111, 200, 230, 300, 401):
            b.read_tokens(wanted, count)
            other.ask("somebody else " * 5, max_tokens=7, core="c")
            if count % 3 == 0:
                with daemon.connect() as person:
                    [row] = person.call(ListContexts(b.aid))
                kill_worker(daemon, row.core)
        reply = b.finish(wanted)
        assert b.seen[wanted] == reply.token_ids == solo.token_ids
        assert reply.text == solo.text
        more = b.begin("and of the wind " * 4, max_tokens=100, context=reply.context)
        b.read_tokens(more, 50)
        other.ask("somebody else " * 5, max_tokens=7, core="c")
        assert b.finish(more).token_ids == second.token_ids
        assert shown(b, reply.context).exact


@pytest.mark.parametrize("policy", ENDLESS)
def test_it_goes_on_after_a_restart_of_the_kernel(daemon: Daemon, policy: str) -> None:
    how: dict[str, Any] = {"temperature": 0.8, "seed": 5, "window": policy, "core": "c"}
    with Writer(daemon) as a:
        solo = a.ask("tell me of the sea " * 7, max_tokens=400, **how)
        credential, aid = a.credential, a.aid
    b = Writer(daemon, credential=credential)
    wanted = b.begin("tell me of the sea " * 7, max_tokens=400, key="k", **how)
    got = list(b.read_tokens(wanted, 70))
    daemon.stop(signal.SIGKILL)
    b.close()
    daemon.start()
    with Writer(daemon, credential=credential) as c:
        assert c.aid == aid
        again = c.begin("tell me of the sea " * 7, max_tokens=400, key="k", resume=len(got), **how)
        reply = c.finish(again)
        assert got + c.seen[again] == reply.token_ids == solo.token_ids
        now, then = shown(c, reply.context), shown(c, solo.context)
        assert (now.slid, now.truncated, now.length, now.exact) == (
            then.slid, then.truncated, then.length, True,
        )  # fmt: skip


# Summarizing.


@pytest.fixture
def summing(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """Run a daemon whose window holds the question for a summary: its tokens are bytes."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=SUMMING) as running:
        yield running


@pytest.mark.parametrize("length", [WIDE - 1, WIDE, WIDE + 1])
def test_a_prompt_as_long_as_the_window_is_summarized(summing: Daemon, length: int) -> None:
    with Writer(summing) as a:
        reply = a.ask("é" * (length // 2) + "x" * (length % 2), max_tokens=9, window="summarize")
        now = shown(a, reply.context)
        assert (len(reply.token_ids), now.summarized, now.truncated) == (9, 1, 0)
        assert now.tokens <= WIDE and now.length == length + 9
        shows = a.call(GetContext(reply.context, first_turn=1, last_turn=2)).turns
        said = "é" * (length // 2) + "x" * (length % 2) + reply.text
        assert "".join(turn.text for turn in shows) == said
        assert [t.summarized for t in shows] == [True, False, False]


def talk(a: Writer, turns: int = 10, **how: Any) -> tuple[int, list[str]]:
    """Have a chat that fills the window twice; return its context and what was said."""
    opening = [Turn("system", "Be brief."), Turn("user", "hello " * 20)]
    reply = a.ask("", messages=opening, raw=False, max_tokens=60, **how)
    said = ["hello " * 20, reply.text]
    for number in range(turns):
        words = f"word {number} " * 15
        reply = a.ask(words, raw=False, max_tokens=60, context=reply.context)
        said += [words, reply.text]
    return reply.context, said


def test_what_was_summarized_is_kept_after_a_restart_too(summing: Daemon) -> None:
    with Writer(summing) as a, Watcher(summing, "request.submit") as watcher:
        context, said = talk(a, window="summarize")
        assert watcher.await_event("request.submit", internal=True).aid == a.aid
        now = shown(a, context)
        assert now.summarized >= 1 and now.exact and now.tokens < now.length
        assert [row.cid for row in a.call(ListContexts())] == [context], "no trace of the asking"
        before = a.call(GetContext(context, 1, len(said))).turns
        system, *turns = before
        assert (system.number, system.summarized) == (1, False) and "Be brief." in system.text
        assert [turn.number for turn in turns] == list(range(1, len(said) + 1))
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(said) // 2)
        for turn, text in zip(turns, said, strict=True):
            assert text in turn.text, turn
        assert turns[0].summarized and turns[1].summarized and not turns[-1].summarized
        child = a.call(Fork(a.aid))
        with Writer(summing, credential=child.credential) as b:
            [copy] = b.call(ListContexts(b.aid))
            assert b.call(GetContext(copy.cid, 1, len(said))).turns == before
            b.call(ClrContext(copy.cid))
        with error_of(errno.EINVAL, "100"):
            a.call(GetContext(context, 1, 101))
        credential = a.credential
    summing.stop(signal.SIGKILL)
    summing.start()
    with Writer(summing, credential=credential) as a:
        assert a.call(GetContext(context, 1, len(said))).turns == before
        assert a.ask("go on", raw=False, context=context, max_tokens=9).finish_reason == "length"
        a.call(ClrContext(context))
    with closing(sqlite3.connect(summing.state_dir / "aios.db")) as db:
        assert db.execute("select count(*) from originals").fetchone() == (0,)


def test_a_summary_changes_nothing_when_others_interfere(summing: Daemon) -> None:
    """Its worker killed and its slot taken while the model reads, writes, and summarizes."""
    how: dict[str, Any] = {"window": "summarize", "temperature": 0.7, "seed": 9, "core": "c"}
    with Writer(summing) as a:
        solo = a.ask("tell me " * 100, max_tokens=900, **how)
        assert shown(a, solo.context).summarized >= 2
    with (
        Writer(summing, "b") as b,
        Writer(summing, "other") as other,
        Watcher(summing, "request.submit") as watcher,
    ):
        wanted = b.begin("tell me " * 100, max_tokens=900, **how)
        for count in (100, 200, 225):
            b.read_tokens(wanted, count)
            other.ask("somebody else " * 5, max_tokens=7)
        watcher.await_event("request.submit", internal=True)
        kill_worker(summing)
        reply = b.finish(wanted)
        assert b.seen[wanted] == reply.token_ids == solo.token_ids


@pytest.mark.parametrize("how", ["cancel", "KILL"])
def test_a_request_that_ends_while_it_is_summarized_leaves_nothing(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, how: str
) -> None:
    slow = SUMMING.replace("eog = 0.0", "eog = 0.0, step_ms = 100")
    with (
        Daemon(state_dir, runtime_dir, kv_dir, config=slow) as daemon,
        Writer(daemon) as a,
        Watcher(daemon, "request.submit") as watcher,
        daemon.connect() as person,
    ):
        wanted = a.submit("tell me " * 130, window="summarize")
        watcher.await_event("request.submit", internal=True)
        assert info(daemon).requests == 2
        if how == "cancel":
            a.cancel(wanted)
            assert a.finish(wanted).finish_reason == "cancelled"
        else:
            person.call(Kill(a.aid, "KILL"))
        until(lambda: info(daemon).requests == 0, "both requests have ended")
        assert person.call(ListContexts()) == []


def test_without_a_summary_the_turns_go_and_it_says_so(daemon: Daemon) -> None:
    """The question for one is longer than this core's window."""
    with Writer(daemon) as a:
        reply = a.ask("x" * 100, max_tokens=200, window="summarize", core="c")
        now = shown(a, reply.context)
        assert (len(reply.token_ids), now.summarized, now.policy) == (200, 0, "summarize")
        assert now.truncated >= 1 and "no summary" in now.note


# Expanding.


def names(daemon: Daemon) -> list[str]:
    """Return the names of the cores."""
    with daemon.connect() as person:
        return sorted(row.name for row in person.call(ListCores()))


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW])
def test_a_prompt_as_long_as_the_window_expands_it(daemon: Daemon, length: int) -> None:
    with Writer(daemon) as a:
        reply = a.ask("x" * length, max_tokens=1, window="expand", core="c")
        now = shown(a, reply.context)
        more = 0 if length < WINDOW else 1 if length < 2 * WINDOW else 3
        assert (now.limit, now.tokens, now.expanded) == (WINDOW << more, length + 1, min(more, 1))
        assert now.core == ("c" if not more else f"c@{WINDOW << more}")
        assert a.ask("y", context=reply.context, max_tokens=9, core="c").context == reply.context


def test_a_context_takes_its_kv_along_and_the_class_goes_with_the_last(daemon: Daemon) -> None:
    with Writer(daemon) as a, Watcher(daemon, "context.") as watcher:
        alone = a.ask("x" * 150, max_tokens=300, window="expand", core="c")
        first = a.ask("x" * 150, max_tokens=42, core="c")
        moved = a.call(ExpContext(first.context, 500))
        assert (moved.core, moved.limit, moved.tokens, moved.expanded) == ("c@768", 768, 192, 1)
        assert watcher.await_event("context.moved", context=first.context).data["core"] == "c@768"
        assert moved.tier in ("ram", "disk") and moved.kv == 191, "not a position is lost"
        second = a.ask("", context=first.context, max_tokens=258)
        assert first.token_ids + second.token_ids == alone.token_ids
        assert second.usage.cached_tokens >= 190
        until(lambda: names(daemon) == ["c", "c@768", "stiff"], "nobody is on c@384 any more")
        a.call(ClrContext(alone.context))
        a.call(ClrContext(first.context))
        until(lambda: names(daemon) == ["c", "stiff"], "the classes are gone")
        a.ask("x" * 300, max_tokens=5, window="expand", core="c")
        assert "c@384" in names(daemon)


def test_expanding_has_limits_that_say_what_to_do(
    state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    with (
        Daemon(state_dir, runtime_dir, kv_dir, config=FAKE + OTHERS) as daemon,
        Writer(daemon) as a,
    ):
        reply = a.ask("x" * 9, max_tokens=5, core="huge")
        with error_of(errno.ENOMEM, "MiB", "fewer slots"):
            a.call(ExpContext(reply.context, 8000))
        with error_of(errno.ENOMEM, "MiB"):
            a.ask("x" * 500, window="expand", core="huge")
        assert shown(a, reply.context).core == "huge" and names(daemon).count("huge") == 1
        reply = a.ask("x" * 100, max_tokens=400, window="expand", core="short")
        assert (len(reply.token_ids), reply.reason) == (200, "window"), "up to the trained length"
        assert shown(a, reply.context).limit == 300
        with error_of(errno.EINVAL, "trained for 300", "YaRN"):
            a.call(ExpContext(reply.context, 301))
        before = shown(a, reply.context)
        now = a.call(ExpContext(reply.context, 301, yarn=True))
        assert (now.core, now.limit, now.kv, now.exact) == ("short@384-yarn", 384, 0, before.exact)
        more = a.ask("", context=reply.context, max_tokens=50)
        assert len(more.token_ids) == 50
        again = a.ask("x" * 100, max_tokens=400, window="expand-yarn", core="short")
        assert len(again.token_ids) == 400 and again.token_ids[:200] == reply.token_ids
        assert shown(a, again.context).core == "short@768-yarn"


# All at once.


def test_agents_of_all_policies_equal_their_solo_runs(daemon: Daemon) -> None:
    """On one slot, suspended and resumed at random, their workers killed."""

    async def tell(index: int, aids: dict[int, int]) -> list[list[int]]:
        said = []
        async with aios.connect_async(daemon.socket, name=f"a{index}") as kernel:
            aids[index] = kernel.aid
            how: dict[str, Any] = {
                "window": ENDLESS[index % len(ENDLESS)],
                "temperature": 0.7 * (index % 2),
                "seed": index,
                "core": "c",
            }
            reply = await kernel.llm_generate(
                f"agent {index} " * 9, max_tokens=150, raw=True, **how
            )
            said.append(reply.token_ids)
            for turn in range(2):
                reply = await kernel.llm_generate(
                    f"turn {turn} " * 8, max_tokens=120, raw=True, context=reply.context
                )
                said.append(reply.token_ids)
            del aids[index]
        return said

    async def bother(aids: dict[int, int], over: asyncio.Event) -> int:
        rng, killed, turns = random.Random(5), set[int](), 0
        async with aios.connect_async(daemon.socket) as person:
            while not over.is_set():
                turns += 1
                if aids:
                    aid = rng.choice(list(aids.values()))
                    with suppress(ProcessLookupError):
                        await person.suspend_agent(aid)
                        await person.ping()
                        await person.resume_agent(aid)
                pid = rng.choice(await person.list_cores()).pid
                if pid and len(killed) < 6 and pid not in killed and turns % 20 == 5:
                    killed.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return len(killed)

    async def main() -> None:
        solo = [await tell(index, {}) for index in range(6)]
        aids: dict[int, int] = {}
        for _ in range(10):  # until a worker was killed, most often in the first round
            over = asyncio.Event()
            bothering = asyncio.create_task(bother(aids, over))
            together = await asyncio.gather(*(tell(index, aids) for index in range(6)))
            over.set()
            killed = await bothering
            assert together == solo
            if killed:
                return
        raise AssertionError("no worker was killed")

    asyncio.run(main())


# Choosing.


def test_the_policy_is_chosen_and_checked(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        with error_of(errno.EINVAL, "truncate"):
            a.ask("x", window="forget", core="c")
        reply = a.ask("x" * 150, max_tokens=5, core="c")
        assert shown(a, reply.context).policy == "error"
        with error_of(errno.EINVAL, "fresh"):
            a.ask("x", window="slide", context=reply.context)
        assert a.call(SetContext(reply.context, "truncate")).policy == "truncate"
        more = a.ask("y" * 100, max_tokens=50, context=reply.context)
        assert len(more.token_ids) == 50 and shown(a, reply.context).truncated == 1
        with error_of(errno.EINVAL, "policy"):
            a.call(SetContext(reply.context, "forget"))


def test_a_model_that_cant_shift_says_so(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        with error_of(errno.EINVAL, "stiff", "shifted", "truncate"):
            a.ask("x" * 9, window="slide", core="stiff")
        reply = a.ask("x" * 9, max_tokens=3, core="stiff")
        with error_of(errno.EINVAL, "shifted"):
            a.call(SetContext(reply.context, "slide"))
        assert shown(a, reply.context).policy == "error"


def test_a_policy_changed_while_the_reply_grows_counts_at_the_edge(daemon: Daemon) -> None:
    """From truncate to slide and back: what has shifted is as good a beginning as any."""
    with Writer(daemon) as a, daemon.connect() as person:
        wanted = a.begin("x" * 100, max_tokens=700, window="slide", core="c")
        a.read_tokens(wanted, 150)
        reply = a.finish(wanted)
        assert shown(a, reply.context).slid >= 3
        person.call(SetContext(reply.context, "truncate"))
        more = a.ask("y" * 50, max_tokens=300, context=reply.context)
        now = shown(a, reply.context)
        assert len(more.token_ids) == 300 and now.truncated >= 1 and now.tokens <= WINDOW
        person.call(SetContext(reply.context, "slide"))
        last = a.ask("z" * 50, max_tokens=300, context=reply.context)
        assert len(last.token_ids) == 300
        assert shown(a, reply.context).slid > now.slid


def test_the_configured_policy_is_taken(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> None:
    with Daemon(state_dir, runtime_dir, kv_dir, config=FAKE) as daemon:
        daemon.stop()
        with daemon.config.open("a") as file:
            file.write('policy = "truncate"\n')
        daemon.start()
        with Writer(daemon) as a:
            reply = a.ask("x" * 300, max_tokens=30, core="c")
            assert shown(a, reply.context).policy == "truncate" and len(reply.token_ids) == 30
