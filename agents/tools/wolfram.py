"""wolframalpha: questions to Wolfram|Alpha, in words or with a picture.

Words go to the Full Results API. That takes no pictures; they go to a function that the operator
deploys in the Wolfram Cloud, which aios-tool-catalog(7) gives, and what it says is in is asked.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from aios.tools import BadArguments, Meta, tool

from . import picture
from .service import Service, ServiceError, clip

ALPHA: Final = Service(
    "wolframalpha", "Wolfram|Alpha", "WOLFRAM_URL", "https://api.wolframalpha.com"
)
CLOUD: Final = Service("wolframalpha", "the Wolfram Cloud", "WOLFRAM_IMAGE_URL")

_PODS: Final = 20
_TEXT: Final = 2000


class Pod(msgspec.Struct, omit_defaults=True):
    """A part of an answer. images: addresses of pictures, such as plots."""

    title: str
    texts: list[str]
    images: list[str] = []


class Computed(msgspec.Struct, omit_defaults=True):
    """result: the answer itself. pods: all that is said. seen: what the picture shows."""

    result: str
    pods: list[Pod] = []
    seen: str = ""


class _Image(msgspec.Struct):
    src: str = ""


class _Subpod(msgspec.Struct):
    plaintext: str = ""
    img: _Image | None = None


class _Pod(msgspec.Struct):
    title: str = ""
    id: str = ""
    primary: bool = False
    subpods: list[_Subpod] = []


class _Error(msgspec.Struct):
    code: str | int = ""
    msg: str = ""


class _Result(msgspec.Struct):
    success: bool
    error: bool | _Error = False
    pods: list[_Pod] = []


class _Answer(msgspec.Struct):
    queryresult: _Result


@tool(
    needs={
        "network": ["api.wolframalpha.com", "www.wolframcloud.com"],
        "secrets": ["WOLFRAM_APPID"],
    },
    limits={"time": 90, "rate": 1, "burst": 5},
    idempotent=True,
)
def wolframalpha(
    query: Annotated[str, Meta(max_length=1000)] = "",
    image: Annotated[str, Meta(max_length=2000)] = "",
    units: Literal["metric", "nonmetric"] = "metric",
) -> Computed:
    """Compute or look up with Wolfram|Alpha: mathematics, units, science, dates, places, people.

    query: the question in words or symbols, as integrate x^2 sin x
    image: a file in the workspace; what it shows is recognized, and asked about when query is empty
    units: which units the answer uses
    """
    if not query.strip() and not image.strip():
        raise BadArguments("wolframalpha: give query, or image, or both")
    key = ALPHA.key("WOLFRAM_APPID", "https://developer.wolframalpha.com")
    seen = _recognized(image, key) if image.strip() else ""
    params: dict[str, str | int] = {
        "appid": key, "input": f"{query} {seen}".strip(),
        "output": "json", "format": "plaintext,image", "units": units, "reinterpret": "true",
    }  # fmt: skip
    answer = ALPHA.get("/v2/query", _Answer, params=params, conceal=(key,)).queryresult
    if isinstance(answer.error, _Error):
        why = clip(answer.error.msg, 300).replace(key, "***")
        raise ServiceError(f"wolframalpha: {ALPHA.name} refused the question: {why}")
    if not answer.success or not answer.pods:
        raise ServiceError(f"wolframalpha: {ALPHA.name} has no answer; ask in other, simpler words")
    return Computed(_result(answer.pods), [_pod(pod) for pod in answer.pods[:_PODS]], seen)


def _result(pods: list[_Pod]) -> str:
    """Return the text of the answer's pod: the primary one, or the first after the input."""
    primary = [pod for pod in pods if pod.primary] or [pod for pod in pods if pod.id != "Input"]
    for pod in primary or pods:
        if text := "\n".join(sub.plaintext for sub in pod.subpods if sub.plaintext):
            return clip(text, _TEXT)
    return ""


def _pod(pod: _Pod) -> Pod:
    texts = [clip(sub.plaintext, _TEXT) for sub in pod.subpods if sub.plaintext]
    images = [sub.img.src for sub in pod.subpods if sub.img and sub.img.src]
    return Pod(clip(pod.title, 200), texts[:_PODS], images[:_PODS])


class _Recognized(msgspec.Struct):
    text: str


def _recognized(image: str, key: str) -> str:
    """Return what a picture shows, by the deployed function. key: what it may be locked with."""
    CLOUD.option("WOLFRAM_IMAGE_URL", "the address of the function that recognizes pictures")
    shown = picture.read("wolframalpha", image, 5 << 20)
    answer = CLOUD.post(
        "", _Recognized, files={"image": (shown.name, shown.data, shown.media_type)},
        params={"_key": key}, conceal=(key,),
    )  # fmt: skip
    if not answer.text.strip():
        raise ServiceError(f"wolframalpha: {CLOUD.name} sees nothing it knows in the picture")
    return clip(answer.text, 500)
