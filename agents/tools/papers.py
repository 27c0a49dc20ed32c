"""arxiv_search: preprints of arXiv, by its query API, which answers in Atom.

The package `arxiv` waits without limit, reads without limit, and gives a damaged feed as an empty
one; the few fields of Atom are read here, by the standard library's parser, which refuses the
entities that grow.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal
from xml.etree import ElementTree

import msgspec

from aios.tools import BadArguments, Meta, tool

from .service import Service, ServiceError, clip

ARXIV: Final = Service("arxiv_search", "arXiv", "ARXIV_URL", "https://export.arxiv.org")

_ATOM: Final = "{http://www.w3.org/2005/Atom}"
_OWN: Final = "{http://arxiv.org/schemas/atom}"


Number = Annotated[str, Meta(pattern=r"^[\w.\-/]{5,40}$")]


class Paper(msgspec.Struct):
    """A preprint. published: the day of its first version."""

    id: str
    title: str
    authors: list[str]
    published: str
    summary: str
    categories: list[str]
    url: str
    pdf: str
    doi: str


# One request in three seconds is what arXiv's terms allow.
@tool(
    needs={"network": ["export.arxiv.org"]},
    limits={"time": 60, "rate": 0.33, "burst": 1},
    idempotent=True,
)
def arxiv_search(
    query: Annotated[str, Meta(max_length=500)] = "",
    ids: Annotated[tuple[Number, ...], Meta(max_length=20)] = (),
    count: Annotated[int, Meta(ge=1, le=20)] = 5,
    start: Annotated[int, Meta(ge=0, le=30_000)] = 0,
    order: Literal["relevance", "lastUpdatedDate", "submittedDate"] = "relevance",
) -> list[Paper]:
    """Search arXiv for scientific papers, or get papers by their numbers.

    query: words, or fields as au:lecun AND ti:convolution AND cat:cs.LG
    ids: numbers of papers, as 2312.03815
    count: how many
    start: how many of the first to leave out, to see more
    order: what comes first
    """
    if not query.strip() and not ids:
        raise BadArguments("arxiv_search: give query, or ids, or both")
    params: dict[str, str | int] = {
        "start": start, "max_results": count, "sortBy": order, "sortOrder": "descending",
    }  # fmt: skip
    if query.strip():
        params["search_query"] = query
    if ids:
        params["id_list"] = ",".join(ids)
    body = ARXIV.fetch("GET", "/api/query", params=params)
    return [_paper(entry) for entry in _entries(body)[:count]]


def _entries(body: bytes) -> list[ElementTree.Element]:
    """Return the entries of a feed. Raises ServiceError for no feed, and for an error in one."""
    try:
        feed = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ARXIV.garbage(f"no XML: {error}") from None
    if feed.tag != f"{_ATOM}feed":
        raise ARXIV.garbage(f"XML, but no Atom feed: {feed.tag[:80]}")
    entries = feed.findall(f"{_ATOM}entry")
    for entry in entries:
        if "/api/errors" in _text(entry, "id"):
            why = clip(_text(entry, "summary"), 300)
            raise ServiceError(f"arxiv_search: {ARXIV.name} refused the query: {why}")
    return entries


def _paper(entry: ElementTree.Element) -> Paper:
    url = _text(entry, "id")
    links = {
        link.get("title", link.get("rel", "")): link.get("href", "")
        for link in entry.iter(f"{_ATOM}link")
    }
    names = [_text(author, "name") for author in entry.findall(f"{_ATOM}author")]
    terms = [category.get("term", "") for category in entry.findall(f"{_ATOM}category")]
    return Paper(
        id=url.partition("/abs/")[2], title=clip(_text(entry, "title"), 500),
        authors=[clip(name, 100) for name in names[:50]], published=_text(entry, "published")[:10],
        summary=clip(_text(entry, "summary"), 4000), categories=terms[:20], url=url,
        pdf=links.get("pdf", ""), doi=clip(entry.findtext(f"{_OWN}doi", ""), 200),
    )  # fmt: skip


def _text(element: ElementTree.Element, name: str) -> str:
    """Return the text of a child, on one line: Atom's titles are wrapped anywhere."""
    return " ".join(element.findtext(f"{_ATOM}{name}", "").split())
