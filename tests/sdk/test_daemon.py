"""The SDK and a real daemon with a fake core: whole ways, and what a lost kernel does to them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import aios
from aios import place
from tests.daemon import PATIENCE, Daemon

CORE = """
[[cores]]
name = "fake"
driver = "fake"
slots = 4
options = {eog = 0, step_ms = 2}
[context]
kv_dir = "%s"
"""


@pytest.fixture
def daemon(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemon]:
    """A daemon that AIOS_SOCKET points at; this process is a person's."""
    monkeypatch.setattr(place.inherited, "_credential", "")
    made = Daemon(state_dir, runtime_dir, kv_dir)
    made.config.write_text(CORE % kv_dir, "utf-8")
    with made as running:
        monkeypatch.setenv("AIOS_SOCKET", running.socket)
        yield running


def test_the_history_of_what_was_asked(daemon: Daemon) -> None:
    with aios.connect(name="math") as kernel:
        reply = kernel.llm_generate("What is 17 * 23?", max_tokens=8)
        chat = [{"role": "user", "content": "Hello"}]
        kernel.llm_generate(messages=chat, max_tokens=2)
        one, two = kernel.history()
        assert (one.aid, one.prompt, one.reply) == (kernel.aid, "What is 17 * 23?", reply.text)
        assert (two.messages, two.prompt) == (chat, "")
        assert kernel.history(text="hello", limit=1) == [two]

        async def ask() -> list[aios.Interaction]:
            async with aios.connect_async(credential=None) as person:
                return await person.history(aid=one.aid, request=reply.request)

        assert asyncio.run(ask()) == [one]


def test_what_is_left_and_what_was_used(daemon: Daemon) -> None:
    with aios.connect(name="math") as kernel, aios.connect(credential=None) as person:
        me = f"agent:{kernel.aid}"
        assert kernel.quota() == {} and kernel.usage() == {}
        person.set_quota(subject=me, resource="tokens", limit=30, period=3600)
        person.set_quota(subject=me, resource="tokens", limit=5, hard=False)
        uid = f"uid:{person.welcome.uid}"
        person.set_quota(subject=uid, resource="tokens", limit=100)
        person.set_quota(subject=me, resource="tokens", limit=30, period=3600)
        kernel.llm_generate("hello", raw=True, max_tokens=20)
        row = kernel.quota()["tokens"]
        assert (row.subject, row.used, row.reserved, row.by) == (me, 25, 0, "root")
        with pytest.raises(OSError, match="6 more tokens are more than the 5"):
            kernel.llm_generate("hello", raw=True, max_tokens=1)
        assert kernel.usage()["fake"].tokens_out == 20

        async def ask() -> tuple[set[str], int]:
            async with aios.connect_async(credential=None) as other:
                used = await other.usage(me, by="day")
                return set(await other.quota(me)), sum(day.tokens_in for day in used.values())

        assert asyncio.run(ask()) == ({"tokens"}, 5)


def test_generate_continue_and_forget(daemon: Daemon) -> None:
    with aios.connect(name="math") as kernel:
        first = kernel.llm_generate("What is 17 * 23?", max_tokens=8, temperature=0)
        assert (first.finish_reason, len(first.token_ids)) == ("length", 8)
        assert first.usage.completion_tokens == 8
        assert first.timing.turnaround_s >= first.timing.waiting_s >= 0
        second = kernel.llm_generate("And twice that?", max_tokens=4, context=first.context)
        assert second.context == first.context
        assert [each.cid for each in kernel.list_contexts()] == [first.context]
        kernel.clr_context(first.context)
        assert kernel.list_contexts() == []


def test_a_stream_says_what_the_plain_call_says(daemon: Daemon) -> None:
    with aios.connect(name="story") as kernel:
        plain = kernel.llm_generate("Tell a story.", max_tokens=20)
        stream = kernel.llm_generate("Tell a story.", max_tokens=20, stream=True)
        chunks = list(stream)
        assert [token for chunk in chunks for token in chunk.token_ids] == plain.token_ids
        assert "".join(chunk.text for chunk in chunks) == plain.text
        assert stream.reply.token_ids == plain.token_ids


def test_an_agent_ends_with_its_block(daemon: Daemon) -> None:
    with pytest.raises(ZeroDivisionError), aios.connect(name="short") as agent:
        raise ZeroDivisionError
    with aios.connect() as kernel:
        (row,) = kernel.list_agents(aid=agent.aid, all=True)
        assert (row.name, row.exit_code) == ("short", 1)


def test_a_spawned_agent_is_followed_and_waited_for(daemon: Daemon) -> None:
    with aios.connect() as kernel:
        started = kernel.spawn(["rec", "--json", "--max-tokens", "6"], name="chef")
        (row,) = kernel.list_agents(aid=started.aid)
        assert row.name == "chef"
        output = "".join(record.text for record in kernel.read_log(started.aid, follow=True))
        assert output.count('"step"') == 2
        status = kernel.wait(started.aid)
        assert status is not None
        assert (status.code, status.usage.requests) == (0, 2)
        kinds = [each.kind for each in kernel.query_history(aid=started.aid)]
        assert {"agent.spawn", "agent.exit"} <= set(kinds)


