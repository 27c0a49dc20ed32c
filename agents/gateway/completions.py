"""Completions: POST /v1/completions, text that goes on from a prompt as it stands."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from . import models
from .chat import StreamOptions, about, finish, usage
from .office import Office
from .refusal import Refusal
from .reply import DONE, Events, Json, event, read, unless_gone
from .sampling import Sampling, options, stops

USUAL_TOKENS = 16
"""Of a request that says nothing, as OpenAI has it."""


class Completion(Sampling, frozen=True, kw_only=True):
    """A request. Fields that are not here are passed over."""

    prompt: str | list[str] = ""
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
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
    for name, given in (("n", (asked.n or 1) > 1), ("best_of", (asked.best_of or 1) > 1),
                        ("suffix", asked.suffix)):  # fmt: skip
        if given:
            raise Refusal(400, f"{name}: is not served here", param=name, code="unsupported")
    if isinstance(asked.prompt, list) and len(asked.prompt) != 1:
        raise Refusal(400, "prompt: one at a time", param="prompt", code="unsupported")


async def _asked(kernel: aios.AsyncKernel, office: Office, asked: Completion) -> dict[str, Any]:
    return {
        "prompt": _prompt(asked),
        "raw": True,
        "max_tokens": asked.max_tokens or USUAL_TOKENS,
        "stop": stops(asked.stop),
        **options(asked),
        **(await models.choose(kernel, office, asked.model))._asdict(),
    }


def _prompt(asked: Completion) -> str:
    return asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]


async def _whole(office: Office, request: Request, asked: Completion) -> dict[str, Any]:
    async with office.caller(request.headers) as kernel:
        told = await _asked(kernel, office, asked)
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "text_offset": []}
        if asked.logprobs is None:
            reply = await kernel.llm_generate(**told)
        else:
            stream = kernel.llm_generate(**told, logprobs=True, stream=True)
            async for chunk in stream:
                _note(found, chunk)
            reply = stream.reply
    text = (_prompt(asked) if asked.echo else "") + reply.text
    logprobs = None if asked.logprobs is None else {**found, "top_logprobs": None}
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish(reply)}
    return {
        **_head(reply.core or asked.model),
        "choices": [choice],
        "usage": usage(reply.usage),
        "aios": about(reply),
    }


async def _streamed(office: Office, request: Request, asked: Completion) -> AsyncIterator[bytes]:
    async with office.caller(request.headers) as kernel:
        told = await _asked(kernel, office, asked)
        head = _head(told["core"] or asked.model or models.ANY)
        async with kernel.llm_generate(**told, stream=True) as stream:
            if asked.echo:
                yield _piece(head, _prompt(asked))
            async for chunk in stream:
                if chunk.text:
                    yield _piece(head, chunk.text)
            reply = stream.reply
    yield _piece(head, "", finish(reply))
    if asked.stream_options and asked.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage(reply.usage), "aios": about(reply)})
    yield DONE


def _note(found: dict[str, Any], chunk: aios.Chunk) -> None:
    """Enter a chunk's tokens; the text of several goes to the first."""
    for at, logprob in enumerate(chunk.logprobs):
        offset = sum(map(len, found["tokens"]))
        found["text_offset"].append(offset)
        found["tokens"].append(chunk.text if at == 0 else "")
        found["token_logprobs"].append(logprob)


def _head(model: str) -> dict[str, Any]:
    id = f"cmpl-{secrets.token_hex(12)}"
    return {"id": id, "object": "text_completion", "created": int(time()), "model": model}


def _piece(head: dict[str, Any], text: str, end: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": end}
    return event({**head, "choices": [choice]})
