"""Agent loops, as in ReAct: think, act, look at what came of it, and so on. No I/O.

    found = kernel.run_agent_loop("What is due today?", tools=["calendar", "mail"], steps=6)
    found.text, found.reason, [call for step in found.steps for call in step.calls]

Each step is one `llm_generate(tools=...)` of one round, on one context: the kernel holds what the
model writes to a grammar, validates the arguments, runs the calls (several at the same time), and
puts each on record. The loop decides here, between two steps, whether there is another one.

`agent_loop` is a plan (link.py), so both faces carry out the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypedDict

import msgspec

from aios.asking import listed
from aios.link import Link, Plan, new_key
from aiosd.abi.inference import Generation, LlmGenerate, ToolCall, Turn
from aiosd.abi.toolcalls import results

THINK = "Before you act, say in one sentence what you know and what to do next."
ACT = "Go on."
STEPS = 8
THOUGHT = 48
"""Tokens of a thought, at most."""


class LoopStep(msgspec.Struct, frozen=True):
    """One step. thought: what the model said before, "" without `think`. calls: what it called.

    text: its answer, in the last step. tokens: those that were computed for the step.
    """

    thought: str
    calls: list[ToolCall]
    text: str
    tokens: int


class LoopResult(msgspec.Struct, frozen=True):
    """What came of a loop. text: the answer, "" or part of one when it ended before.

    reason: "answer"; "steps" or "budget": that limit was reached; "length": an answer or a call was
    longer than max_tokens or the window; else why it was cancelled, as "deadline". steps: the
    trace. tokens and dollars: what it took. context: can be continued.
    """

    text: str
    reason: str
    steps: list[LoopStep]
    tokens: int
    dollars: float
    context: int


Offer = Sequence[str] | Callable[[list[LoopStep]], Sequence[str]]


class LoopOptions(TypedDict, total=False):
    """What `run_agent_loop` may be told.

    tools: names of declared tools, or a function that is given the steps so far and says which are
    offered in the next one (none: the model must answer). steps: at most, default 8. budget:
    tokens, computed or generated, after which there is no further step; 0: any number. deadline:
    seconds for all of it. max_tokens: of each step. think: let the model say what it is up to
    before each step. required: it must call a tool in each step. system: what it is told first.
    on_step: called with each step when it has ended. The others are as in llm_generate.
    """

    tools: Offer
    steps: int
    budget: int
    deadline: float
    max_tokens: int
    think: bool
    required: bool
    system: str
    on_step: Callable[[LoopStep], None]
    context: int
    core: str
    needs: str
    temperature: float
    seed: int


class _Loop:
    """A loop at work: what it has spent, and what its next request is like."""

    def __init__(self, options: LoopOptions, clock: Callable[[], float]) -> None:
        self.steps: list[LoopStep] = []
        self.tokens = 0
        self.dollars = 0.0
        self.context = options.get("context", 0)
        self._options = options
        self._clock = clock
        self._due = clock() + options["deadline"] if "deadline" in options else None

    def request(self, turns: list[Turn], max_tokens: int, offered: list[str]) -> LlmGenerate:
        """Return the next request."""
        options = self._options
        left = self._options.get("budget", 0) - self.tokens if self._options.get("budget") else 0
        most = min(max_tokens, left) if max_tokens and left > 0 else max_tokens or max(0, left)
        plain = LlmGenerate(
            messages=turns,
            max_tokens=most,
            context=self.context,
            core="" if self.context else options.get("core", ""),
            needs="" if self.context else options.get("needs", ""),
            temperature=options.get("temperature", 0.0),
            seed=options.get("seed", 0),
            deadline=None if self._due is None else max(0.0, self._due - self._clock()),
            key=new_key(),
        )
        if not offered:
            return plain
        choice = "required" if options.get("required") else "auto"
        return msgspec.structs.replace(
            plain, tools=offered, tool_rounds=1, tool_answer=False, tool_choice=choice
        )

    def offered(self) -> list[str]:
        """Return the tools of the next step."""
        tools = self._options.get("tools", ())
        return listed(tools(list(self.steps)) if callable(tools) else tools, "tools")

    def spend(self, reply: Generation) -> int:
        """Count what a request took; return the tokens that were computed for it."""
        usage = reply.usage
        took = max(0, usage.prompt_tokens - usage.cached_tokens) + usage.completion_tokens
        self.tokens += took
        self.dollars += usage.dollars
        self.context = reply.context
        return took

    def ended(self, reply: Generation) -> str:
        """Return why there is no further step; "" when there is one."""
        if reply.finish_reason != "stop":
            return reply.reason if reply.finish_reason == "cancelled" else "length"
        if not reply.calls:
            return "answer"
        if len(self.steps) >= self._options.get("steps", STEPS):
            return "steps"
        spent = self._options.get("budget", 0) and self.tokens >= self._options["budget"]
        return "budget" if spent else ""

    def result(self, text: str, reason: str) -> LoopResult:
        """Return what came of it."""
        return LoopResult(text, reason, self.steps, self.tokens, self.dollars, self.context)


def agent_loop(
    link: Link, task: str, options: LoopOptions, clock: Callable[[], float] = time.monotonic
) -> Plan[LoopResult]:
    """Carry a loop out. Raises TypeError for an option that there is not, and OSError."""
    if unknown := set(options) - set(LoopOptions.__annotations__):
        raise TypeError(f"run_agent_loop: there is no option {sorted(unknown)[0]!r}")
    if options.get("steps", 1) < 1:
        raise ValueError("run_agent_loop: steps: at least 1")
    loop, turns = _Loop(options, clock), [Turn("user", task)]
    if options.get("system"):
        turns.insert(0, Turn("system", options["system"]))
    while True:
        thought, took = "", 0
        if options.get("think"):
            asked = [*turns[:-1], Turn(turns[-1].role, f"{turns[-1].content}\n\n{THINK}")]
            reply = yield from link.call(loop.request(asked, THOUGHT, []))
            took += loop.spend(reply)
            thought, turns = reply.text, [Turn("user", ACT)]
            if reply.finish_reason == "cancelled":
                return loop.result("", reply.reason)
        request = loop.request(turns, options.get("max_tokens", 0), loop.offered())
        reply = yield from link.call(request)
        took += loop.spend(reply)
        step = LoopStep(thought, reply.calls, reply.text, took)
        loop.steps.append(step)
        if "on_step" in options:
            options["on_step"](step)
        if reason := loop.ended(reply):
            return loop.result(reply.text, reason)
        turns = [Turn("tool", results(reply.calls))]
