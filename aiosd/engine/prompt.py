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

from aiosd.engine.calls import Offered
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


Template = Callable[..., str]
"""Renders messages, and functions where a second argument brings some, with the generation prompt.

Messages are dicts of role and content, and of tool_calls, tool_call_id and name where a turn has
calls or answers one. Raises ValueError when it refuses them.
"""

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
    chat = _Chat(template, messages, request.tools, control_words)
    contents = [m.content for m in messages]
    try:
        return _apart(chat, contents, request.follow, control_words)
    except OSError:  # of the template's own making where a tool's result is the reason
        safe = [
            disarmed(m.content, control_words) if m.role == "tool" else m.content for m in messages
        ]
        if safe == contents:
            raise
        return _apart(chat, safe, request.follow, control_words)


def _apart(
    chat: _Chat, contents: Sequence[str], follow: bool, control_words: Sequence[str]
) -> list[Segment]:
    """Render a chat, and cut it up where a content holds control words; raises OSError(EINVAL)."""
    text = chat.render(contents, follow)
    if not any(word in content for content in contents for word in control_words):
        return [Segment(text, True)]
    marks = [f"\ue000{i}\ue001" if content else "" for i, content in enumerate(contents)]
    marked = chat.render(marks, follow)
    return _cut(marked, text, {m: c for m, c in zip(marks, contents, strict=True) if m})


def outline(
    request: Tokenize, template: Template | None, control_words: Sequence[str] = ()
) -> tuple[str, str]:
    """The texts of what `Tokens` calls head and lead, of a chat that begins a context.

    They are where the chat and the same turns after another one differ.
    """
    if request.raw or request.follow or template is None:
        return "", ""
    messages = _messages(request)
    turns = messages[1:] if messages[0].role == "system" else messages
    chat = _Chat(template, messages, request.tools, control_words)
    whole = chat.render([m.content for m in messages], False)
    rest = _Chat(template, turns, "", control_words)
    after = rest.render([m.content for m in turns], True)
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


class _Chat:
    """Turns and functions as a template takes them. tools: JSON, see protocol.Tokenize."""

    def __init__(
        self,
        template: Template,
        messages: Sequence[Message],
        tools: str,
        control_words: Sequence[str],
    ) -> None:
        self._template = template
        self._turns = [_turn(template, message, control_words) for message in messages]
        functions = msgspec.json.decode(tools, type=list[Offered]) if tools else []
        self._tools = [_tool(one, control_words) for one in functions]

    def render(self, contents: Sequence[str], follow: bool) -> str:
        """Return the text with these contents; raises OSError(EINVAL) when it is refused."""
        pairs = zip(self._turns, contents, strict=True)
        turns: list[dict[str, Any]] = [{**turn, "content": content} for turn, content in pairs]
        if follow:
            held = [{"role": "user", "content": "x"}, {"role": "assistant", "content": REPLY}]
            turns = held + turns
        try:
            text = self._template(turns, *([self._tools] if self._tools else []))
        except ValueError as e:
            raise _invalid(f"messages: the model's chat template refuses them: {e}") from e
        if not follow:
            return text
        _, found, rest = text.partition(REPLY)
        if not found:
            raise _invalid("the model's chat template drops earlier replies; start a fresh context")
        return rest


def _turn(template: Template, message: Message, control_words: Sequence[str]) -> dict[str, Any]:
    """Return a turn as templates take it, but for its content."""
    turn: dict[str, Any] = {"role": _role(template, message.role)}
    if message.calls:
        turn["tool_calls"] = [_call(call, control_words) for call in message.calls]
    for key, text in (("tool_call_id", message.call), ("name", message.name)):
        if text:
            turn[key] = disarmed(text, control_words)
    return turn


def _call(call: dict[str, Any], control_words: Sequence[str]) -> dict[str, Any]:
    safe = disarmed(call, control_words)
    function = {"name": safe["name"], "arguments": safe["arguments"]}
    return {"id": safe["id"], "type": "function", "function": function}


def _tool(one: Offered, control_words: Sequence[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}, **one.input}  # what many templates count on
    about = {
        "name": one.name,
        "description": disarmed(one.description, control_words),
        "parameters": disarmed(schema, control_words),
    }
    return {"type": "function", "function": about}


def disarmed(value: Any, control_words: Sequence[str]) -> Any:
    """Return a value whose texts hold no control token's, each cut in two where there was one."""
    if isinstance(value, str):
        for word in control_words:
            value = value.replace(word, f"{word[0]}\u200b{word[1:]}")
        return value
    if isinstance(value, dict):
        return {disarmed(k, control_words): disarmed(v, control_words) for k, v in value.items()}
    if isinstance(value, list):
        return [disarmed(each, control_words) for each in value]
    return value


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
