"""Endpoints that are compatible with OpenAI's interface, through its official client.

That is OpenAI itself and many others; `dialect` says what differs. vllm and sglang take more
parameters and count tokens while they stream; llama-server takes those and grammars; ollama takes
neither; gemini is Google's own endpoint of this interface (gemini.py speaks its other one). What a
server would silently drop is refused here.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import openai

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

NO_KEY: Final = "none"
"""Stands for a key where a server wants none."""

MORE: Final[dict[str, dict[str, str]]] = {
    "openai": {},
    "gemini": {},
    "ollama": {},
    "vllm": {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"},
    "sglang": {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"},
    "llama-server": {
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repeat_penalty",
        "grammar": "grammar",
    },
}
"""What a dialect takes beyond OpenAI's own parameters: field of Chat, name in the request."""

EXTRA: Final = ("top_k", "min_p", "repeat_penalty", "grammar")
FINISH: Final = {"tool_calls": "calls", "function_call": "calls"}


class ChatGPT:
    """One core's endpoint."""

    def __init__(self, setup: Setup, key: str) -> None:
        self._setup = setup
        self._client = openai.AsyncOpenAI(
            api_key=key or NO_KEY,
            base_url=setup.base_url or None,
            max_retries=0,  # what is safe to try again is for the kernel to say
            timeout=transport.timeouts(setup),
            default_headers=setup.headers,
            http_client=transport.made(setup),
        )

    async def chat(self, chat: Chat) -> AsyncIterator[Delta]:
        """Ask; see Endpoint."""
        with transport.named(openai.OpenAIError, trouble):
            stream = await self._client.chat.completions.create(**request(chat, self._setup))
            async with stream:
                async for delta in _deltas(stream):
                    yield delta

    async def check(self) -> None:
        """List models, which every such server can; one that can't is there all the same."""
        with transport.answering(openai.OpenAIError, trouble):
            await self._client.models.list()

    async def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Return vectors; see Endpoint."""
        try:
            reply = await self._client.embeddings.create(
                model=self._setup.model, input=texts, encoding_format="float"
            )
            rows = sorted(reply.data, key=lambda row: row.index)
            vectors = [[float(number) for number in row.embedding] for row in rows]
            if len(vectors) != len(texts):
                raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
            return vectors, whole(reply.usage.total_tokens)
        except openai.OpenAIError as error:
            raise trouble(error) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise Trouble("cut", f"it sent what are no vectors: {line(error)}") from None

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()


def request(chat: Chat, setup: Setup) -> dict[str, Any]:
    """Return what the client is called with; raises Trouble for what the dialect can't say."""
    more = MORE[setup.dialect]
    refuse(chat, setup, [name for name in EXTRA if name not in more])
    plain = Chat([], 0)
    body = {
        word: getattr(chat, name)
        for name, word in more.items()
        if getattr(chat, name) != getattr(plain, name)
    }
    options: dict[str, Any] = {"include_usage": True}
    if setup.dialect in ("vllm", "sglang"):
        options["continuous_usage_stats"] = True
    limit = "max_completion_tokens" if setup.dialect == "openai" else "max_tokens"
    asked: dict[str, Any] = {
        "model": setup.model,
        "messages": [_message(message) for message in chat.messages],
        limit: chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "stream": True,
        "stream_options": options,
        **_optional(chat, plain),
        **_functions(chat, setup.dialect),
    }
    if chat.schema is not None:
        asked["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": chat.schema, "strict": strict(chat.schema)},
        }
    asked = {name: value for name, value in asked.items() if name not in setup.omit}
    return {**asked, "extra_body": {**body, **setup.extra}}


def _optional(chat: Chat, plain: Chat) -> dict[str, Any]:
    names = ("stop", "frequency_penalty", "presence_penalty", "logprobs")
    given = {name: getattr(chat, name) for name in names}
    given = {name: value for name, value in given.items() if value != getattr(plain, name)}
    return {**given, **({"seed": chat.seed} if chat.temperature or chat.seed else {})}


