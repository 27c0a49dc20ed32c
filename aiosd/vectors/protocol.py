"""What the kernel and the embedder process say to each other, as msgpack structs in frames.

The kernel sends commands, the process answers each that carries a ticket with one event of the
same ticket. A space is one owner's vectors of one kind, by name; ids are the rows' own. Arrays
travel as bytes: ids as int64, revisions as int32, vectors as float32, all little-endian.

What must hold: SQLite is the truth, and a space may be forgotten at any time. `Open` says what
should be in it, and its answer what the kernel then has to `Put`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

MAX_MESSAGE: Final = 64 << 20


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all commands and events."""


class Setup(Message, frozen=True):
    """The first command. model: minilm or fake. directory: where indexes are kept."""

    model: str
    directory: str
    options: dict[str, Any] = {}


class Embed(Message, frozen=True):
    """Turn texts into vectors: answered by Embedded."""

    ticket: int
    texts: list[str]


class Open(Message, frozen=True):
    """Load a space, and drop what is not among `ids` with its `revs`: answered by Opened."""

    ticket: int
    space: str
    ids: bytes
    revs: bytes


class Put(Message, frozen=True):
    """Add or replace vectors of an open space: answered by Done."""

    ticket: int
    space: str
    ids: bytes
    revs: bytes
    vectors: bytes


class Remove(Message, frozen=True):
    """Take ids out of a space, where it is open; not answered."""

    space: str
    ids: bytes


class Search(Message, frozen=True):
    """Find the nearest to a text: answered by Found. allowed: only among these ids."""

    ticket: int
    space: str
    text: str
    k: int
    allowed: bytes | None = None


class Quit(Message, frozen=True):
    """Keep the indexes and leave."""


class Ready(Message, frozen=True):
    """The model is loaded. model: its name and dimension, which vectors are marked with."""

    model: str
    dim: int


class Embedded(Message, frozen=True):
    """Vectors of the texts, in order. tokens: that the model has read."""

    ticket: int
    vectors: bytes
    tokens: int


class Opened(Message, frozen=True):
    """A space is open. missing: ids whose vectors have to be put."""

    ticket: int
    missing: bytes


class Done(Message, frozen=True):
    """A Put is done."""

    ticket: int


class Found(Message, frozen=True):
    """The nearest ids, the nearest first, and their cosine similarity as float32."""

    ticket: int
    ids: bytes
    scores: bytes


class Failed(Message, frozen=True):
    """A command can't be carried out; ticket 0: the model can't be loaded, and the process ends.

    ESTALE: the space is not open.
    """

    ticket: int
    errno: int
    reason: str


Command = Setup | Embed | Open | Put | Remove | Search | Quit
Event = Ready | Embedded | Opened | Done | Found | Failed

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
