"""run_agent_loop, on both faces: what is asked in each step, and when there is no further one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import aios
from aiosd.abi.inference import Generation, LlmGenerate, Timing, TokenUsage, ToolCall
from tests.sdk.fake_kernel import Connection, FakeKernel

Loop = Callable[..., aios.LoopResult]


def blocking(task: str, **options: Any) -> aios.LoopResult:
    with aios.connect(name="a") as kernel:
        return kernel.run_agent_loop(task, **options)


def awaited(task: str, **options: Any) -> aios.LoopResult:
    async def work() -> aios.LoopResult:
        async with aios.connect_async(name="a") as kernel:
            return await kernel.run_agent_loop(task, **options)

    return asyncio.run(work())


@pytest.fixture(params=[blocking, awaited])
def loop(request: pytest.FixtureRequest) -> Loop:
    found: Loop = request.param
    return found


def script(*replies: str, finish: str = "stop") -> Callable[[Connection, int, Any], None]:
    """Answer with these in turn: "+x" is a call of x, anything else an answer."""
    left = list(replies)

    def answer(connection: Connection, id: int, args: LlmGenerate) -> None:
        said = left.pop(0)
        calls = [ToolCall(1, said[1:], {"n": 1}, '{"ok":1}')] if said.startswith("+") else []
        connection.reply(
            id,
            Generation(
                text="" if calls else said,
                token_ids=[1, 2],
                finish_reason=finish,
                usage=TokenUsage(20, 2, cached_tokens=10, dollars=0.5),
                timing=Timing(0, 0),
                context=9,
                core="c",
                calls=calls,
            ),
        )

    return answer


def asked(fake: FakeKernel) -> list[LlmGenerate]:
    return [args for name, args in fake.seen.queue if name == "llm_generate"]


def test_it_goes_on_with_what_came_of_the_calls_until_there_is_an_answer(
    fake: FakeKernel, loop: Loop
) -> None:
    fake.answers["llm_generate"] = script("+look", "+read", "done")
    found = loop("Do it.", tools=["look", "read"], system="Be brief.", temperature=0.5)
    assert (found.text, found.reason, found.context) == ("done", "answer", 9)
    assert [[call.tool for call in step.calls] for step in found.steps] == [["look"], ["read"], []]
    assert (found.tokens, found.dollars) == (36, 1.5)
    first, second, third = asked(fake)
    assert [turn.content for turn in first.messages] == ["Be brief.", "Do it."]
    assert (first.tools, first.tool_rounds, first.tool_answer) == (["look", "read"], 1, False)
    assert [turn.role for turn in second.messages] == ["tool"] and second.context == 9
    assert second.messages[0].content == '{"tool": "look", "result": {"ok":1}}'
    assert {each.temperature for each in (first, second, third)} == {0.5}
    assert len({each.key for each in (first, second, third)}) == 3


def test_steps_and_budget_are_limits(fake: FakeKernel, loop: Loop) -> None:
    fake.answers["llm_generate"] = script("+a", "+a", "+a", "+a", "+a")
    seen: list[aios.LoopStep] = []
    found = loop("Do it.", tools=["a"], steps=2, required=True, on_step=seen.append)
    assert (found.reason, len(found.steps), found.text) == ("steps", 2, "") and seen == found.steps
    assert {each.tool_choice for each in asked(fake)} == {"required"}
    found = loop("Do it.", tools=["a"], budget=20)
    assert (found.reason, found.tokens) == ("budget", 24)
    assert [each.max_tokens for each in asked(fake)[2:]] == [20, 8]


def test_thoughts_come_before_steps_and_the_offer_may_follow_the_trace(
    fake: FakeKernel, loop: Loop
) -> None:
    fake.answers["llm_generate"] = script("I look.", "+look", "I know.", "done")

    def offer(steps: list[aios.LoopStep]) -> list[str]:
        return ["look"] if not steps else []

    found = loop("Do it.", tools=offer, think=True)
    assert [step.thought for step in found.steps] == ["I look.", "I know."]
    assert [each.tools for each in asked(fake)] == [[], ["look"], [], []]


def test_a_cancelled_step_ends_it_and_options_are_checked(fake: FakeKernel, loop: Loop) -> None:
    fake.answers["llm_generate"] = script("par", finish="length")
    assert loop("Do it.", tools=["a"]).reason == "length"
    with pytest.raises(TypeError, match="no option 'tols'"):
        loop("Do it.", tols=["a"])
    with pytest.raises(TypeError, match="tools"):
        loop("Do it.", tools="a")
    with pytest.raises(ValueError, match="steps"):
        loop("Do it.", steps=0)
