"""How what a model writes is heard and read: pieces of any size say the same."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.abi.inference import Function, LlmGenerate, Turn, TurnCall
from aiosd.callforms import form_of
from aiosd.calling import Said, Wanted, new_id, plain

FUNCTIONS = [Function("add"), Function("stop")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def hear(written: str, cuts: list[int], **fields: Any) -> tuple[str, Said]:
    form = form_of(LlmGenerate("x", functions=FUNCTIONS, **fields), "json")
    assert form is not None
    places = [0, *sorted(cut % (len(written) + 1) for cut in cuts), len(written)]
    pieces = [written[a:b] for a, b in pairwise(places)]
    return "".join(form.hear(piece) for piece in pieces), form.said(written)


@settings(deadline=None)
@given(answer=TEXTS, cuts=st.lists(st.integers(0, 99)), escaped=st.booleans())
def test_a_text_is_heard_as_it_is_meant(answer: str, cuts: list[int], escaped: bool) -> None:
    written = json.dumps({"answer": answer}, ensure_ascii=False)
    if escaped:
        written = '{"answer":"' + "".join(
            f"\\u{ord(c):04x}" if ord(c) < 0xD800 else json.dumps(c)[1:-1] for c in answer
        ) + '"}'  # fmt: skip
    heard, said = hear(written, cuts)
    assert said == Said(answer)
    assert heard == answer


@settings(deadline=None)
@given(
    value=st.recursive(TEXTS | st.integers() | st.none(), lambda x: st.dictionaries(TEXTS, x)),
    cuts=st.lists(st.integers(0, 99)),
)
def test_a_value_is_heard_as_json(value: Any, cuts: list[int]) -> None:
    heard, said = hear('{ "answer": ' + json.dumps(value) + " }", cuts, schema={})
    assert json.loads(said.text) == value and not said.calls
    assert said.text.startswith(heard)


def test_nothing_of_calls_is_heard() -> None:
    call = {"tool": "add", "arguments": {"answer": "no"}}
    heard, said = hear(json.dumps([call, call]), [3, 9, 30])
    assert (heard, said.text) == ("", "")
    assert said.calls == [Wanted("add", {"answer": "no"})] * 2


@pytest.mark.parametrize(
    "written",
    [
        '{"tool":"other","arguments":{}}',
        '{"tool":"add","arguments":[]}',
        '{"tool":"add"}',
        "[]",
        "[{}]",
        '{"answer":"x","tool":"add"}',
        "add",
        '{"tool":["add"],"arguments":{}}',
        json.dumps([{"tool": "add", "arguments": {}}] * 9),
    ],
)
def test_what_is_no_call_calls_nothing(written: str) -> None:
    with pytest.raises(OSError, match="nothing was called"):
        hear(written, [])


def test_only_what_is_chosen_may_be_called() -> None:
    with pytest.raises(OSError, match="not offered"):
        hear('{"tool":"add","arguments":{}}', [], tool_choice="stop")


def test_a_chat_with_calls_is_written_as_the_model_would_write_it() -> None:
    calls = [TurnCall("1", "add", {"a": 1}), TurnCall("2", "stop", {})]
    chat = [
        Turn("user", "go"),
        Turn("assistant", "So:", calls),
        Turn("tool", "7", call="1"),
        Turn("tool", '{"error": "why"}', call="2"),
        Turn("assistant", "done"),
    ]
    assert plain(chat, True) == [
        Turn("user", "go"),
        Turn(
            "assistant",
            'So:\n[{"tool":"add","arguments":{"a":1}},{"tool":"stop","arguments":{}}]',
        ),
        Turn("tool", '{"tool": "add", "result": 7}\n{"tool": "stop", "error": "why"}'),
        Turn("assistant", '{"answer":"done"}'),
    ]
    assert plain(chat, False)[-1] == Turn("assistant", "done")
    assert len({new_id(rid, place) for rid in range(50) for place in range(8)}) == 400
