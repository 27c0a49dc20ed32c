"""What the tools that search the web take and give, the same for all of them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from aios.tools import BadArguments, Meta

from .service import clip

SNIPPET: Final = 1000
"""Characters of what is said about one result."""

_TITLE: Final = 300
_URL: Final = 2000

Query = Annotated[str, Meta(max_length=2000)]
Image = Annotated[str, Meta(max_length=2000)]
Count = Annotated[int, Meta(ge=1, le=10)]
What = Literal["pages", "images"]


class Found(msgspec.Struct, omit_defaults=True):
    """One result. image: the address of the picture itself, where the result is one."""

    title: str
    url: str
    text: str = ""
    image: str = ""


class Results(msgspec.Struct, omit_defaults=True):
    """What was found. about: what a picture shows, or an answer to the question in words."""

    results: list[Found]
    about: str = ""


def found(title: str, url: str, text: str = "", image: str = "") -> Found:
    """Return a result with its texts bounded."""
    return Found(clip(title, _TITLE), clip(url, _URL), clip(text, SNIPPET), clip(image, _URL))


def one_of(name: str, query: str, image: str) -> None:
    """Refuse a search for nothing, and one for two things."""
    if bool(query.strip()) == bool(image.strip()):
        raise BadArguments(f"{name}: give query, or image to search by a picture, and not both")
