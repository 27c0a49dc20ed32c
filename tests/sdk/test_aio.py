"""The asynchronous face, against the same fake kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import aios
from aios.aio import ENOUGH
from aiosd.abi.inference import Chunk
from aiosd.abi.system import Event
from tests.sdk.fake_kernel import DEADLINE, Connection, FakeKernel
from tests.sdk.test_kernel import Answer, endless, generation, lost_once, tell, told_in_pieces


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_same_methods_awaited(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = generation("hi")

    async def main() -> None:
        async with aios.connect_async(name="math") as kernel:
            assert kernel.aid == 7
            reply = await kernel.llm_generate(messages=[{"role": "user", "content": "hi"}])
            assert reply.text == "hi"
        assert kernel.closed

    run(main)
    names = [name for name, _ in fake.seen.queue]
    assert names == ["hello", "register_agent", "llm_generate", "exit"]


ON_UVLOOP = """
import asyncio, aios, uvloop

async def main():
    async with aios.connect_async(name="math") as kernel:
        assert (await kernel.ping(payload=b"x")).payload == b"x"
        stream = kernel.llm_generate("Tell", stream=True)
        assert (await stream.result()).text == "once upon a time"

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_it_runs_on_uvloop_too(fake: FakeKernel) -> None:
    pytest.importorskip("uvloop")
    fake.answers["llm_generate"] = tell
    # A process of its own: libuv keeps a pipe for the life of one.
    subprocess.run([sys.executable, "-c", ON_UVLOOP], check=True, env=environment())


def test_a_connection_can_be_awaited_and_closed(fake: FakeKernel) -> None:
    async def main() -> None:
        kernel = await aios.connect_async()
        assert (await kernel.ping(payload=b"x")).payload == b"x"
        await kernel.close()
        with pytest.raises(OSError, match="closed"):
            await kernel.ping()

    run(main)


def test_before_it_is_connected_it_knows_nothing(fake: FakeKernel) -> None:
    async def main() -> None:
        kernel = aios.connect_async()
        with pytest.raises(RuntimeError, match="not connected yet"):
            kernel.welcome  # noqa: B018
        await kernel.close()

    run(main)


def test_leaving_by_an_exception_reports_a_failure(fake: FakeKernel) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with aios.connect_async(name="math"):
                raise ZeroDivisionError

    run(main)
    assert [(name, getattr(args, "code", 0)) for name, args in fake.seen.queue][-1] == ("exit", 1)


def test_no_daemon(fake: FakeKernel) -> None:
    fake.stop()

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError, match="aiosd is not running at"):
            await aios.connect_async()

    run(main)
    fake.start()


def test_versions_and_strangers(fake: FakeKernel) -> None:
    async def main() -> None:
        fake.level = 0
        with pytest.raises(aios.VersionError, match="too old"):
            await aios.connect_async()
        fake.answers["hello"] = lambda connection, id, args: connection.peer.sendall(b"SSH-2.0\r\n")
        with pytest.raises(aios.VersionError, match="not aiosd at all"):
            await aios.connect_async()

    run(main)


def test_many_tasks_share_a_connection_and_connect_once(fake: FakeKernel) -> None:
    async def main() -> None:
        kernel = aios.connect_async()

        async def ask(number: int) -> None:
            payload = str(number).encode()
            assert (await kernel.ping(payload=payload)).payload == payload

        await asyncio.gather(*(ask(number) for number in range(200)))
        await kernel.close()

    run(main)
    assert sum(name == "hello" for name, _ in fake.seen.queue) == 1


