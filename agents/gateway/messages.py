"""Messages of a chat as OpenAI's clients send them, and the turns that they are for the kernel."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aios import Image, Turn, TurnCall

from . import pictures
from .refusal import Refusal

ROLES = {"developer": "system", "function": "tool"}
"""Roles that go by another name here."""
TAKEN: Final = ("system", "developer", "user", "assistant", "tool", "function")


class Part(msgspec.Struct, frozen=True):
    """A piece of a message."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: Any = None


class Called(msgspec.Struct, frozen=True):
    """Which function a model called, and its arguments as JSON."""

    name: str
    arguments: str = ""


class Call(msgspec.Struct, frozen=True):
    """One call in a message of the assistant."""

    function: Called
    id: str = ""


class Message(msgspec.Struct, frozen=True):
    """One message."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


def turns(messages: list[Message]) -> list[Turn]:
    """Return the turns. Raises Refusal that names the message."""
    if not messages:
        raise Refusal(400, "messages: there are none; send at least one", param="messages")
    return [_turn(message, f"messages[{at}]") for at, message in enumerate(messages)]


def check_roles(messages: list[Message]) -> None:
    """Raise Refusal for a role that OpenAI's interface has not: some models' templates take any."""
    for at, message in enumerate(messages):
        if message.role not in TAKEN:
            where = f"messages[{at}].role"
            sentence = f"{where}: there is no {message.role[:64]!r}; it is one of"
            raise Refusal(400, f"{sentence} {', '.join(TAKEN)}", param=where)


def text_of(content: str | list[Part] | None, where: str) -> str:
    """Return the text of a message's content. Raises Refusal for what is neither text nor image."""
    if content is None or isinstance(content, str):
        return content or ""
    pieces = []
    for part in content:
        if part.type in pictures.KINDS:
            continue
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            sentence = (
                f"{where}: content of type {part.type!r} can't be read here; send text or images"
            )
            raise Refusal(400, sentence, param=where, code="unsupported")
        pieces.append(part.text or part.refusal)
    return "\n".join(pieces)


def images_of(content: str | list[Part] | None, where: str) -> list[Image]:
    """Return the pictures of a message's content. Raises Refusal for what can't be had."""
    parts = [] if content is None or isinstance(content, str) else content
    return [
        pictures.image(part.image_url, f"{where}.content[{at}].image_url")
        for at, part in enumerate(parts)
        if part.type in pictures.KINDS
    ]


def call(id: str, name: str, arguments: str, where: str) -> TurnCall:
    """Return a call whose arguments are JSON. Raises Refusal."""
    try:
        decoded = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refusal(400, f"{where}: arguments are no JSON object: {error}", param=where) from None
    return TurnCall(id, name, decoded)


def _turn(message: Message, where: str) -> Turn:
    calls = [
        call(made.id, made.function.name, made.function.arguments, f"{where}.tool_calls")
        for made in message.tool_calls or []
    ]
    return Turn(
        role=ROLES.get(message.role, message.role),
        content=text_of(message.content, where),
        calls=calls,
        call=message.tool_call_id or "",
        name=(message.name or "")[:64],
        images=images_of(message.content, where),
    )
