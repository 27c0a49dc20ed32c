"""google_search: pages and pictures that Google finds, for a text or for a picture.

The Custom Search JSON API takes no new customers, and ends for the others on 2027-01-01. It never
took pictures to search by: those go to Cloud Vision's web detection, with the same key.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from aios.tools import Meta, tool

from . import picture
from .search import SNIPPET, Count, Found, Image, Query, Results, What, found, one_of
from .service import Service, ServiceError, clip

GOOGLE: Final = Service(
    "google_search", "Google Custom Search", "GOOGLE_SEARCH_URL",
    "https://customsearch.googleapis.com",
)  # fmt: skip
VISION: Final = Service(
    "google_search", "Google Cloud Vision", "GOOGLE_VISION_URL", "https://vision.googleapis.com"
)


class _GoogleImage(msgspec.Struct):
    contextLink: str = ""


class _GoogleItem(msgspec.Struct):
    title: str = ""
    link: str = ""
    snippet: str = ""
    image: _GoogleImage | None = None


class _GoogleAnswer(msgspec.Struct):
    kind: str
    items: list[_GoogleItem] = []


@tool(
    needs={
        "network": ["customsearch.googleapis.com", "vision.googleapis.com"],
        "secrets": ["GOOGLE_API_KEY"],
    },
    limits={"time": 60, "rate": 5, "burst": 10},
    idempotent=True,
)
def google_search(
    query: Query = "",
    image: Image = "",
    what: What = "pages",
    count: Count = 5,
    start: Annotated[int, Meta(ge=1, le=91)] = 1,
    language: Annotated[str, Meta(pattern="^([a-z]{2}(-[A-Z]{2})?)?$")] = "",
) -> Results:
    """Search the web with Google, by a text or by a picture.

    query: what to search for
    image: instead of query, a picture to search by: a file in the workspace or an https address
    what: pages, or images that match the query
    count: how many results
    start: number of the first result, to see more
    language: pages in this language only, as en
    """
    one_of("google_search", query, image)
    if image:
        return _google_by_picture(image, count)
    key = GOOGLE.key("GOOGLE_API_KEY", "https://console.cloud.google.com/apis/credentials")
    engine = GOOGLE.option("GOOGLE_SEARCH_ENGINE", "the id of a search engine (cx)")
    params: dict[str, str | int] = {
        "key": key,
        "cx": engine,
        "q": query,
        "num": count,
        "start": start,
    }
    if what == "images":
        params["searchType"] = "image"
    if language:
        params["lr"] = f"lang_{language}"
    answer = GOOGLE.get("/customsearch/v1", _GoogleAnswer, params=params, conceal=(key,))
    return Results([_google(item) for item in answer.items[:count]])


def _google(item: _GoogleItem) -> Found:
    if item.image is None:
        return found(item.title, item.link, item.snippet)
    return found(item.title, item.image.contextLink, item.snippet, item.link)


class _VisionEntity(msgspec.Struct):
    description: str = ""


class _VisionLabel(msgspec.Struct):
    label: str = ""


class _VisionPage(msgspec.Struct):
    url: str = ""
    pageTitle: str = ""


class _VisionWeb(msgspec.Struct):
    bestGuessLabels: list[_VisionLabel] = []
    webEntities: list[_VisionEntity] = []
    pagesWithMatchingImages: list[_VisionPage] = []
    visuallySimilarImages: list[_VisionPage] = []


class _VisionError(msgspec.Struct):
    message: str = ""


class _VisionOne(msgspec.Struct):
    webDetection: _VisionWeb | None = None
    error: _VisionError | None = None


class _VisionAnswer(msgspec.Struct):
    responses: list[_VisionOne]


def _google_by_picture(image: str, count: int) -> Results:
    """Ask where on the web a picture is, and what it shows."""
    key = VISION.key("GOOGLE_API_KEY", "https://console.cloud.google.com/apis/credentials")
    if picture.on_web("google_search", image):
        content: dict[str, Any] = {"source": {"imageUri": image}}
    else:
        content = {"content": picture.read("google_search", image, 7 << 20).base64}
    wanted = {"image": content, "features": [{"type": "WEB_DETECTION", "maxResults": count}]}
    answer = VISION.post(
        "/v1/images:annotate", _VisionAnswer, json={"requests": [wanted]},
        headers={"X-Goog-Api-Key": key}, conceal=(key,),
    )  # fmt: skip
    one = answer.responses[0] if answer.responses else _VisionOne()
    if one.error is not None:
        raise ServiceError(
            f"google_search: {VISION.name} refused the picture: {clip(one.error.message, 300)}"
        )
    web = one.webDetection or _VisionWeb()
    names = [label.label for label in web.bestGuessLabels] + [
        e.description for e in web.webEntities
    ]
    pages = [found(page.pageTitle, page.url) for page in web.pagesWithMatchingImages]
    alike = [
        found("a similar picture", page.url, image=page.url) for page in web.visuallySimilarImages
    ]
    about = ", ".join(dict.fromkeys(name for name in names if name))
    return Results([*pages, *alike][:count], clip(about, SNIPPET))