def test_a_stream(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = tell

    async def main() -> None:
        async with aios.connect_async() as kernel:
            stream = kernel.llm_generate("Tell", stream=True)
            assert [chunk.text async for chunk in stream] == ["once", " upon", " a time"]
            assert stream.reply.text == "once upon a time"
            again = await kernel.llm_generate("Tell", stream=True)  # awaited: it has begun
            with pytest.raises(RuntimeError, match="not ended"):
                again.reply  # noqa: B018
            assert (await again.result()).text == "once upon a time"

    run(main)


def test_a_stream_begins_when_it_is_awaited(fake: FakeKernel) -> None:
    fake.answers["watch"] = endless

    async def main() -> None:
        async with aios.connect_async() as kernel:
            async with kernel.watch() as events:
                await asyncio.to_thread(fake.expect, "hello")
                await asyncio.to_thread(fake.expect, "watch")
                assert (await anext(events)).kind == "tick"
            await asyncio.to_thread(fake.expect, "cancel")
            assert [event async for event in events] == []

    run(main)


def test_dropping_a_stream_cancels_it(fake: FakeKernel) -> None:
    fake.answers["watch"] = endless

    async def main() -> None:
        async with aios.connect_async() as kernel:
            async for _ in kernel.watch():
                break
            for name in ("hello", "watch", "cancel"):
                await asyncio.to_thread(fake.expect, name)

    run(main)


def test_an_error_ends_a_stream(fake: FakeKernel) -> None:
    fake.answers["watch"] = OSError(errno.EIO, "no events today")

    async def main() -> None:
        async with aios.connect_async() as kernel:
            with pytest.raises(OSError, match="no events today"):
                await anext(kernel.watch())

    run(main)


def test_a_model_class_validates_the_reply(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = generation(parsed={"n": 4})

    async def main() -> None:
        async with aios.connect_async() as kernel:
            assert (await kernel.llm_generate("four", schema=Answer)).parsed.n == 4

    run(main)


def test_cancelling_a_task_cancels_its_call(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lambda connection, id, args: None

    async def main() -> None:
        async with aios.connect_async() as kernel:
            task = asyncio.create_task(kernel.llm_generate("long"))
            await asyncio.to_thread(fake.expect, "hello")
            await asyncio.to_thread(fake.expect, "llm_generate")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await asyncio.to_thread(fake.expect, "cancel")).id == 2
            assert (await kernel.ping(payload=b"on")).payload == b"on"

    run(main)


def test_a_generation_that_is_cancelled_still_gives_its_reply(fake: FakeKernel) -> None:
    def cancel(connection: Connection, id: int, args: Any) -> None:
        connection.reply(args.id, generation("on", finish="cancelled"))
        connection.reply(id)

    fake.answers["llm_generate"] = lambda connection, id, args: connection.reply(
        id, Chunk("on", [1], 0), more=True
    )
    fake.answers["cancel"] = cancel

    async def main() -> None:
        async with aios.connect_async() as kernel:
            stream = kernel.llm_generate("x", stream=True)
            await anext(stream)
            stream.cancel()
            assert (await stream.result()).finish_reason == "cancelled"

    run(main)


def test_a_call_lost_in_flight_is_asked_again_as_the_same_agent(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lost_once(generation("again"))

    async def main() -> None:
        async with aios.connect_async(name="math") as kernel:
            assert (await kernel.llm_generate("x")).text == "again"

    run(main)
    calls = list(fake.seen.queue)
    assert [name for name, _ in calls] == [
        "hello", "register_agent", "llm_generate", "hello", "llm_generate", "exit",
    ]  # fmt: skip
    assert calls[2] == calls[4]
    assert calls[3][1].credential == "secret-7-0"


def test_a_generation_that_is_cut_off_goes_on_with_the_next_token(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = told_in_pieces(7)

    async def main() -> None:
        async with aios.connect_async(name="math") as kernel:
            stream = kernel.llm_generate("x", stream=True)
            assert "".join([chunk.text async for chunk in stream]) == "0123456"
            assert stream.reply.text == "hello"

    asyncio.run(main())
    asked = [args for name, args in fake.seen.queue if name == "llm_generate"]
    assert [args.resume for args in asked] == [0, 2, 4, 6]


def test_a_stream_lost_in_flight_raises(fake: FakeKernel) -> None:
    fake.answers["watch"] = lambda connection, id, args: connection.hang_up()

    async def main() -> None:
        async with aios.connect_async() as kernel:
            with pytest.raises(aios.ConnectionLost, match="during watch"):
                await anext(kernel.watch())
            assert (await kernel.ping()).payload == b""

    run(main)


def test_a_stream_that_nobody_takes_from_is_not_read(fake: FakeKernel) -> None:
    """The kernel's end of the socket fills up, and what we hold stays small."""
    full = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def flood(connection: Connection, id: int, args: Any) -> None:
        connection.peer.settimeout(1)
        try:
            for number in range(20_000):
                connection.reply(id, Event(number, "x" * 1000), more=True)
        except TimeoutError:
            loops[0].call_soon_threadsafe(full.set)

    fake.answers["watch"] = flood

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        async with aios.connect_async() as kernel:
            stream = await kernel.watch()
            await anext(stream)
            await full.wait()
            assert stream._pending is not None
            assert len(stream._pending.chunks) < ENOUGH + 1000
            await kernel.close()

    run(main)


def test_calls_go_on_past_a_stream_that_nobody_takes_from(fake: FakeKernel) -> None:
    def flood(connection: Connection, id: int, args: Any) -> None:
        for number in range(2000):
            connection.reply(id, Event(number, "x" * 1000), more=True)

    fake.answers["watch"] = flood

    async def main() -> None:
        async with aios.connect_async() as kernel:
            stream = await kernel.watch()
            await anext(stream)
            assert (await kernel.ping(payload=b"through")).payload == b"through"
            assert sum([1 async for _ in _first(stream, 1999)]) == 1999

    run(main)


async def _first(stream: aios.AsyncStream[Event, None], count: int) -> Any:
    for _ in range(count):
        yield await anext(stream)
