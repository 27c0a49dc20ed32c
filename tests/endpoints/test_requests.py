"""How a chat is put to providers, and where their keys come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiosd.endpoints import apikey, chatgpt, claude, gemini
from aiosd.endpoints.endpoint import LONGEST_WAIT, Trouble, by_status, wait_of
from aiosd.endpoints.protocol import Call, Chat, Function, Image, Message, Setup


def asked(dialect: str, omit: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    setup = Setup("openai", "m", "", "", dialect, 1.0, 1.0, 1.0, omit=list(omit))
    return chatgpt.request(Chat([Message("user", "hi")], 9, **fields), setup)


def test_dialects_differ_in_what_they_take() -> None:
    assert asked("openai")["max_completion_tokens"] == 9
    assert (
        asked("openai", ("temperature",), temperature=0.5, seed=2)
        .keys()
        .isdisjoint({"temperature"})
    )
    assert asked("vllm", top_k=5, repeat_penalty=1.1)["extra_body"] == {
        "top_k": 5,
        "repetition_penalty": 1.1,
    }
    assert asked("vllm")["stream_options"]["continuous_usage_stats"]
    assert asked("llama-server", grammar="root ::= x")["extra_body"] == {"grammar": "root ::= x"}
    assert asked("ollama")["max_tokens"] == 9
    add = [Function("add", "", {"type": "object"})]
    assert asked("openai", functions=add)["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in asked("gemini", functions=add)
    for dialect in ("openai", "gemini", "ollama"):
        with pytest.raises(Trouble, match="top_k"):
            asked(dialect, top_k=5)


def test_pictures_come_before_what_is_asked_of_them() -> None:
    setup = Setup("openai", "m", "", "", "openai", 1.0, 1.0, 1.0)
    chat = Chat([Message("user", "What?", images=[Image("image/png", b"\x89P")])], 9)
    [turn] = chatgpt.request(chat, setup)["messages"]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVA="}}
    assert turn["content"] == [picture, {"type": "text", "text": "What?"}]
    [turn] = claude.request(chat, setup)["messages"]
    source = {"type": "base64", "media_type": "image/png", "data": "iVA="}
    assert turn["content"] == [
        {"type": "image", "source": source},
        {"type": "text", "text": "What?"},
    ]
    [turn] = gemini.request(chat, setup)["contents"]
    part = {"inline_data": {"mime_type": "image/png", "data": b"\x89P"}}
    assert turn["parts"] == [part, {"text": "What?"}]


def test_gemini_is_told_in_parts_what_others_have_turns_for() -> None:
    setup = Setup("gemini", "m", "", "", "openai", 1.0, 1.0, 1.0, omit=["temperature"])
    turns = [
        Message("system", "Be brief."),
        Message("user", "1 + 1, 2 + 2?"),
        Message("assistant", "", [Call("a", "add", '{"n": 1}'), Call("b", "add", '{"n": 2}')]),
        Message("tool", "2", call="a"),
        Message("tool", "4", call="b"),
    ]
    asked = gemini.request(Chat(turns, 9, top_k=5, stop=["x"], choice="add"), setup)
    assert [each["role"] for each in asked["contents"]] == ["user", "model", "user"]
    assert [each["function_response"]["name"] for each in asked["contents"][2]["parts"]] == [
        "add",
        "add",
    ]
    config = asked["config"]
    assert config["system_instruction"] == "Be brief."
    assert (config["top_k"], config["stop_sequences"]) == (5, ["x"])
    assert config.keys().isdisjoint({"temperature", "tools", "top_p"})
    for field in ({"min_p": 0.1}, {"logprobs": True}, {"grammar": "root ::= x"}):
        with pytest.raises(Trouble, match=next(iter(field))):
            gemini.request(Chat(turns, 9, **field), setup)


def test_only_closed_schemas_are_strict() -> None:
    closed = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert chatgpt.strict(closed)
    assert not chatgpt.strict({"type": "array", "items": {**closed, "required": []}})
    assert not chatgpt.strict({"type": "object"})


def test_what_a_status_means() -> None:
    kinds = [by_status(status, "", 0.0).kind for status in (400, 401, 408, 429, 500, 503, 529)]
    assert kinds == ["refused", "refused", "broken", "busy", "broken", "busy", "busy"]
    assert wait_of({"retry-after": "3"}) == 3.0
    assert wait_of({"retry-after-ms": "20", "retry-after": "9"}) == 0.02
    assert wait_of({"retry-after": "1e9"}) == wait_of({"retry-after": "inf"}) == LONGEST_WAIT
    assert wait_of({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}) == LONGEST_WAIT
    for none in ("never", "nan", "-1", "Thu, 01 Jan 1970 00:00:00 GMT", ""):
        assert wait_of({"retry-after": none}) == 0.0


def test_a_key_is_found_where_nobody_else_can_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTIER", " sk-1 \n")
    assert apikey.find("env:FRONTIER") == "sk-1"
    assert apikey.find("") == ""
    file = tmp_path / "key"
    file.write_text("sk-2\n")
    file.chmod(0o600)
    assert apikey.find(f"file:{file}") == "sk-2"
    file.chmod(0o640)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert apikey.find("credential:key") == "sk-2"
    for place in (
        f"file:{file}",
        f"file:{tmp_path}/no",
        "credential:../key",
        "env:NONE_SUCH",
        "sk-3",
    ):
        with pytest.raises(OSError, match="api_key") as refused:
            apikey.find(place)
        assert "sk-" not in str(refused.value)
