"""Completions: POST /v1/completions, text that goes on from a prompt as it stands."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import time
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from . import choices, models, probabilities
from .chat import StreamOptions, answered, closing, finish
from .office import Office
from .refusal import Refusal, unserved
from .reply import Events, Json, event, read, unless_gone
from .sampling import Sampling, options, stops

USUAL_TOKENS = 16
"""Of a request that says nothing, as OpenAI has it."""


class Completion(Sampling, frozen=True, kw_only=True):
    """A request. Fields that are not here are passed over."""

    prompt: str | list[str] = ""
    max_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    n: int | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""

    async def completions(request: Request) -> Response:
        asked = await read(request, Completion)
        _check(asked)
        if asked.stream:
            return Events(_streamed(office, request, asked))
        return Json(await unless_gone(request.receive, _whole(office, request, asked)))

    return [Route("/v1/completions", completions, methods=["POST"])]


def _check(asked: Completion) -> None:
    prompts = _prompts(asked)
    unserved(best_of=(asked.best_of or 1) not in (1, asked.n or 1), suffix=asked.suffix)
    if not prompts:
        raise Refusal(400, "prompt: there is none", param="prompt")
    choices.count(asked.n, len(prompts))


async def _asked(
    kernel: aios.AsyncKernel, office: Office, asked: Completion
) -> list[dict[str, Any]]:
    """Return what llm_generate is told for each choice, those of a prompt one after the other."""
    told = {
        "raw": True,
        "max_tokens": asked.max_tokens or USUAL_TOKENS,
        "stop": stops(asked.stop),
        **options(asked),
        **(await models.choose(kernel, office, asked.model))._asdict(),
    }
    if asked.logprobs is not None:
        told |= {"logprobs": True, "top_logprobs": asked.logprobs}
    return [
        each
        for prompt in _prompts(asked)
        for each in choices.seeded({**told, "prompt": prompt}, choices.count(asked.n))
    ]


def _prompts(asked: Completion) -> list[str]:
    return [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt


async def _whole(office: Office, request: Request, asked: Completion) -> dict[str, Any]:
    async with office.caller(request.headers) as kernel:
        every = await _asked(kernel, office, asked)
        works = [_choice(kernel, asked, at, told) for at, told in enumerate(every)]
        made = await choices.together(works)
    return answered(_head(), asked, made)


async def _choice(
    kernel: aios.AsyncKernel, asked: Completion, index: int, told: dict[str, Any]
) -> tuple[dict[str, Any], aios.Generation]:
    """Return one choice of a whole answer, and what it was made of."""
    logprobs = None
    if asked.logprobs is None:
        reply = await kernel.llm_generate(**told)
    else:
        found = probabilities.OfCompletion()
        stream = kernel.llm_generate(**told, stream=True)
        parts = [found.of(chunk) async for chunk in stream]
        reply, logprobs = stream.reply, probabilities.joined(parts)
    text = (told["prompt"] if asked.echo else "") + reply.text
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish(reply)}
    return choice, reply


async def _streamed(office: Office, request: Request, asked: Completion) -> AsyncIterator[bytes]:
    replies: list[aios.Generation] = []
    async with office.caller(request.headers) as kernel:
        every = await _asked(kernel, office, asked)
        head = _head() | {"model": every[0]["core"] or asked.model or models.ANY}
        streams = [_pieces(kernel, asked, head, at, told, replies) for at, told in enumerate(every)]
        async with aclosing(choices.merged(streams)) as pieces:
            async for piece in pieces:
                yield piece
    yield closing(head, asked.stream_options, replies)


async def _pieces(
    kernel: aios.AsyncKernel,
    asked: Completion,
    head: dict[str, Any],
    index: int,
    told: dict[str, Any],
    replies: list[aios.Generation],
) -> AsyncGenerator[bytes]:
    """Give one choice piece by piece; its reply is added to `replies` at the end."""
    found = None if asked.logprobs is None else probabilities.OfCompletion()
    async with kernel.llm_generate(**told, stream=True) as stream:
        if asked.echo:
            yield _piece(head, index, told["prompt"])
        async for chunk in stream:
            if found is not None:
                yield _piece(head, index, chunk.text, logprobs=found.of(chunk))
            elif chunk.text:
                yield _piece(head, index, chunk.text)
        reply = stream.reply
    yield _piece(head, index, "", finish(reply))
    replies.append(reply)


def _head() -> dict[str, Any]:
    id = f"cmpl-{secrets.token_hex(12)}"
    return {"id": id, "object": "text_completion", "created": int(time())}


def _piece(
    head: dict[str, Any], index: int, text: str, end: str | None = None, logprobs: Any = None
) -> bytes:
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}
    return event({**head, "choices": [choice]})
