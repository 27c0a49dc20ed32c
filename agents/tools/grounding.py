"""bing_grounding: Grounding with Bing Search, the successor of the Bing Search API.

A model of a Microsoft Foundry project searches with Bing, and answers with the pages it cites; the
pages that it has read without citing them are not given to anybody.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from aios.tools import Meta, tool

from . import picture
from .search import Image, Query, Results, found
from .service import Service, ServiceError, clip

GROUNDING: Final = Service("bing_grounding", "Grounding with Bing Search", "BING_GROUNDING_URL")

_ANSWER: Final = 16_000


class _Citation(msgspec.Struct):
    type: str = ""
    url: str = ""
    title: str = ""


class _Content(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""
    annotations: list[_Citation] = []


class _Output(msgspec.Struct):
    type: str
    content: list[_Content] | None = None


class _Response(msgspec.Struct):
    output: list[_Output]
    status: str = "completed"


@tool(
    needs={"network": ["*.services.ai.azure.com"], "secrets": ["BING_GROUNDING_KEY"]},
    limits={"time": 120, "rate": 1, "burst": 5},
    idempotent=True,
)
def bing_grounding(
    query: Query,
    image: Image = "",
    count: Annotated[int, Meta(ge=1, le=50)] = 5,
    market: Annotated[str, Meta(pattern="^([a-z]{2}-[A-Z]{2})?$")] = "",
    freshness: Literal["", "day", "week", "month"] = "",
) -> Results:
    """Have a question answered from the web by Grounding with Bing Search, with the pages it cites.

    query: the question
    image: a picture that the question is about: a file in the workspace or an https address
    count: how many pages to look at
    market: country and language of the pages, as en-US
    freshness: only pages not older than this
    """
    key = GROUNDING.key("BING_GROUNDING_KEY", "your project in the Microsoft Foundry portal")
    model = GROUNDING.option(
        "BING_GROUNDING_MODEL", "the name of a model deployment of the project"
    )
    connection = GROUNDING.option(
        "BING_GROUNDING_CONNECTION",
        "the id of the project's connection to Grounding with Bing Search",
    )
    search: dict[str, Any] = {"project_connection_id": connection, "count": count}
    search |= {
        name: value for name, value in (("market", market), ("freshness", freshness)) if value
    }
    asked = {
        "model": model,
        "input": [{"role": "user", "content": _question(query, image)}],
        "tools": [
            {"type": "bing_grounding", "bing_grounding": {"search_configurations": [search]}}
        ],
        "tool_choice": "required",
        "store": False,
    }
    answer = GROUNDING.post(
        "/openai/v1/responses", _Response, json=asked, headers={"api-key": key}, conceal=(key,)
    )
    return _grounded(answer)


def _question(query: str, image: str) -> list[dict[str, str]]:
    content = [{"type": "input_text", "text": query}]
    if image:
        web = picture.on_web("bing_grounding", image)
        url = image if web else picture.read("bing_grounding", image, 7 << 20).data_url
        content.append({"type": "input_image", "image_url": url})
    return content


def _grounded(answer: _Response) -> Results:
    contents = [part for output in answer.output for part in output.content or []]
    if answer.status != "completed" or not any(part.text for part in contents):
        refusal = next((part.refusal for part in contents if part.refusal), "no text")
        why = f"{answer.status}: {clip(refusal, 300)}"
        raise ServiceError(f"bing_grounding: {GROUNDING.name} gave no answer ({why})")
    cited = [c for part in contents for c in part.annotations if c.type == "url_citation"]
    pages = {citation.url: found(citation.title, citation.url) for citation in cited}
    text = "\n".join(part.text for part in contents if part.text)
    return Results(list(pages.values())[:50], clip(text, _ANSWER))
