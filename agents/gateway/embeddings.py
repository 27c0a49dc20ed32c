"""Embeddings: POST /v1/embeddings, by the kernel's embedder."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .office import Office
from .refusal import Refusal
from .reply import Json, read, unless_gone


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """A request. Fields that are not here are passed over."""

    input: str | list[Any]
    model: str = ""
    encoding_format: str | None = None
    dimensions: int | None = None


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""

    async def embeddings(request: Request) -> Response:
        asked = await read(request, Embedding)
        texts = _texts(asked)
        return Json(await unless_gone(request.receive, _embed(office, request, asked, texts)))

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


def _texts(asked: Embedding) -> list[str]:
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts or not all(isinstance(text, str) for text in texts):
        sentence = "input: a text or a list of texts; tokens mean nothing to another model"
        raise Refusal(400, sentence, param="input", code="unsupported")
    return texts


async def _embed(
    office: Office, request: Request, asked: Embedding, texts: list[str]
) -> dict[str, Any]:
    async with office.caller(request.headers) as kernel:
        found = await kernel.llm_embed(texts)
    if asked.dimensions and any(len(vector) != asked.dimensions for vector in found.vectors):
        sentence = f"dimensions: {found.model} has {len(found.vectors[0])}"
        raise Refusal(400, sentence, param="dimensions", code="unsupported")
    packed = asked.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _packed(row) if packed else row}
        for at, row in enumerate(found.vectors)
    ]
    used = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"object": "list", "data": data, "model": found.model, "usage": used}


def _packed(vector: list[float]) -> str:
    """Return a vector as base64 of float32, little-endian."""
    numbers = array("f", vector)
    return base64.b64encode(numbers.tobytes()).decode()
