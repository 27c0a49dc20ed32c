"""agents: 24 agents with one system prompt, tools between their turns, on eight slots.

Claim: they are done at 1.3 times the rate of llama.cpp's own server, or more.

How: tests/bench/work/agents.toml: 24 agents begin at about the same time, each with the same system
prompt of about 600 tokens and three turns; between two turns a tool takes a while. Here they are
processes of the kernel that declare the system prompt public and go on in their context; there they
send the whole chat each time, as its clients do, and the server has its prompt cache, in slots and
in memory. Same model, threads, slots, prompts and lengths of replies. Each side is measured twice a
round, with a system prompt that it has never seen. The rate is agents by seconds until the last of
them is done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from statistics import median
from time import perf_counter
from typing import Final

from aios import AsyncKernel, connect_async
from aiosd.abi.inference import Turn as Message
from aiosd.config import PACKAGED_MODEL, find_model
from aiosd.sched.workload import Agent, Workload
from tests.bench.generate import read
from tests.bench.kernel import N_CTX, Kernel, core
from tests.bench.llama_server import LlamaServer
from tests.bench.play import numbers
from tests.bench.ratio import Ratio, divide, interleave

ROUNDS = 3
SLOTS = 8
RULES: Final = 26  # of about 20 tokens each

Say = Callable[[str, int], Awaitable[None]]
"""One turn of an agent: what it or its tool says, and how many tokens the reply shall have."""


def run(rounds: int) -> Iterator[Ratio]:
    """Measure the daemon and the server in turns."""
    work = read("agents")
    model, threads = str(find_model(PACKAGED_MODEL)), os.cpu_count() or 1
    salt = iter(range(100_000))
    with Kernel(core("c", slots=SLOTS)) as kernel:
        kernel.cores()
        with LlamaServer(model, SLOTS, N_CTX, threads) as server:
            sides = (
                lambda: asyncio.run(_ours(kernel, work, system(next(salt)))),
                lambda: server.run(_theirs(server, work, system(next(salt)))),
            )
            (ours, theirs), noise = interleave(rounds or ROUNDS, *sides)
    yield Ratio(
        bench="agents",
        what=f"{len(work.agents)} agents done a second / llama.cpp's server",
        rounds=divide(ours, theirs),
        limit=1.3,
        at_most=False,
        noise=noise,
        figures={"ours/s": median(ours), "theirs/s": median(theirs)},
    )


def system(salt: int) -> str:
    """Return a system prompt of about 600 tokens; those of two salts differ from the first line."""
    rules = (
        f"Rule {n}: when a tool has answered, read all of it before you decide what comes next."
        for n in range(1, RULES + 1)
    )
    return "\n".join([f"You are an agent of team {salt}.", *rules])


async def _play(work: Workload, sayers: list[Say]) -> float:
    """Let all agents have their turns; return how many were done a second."""
    began = perf_counter()

    async def one(number: int, agent: Agent, say: Say) -> None:
        await asyncio.sleep(agent.arrival)
        for count, turn in enumerate(agent.turns):
            await say(numbers(turn.prompt, number * 31 + count * 7), turn.output)
            if count + 1 < len(agent.turns):
                await asyncio.sleep(turn.think)

    pairs = enumerate(zip(work.agents, sayers, strict=True))
    await asyncio.gather(*(one(number, agent, say) for number, (agent, say) in pairs))
    return len(work.agents) / (perf_counter() - began)


async def _ours(kernel: Kernel, work: Workload, prompt: str) -> float:
    crowd = [await connect_async(kernel.socket, name=agent.name) for agent in work.agents]
    try:
        return await _play(work, [_agent(each, prompt) for each in crowd])
    finally:
        for each in crowd:
            with suppress(OSError):  # the kernel may be going down
                await each.exit()
            await each.close()


def _agent(kernel: AsyncKernel, prompt: str) -> Say:
    """An agent that goes on in its context."""
    context = 0

    async def say(text: str, tokens: int) -> None:
        nonlocal context
        turns = [Message("user", text)]
        if not context:
            turns.insert(0, Message("system", prompt))
        reply = await kernel.llm_generate(
            messages=turns, context=context, public=True, max_tokens=tokens, min_tokens=tokens
        )
        if reply.usage.completion_tokens != tokens:
            raise RuntimeError(f"{reply.usage.completion_tokens} tokens of {tokens}: {reply}")
        context = reply.context

    return say


async def _theirs(server: LlamaServer, work: Workload, prompt: str) -> float:
    return await _play(work, [_client(server, prompt) for _ in work.agents])


def _client(server: LlamaServer, prompt: str) -> Say:
    """A client that sends the whole chat each time, rendered as the model's template does."""
    chat = f"<|im_start|>system\n{prompt}<|im_end|>\n"

    async def say(text: str, tokens: int) -> None:
        nonlocal chat
        chat += f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        chat += await server.complete(chat, tokens) + "<|im_end|>\n"

    return say
