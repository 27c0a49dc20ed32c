"""From a request to the text that is tokenized: chat templates, and what users typed kept apart.

`segments` renders a request through a model's chat template and returns pieces of text, each with
a flag: may control tokens (such as `<|im_end|>`) be parsed in it? The template's own text may hold
them; a message's content may not, or a user could speak as the system.

Only when a content does hold such a word is the text cut up. Otherwise it stays one piece, so that
ordinary text gets exactly the tokens that the model was trained on.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from aiosd.engine.protocol import Tokenize

REPLY = "\ue000reply\ue001"
"""Stands for the reply that a context already holds when a turn follows it."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a chat, as abi.Turn."""

    role: str
    content: str
    calls: list[dict[str, Any]] = []
    call: str = ""
    name: str = ""


class Segment(NamedTuple):
    """Text to tokenize; control says whether control tokens in it mean what they say."""

    text: str
    control: bool


Template = Callable[[list[dict[str, str]]], str]
"""Renders messages with the generation prompt; raises ValueError when it refuses them."""

_decode_messages = msgspec.json.Decoder(list[Message]).decode


def segments(
    request: Tokenize, template: Template | None, control_words: Sequence[str]
) -> list[Segment]:
    """What to tokenize for a request, in order.

    template: the model's, or None when it has none. control_words: texts of its control tokens.
    Raises OSError(EINVAL) for messages that are malformed or that the template refuses.
    """
    messages = _messages(request)
    if request.raw:
        return [Segment("\n".join(m.content for m in messages), True)]
    if template is None:
        return [Segment("\n".join(m.content for m in messages), False)]
    contents = [m.content for m in messages]
    text = _render(template, messages, contents, request.follow)
    if not any(word in content for content in contents for word in control_words):
        return [Segment(text, True)]
    marks = [f"\ue000{i}\ue001" for i in range(len(contents))]
    marked = _render(template, messages, marks, request.follow)
    return _cut(marked, text, dict(zip(marks, contents, strict=True)))


def outline(request: Tokenize, template: Template | None) -> tuple[str, str]:
    """The texts of what `Tokens` calls head and lead, of a chat that begins a context.

    They are where the chat and the same turns after another one differ.
    """
    if request.raw or request.follow or template is None:
        return "", ""
    messages = _messages(request)
    turns = messages[1:] if messages[0].role == "system" else messages
    whole = _render(template, messages, [m.content for m in messages], False)
    after = _render(template, turns, [m.content for m in turns], True)
    same = common(whole[::-1], after[::-1])
    return whole[: len(whole) - same], after[: len(after) - same]


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """How many tokens, or letters, two sequences begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _messages(request: Tokenize) -> list[Message]:
    if not request.messages:
        return [Message("user", request.prompt)]
    try:
        messages = _decode_messages(request.messages)
    except msgspec.MsgspecError as e:
        raise _invalid(f"messages: {e}; give a list of objects with role and content") from e
    if not messages:
        raise _invalid("messages: empty; give at least one message")
    return messages


def _render(
    template: Template, messages: Sequence[Message], contents: Sequence[str], follow: bool
) -> str:
    turns = [
        {"role": _role(template, message.role), "content": content}
        for message, content in zip(messages, contents, strict=True)
    ]
    if follow:
        held = [{"role": "user", "content": "x"}, {"role": "assistant", "content": REPLY}]
        turns = held + turns
    try:
        text = template(turns)
    except ValueError as e:
        raise _invalid(f"messages: the model's chat template refuses them: {e}") from e
    if not follow:
        return text
    _, found, rest = text.partition(REPLY)
    if not found:
        raise _invalid("the model's chat template drops earlier replies; start a fresh context")
    return rest


def _role(template: Template, role: str) -> str:
    """The role that a template has for one: a tool's turn is the user's where it knows no tools."""
    if role != "tool":
        return role
    asked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        text = template([*asked, {"role": "tool", "content": REPLY}])
    except ValueError:
        return "user"
    return "tool" if REPLY in text else "user"


def _cut(marked: str, text: str, contents: dict[str, str]) -> list[Segment]:
    """Cut the marked rendering at its marks; refuse when that is not the plain rendering."""
    marks = re.compile("|".join(map(re.escape, contents)))
    for variant in (contents, {mark: content.strip() for mark, content in contents.items()}):
        pieces: list[Segment] = []
        at = 0
        for found in marks.finditer(marked):
            pieces.append(Segment(marked[at : found.start()], True))
            pieces.append(Segment(variant[found.group()], False))
            at = found.end()
        pieces.append(Segment(marked[at:], True))
        if "".join(piece.text for piece in pieces) == text:
            return [piece for piece in pieces if piece.text]
    raise _invalid(
        "messages: a content holds a control token's text and the chat template rewrites contents; "
        "remove that text"
    )


def _invalid(message: str) -> OSError:
    return OSError(errno.EINVAL, message)
