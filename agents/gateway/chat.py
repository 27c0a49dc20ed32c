"""Chats: POST /v1/chat/completions, whole or as a stream of pieces."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from time import time
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from . import choices, models, offers, probabilities
from .messages import Message, check_roles, turns
from .office import Office
from .refusal import Refusal, unserved
from .reply import DONE, Events, Json, event, read, unless_gone
from .sampling import Ending, Sampling, Tokens, options, stops

FINISH: Final = {"stop": "stop", "length": "length", "calls": "tool_calls"}
"""How a generation's end is called; one that was cancelled is cut off, as by a length."""


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream is to bring beside the text."""

    include_usage: bool | None = None


class Chat(Sampling, frozen=True, kw_only=True):
    """A request. Fields that are not here are passed over."""

    messages: list[Message]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[offers.Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""

    async def completions(request: Request) -> Response:
        asked = await read(request, Chat)
        _check(asked)
        if asked.stream:
            return Events(_streamed(office, request, asked))
        return Json(await unless_gone(request.receive, _whole(office, request, asked)))

    return [Route("/v1/chat/completions", completions, methods=["POST"])]


def _check(asked: Chat) -> None:
    check_roles(asked.messages)
    choices.count(asked.n)
    if asked.top_logprobs and not asked.logprobs:
        sentence = "top_logprobs: it goes with logprobs; send logprobs true as well"
        raise Refusal(400, sentence, param="top_logprobs")
    spoken = asked.modalities if asked.modalities not in (None, ["text"]) else None
    unserved(
        modalities=spoken,
        audio=asked.audio,
        web_search_options=asked.web_search_options is not None,
    )
    for name, given in (("functions", asked.functions), ("function_call", asked.function_call)):
        if given is not None:
            sentence = f"{name}: is served by its newer name alone; send tools and tool_choice"
            raise Refusal(400, sentence, param=name, code="unsupported")


async def _asked(kernel: aios.AsyncKernel, office: Office, asked: Chat) -> list[dict[str, Any]]:
    """Return what llm_generate is told for each choice."""
    told = {
        "messages": turns(asked.messages),
        "max_tokens": asked.max_completion_tokens or asked.max_tokens or 0,
        "schema": offers.schema(asked.response_format, "response_format"),
        **options(asked),
        **(await models.choose(kernel, office, asked.model))._asdict(),
        **offers.offer(asked.tools, asked.tool_choice, asked.parallel_tool_calls),
    }
    if "functions" not in told:
        told["stop"] = stops(asked.stop)
    if asked.logprobs:
        told |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    return choices.seeded(told, choices.count(asked.n))


async def _whole(office: Office, request: Request, asked: Chat) -> dict[str, Any]:
    """Return a whole answer."""
    async with office.caller(request.headers) as kernel:
        every = await _asked(kernel, office, asked)
        works = [_choice(kernel, asked, at, told) for at, told in enumerate(every)]
        made = await choices.together(works)
    return answered({"id": _id(), "object": "chat.completion", "created": int(time())}, asked, made)


async def _choice(
    kernel: aios.AsyncKernel, asked: Chat, index: int, told: dict[str, Any]
) -> tuple[dict[str, Any], aios.Generation]:
    """Return one choice of a whole answer, and what it was made of."""
    ending = Ending([] if "stop" in told else stops(asked.stop))
    logprobs: list[dict[str, Any]] = []
    if asked.logprobs:
        stream = kernel.llm_generate(**told, stream=True)
        async for chunk in stream:
            logprobs += probabilities.of_chat(chunk)
        reply = stream.reply
    else:
        reply = await kernel.llm_generate(**told)
    text = ending.hear(reply.text) + ending.rest()
    made = [called(call) for call in reply.calls]
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if made else "")}
    if made:
        message["tool_calls"] = made
    choice = {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if asked.logprobs else None,
        "finish_reason": finish(reply),
    }
    return choice, reply


async def _streamed(office: Office, request: Request, asked: Chat) -> AsyncIterator[bytes]:
    """Give an answer piece by piece."""
    replies: list[aios.Generation] = []
    async with office.caller(request.headers) as kernel:
        every = await _asked(kernel, office, asked)
        head = {"id": _id(), "object": "chat.completion.chunk", "created": int(time())}
        head["model"] = every[0]["core"] or asked.model or models.ANY
        streams = [
            _pieces(kernel, asked, _Pieces(head, at, bool(asked.logprobs)), told, replies)
            for at, told in enumerate(every)
        ]
        async with aclosing(choices.merged(streams)) as pieces:
            async for piece in pieces:
                yield piece
    yield closing(head, asked.stream_options, replies)


async def _pieces(
    kernel: aios.AsyncKernel,
    asked: Chat,
    pieces: _Pieces,
    told: dict[str, Any],
    replies: list[aios.Generation],
) -> AsyncGenerator[bytes]:
    """Give one choice piece by piece; its reply is added to `replies` at the end."""
    ending = Ending([] if "stop" in told else stops(asked.stop))
    begun = False
    async with kernel.llm_generate(**told, stream=True) as stream:
        async for chunk in stream:
            if not begun:
                begun = True
                yield pieces.delta({"role": "assistant", "content": ""})
            text = ending.hear(chunk.text)
            if text or asked.logprobs:
                yield pieces.text(text, chunk)
        reply = stream.reply
    if not begun:
        yield pieces.delta({"role": "assistant", "content": ""})
    if rest := ending.rest():
        yield pieces.delta({"content": rest})
    if reply.calls:
        made = [{"index": at, **called(call)} for at, call in enumerate(reply.calls)]
        yield pieces.delta({"tool_calls": made})
    yield pieces.delta({}, finish(reply))
    replies.append(reply)


class _Pieces:
    """Makes the events of one choice: all but the text of a piece is encoded once."""

    def __init__(self, head: dict[str, Any], index: int, logprobs: bool) -> None:
        self._head = head
        self._index = index
        self._logprobs = logprobs
        before = msgspec.json.encode(head)[:-1]
        self._before = b'data: %b,"choices":[{"index":%d,"delta":{"content":' % (before, index)
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def text(self, text: str, chunk: aios.Chunk) -> bytes:
        """Return a piece of the text."""
        if self._logprobs:
            found = {"content": probabilities.of_chat(chunk), "refusal": None}
            return self.delta({"content": text}, None, found)
        return self._before + msgspec.json.encode(text) + self._after

    def delta(
        self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None
    ) -> bytes:
        """Return any other piece."""
        choice = {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return event({**self._head, "choices": [choice]})


def answered(
    head: dict[str, Any], asked: Sampling, made: Sequence[tuple[dict[str, Any], aios.Generation]]
) -> dict[str, Any]:
    """Return a whole answer. made: its choices, and what each was made of."""
    replies = [reply for _, reply in made]
    return {
        **head,
        "model": replies[0].core or asked.model,
        "choices": [choice for choice, _ in made],
        **_told_of(replies),
    }


def closing(
    head: dict[str, Any], wanted: StreamOptions | None, replies: Sequence[aios.Generation]
) -> bytes:
    """Return the end of a stream, and before it what all of it took, if that is wanted."""
    if wanted is None or not wanted.include_usage:
        return DONE
    return event({**head, "choices": [], **_told_of(replies)}) + DONE


def _told_of(replies: Sequence[aios.Generation]) -> dict[str, Any]:
    used = choices.sum_of([reply.usage for reply in replies])
    return {"usage": usage(used), "aios": about(replies[0])}


def finish(reply: aios.Generation) -> str:
    """Return how OpenAI calls the end of a generation."""
    return FINISH.get(reply.finish_reason, "length")


def called(call: aios.ToolCall) -> dict[str, Any]:
    """Return a call that the client is to carry out."""
    arguments = msgspec.json.encode(call.arguments).decode()
    function = {"name": call.tool, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def usage(used: aios.TokenUsage) -> dict[str, Any]:
    """Return what a request took."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }


def about(reply: aios.Generation) -> dict[str, Any]:
    """Return what only AIOS knows of a request."""
    return {
        "request": reply.request,
        "context": reply.context,
        "core": reply.core,
        "exact": reply.exact,
        "finish_reason": reply.finish_reason,
        "reason": reply.reason,
        "dollars": reply.usage.dollars,
        "waiting_s": reply.timing.waiting_s,
        "turnaround_s": reply.timing.turnaround_s,
    }


def _id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
