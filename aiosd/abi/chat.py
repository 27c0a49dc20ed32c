"""What a chat is made of: turns, pictures in them, functions that a model may call, its calls."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from aiosd.abi.call import Record, Text

CallId = Annotated[str, Meta(max_length=128, description="which call of a chat")]
FunctionName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:-]*$",
        description="letters, digits, . _ : -",
    ),
]


IMAGE_BYTES: Final = 6 << 20
"""Bytes of all pictures of a request."""
IMAGES: Final = 16
"""Pictures in a request."""


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture that a turn shows. data: a whole file of that media type."""

    media_type: Annotated[
        str, Meta(max_length=32, description="image/png, image/jpeg, image/webp or image/gif")
    ]
    data: Annotated[bytes, Meta(min_length=1, max_length=IMAGE_BYTES)]


class TurnCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that a model made in a turn of its own; a later turn of role tool answers it."""

    id: CallId
    name: FunctionName
    arguments: dict[str, Any]


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a chat.

    calls: of an assistant, what it called in this turn. call: of role tool, the id of the call that
    content is the result of. name: who speaks, or of role tool, what was called.
    images: of role user, at most 16 in a request, 6 MiB together; a core sees them that has the
    feature vision.
    """

    role: Annotated[
        str, Meta(min_length=1, max_length=32, description="system, user, assistant or tool")
    ]
    content: Text
    calls: Annotated[list[TurnCall], Meta(max_length=128)] = []
    call: CallId = ""
    name: Annotated[str, Meta(max_length=64)] = ""
    images: Annotated[list[Image], Meta(max_length=IMAGES)] = []


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that a model may call and its caller carries out.

    parameters: the JSON Schema of its arguments, of an object; none: it takes whatever there is.
    """

    name: FunctionName
    description: Annotated[str, Meta(max_length=1 << 16)] = ""
    parameters: dict[str, Any] = {}


class ToolCall(Record, frozen=True):
    """A call that a model made in the middle of a generation, and what came of it.

    round: counts the generation's rounds of calls from 1; the calls of one round ran at the same
    time. result: what the tool gave, as JSON, cut off where it is long; error: why there is none,
    "" when there is one. The model was shown the one or the other. seconds: how long it took. id:
    tells it from all others. A call of a function has neither result nor error: it is the caller's
    to carry out.
    """

    round: int
    tool: str
    arguments: dict[str, Any]
    result: str = ""
    error: str = ""
    seconds: float = 0.0
    artefacts: list[str] = []
    id: str = ""
