"""wikipedia_query: what Wikipedia says, by the Action API of MediaWiki."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

import msgspec

from aios.tools import Meta, setting, tool

from .service import Service, ServiceError, clip

WIKIPEDIA: Final = Service(
    "wikipedia_query", "Wikipedia", "WIKIPEDIA_URL", "https://{language}.wikipedia.org"
)

_TEXT: Final = 20_000


class Article(msgspec.Struct):
    """An article, with its text or the beginning of it."""

    title: str
    url: str
    text: str


class _Page(msgspec.Struct):
    title: str
    index: int = 0
    fullurl: str = ""
    extract: str = ""
    missing: bool = False


class _Query(msgspec.Struct):
    pages: list[_Page] = []


class _Error(msgspec.Struct):
    info: str = ""


class _Answer(msgspec.Struct):
    query: _Query | None = None
    error: _Error | None = None
    batchcomplete: bool = False


@tool(
    needs={"network": ["*.wikipedia.org"]},
    limits={"time": 60, "rate": 5, "burst": 10},
    idempotent=True,
)
def wikipedia_query(
    query: Annotated[str, Meta(min_length=1, max_length=300)],
    count: Annotated[int, Meta(ge=1, le=10)] = 3,
    full: bool = False,
    language: Annotated[str, Meta(pattern="^[a-z]{2,3}(-[a-z]+)?$")] = "en",
) -> list[Article]:
    """Look something up in Wikipedia: the articles that match, best first, and how they begin.

    query: what to search for, or a title
    count: how many articles
    full: give the best match alone, with as much of its text as there is room for
    language: which Wikipedia, as en or de
    """
    params: dict[str, str | int] = {
        "action": "query", "format": "json", "formatversion": 2, "redirects": 1,
        "generator": "search", "gsrsearch": query, "gsrlimit": 1 if full else count,
        "prop": "extracts|info", "inprop": "url", "explaintext": 1, "exlimit": "max",
    }  # fmt: skip
    if not full:  # its mere presence is what counts
        params["exintro"] = 1
    contact = setting("WIKIPEDIA_CONTACT").strip()
    headers = {"User-Agent": f"aios/0.1 (wikipedia_query; {contact})"} if contact else {}
    here = _in(language)
    answer = here.get("/w/api.php", _Answer, params=params, headers=headers)
    if answer.error is not None:
        raise ServiceError(
            f"wikipedia_query: {here.name} refused the query: {clip(answer.error.info, 300)}"
        )
    if answer.query is None and not answer.batchcomplete:
        raise here.garbage("neither a query nor an error")
    pages = sorted(answer.query.pages if answer.query else [], key=lambda page: page.index)
    count = 1 if full else count
    return [
        Article(clip(page.title, 300), page.fullurl, clip(page.extract, _TEXT // count))
        for page in pages[:count] if not page.missing
    ]  # fmt: skip


def _in(language: str) -> Service:
    """Return the Wikipedia of a language."""
    return replace(WIKIPEDIA, default=WIKIPEDIA.default.format(language=language))
