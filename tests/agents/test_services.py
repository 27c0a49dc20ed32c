"""The tools that ask services, against recorded answers in the formats that those document."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.tools.bing import bing_search
from agents.tools.currency import currency_converter
from agents.tools.faces import face_rect
from agents.tools.google import google_search
from agents.tools.grounding import bing_grounding
from agents.tools.papers import arxiv_search
from agents.tools.searxng import searxng_search
from agents.tools.service import ServiceError
from agents.tools.wikipedia import wikipedia_query
from agents.tools.wolfram import wolframalpha
from agents.tools.words import urban_dictionary, words_api
from aios.tools import BadArguments, Unavailable, declared
from tests.agents.recorded import FAULTS, SLOW, Recorded

KEY = "a-key-that-nobody-may-see"
PNG = b"\x89PNG\r\n\x1a\nrest of a picture"

# What each tool needs to be able to ask: settings (an address is URL), secrets, arguments.
READY: dict[Callable[..., Any], tuple[dict[str, str], list[str], dict[str, Any]]] = {
    google_search: (
        {"GOOGLE_SEARCH_URL": "URL", "GOOGLE_VISION_URL": "URL", "GOOGLE_SEARCH_ENGINE": "cx1"},
        ["GOOGLE_API_KEY"], {"query": "kernel"},
    ),
    bing_search: ({"BING_SEARCH_URL": "URL"}, ["BING_SEARCH_KEY"], {"query": "kernel"}),
    bing_grounding: (
        {"BING_GROUNDING_URL": "URL", "BING_GROUNDING_MODEL": "gpt",
         "BING_GROUNDING_CONNECTION": "c1"},
        ["BING_GROUNDING_KEY"], {"query": "kernel"},
    ),
    searxng_search: ({"SEARXNG_URL": "URL"}, [], {"query": "kernel"}),
    currency_converter: ({"ECB_URL": "URL"}, [], {"amount": 2, "currency": "USD"}),
    wolframalpha: ({"WOLFRAM_URL": "URL"}, ["WOLFRAM_APPID"], {"query": "6 * 7"}),
    wikipedia_query: ({"WIKIPEDIA_URL": "URL"}, [], {"query": "kernel"}),
    arxiv_search: ({"ARXIV_URL": "URL"}, [], {"query": "kernel"}),
    words_api: ({"WORDS_API_URL": "URL"}, ["RAPIDAPI_KEY"], {"word": "lovely"}),
    urban_dictionary: ({"URBAN_DICTIONARY_URL": "URL"}, [], {"word": "yeet"}),
    face_rect: ({"FACERECT_URL": "URL"}, ["RAPIDAPI_KEY"], {"image": "https://example.org/a.png"}),
}  # fmt: skip
NAMES = {
    google_search: "Google Custom Search", bing_search: "Bing Search",
    bing_grounding: "Grounding with Bing Search", searxng_search: "SearXNG",
    currency_converter: "the European Central Bank", wolframalpha: "Wolfram|Alpha",
    wikipedia_query: "Wikipedia", arxiv_search: "arXiv", words_api: "WordsAPI",
    urban_dictionary: "Urban Dictionary", face_rect: "FaceRect",
}  # fmt: skip
TOOLS = pytest.mark.parametrize("tool", READY, ids=lambda tool: tool.__name__)


@pytest.fixture(scope="module")
def server() -> Iterator[Recorded]:
    with Recorded() as server:
        yield server


@pytest.fixture
def service(server: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorded:
    """The service, all tools set up to use it, and a workspace with a picture."""
    server.forget()
    for settings, secrets, _ in READY.values():
        for name, value in settings.items():
            monkeypatch.setenv(name, server.url if value == "URL" else value)
        for name in secrets:
            monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("SERVICE_TIMEOUT", "60")
    monkeypatch.setattr("agents.tools.currency._kept", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(PNG)
    return server


def call(tool: Callable[..., Any], **arguments: Any) -> Any:
    """Call a tool as its host does: arguments and result are held to what it declares."""
    known = declared(tool)
    assert known is not None
    return known.result(tool(**known.convert(arguments)))


# ---- every tool, whatever its service does ----


@TOOLS
def test_hosts_and_secrets_are_declared(tool: Callable[..., Any]) -> None:
    known = declared(tool)
    assert known is not None
    needs = known.declaration["needs"]
    assert needs.get("secrets", [])[: len(READY[tool][1])] == READY[tool][1]
    assert needs.get("network") or tool is searxng_search  # whose host an operator names
    assert known.declaration["limits"]["time"] > 20
    assert known.declaration["idempotent"]


@pytest.mark.parametrize(
    ("tool", "fault"),
    # All that can go wrong with JSON, XML and a file; with the others what is their own.
    [(tool, fault) for tool in (words_api, arxiv_search, currency_converter) for fault in FAULTS]
    + [(tool, fault) for tool in READY for fault in ("limited", "garbage", "another shape")],
)
def test_a_fault_is_an_error_that_names_tool_and_service(
    service: Recorded, tool: Callable[..., Any], fault: str
) -> None:
    answer, says = FAULTS[fault]
    service.answer("*", answer)
    with pytest.raises(ServiceError, match=f"(?s){says}") as raised:
        call(tool, **READY[tool][2])
    assert str(raised.value).startswith(f"{tool.__name__}: {NAMES[tool]} ")
    assert KEY not in str(raised.value)
    assert len(service.asked) == 1  # and no other host, nor the same twice


@pytest.mark.parametrize("way", SLOW)
def test_a_slow_service_is_given_up(
    service: Recorded, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TIMEOUT", "0.2")
    service.answer("*", SLOW[way])
    with pytest.raises(ServiceError, match=r"Wikipedia did not answer within 0\.2 s"):
        call(wikipedia_query, query="kernel")


def test_a_service_that_is_not_there(service: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARXIV_URL", "http://127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"arxiv_search: arXiv can't be reached: ConnectError"):
        call(arxiv_search, query="kernel")


@TOOLS
def test_without_its_key_a_tool_says_which_and_where(
    service: Recorded, tool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secrets, arguments = READY[tool]
    for name in secrets:
        monkeypatch.delenv(name)
        with pytest.raises(Unavailable, match=rf"{tool.__name__}: no key.*secrets as {name}"):
            call(tool, **arguments)
    assert not service.asked or not secrets


@pytest.mark.parametrize(
    ("tool", "setting"),
    [(bing_search, "BING_SEARCH_URL"), (searxng_search, "SEARXNG_URL"),
     (google_search, "GOOGLE_SEARCH_ENGINE"), (bing_grounding, "BING_GROUNDING_MODEL"),
     (bing_grounding, "BING_GROUNDING_CONNECTION"), (bing_grounding, "BING_GROUNDING_URL")],
)  # fmt: skip
def test_without_its_setting_a_tool_says_which_and_where(
    service: Recorded, tool: Callable[..., Any], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(setting)
    table = re.escape(f"[tools.settings.{tool.__name__}]")
    with pytest.raises(Unavailable, match=f"set {setting} in {table}"):
        call(tool, **READY[tool][2])


def test_an_address_that_is_none(service: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARXNG_URL", "file:///etc/passwd")
    with pytest.raises(Unavailable, match="SEARXNG_URL is 'file:///etc/passwd', not an http"):
        call(searxng_search, query="kernel")
    monkeypatch.setenv("SEARXNG_URL", service.url)
    monkeypatch.setenv("SERVICE_TIMEOUT", "soon")
    with pytest.raises(Unavailable, match="SERVICE_TIMEOUT is 'soon'"):
        call(searxng_search, query="kernel")


@pytest.mark.parametrize(
    "tool", [google_search, bing_search, bing_grounding, wolframalpha, face_rect]
)
@pytest.mark.parametrize(
    ("image", "says"),
    [("../outside.png", "outside the workspace"), ("none.png", "No such file"),
     ("text.png", "no PNG, JPEG, GIF or WebP"), ("pipe.png", "no PNG|is outside|not permitted"),
     ("large.png", "more than"), ("http://example.org/a.png", "https://")],
)  # fmt: skip
def test_a_picture_that_can_not_be_sent(
    service: Recorded, tool: Callable[..., Any], image: str, says: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import os

    monkeypatch.setenv("WOLFRAM_IMAGE_URL", service.url)
    (tmp_path.parent / "outside.png").write_bytes(PNG)
    (tmp_path / "text.png").write_text("not a picture")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(11 << 20)  # of holes
    os.mkfifo(tmp_path / "pipe.png")
    arguments = {"query": "what is it"} if tool is bing_grounding else {}
    if tool is wolframalpha and image.startswith("http"):
        says = "No such file"
    with pytest.raises(BadArguments, match=f"{tool.__name__}: .*({says})"):
        call(tool, image=image, **arguments)
    assert not service.asked


# ---- searches ----


def test_google_finds_pages(service: Recorded) -> None:
    service.json("/customsearch/v1", {
        "kind": "customsearch#search", "searchInformation": {"totalResults": "2"},
        "items": [
            {"kind": "customsearch#result", "title": "Kernel", "link": "https://kernel.org/",
             "snippet": "The Linux kernel", "pagemap": {"metatags": [{}]}},
            {"kind": "customsearch#result", "title": "T" * 900, "link": "https://b.example/"},
        ],
    })  # fmt: skip
    got = call(google_search, query="kernel", count=2, start=11, language="en")
    assert got["results"][0] == {
        "title": "Kernel", "url": "https://kernel.org/", "text": "The Linux kernel",
    }  # fmt: skip
    assert len(got["results"][1]["title"]) == 300
    assert service.asked[0].query == {
        "key": [KEY], "cx": ["cx1"], "q": ["kernel"], "num": ["2"], "start": ["11"],
        "lr": ["lang_en"],
    }  # fmt: skip


def test_google_finds_pictures(service: Recorded) -> None:
    service.json("/customsearch/v1", {
        "kind": "customsearch#search",
        "items": [{"title": "Tux", "link": "https://a.example/tux.png", "mime": "image/png",
                   "image": {"contextLink": "https://a.example/", "height": 1, "width": 1}}],
    })  # fmt: skip
    got = call(google_search, query="tux", what="images")
    assert got["results"] == [
        {"title": "Tux", "url": "https://a.example/", "image": "https://a.example/tux.png"}
    ]
    assert service.asked[0].query["searchType"] == ["image"]
    service.json("/customsearch/v1", {"kind": "customsearch#search"})
    assert call(google_search, query="nothing at all") == {"results": []}


@pytest.mark.parametrize("image", ["photo.png", "https://example.org/a.png"])
def test_google_searches_by_a_picture(service: Recorded, image: str) -> None:
    service.json("/v1/images:annotate", {"responses": [{"webDetection": {
        "bestGuessLabels": [{"label": "penguin", "languageCode": "en"}],
        "webEntities": [{"entityId": "/m/05z", "score": 1.1, "description": "Tux"}, {"score": 0.1}],
        "pagesWithMatchingImages": [{"url": "https://a.example/", "pageTitle": "A penguin"}],
        "visuallySimilarImages": [{"url": "https://b.example/b.png"}],
    }}]})  # fmt: skip
    got = call(google_search, image=image)
    assert got["about"] == "penguin, Tux"
    assert [one["url"] for one in got["results"]] == [
        "https://a.example/",
        "https://b.example/b.png",
    ]
    asked = service.asked[0]
    assert asked.headers["x-goog-api-key"] == KEY and not asked.query
    sent = asked.json["requests"][0]["image"]
    assert "source" in sent or sent["content"].startswith("iVBOR")
    service.json(
        "/v1/images:annotate", {"responses": [{"error": {"code": 3, "message": "Bad image."}}]}
    )
    with pytest.raises(ServiceError, match="refused the picture: Bad image"):
        call(google_search, image=image)


def test_bing_finds_pages_and_pictures(service: Recorded) -> None:
    service.json("/v7.0/search", {
        "_type": "SearchResponse", "queryContext": {"originalQuery": "kernel"},
        "webPages": {"totalEstimatedMatches": 9, "value": [
            {"id": "1", "name": "Kernel", "url": "https://kernel.org/", "snippet": "Linux"}]},
    })  # fmt: skip
    service.json(
        "/v7.0/images/search",
        {
            "_type": "Images",
            "value": [
                {
                    "name": "Tux",
                    "contentUrl": "https://a.example/tux.png",
                    "hostPageUrl": "https://a.example/",
                }
            ],
        },
    )
    pages = call(bing_search, query="kernel", market="en-US", start=11)
    assert pages["results"] == [{"title": "Kernel", "url": "https://kernel.org/", "text": "Linux"}]
    assert service.asked[0].query == {
        "mkt": ["en-US"],
        "q": ["kernel"],
        "count": ["5"],
        "offset": ["10"],
    }
    assert service.asked[0].headers["ocp-apim-subscription-key"] == KEY
    pictures = call(bing_search, query="tux", what="images")
    assert pictures["results"] == [
        {"title": "Tux", "url": "https://a.example/", "image": "https://a.example/tux.png"}
    ]


@pytest.mark.parametrize("image", ["photo.png", "https://example.org/a.png"])
def test_bing_searches_by_a_picture(service: Recorded, image: str) -> None:
    page = {
        "name": "A penguin",
        "hostPageUrl": "https://a.example/",
        "contentUrl": "https://a.example/i",
    }
    service.json("/v7.0/images/visualsearch", {"_type": "ImageKnowledge", "tags": [
        {"displayName": "", "actions": [
            {"actionType": "PagesIncluding", "data": {"value": [page]}},
            {"actionType": "BestRepresentativeQuery", "displayName": "tux"}]},
        {"displayName": "Penguin", "actions": []},
    ]})  # fmt: skip
    got = call(bing_search, image=image)
    assert got == {
        "about": "Penguin",
        "results": [
            {"title": "A penguin", "url": "https://a.example/", "image": "https://a.example/i"}
        ],
    }
    parts = service.asked[0].parts
    assert parts == (
        {"image": PNG} if image == "photo.png"
        else {"knowledgeRequest": b'{"imageInfo":{"url":"https://example.org/a.png"}}'}
    )  # fmt: skip


def test_grounding_answers_and_cites(service: Recorded) -> None:
    service.json("/openai/v1/responses", {
        "id": "resp_1", "object": "response", "status": "completed", "output": [
            {"type": "bing_grounding_call", "id": "b_1", "arguments": "{}", "status": "completed"},
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "It is 7.", "annotations": [
                    {"type": "url_citation", "url": "https://kernel.org/", "title": "Kernel",
                     "start_index": 0, "end_index": 2}]}]},
        ],
    })  # fmt: skip
    got = call(
        bing_grounding, query="newest kernel?", image="photo.png", market="en-US", freshness="week"
    )
    assert got == {
        "about": "It is 7.", "results": [{"title": "Kernel", "url": "https://kernel.org/"}],
    }  # fmt: skip
    asked = service.asked[0]
    assert asked.headers["api-key"] == KEY
    text, image = asked.json["input"][0]["content"]
    assert text == {"type": "input_text", "text": "newest kernel?"}
    assert image["image_url"].startswith("data:image/png;base64,iVBOR")
    assert asked.json["tools"] == [{"type": "bing_grounding", "bing_grounding": {
        "search_configurations": [{"project_connection_id": "c1", "count": 5, "market": "en-US",
                                   "freshness": "week"}]}}]  # fmt: skip
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "I can't."}]}
    service.json("/openai/v1/responses", {"status": "completed", "output": [refusal]})
    with pytest.raises(ServiceError, match=r"gave no answer \(completed: I can't"):
        call(bing_grounding, query="newest kernel?")


def test_searxng_finds_pages_and_pictures(service: Recorded) -> None:
    service.json("/search", {
        "query": "tux", "number_of_results": 0, "answers": [{"answer": "a penguin"}, "old"],
        "results": [{"url": "https://a.example/", "title": "Tux", "content": None, "engine": "x",
                     "img_src": "https://a.example/tux.png", "score": 1.0}] * 9,
    })  # fmt: skip
    got = call(searxng_search, query="tux", what="images", language="de-CH", page=2)
    assert got["about"] == "a penguin\nold"
    assert len(got["results"]) == 5 and got["results"][0]["image"] == "https://a.example/tux.png"
    assert service.asked[0].query == {
        "q": ["tux"], "format": ["json"], "pageno": ["2"], "language": ["de-CH"],
        "categories": ["images"],
    }  # fmt: skip
    service.body("/search", b"", 403)
    with pytest.raises(ServiceError, match=r"json among search\.formats"):
        call(searxng_search, query="tux")


# ---- computation ----

HISTORY = """Date,USD,JPY,RUB,
2024-03-28,1.0811,163.45,N/A,
2024-03-27,1.0816,163.52,N/A,
2022-03-01,1.1162,128.29,117.2,
"""


def zipped(text: str, name: str = "eurofxref.csv") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, text)
    return packed.getvalue()


def test_currency_at_the_latest_rates(service: Recorded) -> None:
    service.body("/eurofxref.zip", zipped("Date, USD, JPY, \n20 November 2026, 1.2500, 160.00, \n"))
    got = call(currency_converter, amount=10, currency="usd")
    assert got == {
        "amount": 8.0, "rate": 0.8, "date": "2026-11-20",
        "source": "the European Central Bank, eurofxref.zip",
    }  # fmt: skip
    assert call(currency_converter, amount=1, currency="USD", to="JPY")["amount"] == 128.0
    assert len(service.asked) == 1  # kept for the next call
    with pytest.raises(BadArguments, match="has no rate of XAU; it has EUR, JPY, USD"):
        call(currency_converter, amount=1, currency="XAU")


def test_currency_of_a_day(service: Recorded) -> None:
    service.body("/eurofxref-hist.zip", zipped(HISTORY, "eurofxref-hist.csv"))
    got = call(
        currency_converter, amount=1, currency="EUR", to="USD", date="2024-03-31"
    )  # a Sunday
    assert (got["amount"], got["date"]) == (1.0811, "2024-03-28")
    with pytest.raises(BadArguments, match=r"no rate from RUB to EUR: .*2022-03-01"):
        call(currency_converter, amount=1, currency="RUB", date="2024-03-28")
    with pytest.raises(BadArguments, match="date 2024-02-30"):
        call(currency_converter, amount=1, currency="USD", date="2024-02-30")


def test_currency_from_a_file(
    service: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rates.csv"
    file.write_text(HISTORY)
    monkeypatch.setenv("ECB_RATES_FILE", str(file))
    got = call(currency_converter, amount=2, currency="EUR", to="USD")
    assert got == {
        "amount": 2.1622,
        "rate": 1.0811,
        "date": "2024-03-28",
        "source": "file rates.csv",
    }
    monkeypatch.setenv("ECB_RATES_FILE", str(tmp_path / "none.csv"))
    with pytest.raises(Unavailable, match=r"ECB_RATES_FILE .*none\.csv: No such file"):
        call(currency_converter, amount=2, currency="EUR", to="USD")
    (tmp_path / "odd.csv").write_bytes(b"PK not really")
    monkeypatch.setenv("ECB_RATES_FILE", str(tmp_path / "odd.csv"))
    with pytest.raises(Unavailable, match="not in the ECB's format"):
        call(currency_converter, amount=2, currency="EUR", to="USD")
    monkeypatch.setenv("ECB_RATES_FILE", "bundled")
    got = call(currency_converter, amount=100, currency="EUR", to="USD", date="2014-03-28")
    assert got["rate"] == 1.3759
    assert not service.asked


def test_currency_does_not_unpack_without_end(
    service: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.tools.currency._MAX_RATES", 1000)
    service.body("/eurofxref.zip", zipped("Date,USD\n" * 1000))
    with pytest.raises(ServiceError, match="more than 1000 bytes of rates"):
        call(currency_converter, amount=1, currency="USD")


def pod(title: str, text: str, **more: Any) -> dict[str, Any]:
    image = {"src": "https://www6b3.wolframalpha.com/i.gif", "alt": text, "width": 9, "height": 9}
    sub = {"title": "", "plaintext": text, "img": image}
    return {"title": title, "id": title, "scanner": "x", "position": 100, "subpods": [sub], **more}


def test_wolfram_computes(service: Recorded) -> None:
    pods = [pod("Input", "6×7"), pod("Result", "42", primary=True), pod("Number line", "")]
    service.json(
        "/v2/query",
        {
            "queryresult": {
                "success": True,
                "error": False,
                "numpods": 3,
                "version": "2.6",
                "pods": pods,
            }
        },
    )
    got = call(wolframalpha, query="6 * 7")
    assert got["result"] == "42"
    assert got["pods"][2] == {
        "title": "Number line", "texts": [], "images": ["https://www6b3.wolframalpha.com/i.gif"],
    }  # fmt: skip
    assert service.asked[0].query["input"] == ["6 * 7"]
    service.json("/v2/query", {"queryresult": {"success": False, "error": False, "pods": []}})
    with pytest.raises(ServiceError, match="has no answer; ask in other, simpler words"):
        call(wolframalpha, query="qwertz")
    service.json(
        "/v2/query",
        {"queryresult": {"success": False, "error": {"code": "1", "msg": f"Invalid appid {KEY}"}}},
    )
    with pytest.raises(ServiceError, match=r"refused the question: Invalid appid \*\*\*"):
        call(wolframalpha, query="6 * 7")


def test_wolfram_sees(service: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="set WOLFRAM_IMAGE_URL"):
        call(wolframalpha, image="photo.png")
    monkeypatch.setenv("WOLFRAM_IMAGE_URL", f"{service.url}/obj/someone/see")
    service.json("/obj/someone/see", {"text": "king penguin"})
    service.json(
        "/v2/query",
        {
            "queryresult": {
                "success": True,
                "error": False,
                "pods": [pod("Result", "85 cm", primary=True)],
            }
        },
    )
    got = call(wolframalpha, image="photo.png", query="how tall is a")
    assert (got["result"], got["seen"]) == ("85 cm", "king penguin")
    assert service.asked[0].parts == {"image": PNG} and service.asked[0].query == {"_key": [KEY]}
    assert service.asked[1].query["input"] == ["how tall is a king penguin"]


# ---- knowledge ----


def test_wikipedia_gives_articles(service: Recorded) -> None:
    service.json("/w/api.php", {"batchcomplete": True, "query": {"pages": [
        {"pageid": 2, "ns": 0, "title": "B", "index": 2, "fullurl": "https://en.wikipedia.org/wiki/B",
         "extract": "b" * 30_000},
        {"pageid": 1, "ns": 0, "title": "A", "index": 1, "fullurl": "https://en.wikipedia.org/wiki/A",
         "extract": "A is a letter."},
    ]}})  # fmt: skip
    got = call(wikipedia_query, query="letters", count=2)
    assert got[0] == {
        "title": "A",
        "url": "https://en.wikipedia.org/wiki/A",
        "text": "A is a letter.",
    }
    assert len(got[1]["text"]) == 10_000
    asked = service.asked[0].query
    assert asked["gsrsearch"] == ["letters"] and asked["exintro"] == ["1"]
    assert len(call(wikipedia_query, query="letters", full=True)) == 1
    assert "exintro" not in service.asked[1].query
    service.json("/w/api.php", {"batchcomplete": True})
    assert call(wikipedia_query, query="qwertz") == []
    service.json(
        "/w/api.php", {"error": {"code": "ratelimited", "info": "You've exceeded your rate limit."}}
    )
    with pytest.raises(ServiceError, match="refused the query: You've exceeded"):
        call(wikipedia_query, query="letters")


def test_wikipedia_of_a_language(monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.tools.wikipedia import _in

    monkeypatch.delenv("WIKIPEDIA_URL", raising=False)
    assert _in("de").address == "https://de.wikipedia.org"


FEED = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns="http://www.w3.org/2005/Atom"
      xmlns:arxiv="http://arxiv.org/schemas/atom">
  <id>http://arxiv.org/api/x</id><title>arXiv Query</title>
  <opensearch:totalResults>1</opensearch:totalResults>
  {entry}
</feed>"""
PAPER = """<entry>
    <id>http://arxiv.org/abs/1234.56789v2</id><title>Agents as
      processes</title><updated>2024-01-02T03:04:05Z</updated>
    <published>2023-12-06T00:00:00Z</published><summary>We  show that.</summary>
    <author><name>A. Author</name><arxiv:affiliation>Uni</arxiv:affiliation></author>
    <author><name>B. Author</name></author>
    <link href="http://arxiv.org/abs/1234.56789v2" rel="alternate" type="text/html"/>
    <link title="pdf" href="http://arxiv.org/pdf/1234.56789v2" rel="related"/>
    <arxiv:doi>10.1000/1</arxiv:doi>
    <category term="cs.OS" scheme="http://arxiv.org/schemas/atom"/><category term="cs.AI"/>
  </entry>"""