def test_errors_say_what_to_do(daemon: Daemon) -> None:
    with aios.connect() as kernel:
        with pytest.raises(FileNotFoundError, match=r"no program narative.*did you mean narrative"):
            kernel.spawn(["narative"])
        with pytest.raises(ProcessLookupError):
            kernel.kill(999)
        with pytest.raises(OSError, match="temperature"):
            kernel.llm_generate("x", temperature=-1)
    with pytest.raises(PermissionError):
        aios.connect(credential="made-up")


def test_a_cancelled_stream_keeps_its_text(daemon: Daemon) -> None:
    with aios.connect(name="long") as kernel:
        stream = kernel.llm_generate("Go on and on.", max_tokens=1500, stream=True)
        first = next(stream)
        stream.cancel()
        reply = stream.result()
        assert reply.finish_reason == "cancelled"
        assert reply.text.startswith(first.text)


def test_a_forked_child_speaks_with_its_own_credential(daemon: Daemon) -> None:
    with aios.connect(name="parent") as parent:
        parent.llm_generate("Remember this.", max_tokens=4)
        child = parent.fork(parent.aid, name="child")
        assert child.credential
        with aios.connect(credential=child.credential) as kernel:
            assert kernel.aid == child.aid
            kernel.exit(3)
        status = parent.wait(child.aid)
        assert status is not None
        assert status.code == 3


def test_the_agent_goes_on_after_the_kernel_was_killed(daemon: Daemon) -> None:
    with aios.connect(name="patient") as kernel:
        aid, boot = kernel.aid, kernel.welcome.boot_id
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert kernel.get_aid().aid == aid
        assert kernel.welcome.boot_id != boot


def test_a_generation_goes_on_after_the_kernel_was_killed(daemon: Daemon) -> None:
    with aios.connect(name="patient") as kernel, aios.connect() as watcher:
        solo = kernel.llm_generate("Count.", max_tokens=400).token_ids
        begun = watcher.attach(kernel.aid)
        replies: list[aios.Generation] = []
        thread = threading.Thread(
            target=lambda: replies.append(kernel.llm_generate("Count.", max_tokens=400))
        )
        thread.start()
        while not next(begun).text:
            pass
        daemon.stop(signal.SIGKILL)
        daemon.start()
        thread.join(PATIENCE)
        assert [reply.token_ids for reply in replies] == [solo]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stream_goes_on_after_the_kernel_has_gone(daemon: Daemon, number: int) -> None:
    with aios.connect(name="patient") as kernel:
        solo = kernel.llm_generate("Count.", max_tokens=300)
        stream = kernel.llm_generate("Count.", max_tokens=300, stream=True)
        tokens, text, stops = list[int](), "", [20]
        for chunk in stream:
            assert chunk.index == len(tokens)
            tokens += chunk.token_ids
            text += chunk.text
            if stops and len(tokens) >= stops[0]:
                stops.pop(0)
                daemon.stop(number)
                daemon.start()
        assert (tokens, text) == (solo.token_ids, solo.text)
        assert stream.reply.token_ids == tokens
        assert not stops
        (row,) = kernel.list_agents(aid=kernel.aid)
        assert row.usage.requests == 2


def test_a_call_outlasts_a_restart(daemon: Daemon) -> None:
    """SIGTERM: the kernel refuses what is new, then goes; the next one answers."""
    daemon.config.write_text(f"kernel = {{drain_timeout = 0}}\n{daemon.config.read_text()}")
    daemon.send_signal(signal.SIGHUP)
    with aios.connect(name="patient") as kernel, aios.connect() as watcher:
        begun = watcher.attach(kernel.aid)
        replies: list[aios.Generation] = []
        thread = threading.Thread(
            target=lambda: replies.append(kernel.llm_generate("Count.", max_tokens=400))
        )
        thread.start()
        while not next(begun).text:
            pass
        daemon.stop(signal.SIGTERM)
        daemon.start()
        thread.join(PATIENCE)
        assert [len(reply.token_ids) for reply in replies] == [400]


def test_without_a_kernel_the_error_says_so(daemon: Daemon) -> None:
    with aios.connect(reconnect=0.05) as kernel:
        daemon.stop()
        with pytest.raises(aios.ConnectionLost, match="did not come back"):
            kernel.sysinfo()
        with pytest.raises(ConnectionRefusedError, match="aiosd is not running"):
            aios.connect()


def test_many_async_requests_at_once(daemon: Daemon) -> None:
    async def main() -> None:
        async with aios.connect_async(name="crowd") as kernel:
            replies = await asyncio.gather(
                *(kernel.llm_generate(f"Question {n}", max_tokens=16) for n in range(12))
            )
            assert {len(reply.token_ids) for reply in replies} == {16}
            alone = await kernel.llm_generate("Question 3", max_tokens=16)
            assert alone.token_ids == replies[3].token_ids

    asyncio.run(main())


def test_watching_sees_an_agent_come_and_go(daemon: Daemon) -> None:
    async def main() -> None:
        async with aios.connect_async() as kernel, asyncio.timeout(PATIENCE):
            events = await kernel.watch(kinds=["agent"])
            async with aios.connect_async(name="passing"):
                pass
            async with events:
                async for event in events:
                    if event.kind == "agent.exit":
                        break

    asyncio.run(main())
