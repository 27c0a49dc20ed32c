"""The forms in which Cerebrum's queries come and their answers are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import aios

from .refusal import Refusal, told
from .reply import Json

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]
Selections = MutableMapping[aios.AsyncKernel, list[dict[str, Any]]]
"""The models that each caller has chosen for queries which name none."""


class Query(msgspec.Struct, frozen=True):
    """The body of a query. agent_name: what the program calls itself."""

    agent_name: str
    query_type: Literal["llm", "tool", "storage", "memory"]
    query_data: dict[str, Any]


class Done(NamedTuple):
    """What came of a query. waiting: seconds before work began."""

    response: dict[str, Any] | str
    waiting: float = 0.0


def taken(data: dict[str, Any], kind: type[T]) -> T:
    """Return a query's data as a struct. Raises Refusal that names the field."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"query_data: {str(error).replace('`', '')}") from None


def result(kind: str, message: str | None, *, finished: bool = True) -> dict[str, Any]:
    """Return an answer of a kind other than memory's."""
    return {
        "response_class": kind,
        "response_message": message,
        "finished": finished,
        "error": None,
        "status_code": 200,
    }


def remembered(**told: Any) -> dict[str, Any]:
    """Return an answer about memory, with every field that its client may look at."""
    fields = ("memory_id", "content", "metadata", "search_results", "error")
    return {"response_class": "memory", **dict.fromkeys(fields), "success": False, **told}


def failed(kind: str, error: OSError) -> dict[str, Any]:
    """Return what a query's client reads of an error."""
    sentence = error.strerror or str(error)
    if kind == "memory":
        return remembered(error=sentence)
    status, _, _ = told(error)
    shown = None if kind == "llm" else sentence
    return {**result(kind, shown), "error": sentence, "status_code": status}


def worded(answer: Answer) -> Answer:
    """Return a route's handler that tells what it refuses where Cerebrum's clients look for it."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except (Refusal, OSError) as error:
            status, headers, body = told(error)
            return Json({"detail": body["error"]["message"], **body}, status, headers)

    return answered