def test_arxiv_gives_papers(service: Recorded) -> None:
    service.body("/api/query", FEED.format(entry=PAPER).encode())
    [paper] = call(arxiv_search, query="ti:agents", ids=["1234.56789"], order="submittedDate")
    assert paper == {
        "id": "1234.56789v2", "title": "Agents as processes", "authors": ["A. Author", "B. Author"],
        "published": "2023-12-06", "summary": "We show that.", "categories": ["cs.OS", "cs.AI"],
        "url": "http://arxiv.org/abs/1234.56789v2", "pdf": "http://arxiv.org/pdf/1234.56789v2",
        "doi": "10.1000/1",
    }  # fmt: skip
    assert service.asked[0].query["id_list"] == ["1234.56789"]
    assert service.asked[0].query["sortBy"] == ["submittedDate"]
    with pytest.raises(BadArguments, match="give query, or ids"):
        call(arxiv_search)


GROWING = '<!DOCTYPE a [<!ENTITY b0 "bbbbbbbbbbbbbbbb">'
for step in range(9):
    GROWING += f'<!ENTITY b{step + 1} "{f"&b{step};" * 99}">'
GROWING += "]><a>&b9;</a>"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (FEED.format(entry="<entry><id>http://arxiv.org/api/errors#bad</id>"
                     "<summary>incorrect id format</summary></entry>"), "incorrect id format"),
        (FEED.format(entry=PAPER)[:900], "no XML"),
        ("<html/>", "no Atom feed"),
        (GROWING, "something else"),
    ],
    ids=["error", "cut", "other", "growing"],
)  # fmt: skip
def test_arxiv_gives_no_papers(service: Recorded, body: str, says: str) -> None:
    service.body("/api/query", body.encode())
    with pytest.raises(ServiceError, match=says):
        call(arxiv_search, query="agents")


