"""Google's interface to Gemini, through its own client.

It differs from the others in that a chat has no turn of a tool (a function's result is a part of
the user's), a prompt may be blocked before anything is generated, and how long to wait stands in
the body of an error. What the model thinks is counted as output, and not passed on.

Models that think sign the calls they make, and want the signature back. A context keeps none, since
it may go on with another provider: calls go out with the word that stands for one made elsewhere.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Final

from google import genai
from google.genai import errors, types

from aiosd.endpoints import transport
from aiosd.endpoints.endpoint import (
    LONGEST_WAIT,
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

NONE: Final = ("min_p", "repeat_penalty", "logprobs", "grammar")
FINISH: Final = {"STOP": "stop", "MAX_TOKENS": "length"}
UNSIGNED: Final = b"skip_thought_signature_validator"
MODES: Final = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
DELAY: Final = re.compile(r"(\d{1,9}(?:\.\d+)?)s")

logging.getLogger("google_genai").setLevel(logging.ERROR)  # it warns of parts that are no text


class Gemini:
    """One core's endpoint."""

    def __init__(self, setup: Setup, key: str) -> None:
        self._setup = setup
        self._http = transport.made(setup)
        options = types.HttpOptions(
            base_url=setup.base_url or None,
            headers=setup.headers,
            httpx_async_client=self._http,
        )
        self._client = genai.Client(vertexai=False, api_key=key or "none", http_options=options)
        self._models = self._client.aio.models

    async def chat(self, chat: Chat) -> AsyncIterator[Delta]:
        """Ask; see Endpoint."""
        with transport.named(errors.APIError, trouble):
            stream: Any = await self._models.generate_content_stream(**request(chat, self._setup))
            async with aclosing(stream):
                async for delta in _deltas(stream):
                    yield delta

    async def check(self) -> None:
        """List models, which its server can."""
        with transport.named(errors.APIError, trouble):
            await self._models.list(config={"page_size": 1})

    async def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Return vectors; see Endpoint. Where it does not count tokens, each byte is one."""
        with transport.named(errors.APIError, trouble):
            reply = await self._models.embed_content(
                model=self._setup.model,
                contents=[types.Content(parts=[types.Part(text=text)]) for text in texts],
            )
            vectors = [[float(number) for number in row.values] for row in reply.embeddings]
            if len(vectors) != len(texts):
                raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
            told = reply.usage_metadata.prompt_token_count if reply.usage_metadata else None
            return vectors, whole(told) or sum(len(text.encode()) for text in texts)

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()


def request(chat: Chat, setup: Setup) -> dict[str, Any]:
    """Return what the client is called with; raises Trouble for what it can't say."""
    refuse(chat, setup, NONE)
    config: dict[str, Any] = {
        "max_output_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "automatic_continuation": False,  # what is asked again is for the kernel to say
        "automatic_function_calling": {"disable": True},
        **_optional(chat),
        **_functions(chat),
    }
    if system := [each.content for each in chat.messages if each.role == "system"]:
        config["system_instruction"] = "\n\n".join(system)
    if chat.schema is not None:
        config["response_mime_type"] = "application/json"
        config["response_json_schema"] = chat.schema
    config = {name: value for name, value in config.items() if name not in setup.omit}
    if setup.extra:
        config["http_options"] = {"extra_body": setup.extra}
    return {"model": setup.model, "contents": _contents(chat.messages), "config": config}


def _optional(chat: Chat) -> dict[str, Any]:
    plain = Chat([], 0)
    names = ("top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
    given = {name: getattr(chat, name) for name in names}
    given = {name: value for name, value in given.items() if value != getattr(plain, name)}
    return {**given, **({"stop_sequences": chat.stop} if chat.stop else {})}


def _functions(chat: Chat) -> dict[str, Any]:
    if not chat.functions:
        return {}
    declared = [
        types.FunctionDeclaration(
            name=each.name, description=each.description, parameters_json_schema=each.parameters
        )
        for each in chat.functions
    ]
    calling: dict[str, Any] = {"mode": MODES.get(chat.choice, "ANY")}
    if chat.choice not in MODES:
        calling["allowed_function_names"] = [chat.choice]
    return {
        "tools": [types.Tool(function_declarations=declared)],
        "tool_config": {"function_calling_config": calling},
    }


def _contents(messages: list[Message]) -> list[dict[str, Any]]:
    """Return turns as parts; results of calls made together are one turn of the user."""
    contents: list[dict[str, Any]] = []
    names = {call.id: call.name for message in messages for call in message.calls}
    for message in messages:
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names) if message.role != "system" else []
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: dict[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool" and message.call:
        name = names.get(message.call) or message.name or "function"
        said = {"id": message.call, "name": name, "response": {"result": message.content}}
        return [{"function_response": said}]
    parts: list[dict[str, Any]] = [
        {"inline_data": {"mime_type": image.media_type, "data": image.data}}
        for image in message.images
    ]
    if message.content:
        parts.append({"text": message.content})
    for call in message.calls:
        made = {"id": call.id, "name": call.name, "args": json.loads(call.arguments)}
        parts.append({"function_call": made, "thought_signature": UNSIGNED})
    return parts


async def _deltas(stream: Any) -> AsyncIterator[Delta]:
    calls: list[Call] = []
    finish = ""
    async for chunk in stream:
        if chunk.usage_metadata is not None:
            yield _count(chunk.usage_metadata)
        blocked = chunk.prompt_feedback.block_reason if chunk.prompt_feedback else None
        if blocked is not None:
            raise Trouble("refused", f"it blocked the prompt: {_word(blocked)}", 400)
        for candidate in chunk.candidates or ():
            for part in (candidate.content.parts if candidate.content else None) or ():
                if part.text and not part.thought:
                    yield Text(part.text)
                calls += _call(part)
            finish = _word(candidate.finish_reason) if candidate.finish_reason else finish
    if not finish:
        raise Trouble("cut", "it closed the connection in mid-stream")
    ended = FINISH.get(finish, finish.lower())
    yield End("calls" if calls and ended == "stop" else ended, tuple(calls))


def _call(part: Any) -> Iterator[Call]:
    made = part.function_call
    if made is not None:
        yield Call(made.id or "", made.name or "", json.dumps(made.args or {}))


def _word(reason: Any) -> str:
    """Return what the interface calls a reason, be it one that the client knows or not."""
    return str(getattr(reason, "value", reason))


def _count(usage: Any) -> Count:
    prompt = whole(usage.prompt_token_count) + whole(usage.tool_use_prompt_token_count)
    output = whole(usage.candidates_token_count) + whole(usage.thoughts_token_count)
    return Count(prompt, whole(usage.cached_content_token_count), output)


def trouble(error: errors.APIError) -> Trouble:
    """Return what an error of the client means."""
    text = line(error.message or error)
    if not isinstance(error.code, int):
        return Trouble("broken", text)
    told = wait_of(getattr(error.response, "headers", None) or {})
    return by_status(error.code, text, told or _delay(error.details))


def _delay(details: Any) -> float:
    """Return the seconds of a RetryInfo, 0 where there is none."""
    error = details.get("error") if isinstance(details, dict) else None
    found = error.get("details") if isinstance(error, dict) else None
    for each in found if isinstance(found, list) else ():
        told = each.get("retryDelay") if isinstance(each, dict) else None
        if isinstance(told, str) and (delay := DELAY.fullmatch(told)):
            return min(float(delay[1]), LONGEST_WAIT)
    return 0.0
