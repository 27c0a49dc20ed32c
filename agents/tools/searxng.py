"""searxng_search: what a SearXNG server finds, a metasearch that an operator runs.

Its settings must allow the format json, which they do not from the start.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from aios.tools import Meta, tool

from .search import SNIPPET, Results, What, found
from .service import Service, ServiceError, clip

SEARXNG: Final = Service("searxng_search", "SearXNG", "SEARXNG_URL")


class _SearxngResult(msgspec.Struct):
    url: str = ""
    title: str = ""
    content: str | None = ""
    img_src: str | None = ""


class _SearxngAnswer(msgspec.Struct):
    results: list[_SearxngResult]
    answers: list[Any] = []


@tool(limits={"time": 60}, idempotent=True)
def searxng_search(
    query: Annotated[str, Meta(min_length=1, max_length=2000)],
    what: What = "pages",
    count: Annotated[int, Meta(ge=1, le=50)] = 5,
    page: Annotated[int, Meta(ge=1, le=100)] = 1,
    language: Annotated[str, Meta(pattern="^(all|[a-z]{2}(-[A-Z]{2})?)$")] = "all",
) -> Results:
    """Search the web with the SearXNG server of this installation.

    query: what to search for
    what: pages, or images that match the query
    count: how many results
    page: which page of results, to see more
    language: of the pages, as en or de-CH
    """
    params: dict[str, str | int] = {
        "q": query, "format": "json", "pageno": page, "language": language,
        "categories": "images" if what == "images" else "general",
    }  # fmt: skip
    try:
        answer = SEARXNG.get("/search", _SearxngAnswer, params=params)
    except ServiceError as error:
        if error.status == 403:
            cure = "; its settings must have json among search.formats"
            raise ServiceError(f"{error}{cure}", 403) from None
        raise
    answers = [text for one in answer.answers if (text := _searxng_text(one))]
    results = [
        found(one.title, one.url, one.content or "", one.img_src or "") for one in answer.results
    ]
    return Results(results[:count], clip("\n".join(answers), SNIPPET))


def _searxng_text(answer: Any) -> str:
    """Return an instant answer: a string of older servers, an object of newer ones."""
    text = answer.get("answer", "") if isinstance(answer, dict) else answer
    return text if isinstance(text, str) else ""
