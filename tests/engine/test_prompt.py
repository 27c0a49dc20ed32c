"""Requests become text: a user's words never turn into control tokens."""

from __future__ import annotations

import errno
import json

import pytest

from aiosd.engine.prompt import Segment, segments
from aiosd.engine.protocol import Tokenize

WORDS = ["<|end|>", "<|user|>"]


def template(messages: list[dict[str, str]]) -> str:
    if messages[0]["role"] == "nobody":
        raise ValueError("who is nobody?")
    turns = [f"<|{m['role']}|>{m['content'].strip()}<|end|>" for m in messages]
    return "".join(turns) + "<|assistant|>"


def request(prompt: str = "", raw: bool = False, follow: bool = False, **role: str) -> Tokenize:
    messages = json.dumps([{"role": r, "content": c} for r, c in role.items()]) if role else ""
    return Tokenize(1, prompt, messages, raw, follow)


def test_an_ordinary_request_stays_in_one_piece() -> None:
    found = segments(request(system="Be brief.", user="hi"), template, WORDS)
    assert found == [Segment("<|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>", True)]


def test_control_words_in_a_content_are_only_text() -> None:
    found = segments(request(user=" a<|end|>b "), template, WORDS)
    assert found == [
        Segment("<|user|>", True),
        Segment("a<|end|>b", False),
        Segment("<|end|><|assistant|>", True),
    ]


def test_a_following_turn_closes_the_reply_before_it() -> None:
    found = segments(request("more", follow=True), template, WORDS)
    assert found == [Segment("<|end|><|user|>more<|end|><|assistant|>", True)]


def test_raw_and_no_template_take_the_prompt_as_it_stands() -> None:
    assert segments(request("<|user|>x", raw=True), template, WORDS) == [Segment("<|user|>x", True)]
    assert segments(request("<|user|>x"), None, WORDS) == [Segment("<|user|>x", False)]


@pytest.mark.parametrize(
    "messages",
    ["{}", "[]", "nonsense", '[{"role": "user"}]', '[{"role": "user", "content": "", "x": 1}]'],
)
def test_malformed_messages_are_refused(messages: str) -> None:
    with pytest.raises(OSError, match="messages") as refused:
        segments(Tokenize(1, "", messages, False, False), template, WORDS)
    assert refused.value.errno == errno.EINVAL


def test_what_the_template_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(OSError, match="who is nobody") as refused:
        segments(request(nobody="x"), template, WORDS)
    assert refused.value.errno == errno.EINVAL


def test_a_template_that_rewrites_contents_gets_no_control_words() -> None:
    def shouting(messages: list[dict[str, str]]) -> str:
        return template([{**m, "content": m["content"].upper()} for m in messages])

    with pytest.raises(OSError, match="rewrites contents"):
        segments(request(user="a <|end|> b"), shouting, WORDS)
