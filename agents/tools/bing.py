"""bing_search: pages and pictures that Bing finds, for a text or for a picture.

Microsoft ended its Bing Search API (v7) on 2025-08-11. The tool speaks its format to a host that
still does; the successor is `grounding`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from aios.tools import Meta, tool

from . import picture
from .search import SNIPPET, Count, Found, Image, Query, Results, What, found, one_of
from .service import Service, clip

BING: Final = Service("bing_search", "Bing Search", "BING_SEARCH_URL")


class _BingValue(msgspec.Struct):
    name: str = ""
    url: str = ""
    snippet: str = ""
    contentUrl: str = ""
    hostPageUrl: str = ""


class _BingValues(msgspec.Struct, frozen=True):
    value: list[_BingValue] = []


class _BingAction(msgspec.Struct):
    actionType: str = ""
    displayName: str = ""
    data: Any = None


class _BingTag(msgspec.Struct):
    displayName: str = ""
    actions: list[_BingAction] = []


class _BingAnswer(msgspec.Struct):
    kind: str = msgspec.field(name="_type", default="")
    webPages: _BingValues = _BingValues()
    value: list[_BingValue] = []
    tags: list[_BingTag] = []


@tool(
    needs={"network": ["api.bing.microsoft.com"], "secrets": ["BING_SEARCH_KEY"]},
    limits={"time": 60, "rate": 3, "burst": 10},
    idempotent=True,
)
def bing_search(
    query: Query = "",
    image: Image = "",
    what: What = "pages",
    count: Count = 5,
    start: Annotated[int, Meta(ge=1, le=1000)] = 1,
    market: Annotated[str, Meta(pattern="^([a-z]{2}-[A-Z]{2})?$")] = "",
) -> Results:
    """Search the web with the Bing Search API (v7), by a text or by a picture.

    query: what to search for
    image: instead of query, a picture to search by: a file in the workspace or an https address
    what: pages, or images that match the query
    count: how many results
    start: number of the first result, to see more
    market: country and language of the results, as en-US
    """
    one_of("bing_search", query, image)
    BING.option(
        "BING_SEARCH_URL",
        "the address of a host that speaks its version 7, since Microsoft ended its own on "
        "2025-08-11 (bing_grounding is the successor)",
    )
    key = BING.key("BING_SEARCH_KEY", "the host that BING_SEARCH_URL names")
    headers = {"Ocp-Apim-Subscription-Key": key}
    params: dict[str, str | int] = {"mkt": market} if market else {}
    if image:
        return _bing_by_picture(image, count, params, headers)
    params |= {"q": query, "count": count, "offset": start - 1}
    path = "/v7.0/images/search" if what == "images" else "/v7.0/search"
    answer = BING.get(path, _BingAnswer, params=params, headers=headers, conceal=(key,))
    if not answer.kind:
        raise BING.garbage("an object without _type")
    values = answer.value if what == "images" else answer.webPages.value
    return Results([_bing(value) for value in values[:count]])


def _bing(value: _BingValue) -> Found:
    return found(value.name, value.url or value.hostPageUrl, value.snippet, value.contentUrl)


def _bing_by_picture(
    image: str, count: int, params: dict[str, str | int], headers: dict[str, str]
) -> Results:
    """Ask on which pages a picture is, what is like it, and what it shows."""
    if picture.on_web("bing_search", image):
        about = msgspec.json.encode({"imageInfo": {"url": image}})
        files = {"knowledgeRequest": ("", about, "application/json")}
    else:
        shown = picture.read("bing_search", image, 1 << 20)
        files = {"image": (shown.name, shown.data, shown.media_type)}
    answer = BING.post(
        "/v7.0/images/visualsearch", _BingAnswer, params=params, headers=headers, files=files,
        conceal=tuple(headers.values()),
    )  # fmt: skip
    names = [tag.displayName for tag in answer.tags if tag.displayName]
    actions = [action for tag in answer.tags for action in tag.actions]
    pages = [value for kind in ("PagesIncluding", "VisualSearch") for value in _seen(actions, kind)]
    return Results([_bing(value) for value in pages[:count]], clip(", ".join(names), SNIPPET))


def _seen(actions: list[_BingAction], kind: str) -> list[_BingValue]:
    """Return the pages of all actions of a kind; others may hold anything."""
    data = [action.data for action in actions if action.actionType == kind]
    try:
        return [value for one in data for value in msgspec.convert(one, _BingValues).value]
    except msgspec.ValidationError as error:
        raise BING.garbage(str(error)) from None
