"""Cores that are providers': a scripted server in place of one, at the daemon's door."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.accounts import GetQuota, SetQuota
from aiosd.abi.chat import Function, Turn
from aiosd.abi.inference import GetContext, ListContexts, LlmEmbed, LlmGenerate, SetContext
from aiosd.abi.process import Fork, ResumeAgent, SuspendAgent
from aiosd.cores.breaker import FAILURES
from tests.conftest import World
from tests.daemon import Daemon
from tests.frontier import Act, Frontier
from tests.system.agents import until
from tests.system.providers import KEY, TEXT, ask, await_ready, cores, ready
from tests.system.writer import Watcher, Writer, core

ROUTE = """
[routing.rules.pair]
cores = ["mute"]
fallback = ["rest"]
[routing.rules.tired]
cores = ["tired"]
fallback = ["rest"]
[routing.rules.slow]
cores = ["slow"]
fallback = ["rest"]
[routing.rules.rest]
cores = ["spare"]
"""


@pytest.fixture(scope="module")
def daemon(world: World, frontier: Frontier) -> Iterator[Daemon]:
    """A daemon with an endpoint for each test."""
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    names = [
        "plain",
        "cut",
        "fails",
        "calls",
        "lies",
        "turns",
        "stop",
        "mute",
        "spare",
        "weak",
        "tired",
    ]
    config = cores(frontier, *names) + cores(frontier, "hasty", first_timeout=0.2)
    config += cores(frontier, "slow", patience=3600.0)
    claude = cores(frontier, "claude", base_url=frontier.url("claude").removesuffix("/v1"))
    config += claude.replace('"openai"', '"anthropic"')
    google = cores(frontier, "google", base_url=frontier.url("google").removesuffix("/v1"))
    config += google.replace('"openai"', '"gemini"') + ROUTE
    names += ["hasty", "slow", "claude", "google"]
    made = Daemon(*places, config=config)
    made.environ["FRONTIER_KEY"] = KEY
    with made as daemon:
        await_ready(daemon, *names)
        yield daemon
        assert KEY not in made.log.read_text()


def test_a_chat_goes_on_with_what_was_said(daemon: Daemon, frontier: Frontier) -> None:
    frontier.then("plain", Act(usage=(40, 8, 3)), Act(words=("yes",), usage=(60, 0, 1)))
    with Writer(daemon) as writer:
        first = ask(writer, "plain", max_tokens=20, temperature=0.5, seed=3)
        assert (first.text, first.finish_reason, first.token_ids) == (TEXT, "stop", [])
        usage = first.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (40, 8, 3)
        assert usage.dollars == pytest.approx((40 * 1 + 3 * 10) / 1e6)
        wanted = writer.begin("And?", raw=False, context=first.context)
        second = writer.finish(wanted)
        assert writer.text[wanted] == second.text == "yes"
        context = writer.call(GetContext(first.context, first_turn=1, last_turn=9))
        assert [turn.text for turn in context.turns] == ["Hello", TEXT, "And?", "yes"]
        assert context.tier == "remote"
    one, two = frontier.asked("plain", 2)
    assert (one["max_completion_tokens"], one["temperature"], one["seed"]) == (20, 0.5, 3)
    assert [m["role"] for m in two["messages"]] == ["user", "assistant", "user"]
    assert frontier.keys["plain"] == [f"bearer {KEY}"] * 2


def test_text_that_came_is_kept_when_the_rest_does_not(daemon: Daemon, frontier: Frontier) -> None:
    ends = ("close", "garbage", "end")
    frontier.then("cut", *[Act(after=3, then=end) for end in ends])
    with Writer(daemon) as writer:
        for _ in ends:
            reply = ask(writer, "cut")
            assert (reply.text, reply.finish_reason) == ("w0 w1 w2 ", "cancelled")
            assert "core cut" in reply.reason
            assert 3 <= reply.usage.completion_tokens <= 100  # at most a token for each byte
    assert len(frontier.asked("cut", 3)) == 3  # none was asked twice


def test_what_was_not_done_is_tried_again(daemon: Daemon, frontier: Frontier) -> None:
    frontier.then(
        "fails",
        Act(status=429, headers={"retry-after-ms": "20"}),
        Act(status=500),
        Act(),
        Act(status=400, message="nonsense"),
        Act(status=401, message="who?"),
    )
    with Writer(daemon) as writer:
        assert ask(writer, "fails").text == TEXT
        with pytest.raises(OSError, match="nonsense") as refused:
            ask(writer, "fails")
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(PermissionError, match="who"):
            ask(writer, "fails")
    assert frontier.billed["fails"] == 1
    assert len(frontier.bodies["fails"]) == 5


def test_functions_and_schemas_are_the_providers_own(daemon: Daemon, frontier: Frontier) -> None:
    add = Function("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})
    shape = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    frontier.then(
        "calls",
        Act(words=(), calls=(("add", '{"a": 1}'),), finish="tool_calls"),
        Act(words=("2",)),
        Act(words=(), calls=(("sub", "{}"),), finish="tool_calls"),
        Act(words=('{"n"', ": 3}")),
        Act(words=('{"n": "three"}',)),
    )
    with Writer(daemon) as writer:
        first = ask(writer, "calls", functions=[add], tool_choice="required")
        [call] = first.calls
        assert (first.finish_reason, call.tool, call.arguments) == ("calls", "add", {"a": 1})
        result = Turn("tool", "2", call=call.id)
        wanted = writer.send(LlmGenerate(messages=[result], context=first.context))
        writer.seen[wanted] = []
        assert writer.finish(wanted).text == "2"
        strange = ask(writer, "calls", functions=[add])
        assert strange.finish_reason == "cancelled" and "sub" in strange.reason
        assert ask(writer, "calls", schema=shape).parsed == {"n": 3}
        wrong = ask(writer, "calls", schema=shape)
        assert wrong.parsed is None and "does not satisfy" in wrong.reason
    bodies = frontier.asked("calls", 5)
    assert bodies[0]["tool_choice"] == "required"
    assert bodies[1]["messages"][1]["tool_calls"][0]["id"] == call.id
    assert bodies[1]["messages"][2] == {"role": "tool", "content": "2", "tool_call_id": call.id}
    assert bodies[3]["response_format"]["json_schema"]["strict"] is True


def test_anthropic_is_asked_in_its_own_words(daemon: Daemon, frontier: Frontier) -> None:
    add = Function("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})
    frontier.then(
        "claude",
        Act(words=("Well. ",), calls=(("add", '{"a": 1}'),), finish="tool_use", usage=(30, 10, 7)),
        Act(words=("2",), finish="end_turn", usage=(40, 0, 1)),
        Act(after=4, then="close"),
        Act(status=529),
        Act(finish="max_tokens", usage=(9, 0, 8)),
    )
    with Writer(daemon) as writer:
        chat = [Turn("system", "Be brief."), Turn("user", "1 + 1?")]
        first = ask(writer, "claude", "", messages=chat, functions=[add])
        assert (first.text, first.finish_reason) == ("Well. ", "calls")
        assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (30, 10)
        result = Turn("tool", "2", call=first.calls[0].id)
        second = ask(writer, "claude", "", messages=[result], context=first.context)
        assert (second.text, second.usage.completion_tokens) == ("2", 1)
        cut = ask(writer, "claude")
        assert (cut.text, cut.finish_reason) == ("w0 w1 ", "cancelled")
        assert cut.usage.prompt_tokens == 10  # it said so before it began
        assert ask(writer, "claude", max_tokens=8).finish_reason == "length"
        with pytest.raises(OSError, match="logprobs"):
            ask(writer, "claude", logprobs=True)
    one, two = frontier.asked("claude", 5)[:2]
    assert one["system"] == "Be brief." and one["tools"][0]["name"] == "add"
    assert [turn["role"] for turn in two["messages"]] == ["user", "assistant", "user"]
    assert two["messages"][2]["content"][0]["tool_use_id"] == first.calls[0].id
    assert KEY in frontier.keys["claude"][0]


def test_gemini_is_asked_through_googles_own_client(daemon: Daemon, frontier: Frontier) -> None:
    add = Function("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.02s"}
    frontier.then(
        "google",
        Act(words=("Well. ",), calls=(("add", '{"a": 1}'),), finish="STOP", usage=(30, 10, 7)),
        Act(words=('{"n": ', "2}"), finish="STOP", usage=(40, 0, 5)),
        Act(status=429, details=(delay,)),
        Act(finish="MAX_TOKENS", usage=(9, 0, 8)),
        Act(words=("No", "."), finish="SAFETY"),
        Act(block="PROHIBITED_CONTENT"),
        Act(after=2, then="garbage"),
    )
    with Writer(daemon) as writer:
        chat = [Turn("system", "Be brief."), Turn("user", "1 + 1?")]
        first = ask(writer, "google", "", messages=chat, functions=[add], tool_choice="required")
        assert (first.text, first.finish_reason) == ("Well. ", "calls")
        usage = first.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (30, 10, 7)
        [call] = first.calls
        assert (call.tool, call.arguments) == ("add", {"a": 1})
        shape = {"type": "object", "properties": {"n": {"type": "integer"}}}
        result = Turn("tool", "2", call=call.id)
        more = {"messages": [result], "context": first.context, "schema": shape}
        assert ask(writer, "google", "", **more).parsed == {"n": 2}
        assert ask(writer, "google", max_tokens=8).finish_reason == "length"
        unsafe = ask(writer, "google")
        assert (unsafe.text, unsafe.finish_reason) == ("No.", "cancelled")
        assert "safety" in unsafe.reason
        with pytest.raises(OSError, match="blocked the prompt: PROHIBITED_CONTENT"):
            ask(writer, "google")
        assert ask(writer, "google").text == "w0 w1 "
        found = [writer.call(LlmEmbed(texts, core="google")) for texts in (["a", "abc"], ["abc"])]
        assert found[0].vectors[0] == pytest.approx([2**-0.5, 2**-0.5])
        assert [each.tokens for each in found] == [2, 3]  # where it says nothing, all bytes
    one, two = frontier.asked("google", 7)[:2]
    assert one["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert one["tools"][0]["functionDeclarations"][0]["name"] == "add"
    assert one["toolConfig"]["functionCallingConfig"]["mode"] == "ANY"
    assert [turn["role"] for turn in two["contents"]] == ["user", "model", "user"]
    answer = two["contents"][2]["parts"][0]["functionResponse"]
    assert (answer["name"], answer["response"]) == ("add", {"result": "2"})
    assert answer["id"] == two["contents"][1]["parts"][1]["functionCall"]["id"]
    assert two["generationConfig"]["responseJsonSchema"] == shape
    assert frontier.keys["google"] == [KEY] * 7


def test_a_providers_vectors_are_paid_for(daemon: Daemon, frontier: Frontier) -> None:
    with Writer(daemon) as writer, daemon.connect() as person:
        person.call(SetQuota(f"agent:{writer.aid}", "dollars", 1e-5))
        found = writer.call(LlmEmbed(["a", "abc"], core="plain"))
        assert (found.core, found.tokens) == ("plain", 2)
        assert found.vectors[0] == pytest.approx([2**-0.5, 2**-0.5])
        assert found.vectors[1] == pytest.approx([0.9**0.5, 0.1**0.5])
        [quota] = writer.call(GetQuota())
        assert (quota.used, quota.reserved) == (pytest.approx(2e-6), 0)
        with pytest.raises(OSError, match="dollars"):
            writer.call(LlmEmbed(["a" * 100], core="plain"))


def test_a_lie_costs_no_more_than_was_reserved(daemon: Daemon, frontier: Frontier) -> None:
    frontier.then("lies", Act(usage=(10**9, 0, 10**9)), Act(usage=(-5, 0, 3)), Act(usage=None))
    with Writer(daemon) as writer, daemon.connect() as person:
        person.call(SetQuota(f"agent:{writer.aid}", "dollars", 0.01))
        reply = ask(writer, "lies", max_tokens=50)
        assert reply.usage.completion_tokens == 50
        assert reply.usage.dollars <= 0.01
        assert ask(writer, "lies", max_tokens=50).text == TEXT  # whatever it counts
        assert 0 < ask(writer, "lies", max_tokens=50).usage.completion_tokens <= 50
        [quota] = writer.call(GetQuota())
        assert quota.reserved == 0 and 0 < quota.used <= 0.01
        with pytest.raises(OSError, match="dollars") as refused:
            ask(writer, "lies", max_tokens=1_000)
        assert refused.value.errno == errno.EDQUOT
    assert len(frontier.bodies["lies"]) == 3


def test_a_fork_goes_its_own_way(daemon: Daemon, frontier: Frontier) -> None:
    with Writer(daemon) as writer:
        first = ask(writer, "turns")
        with pytest.raises(OSError, match="provider") as refused:
            writer.call(SetContext(first.context, policy="slide"))
        assert refused.value.errno == errno.ENOTSUP
        with pytest.raises(OSError, match="no beams"):
            ask(writer, "turns", beams=2)
        with pytest.raises(OSError, match="top_k"):
            ask(writer, "turns", top_k=3)
        child = writer.call(Fork(writer.aid))
        with Writer(daemon, credential=child.credential) as other:
            [copy] = [c for c in other.call(ListContexts()) if c.aid == other.aid]
            assert ask(other, "turns", "Then?", context=copy.cid).text == TEXT
    assert len(frontier.asked("turns", 2)[1]["messages"]) == 3


def test_a_suspended_agent_gets_the_rest_when_it_goes_on(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.then("stop", Act(after=2, then="hang"))
    with Writer(daemon) as writer, daemon.connect() as person:
        wanted = writer.begin("Hello", raw=False, core="stop")
        writer.read_tokens(wanted, 2)
        person.call(SuspendAgent(writer.aid))
        frontier.release("stop")
        with Writer(daemon, "b") as other:
            assert ask(other, "plain").text  # nobody else waits
        assert writer.text[wanted] == "w0 w1 "
        person.call(ResumeAgent(writer.aid))
        assert writer.finish(wanted).text == TEXT


def test_what_nobody_knows_the_end_of_goes_to_another_core(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.then("hasty", Act(after=0, then="hang"), Act(after=0, then="close"))
    frontier.then("mute", Act(after=0, then="close"))
    with Writer(daemon) as writer:
        for _ in range(2):
            with pytest.raises(OSError, match="not known"):
                ask(writer, "hasty")  # by name: nowhere else
        reply = writer.ask("Hello", raw=False, route="pair")
        assert (reply.text, reply.core) == (TEXT, "spare")
        assert "mute" in reply.route
    assert len(frontier.bodies["mute"]) == 1 == frontier.billed["spare"]


def test_a_provider_that_fails_again_and_again_is_left_alone(
    daemon: Daemon, frontier: Frontier
) -> None:
    frontier.down.add("weak")
    with Writer(daemon) as writer, Watcher(daemon, "core.lost", "core.ready") as watcher:
        for _ in range(FAILURES):
            with pytest.raises(OSError, match="not known"):
                ask(writer, "weak")
        watcher.await_event("core.lost", name="weak")
        with pytest.raises(OSError, match="tried again"):
            ask(writer, "weak")
        frontier.down.discard("weak")
        watcher.await_event("core.ready", name="weak")
        assert ask(writer, "weak").text == TEXT
    assert len(frontier.bodies["weak"]) == 1


def test_nobody_waits_long_for_a_provider_that_wants_to_be_left_alone(
    daemon: Daemon, frontier: Frontier
) -> None:
    def busy(seconds: int) -> Act:
        return Act(status=429, message="limit", headers={"retry-after": str(seconds)})

    frontier.then("slow", busy(900))
    frontier.then("tired", Act(after=3, then="hang"), busy(1800))
    with Writer(daemon) as writer, Writer(daemon, "b") as other:
        reply = writer.ask("Hello", raw=False, route="slow")  # it has the time, but need not wait
        assert (reply.text, reply.core) == (TEXT, "spare")
        with pytest.raises(BlockingIOError, match="left alone"):
            ask(writer, "slow", deadline=20.0)
        assert writer.ask("Hello", raw=False, route="slow").core == "spare"
        assert ready(daemon, "slow")
        kept = other.begin("Hello", raw=False, core="tired")
        other.read_tokens(kept, 3)
        with pytest.raises(BlockingIOError, match=r"limit; .* alone for 1800 s"):
            ask(writer, "tired")
        assert core(daemon, "tired").state == "down"
        with pytest.raises(OSError, match="tried again in 1") as found:
            ask(writer, "tired")
        assert found.value.errno == errno.ENODEV
        assert writer.ask("Hello", raw=False, route="tired").core == "spare"
        frontier.release("tired")
        assert other.finish(kept).text == TEXT  # what it has it goes on with
    assert (len(frontier.bodies["slow"]), len(frontier.bodies["tired"])) == (1, 2)


def test_a_killed_kernel_does_not_ask_again_for_what_it_may_have_asked_for(
    frontier: Frontier, state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    frontier.then("kill", Act(after=3, then="hang"))
    config = cores(frontier, "kill", slots=1)
    options: dict[str, Any] = {"raw": False, "core": "kill", "max_tokens": 50, "stream": True}
    daemon = Daemon(state_dir, runtime_dir, kv_dir, config=config)
    daemon.environ["FRONTIER_KEY"] = KEY
    with daemon, Writer(daemon) as writer, Writer(daemon, "b") as other:
        with daemon.connect() as person:
            person.call(SetQuota(f"agent:{writer.aid}", "dollars", 1.0))
        wanted = writer.submit("Hello", key="k", **options)
        writer.read_tokens(wanted, 3)
        other.submit("Later", key="later", **options)  # it waits for its turn
        with daemon.connect() as person:
            until(lambda: core(daemon, "kill").queued == 1, "the other one queues")
            writer.read_tokens(wanted, 3)
        daemon.stop(signal.SIGKILL)
        frontier.release("kill")
        daemon.start()
        with (
            Writer(daemon, credential=writer.credential) as again,
            Writer(daemon, credential=other.credential) as after,
        ):
            reply = again.ask("Hello", key="k", **options)
            assert reply.finish_reason == "cancelled" and "restarted" in reply.reason
            assert TEXT.startswith(reply.text) and reply.core == "kill"
            assert reply.usage.completion_tokens == 50  # at worst: nobody knows
            assert again.ask("Hello", key="k", **options) == reply
            [quota] = again.call(GetQuota())
            assert quota.reserved == 0
            assert quota.used == pytest.approx(reply.usage.dollars)
            assert after.ask("Later", key="later", **options).text == TEXT
    assert len(frontier.bodies["kill"]) == 2