def test_words_are_explained(service: Recorded) -> None:
    service.json("/words/ice%20cream", {
        "word": "ice cream", "results": [{"definition": "frozen dessert", "partOfSpeech": "noun",
        "synonyms": ["icecream"], "hasTypes": ["sundae"], "examples": ["an ice cream"]}],
        "syllables": {"count": 2, "list": ["ice", "cream"]}, "pronunciation": {"all": "aɪs krim"},
        "frequency": 4.1,
    })  # fmt: skip
    assert call(words_api, word="ice cream") == {
        "word": "ice cream", "syllables": ["ice", "cream"], "pronunciation": "aɪs krim",
        "frequency": 4.1, "meanings": [{
            "definition": "frozen dessert", "part_of_speech": "noun", "synonyms": ["icecream"],
            "examples": ["an ice cream"]}],
    }  # fmt: skip
    assert service.asked[0].headers["x-rapidapi-key"] == KEY
    assert service.asked[0].headers["x-rapidapi-host"] == service.url.removeprefix("http://")
    service.json("/words/", {"word": "plain", "pronunciation": "pleɪn"})
    assert call(words_api, random=True)["word"] == "plain"
    service.json("/words/qwertz", {"success": False, "message": "word not found"}, 404)
    with pytest.raises(ServiceError, match="WordsAPI does not know 'qwertz'"):
        call(words_api, word="qwertz")
    with pytest.raises(BadArguments, match="not both"):
        call(words_api, word="a", random=True)


