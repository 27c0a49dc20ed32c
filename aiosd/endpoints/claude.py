"""Anthropic's interface, through its official client.

It says how many tokens a prompt has before it answers. Parameters that its client has no word for
(temperature, top_p, top_k) go as they are; models that take none refuse them, and a core leaves out
what its `omit` names. It embeds nothing.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any, Final

import anthropic

from aiosd.endpoints import transport
from aiosd.endpoints.endpoint import (
    Count,
    Delta,
    End,
    Text,
    Trouble,
    by_status,
    line,
    refuse,
    wait_of,
    whole,
)
from aiosd.endpoints.protocol import Call, Chat, Message, Setup

NONE: Final = (
    "min_p", "frequency_penalty", "presence_penalty", "repeat_penalty", "logprobs", "grammar",
    "seed",
)  # fmt: skip
FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "calls",
}


class Claude:
    """One core's endpoint."""

    def __init__(self, setup: Setup, key: str) -> None:
        self._setup = setup
        self._client = anthropic.AsyncAnthropic(
            api_key=key or "none",
            base_url=setup.base_url or None,
            max_retries=0,
            timeout=transport.timeouts(setup),
            default_headers=setup.headers,
            http_client=transport.made(setup),
        )

    async def chat(self, chat: Chat) -> AsyncIterator[Delta]:
        """Ask; see Endpoint."""
        with transport.named(anthropic.AnthropicError, trouble):
            stream = await self._client.messages.create(**request(chat, self._setup))
            async with stream:
                async for delta in _deltas(stream):
                    yield delta

    async def check(self) -> None:
        """List models."""
        with transport.answering(anthropic.AnthropicError, trouble):
            await self._client.models.list()

    async def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """There is no such thing."""
        raise Trouble("refused", "embeddings: the interface of this provider has no such thing")

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()


def request(chat: Chat, setup: Setup) -> dict[str, Any]:
    """Return what the client is called with; raises Trouble for what it can't say."""
    refuse(chat, setup, NONE)
    told = {"temperature": chat.temperature}
    told |= {} if chat.top_p == 1 else {"top_p": chat.top_p}
    told |= {} if not chat.top_k else {"top_k": chat.top_k}
    asked: dict[str, Any] = {
        "model": setup.model,
        "max_tokens": chat.max_tokens,
        "messages": _turns([each for each in chat.messages if each.role != "system"]),
        "stream": True,
        **_functions(chat),
    }
    if system := [each.content for each in chat.messages if each.role == "system"]:
        asked["system"] = "\n\n".join(system)
    if chat.stop:
        asked["stop_sequences"] = chat.stop
    if chat.schema is not None:
        asked["output_config"] = {"format": {"type": "json_schema", "schema": chat.schema}}
    more = {name: value for name, value in told.items() if name not in setup.omit}
    asked = {name: value for name, value in asked.items() if name not in setup.omit}
    return {**asked, "extra_body": {**more, **setup.extra}}


def _functions(chat: Chat) -> dict[str, Any]:
    if not chat.functions:
        return {}
    tools = [
        {"name": each.name, "description": each.description, "input_schema": each.parameters}
        for each in chat.functions
    ]
    kinds = {"auto": "auto", "required": "any", "none": "none"}
    choice: dict[str, Any] = {"type": kinds.get(chat.choice, "tool")}
    if choice["type"] == "tool":
        choice["name"] = chat.choice
    if choice["type"] != "none":
        choice["disable_parallel_tool_use"] = chat.parallel == 1
    return {"tools": tools, "tool_choice": choice}


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """Return turns as blocks; results of calls made together are one turn of the user."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool" and message.call:
        return [
            {"type": "tool_result", "tool_use_id": message.call, "content": message.content or "-"}
        ]
    blocks: list[dict[str, Any]] = []
    for image in message.images:
        data = b64encode(image.data).decode()
        source = {"type": "base64", "media_type": image.media_type, "data": data}
        blocks.append({"type": "image", "source": source})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.calls:
        made = json.loads(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": made})
    return blocks


async def _deltas(stream: Any) -> AsyncIterator[Delta]:
    calls: dict[int, list[str]] = {}
    prompt = cached = 0
    finish = ""
    async for event in stream:
        if event.type == "message_start":
            usage = event.message.usage
            cached = whole(usage.cache_read_input_tokens)
            prompt = whole(usage.input_tokens) + cached + whole(usage.cache_creation_input_tokens)
            yield Count(prompt, cached, 0)
        elif event.type == "content_block_start" and event.content_block.type == "tool_use":
            calls[event.index] = [event.content_block.id, event.content_block.name, ""]
        elif event.type == "content_block_delta":
            if event.delta.type == "text_delta" and event.delta.text:
                yield Text(event.delta.text)
            elif event.delta.type == "input_json_delta":
                calls[event.index][2] += event.delta.partial_json
        elif event.type == "message_delta":
            finish = event.delta.stop_reason or finish
            yield Count(prompt, cached, whole(event.usage.output_tokens))
    if not finish:
        raise Trouble("cut", "it closed the connection in mid-stream")
    made = tuple(Call(*parts) for _, parts in sorted(calls.items()))
    yield End(FINISH.get(finish, finish), made)


def trouble(error: anthropic.AnthropicError) -> Trouble:
    """Return what an error of the client means."""
    if isinstance(error, anthropic.APIStatusError):
        text = line(error.message)
        return by_status(error.status_code, text, wait_of(error.response.headers))
    if isinstance(error, anthropic.APIConnectionError):
        return transport.lost(error.__cause__ or error)
    if isinstance(error, anthropic.APIError):
        return Trouble("broken", line(error.message))
    return Trouble("refused", line(error))
