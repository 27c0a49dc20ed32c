"""What a provider can have its client keep: no more than a reply can have."""

from __future__ import annotations

import asyncio
import importlib

import pytest

from aiosd.endpoints import transport
from aiosd.endpoints.__main__ import DRIVERS
from aiosd.endpoints.endpoint import Endpoint, Text, Trouble
from aiosd.endpoints.protocol import Chat, Message, Setup
from tests.frontier import Act, Frontier

CHAT = Chat([Message("user", "Hello")], 50)


@pytest.mark.parametrize("driver", ["openai", "anthropic", "gemini"])
def test_an_event_that_does_not_end_is_cut_off(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    async def ask(client: Endpoint) -> None:
        try:
            async for delta in client.chat(CHAT):
                match delta:
                    case Text(text):
                        said.append(text)
        finally:
            await client.close()

    monkeypatch.setattr(transport, "EVENT", 4 << 20)
    with Frontier() as frontier:
        frontier.then("x", Act(after=4, then="flood"))
        url = frontier.url("x") if driver == "openai" else frontier.url("x").removesuffix("/v1")
        setup = Setup(driver, "m", url, "", "openai", 30.0, 60.0, 60.0)
        module, name = DRIVERS[driver]
        made: Endpoint = getattr(importlib.import_module(module), name)(setup, "")
        with pytest.raises(Trouble, match="more than a reply") as found:
            asyncio.run(ask(made))
        assert found.value.kind == "cut" and said[:2] == ["w0 ", "w1 "]