def test_slang_is_explained(service: Recorded) -> None:
    entry = {
        "definition": "to [throw]", "permalink": "http://yeet.urbanup.com/1", "thumbs_up": 9,
        "author": "a", "word": "yeet", "defid": 1, "current_vote": "", "thumbs_down": 2,
        "written_on": "2018-10-23T00:00:00.000Z", "example": "[yeet] it\r\nfar",
    }  # fmt: skip
    service.json("/v0/define", {"list": [entry] * 9})
    service.json("/v0/random", {"list": [entry]})
    service.json("/v0/words_of_the_day", {"list": [{**entry, "date": "November 21"}]})
    got = call(urban_dictionary, word="yeet", count=2)
    assert got == [{
        "word": "yeet", "definition": "to throw", "example": "yeet it\nfar", "votes": 7,
        "date": "2018-10-23", "url": "http://yeet.urbanup.com/1"}] * 2  # fmt: skip
    assert service.asked[0].query == {"term": ["yeet"]}
    assert len(call(urban_dictionary, what="random")) == 1
    assert call(urban_dictionary, what="word_of_the_day")[0]["date"] == "November 21"
    service.json("/v0/define", {"list": []})
    assert call(urban_dictionary, word="qwertz") == []
    with pytest.raises(BadArguments, match="give word for a definition"):
        call(urban_dictionary, what="random", word="yeet")


@pytest.mark.parametrize("image", ["photo.png", "https://example.org/a.png"])
def test_faces_are_found(service: Recorded, image: str) -> None:
    box = {"x": 1, "y": 2, "width": 30, "height": 40}
    answer = {
        "faces": [
            {**box, "orientation": "frontal", "features": {"eyes": [box, box], "nose": box}},
            {**box, "orientation": "profile-right"},
        ],
        "image": {"width": 200, "height": 100},
    }
    service.json("/process-file.json", answer)
    service.json("/process-url.json", answer)
    got = call(face_rect, image=image, features=True)
    assert got == {"width": 200, "height": 100, "faces": [
        {"box": box, "orientation": "frontal", "eyes": [box, box], "nose": [box]},
        {"box": box, "orientation": "profile-right"}]}  # fmt: skip
    asked = service.asked[0]
    if image == "photo.png":
        assert asked.parts == {"image": PNG, "features": b"true"}
    else:
        assert asked.query == {"url": [image], "features": ["true"]}
    service.json("*", {"error": "Cannot fetch the image"})
    service.forget(keep="*")
    with pytest.raises(ServiceError, match="refused the picture: Cannot fetch"):
        call(face_rect, image=image)
