"""The words between the kernel and the endpoints' process.

One socketpair for all remote cores. Each message is a 4-byte little-endian length and one msgpack
array, its tag first. The kernel sends commands, each with an id of its own choice that the events
about it repeat.

What must hold: a command that has an answer gets one end (Opened, Checked, Vectors, Done or
Failed), unless it was stopped before; of a chat no more pieces are under way than the kernel has
given credit for, so that a reader who pauses pauses the provider's stream.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

MAX_MESSAGE: Final = 64 << 20  # bytes

Kind = Literal["refused", "busy", "unreachable", "broken", "cut", "lost"]
"""Why something failed. refused: it will not be done as it was asked. busy: not now, and nothing
was done. unreachable: it was never sent. broken: the provider failed and says so. cut: it was sent,
then came silence, garbage, or the end of the connection; what was done of it, nobody says. lost: as
cut, but not by the provider's doing: the endpoints' process has died."""


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """How an endpoint is reached; see settings.Remote. connect, first and between are seconds."""

    driver: str
    model: str
    base_url: str
    api_key: str
    dialect: str
    connect: float
    first: float
    between: float
    ca_file: str = ""
    omit: list[str] = []
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A function that the model calls, or called: arguments are JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class Image(msgspec.Struct, frozen=True, array_like=True):
    """A picture: image/png, image/jpeg, image/webp or image/gif, and the file."""

    media_type: str
    data: bytes


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One turn of a chat. call: of a turn of role tool, the id of the call that it answers.

    images: of a turn of role user, to be seen before its content is read.
    """

    role: str
    content: str
    calls: list[Call] = []
    call: str = ""
    name: str = ""
    images: list[Image] = []


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function that the model may call. parameters: a JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class Chat(msgspec.Struct, frozen=True, array_like=True):
    """What is asked of a model; fields as those of llm_generate. schema: JSON Schema or None."""

    messages: list[Message]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: list[str] = []
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logprobs: bool = False
    grammar: str = ""
    schema: dict[str, Any] | None = None
    functions: list[Function] = []
    choice: str = "auto"
    parallel: int = 1


# Commands.


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Make the client of a core."""

    id: int
    core: str
    setup: Setup


class Shut(msgspec.Struct, frozen=True, array_like=True, tag="shut"):
    """A core is no more."""

    core: str


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Have a chat answered. credit: pieces that may come before more credit does."""

    id: int
    core: str
    chat: Chat
    credit: int


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="credit"):
    """So many pieces more may come."""

    id: int
    count: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Nobody wants it any more: close its connection, and say nothing more of it."""

    id: int


class Check(msgspec.Struct, frozen=True, array_like=True, tag="check"):
    """Ask the provider something that costs nothing; core "": whether this process is well."""

    id: int
    core: str


class Embed(msgspec.Struct, frozen=True, array_like=True, tag="embed"):
    """Turn texts into vectors."""

    id: int
    core: str
    texts: list[str]


class Quit(msgspec.Struct, frozen=True, array_like=True, tag="quit"):
    """Leave."""


# Events.


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """The client is made."""

    id: int


class Checked(msgspec.Struct, frozen=True, array_like=True, tag="checked"):
    """The provider answers."""

    id: int


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """Text that came. logprob: of the token that it is, where that was asked for and told."""

    id: int
    text: str
    logprob: float = 0.0


class Metered(msgspec.Struct, frozen=True, array_like=True, tag="metered"):
    """What the provider has counted up to here. cached: of the prompt."""

    id: int
    prompt: int
    cached: int
    output: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """A chat is answered. finish: stop, length, calls, or refused by a filter of the provider."""

    id: int
    finish: str
    calls: list[Call]


class Vectors(msgspec.Struct, frozen=True, array_like=True, tag="vectors"):
    """One vector per text."""

    id: int
    vectors: list[list[float]]
    tokens: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """It can't be done. status: of the HTTP reply, 0 without one. wait: seconds that the provider
    wants to be left alone, 0 where it says nothing."""

    id: int
    kind: Kind
    message: str
    status: int = 0
    wait: float = 0.0


Command = Open | Shut | Ask | Credit | Stop | Check | Embed | Quit
Event = Opened | Checked | Piece | Metered | Done | Vectors | Failed

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
