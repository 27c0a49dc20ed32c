"""A program that uses the SDK as its users do; test_public.py has mypy check it."""

from __future__ import annotations

from typing import assert_type

import aios


def blocking() -> None:
    with aios.connect(name="math") as kernel:
        assert_type(kernel, aios.Kernel)
        assert_type(kernel.aid, int)
        assert_type(kernel.ping(), aios.Pong)
        assert_type(kernel.list_agents(all=True), list[aios.Agent])
        assert_type(kernel.wait(3, timeout=1), aios.ExitStatus | None)
        reply = kernel.llm_generate("What is 17 * 23?", max_tokens=64, temperature=0)
        assert_type(reply, aios.Generation)
        assert_type(reply.usage.dollars, float)
        stream = kernel.llm_generate("Tell a story.", stream=True)
        assert_type(stream, aios.Stream[aios.Chunk, aios.Generation])
        for chunk in stream:
            assert_type(chunk.text, str)
        assert_type(stream.reply, aios.Generation)
        for record in kernel.read_log(3, follow=True):
            assert_type(record, aios.LogRecord)
        for part in kernel.sto_read("notes"):
            assert_type(part, bytes)
        kernel.spawn(["math", "2 + 2"], env={"A": "b"}, nice=5)
        kernel.kill(3, "TERM")  # type: ignore[call-arg]
        kernel.kill(aid="three")  # type: ignore[arg-type]
        kernel.llm_generate("x", max_token=3)  # type: ignore[call-overload]


async def awaited(live: bool) -> None:
    async with aios.connect_async(name="math") as kernel:
        assert_type(kernel, aios.AsyncKernel)
        assert_type(await kernel.ping(), aios.Pong)
        reply = await kernel.llm_generate(messages=[{"role": "user", "content": "hi"}])
        assert_type(reply, aios.Generation)
        stream = kernel.llm_generate("Tell a story.", stream=True)
        assert_type(stream, aios.AsyncStream[aios.Chunk, aios.Generation])
        async for chunk in stream:
            assert_type(chunk, aios.Chunk)
        async with kernel.watch(kinds=["agent"]) as events:
            async for event in events:
                assert_type(event, aios.Event)
        either = kernel.llm_generate("x", stream=live)
        if isinstance(either, aios.AsyncStream):
            assert_type(await either.result(), aios.Generation)
