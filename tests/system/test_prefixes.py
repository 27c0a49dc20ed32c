"""Requests that begin alike, at the daemon's door: who computes what, and who may profit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from aiosd.abi.cores import AddCore, RemoveCore
from aiosd.abi.inference import (
    ClrContext,
    Context,
    Generation,
    GetContext,
    ListContexts,
    LlmGenerate,
    Turn,
)
from aiosd.abi.process import Fork, Kill
from tests.conftest import World
from tests.daemon import Daemon
from tests.system.agents import until
from tests.system.writer import Writer, core, info

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 4
n_ctx = 4096
options = {eog = 0.0, prefill_ms = 2}
"""
GRID = 64
SYSTEM = "You are a careful agent; you think first, and you answer in one line. " * 6
WHOLE = (1 + len(SYSTEM) + 2) // GRID * GRID  # <|system|> before it, <|end|> and a newline after


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Daemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The shared daemon, which keeps nothing from one test to the next."""
    limit(shared, "256MiB")
    yield shared
    clear(shared)


def clear(daemon: Daemon) -> None:
    """Have the kernel keep nothing of what it has computed."""
    with daemon.connect() as person:
        for row in person.call(ListContexts()):
            person.call(ClrContext(row.cid))
    limit(daemon, "0")
    until(lambda: info(daemon).kv_ram == 0, "nothing is kept")


def limit(daemon: Daemon, public_limit: str) -> None:
    """Change the limit of what is kept for all."""
    daemon.configure(CORE)
    with daemon.config.open("a") as file:
        file.write(f'public_limit = "{public_limit}"\n')
    daemon.send_signal(signal.SIGHUP)
    daemon.await_notice("READY=1")


def chat(agent: Writer, *turns: str, public: bool = False, tokens: int = 20) -> Generation:
    """Send a whole chat, as clients do that keep no context; the first turn is the system's."""
    return agent.finish(begin(agent, *turns, public=public, tokens=tokens))


def begin(
    agent: Writer, *turns: str, public: bool = False, tokens: int = 20, core: str = "c"
) -> int:
    roles = ["system", *["user", "assistant"] * len(turns)]
    messages = [Turn(role, turn) for role, turn in zip(roles, turns, strict=False)]
    how = {"max_tokens": tokens, "public": public, "core": core}
    return agent.submit("", raw=False, messages=messages, **how)


def context(agent: Writer, cid: int) -> Context:
    found: Context = agent.call(GetContext(cid))
    return found


def test_a_chat_that_is_sent_whole_computes_only_what_is_new(daemon: Daemon) -> None:
    question = "What is the colour of the sky? " * 5
    with Writer(daemon) as a, Writer(daemon) as b:
        first = chat(a, SYSTEM, question)
        assert first.usage.cached_tokens == 0
        second = chat(a, SYSTEM, question, first.text, "And of the sea?")
        # Up to the last whole chunk of the first prompt: what follows it was decoded.
        assert second.usage.cached_tokens == first.usage.prompt_tokens // GRID * GRID
        assert context(a, second.context).shared == second.usage.cached_tokens
        alone = chat(b, SYSTEM, question, first.text, "And of the sea?")
        assert alone.usage.cached_tokens == 0
        assert second.token_ids == alone.token_ids


def test_nobody_learns_whether_another_has_asked_the_same(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon) as b:
        first = chat(a, SYSTEM, "My secret is 42.")
        again = chat(b, SYSTEM, "My secret is 42.")
        assert (again.usage.cached_tokens, context(b, again.context).shared) == (0, 0)
        assert first.token_ids == again.token_ids
        assert chat(a, SYSTEM, "My secret is 42.").usage.cached_tokens >= WHOLE


def test_a_public_system_message_serves_all_and_what_follows_it_nobody(daemon: Daemon) -> None:
    question = "My secret is 42, and it will stay so for many a chunk of tokens. " * 3
    with Writer(daemon) as a, Writer(daemon) as b, Writer(daemon) as c:
        alone = chat(c, SYSTEM, question)
        first = chat(a, SYSTEM, question, public=True)
        other = chat(b, SYSTEM, question)
        assert first.usage.cached_tokens == 0
        assert other.usage.cached_tokens == WHOLE
        assert first.token_ids == other.token_ids == alone.token_ids


def test_a_public_system_message_outlives_its_agents(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon) as b, daemon.connect() as person:
        chat(a, SYSTEM, "Hello.", public=True)
        until(lambda: info(daemon).kv_ram > 0, "it is kept")
        person.call(Kill(a.aid, "KILL"))
        assert chat(b, SYSTEM, "Who are you?").usage.cached_tokens == WHOLE
    with Writer(daemon) as c:
        assert chat(c, SYSTEM, "And you?").usage.cached_tokens == WHOLE


def test_public_is_the_system_message_alone(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon) as b:
        a.ask(SYSTEM * 2, public=True)
        assert b.ask(SYSTEM * 2).usage.cached_tokens == 0
        turn = [Turn("user", SYSTEM * 2)]
        a.ask("", raw=False, messages=turn, public=True)
        assert b.ask("", raw=False, messages=turn).usage.cached_tokens == 0


def test_many_that_come_at_once_compute_it_once(daemon: Daemon) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(Writer(daemon)) for _ in range(12)]
        alone = stack.enter_context(Writer(daemon))
        person = stack.enter_context(daemon.connect())
        slow = {"eog": 0.0, "prefill_ms": 80}  # the kernel is told of a chunk in time to say so
        person.call(AddCore("fake", "slow", "fake", slots=4, n_ctx=4096, options=slow))
        asked = [
            (agent, begin(agent, SYSTEM, f"You are number {n}.", public=True, core="slow"))
            for n, agent in enumerate(crowd)
        ]
        replies = [agent.finish(wanted) for agent, wanted in asked]
        usages = [reply.usage for reply in replies]
        computed = sum(usage.prompt_tokens - usage.cached_tokens for usage in usages)
        tails = sum(usage.prompt_tokens - WHOLE for usage in usages)
        assert computed <= WHOLE + tails + 2 * GRID
        for n in (0, 5, 11):
            clear(daemon)
            reply = chat(alone, SYSTEM, f"You are number {n}.")
            assert reply.usage.cached_tokens == 0
            assert reply.token_ids == replies[n].token_ids
        person.call(RemoveCore("slow"))


def test_a_fork_shares_what_its_parent_holds(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        first = chat(a, SYSTEM, "Remember this.")
        child = a.call(Fork(a.aid))
        with Writer(daemon, credential=child.credential) as b:
            copy = b.call(ListContexts(b.aid))[0]
            assert copy.shared == copy.kv > WHOLE
            ours = a.ask("Go on.", context=first.context)
            theirs = b.ask("Go on.", context=copy.cid)
            assert ours.token_ids == theirs.token_ids


def test_without_room_for_what_is_public_everybody_computes(daemon: Daemon) -> None:
    limit(daemon, "0")
    with Writer(daemon) as a, Writer(daemon) as b:
        first = chat(a, SYSTEM, "Hello.", public=True)
        a.call(ClrContext(first.context))
        assert chat(b, SYSTEM, "Hello.").usage.cached_tokens == 0


def test_public_is_a_field_of_the_call() -> None:
    assert LlmGenerate("x").public is False
