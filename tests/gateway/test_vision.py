"""Pictures through the gateway: to a provider's core that has vision, and to no other."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from aiosd.abi.cores import DrainCore
from aiosd.abi.inference import Image, Turn
from aiosd.abi.process import RegisterAgent
from tests.conftest import World
from tests.frontier import Act, Frontier
from tests.gateway.conftest import CORE, Host
from tests.system.providers import KEY, TEXT, await_ready, cores
from tests.system.writer import Writer

PNG = b"\x89PNG\r\n\x1a\nall that a test needs"
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
LOOK: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        ],
    }
]


@pytest.fixture(scope="module")
def host(world: World, frontier: Frontier) -> Iterator[Host]:
    """Give a daemon with a gateway before a local core, one with vision, and one without."""
    seeing = cores(frontier, "eyes", image_tokens=50)
    seeing = seeing.replace("slots = 4", 'slots = 4\nfeatures = ["vision"]')
    host = Host(world, CORE + seeing + cores(frontier, "blind"))
    host.daemon.environ["FRONTIER_KEY"] = KEY
    with host.daemon as daemon:
        await_ready(daemon, "eyes", "blind")
        yield host


@pytest.fixture(scope="module")
def client(host: Host) -> Iterator[openai.OpenAI]:
    """Give a client with an agent's key."""
    with host.daemon.connect() as agent:
        key = agent.call(RegisterAgent(name="looker")).credential
        url = f"{host.gateway.http}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
            yield client


def test_a_picture_finds_a_core_that_sees(client: openai.OpenAI, frontier: Frontier) -> None:
    frontier.then("eyes", Act(usage=(40, 0, 8)))
    found = client.chat.completions.create(model="aios", messages=LOOK, max_tokens=20)
    assert (found.model, found.choices[0].message.content) == ("eyes", TEXT)
    [asked] = frontier.asked("eyes", 1)
    assert pictures(asked["messages"]) == [URL]
    told: list[Any] = [{"type": "input_image", "image_url": URL}]
    more = client.responses.create(model="eyes", input=[{"role": "user", "content": told}])
    again = client.responses.create(
        model="eyes", input="And now?", previous_response_id=more.id, max_output_tokens=20
    )
    assert again.output_text == TEXT
    assert pictures(frontier.asked("eyes", 3)[2]["messages"]) == [URL]


def test_a_context_keeps_what_it_was_shown(host: Host, frontier: Frontier) -> None:
    seen = len(frontier.bodies.get("eyes", ()))
    with Writer(host.daemon) as writer:
        turn = Turn("user", "What is it?", images=[Image("image/png", PNG)])
        wanted = writer.submit("", messages=[turn], raw=False, core="eyes")
        first = writer.finish(wanted)
        writer.ask("And now?", raw=False, context=first.context, max_tokens=20)
        assert first.usage.completion_tokens and first.route
    asked = frontier.asked("eyes", seen + 2)[seen:]
    assert [pictures(each["messages"]) for each in asked] == [[URL], [URL]]
    assert [each["role"] for each in asked[1]["messages"]] == ["user", "assistant", "user"]


def pictures(messages: list[Any]) -> list[str]:
    """Return the URLs of all pictures of a chat."""
    parts = [part for each in messages for part in each["content"] if isinstance(part, dict)]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


@pytest.mark.parametrize("model", ["fake", "blind"])
def test_a_core_without_vision_is_shown_none(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"core {model}: it has no vision"):
        client.chat.completions.create(model=model, messages=LOOK)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://example.org/a.png", "the gateway fetches no pictures"),
        ("data:image/png,plain", "it is no data:MEDIA/TYPE;base64"),
        ("data:image/png;base64,%%", "its base64 can't be read"),
        (URL.replace("png", "tiff"), "image/tiff"),
        (URL.replace("png", "gif"), "it is no file of image/gif"),
    ],
)
def test_what_is_no_picture_is_named(client: openai.OpenAI, url: str, named: str) -> None:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match=named) as found:
        client.chat.completions.create(model="eyes", messages=[{"role": "user", "content": parts}])
    assert found.value.param and found.value.param.startswith("messages[0]")


def test_a_core_that_is_draining_is_asked_later(
    client: openai.OpenAI, host: Host, frontier: Frontier
) -> None:
    how: Any = {"model": "blind", "messages": [{"role": "user", "content": "x"}]}
    frontier.then("blind", Act(after=2, then="hang"))
    with client.chat.completions.create(stream=True, **how) as stream:
        with host.daemon.connect() as person:
            person.call(DrainCore("blind"))
        with pytest.raises(openai.InternalServerError, match="blind is draining") as found:
            client.chat.completions.create(**how)
        frontier.release("blind")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    assert found.value.status_code == 503
    assert float(found.value.response.headers["retry-after"]) > 0