def _functions(chat: Chat, dialect: str) -> dict[str, Any]:
    if not chat.functions:
        return {}
    choice: Any = chat.choice
    if choice not in ("auto", "required", "none"):
        choice = {"type": "function", "function": {"name": choice}}
    tools = [
        {
            "type": "function",
            "function": {
                "name": each.name,
                "description": each.description,
                "parameters": each.parameters,
            },
        }
        for each in chat.functions
    ]
    more = {} if dialect == "gemini" else {"parallel_tool_calls": chat.parallel > 1}
    return {"tools": tools, "tool_choice": choice, **more}


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        said["content"] = _parts(message)
    if message.name:
        said["name"] = message.name
    if message.role == "tool" and message.call:
        said["tool_call_id"] = message.call
    if message.calls:
        said["content"] = message.content or None
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.calls
        ]
    return said


def _parts(message: Message) -> list[dict[str, Any]]:
    """Return pictures, as URLs that hold them, and what is said of them."""
    parts: list[dict[str, Any]] = []
    for image in message.images:
        url = f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    if message.content:
        parts.append({"type": "text", "text": message.content})
    return parts


def strict(schema: Any) -> bool:
    """Whether a schema is as OpenAI's strict mode wants it: all closed, nothing optional."""
    if isinstance(schema, list):
        return all(strict(each) for each in schema)
    if not isinstance(schema, dict):
        return True
    fields = schema.get("properties")
    if schema.get("type") == "object" or fields is not None:
        named = set(fields or {})
        if schema.get("additionalProperties") is not False or named != set(
            schema.get("required", ())
        ):
            return False
    return all(strict(value) for value in schema.values())


async def _deltas(stream: Any) -> AsyncIterator[Delta]:
    calls: dict[int, list[str]] = {}
    finish = ""
    async for chunk in stream:
        if chunk.usage is not None:
            yield _count(chunk.usage)
        for choice in chunk.choices or ():
            for delta in _texts(choice):
                yield delta
            _gather(calls, choice.delta.tool_calls or ())
            finish = choice.finish_reason or finish
    if not finish:
        raise Trouble("cut", "it closed the connection in mid-stream")
    made = tuple(Call(*parts) for _, parts in sorted(calls.items()))
    yield End("calls" if made else FINISH.get(finish, finish), made)


def _texts(choice: Any) -> Iterator[Text]:
    text = choice.delta.content or choice.delta.refusal or ""
    if not isinstance(text, str):
        raise TypeError("its text is no text")
    told = (choice.logprobs.content if choice.logprobs else None) or ()
    if told and "".join(each.token for each in told) == text:
        yield from (Text(each.token, float(each.logprob)) for each in told)
    elif text:
        yield Text(text, sum(float(each.logprob) for each in told))


def _gather(calls: dict[int, list[str]], parts: Any) -> None:
    """Put together calls, which come in parts."""
    for part in parts:
        id, name, arguments = calls.setdefault(int(part.index), ["", "", ""])
        said = part.function
        if said is not None:
            name, arguments = name + (said.name or ""), arguments + (said.arguments or "")
        calls[int(part.index)] = [id or part.id or "", name, arguments]


def _count(usage: Any) -> Count:
    details = usage.prompt_tokens_details
    cached = whole(details.cached_tokens) if details is not None else 0
    return Count(whole(usage.prompt_tokens), cached, whole(usage.completion_tokens))


def trouble(error: openai.OpenAIError) -> Trouble:
    """Return what an error of the client means."""
    if isinstance(error, openai.APIStatusError):
        return by_status(error.status_code, _said(error), wait_of(error.response.headers))
    if isinstance(error, openai.APIConnectionError):
        return transport.lost(error.__cause__ or error)
    if isinstance(error, openai.APIError):
        return Trouble("broken", _said(error))
    return Trouble("refused", line(error))


def _said(error: openai.APIError) -> str:
    body = error.body
    told = body.get("message") if isinstance(body, dict) else None
    return line(told or (json.dumps(body)[:300] if body else error.message))
