"""A frontier server that does as a script says: slow, failing, hanging, lying, as real ones are.

    with Frontier() as frontier:                # Frontier(context): over TLS
        url = frontier.url("gpt")               # the base_url of one endpoint; there may be many
        frontier.then("gpt", Act(status=429, headers={"retry-after": "1"}))
        frontier.asked("gpt", 2)                # returns once two requests have come
        frontier.release("gpt")                 # those who hang go on

Each request takes the next act of its endpoint's script, or a good one when the script is over. It
keeps what was asked (`bodies`), and which requests it would send a bill for (`billed`): those of
which it has generated anything.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.daemon import PATIENCE

WORDS = tuple(f"w{n} " for n in range(8))


@dataclass
class Act:
    """What one request meets. after: pieces of text, before `then` happens to it.

    then: "" it ends well; "hang" until it is released, and goes on then; "close"; "garbage";
    "flood": an event that does not end; "end": the stream ends without saying why. details: more of
    an error, as Google tells it. block: why a prompt is answered with nothing, as it does.
    """

    words: tuple[str, ...] = WORDS
    status: int = 200
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    usage: Any = (10, 0, len(WORDS))
    finish: str = "stop"
    calls: tuple[tuple[str, str], ...] = ()
    after: int = 1 << 30
    then: str = ""
    details: tuple[Any, ...] = ()
    block: str = ""


class Frontier:
    """The server, in a thread with a loop of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.bodies: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, list[str]] = {}
        self.billed: dict[str, int] = {}
        self.hangs: dict[str, int] = {}
        self.down: set[str] = set()  # endpoints that close every connection
        self._scripts: dict[str, deque[Act]] = {}
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._go: dict[str, asyncio.Event] = {}
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def url(self, name: str) -> str:
        """Return the base_url of an endpoint."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._port}/{name}/v1"

    def then(self, name: str, *acts: Act) -> None:
        """Add to an endpoint's script."""
        self._scripts.setdefault(name, deque()).extend(acts)

    def asked(self, name: str, count: int) -> list[dict[str, Any]]:
        """Return what an endpoint was asked, once there are so many requests."""
        self._until(lambda: len(self.bodies.get(name, ())) >= count, f"{count} requests of {name}")
        return self.bodies[name]

    def hung(self, name: str, count: int = 1) -> None:
        """Return once so many requests have come to where they hang."""
        self._until(lambda: self.hangs.get(name, 0) >= count, f"{count} hang at {name}")

    def release(self, name: str) -> None:
        """Let those who hang at an endpoint go on, and all who would."""
        self._loop.call_soon_threadsafe(self._gate(name).set)

    # Inside.

    def _until(self, condition: Any, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"not in time: {what}"

    def _note(self, table: dict[str, Any], name: str, value: Any) -> None:
        with self._changed:
            if isinstance(value, int):
                table[name] = table.get(name, 0) + value
            else:
                table.setdefault(name, []).append(value)
            self._changed.notify_all()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split()[1].partition("?")[0]
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        name, what = path.split("/")[1], path.rpartition("/")[2]
        if name in self.down:
            return
        if what == "models":
            nothing = {"object": "list", "data": [], "has_more": False}
            await _reply(writer, 200, {**nothing, "models": [], "nextPageToken": "more"})
        elif what == "embeddings":
            await _reply(writer, 200, _vectors(json.loads(body)["input"]))
        elif what.endswith(":batchEmbedContents"):
            texts = [each["content"]["parts"][0]["text"] for each in json.loads(body)["requests"]]
            rows = [{"values": [float(len(text)), 1.0]} for text in texts]
            counted = {"usageMetadata": {"promptTokenCount": len(texts)}} if len(texts) > 1 else {}
            await _reply(writer, 200, {"embeddings": rows, **counted})
        else:
            script = self._scripts.get(name)
            act = script.popleft() if script else Act()
            key = (fields.get(field) for field in ("authorization", "x-api-key", "x-goog-api-key"))
            self._note(self.keys, name, next(filter(None, key), ""))
            self._note(self.bodies, name, json.loads(body))
            speak = _claude if what == "messages" else _openai
            speak = _gemini if what.endswith(":streamGenerateContent") else speak
            await self._act(name, act, writer, list(speak(act)))

    async def _act(
        self, name: str, act: Act, writer: asyncio.StreamWriter, stream: list[bytes]
    ) -> None:
        if act.status != 200:
            error = {"message": act.message, "code": act.status, "details": list(act.details)}
            await _reply(writer, act.status, {"error": error}, act.headers)
            return
        if act.then == "close" and not act.after:
            return
        self._note(self.billed, name, 1)
        if act.then == "hang" and not act.after:
            await self._hang(name)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"connection: close\r\n\r\n")
        for number, event in enumerate(stream):
            if number == act.after:
                if act.then == "garbage":
                    writer.write(b'data: {"choices": [{"delta"\n\n')
                if act.then == "flood":
                    await _flood(writer)
                if act.then != "hang":
                    break
                await self._hang(name)
            writer.write(event + b"\n\n")
            await writer.drain()
        await writer.drain()

    async def _hang(self, name: str) -> None:
        self._note(self.hangs, name, 1)
        await self._gate(name).wait()

    def _gate(self, name: str) -> asyncio.Event:
        return self._go.setdefault(name, asyncio.Event())


async def _flood(writer: asyncio.StreamWriter) -> None:
    """Send an event that does not end, until the client has had enough."""
    for _ in range(1 << 10):
        writer.write(b"data: " + b"x" * (1 << 20) + b"\n")
        await writer.drain()


def _openai(act: Act) -> Iterator[bytes]:
    for chunk in _chunks(act):
        yield b"data: " + json.dumps(chunk).encode()
    yield b"data: [DONE]"


def _gemini(act: Act) -> Iterator[bytes]:
    for event in _answers(act):
        yield b"data: " + json.dumps(event).encode()


def _answers(act: Act) -> Iterator[dict[str, Any]]:
    """Say what Google's interface says: a thought, the text, the calls, and the end with them."""
    prompt, cached, output = act.usage
    usage = {"promptTokenCount": prompt, "cachedContentTokenCount": cached}
    if act.block:
        yield {"promptFeedback": {"blockReason": act.block}, "usageMetadata": usage}
        return
    parts: list[dict[str, Any]] = [{"text": word} for word in act.words]
    if act.calls:
        parts.insert(0, {"text": "I had better ask.", "thought": True})
    parts += [
        {"functionCall": {"name": name, "args": json.loads(arguments)}, "thoughtSignature": "eA=="}
        for name, arguments in act.calls
    ]
    for part in parts:
        yield {"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}]}
    usage |= {"candidatesTokenCount": output - 1, "thoughtsTokenCount": 1}
    content = {"role": "model", "parts": [{"text": ""}]}
    ended = {"content": content, "finishReason": act.finish, "index": 0}
    yield {"candidates": [ended], "usageMetadata": usage}


def _claude(act: Act) -> Iterator[bytes]:
    for event in _events(act):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}".encode()


def _events(act: Act) -> Iterator[dict[str, Any]]:
    prompt, cached, output = act.usage
    usage = {"input_tokens": prompt - cached, "output_tokens": 1, "cache_read_input_tokens": cached}
    start = {"id": "x", "type": "message", "role": "assistant", "content": [], "model": "m"}
    yield {"type": "message_start", "message": {**start, "usage": usage}}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if act.words:
        said = [{"type": "text_delta", "text": word} for word in act.words]
        blocks.append(({"type": "text", "text": ""}, said))
    for name, arguments in act.calls:
        call = {"type": "tool_use", "id": "c", "name": name, "input": {}}
        blocks.append((call, [{"type": "input_json_delta", "partial_json": arguments}]))
    for index, (block, deltas) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    end = {"stop_reason": act.finish, "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": output}}
    yield {"type": "message_stop"}


def _chunks(act: Act) -> Iterator[dict[str, Any]]:
    for word in act.words:
        yield _chunk({"content": word})
    for index, (name, arguments) in enumerate(act.calls):
        half = len(arguments) // 2
        first = {"index": index, "id": f"c{index}", "function": {"name": name, "arguments": ""}}
        yield _chunk({"tool_calls": [first]})
        for part in (arguments[:half], arguments[half:]):
            yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield _chunk({}, act.finish)
    if act.usage is not None:
        prompt, cached, output = act.usage
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        yield {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _vectors(texts: list[str]) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": at, "embedding": [float(len(text)), 1.0]}
        for at, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": "m", "data": data[::-1], "usage": usage}


async def _reply(
    writer: asyncio.StreamWriter, status: int, body: Any, more: dict[str, str] | None = None
) -> None:
    data = json.dumps(body).encode()
    head = {"content-type": "application/json", "connection": "close", **(more or {})}
    head["content-length"] = str(len(data))
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + data)
    await writer.drain()
