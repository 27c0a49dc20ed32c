"""What the kernel and a tool host say to each other, as msgpack structs in frames of `wire`.

A tool host is a program that carries out tools: `aios.toolhost` for Python functions, the bridge
of an MCP server. It inherits one end of a socketpair. First it says `Ready` with the declarations
of its tools, or `Failed` with ticket 0 when it can't begin. Each `Call` is then answered by one
`Done` or `Failed` of its ticket. A host that carries out Python functions takes one call at a time;
a bridge many, and answers in any order. A host leaves on `Quit`, and when the socket ends.

What a tool prints is not in here: stdout and stderr of the host are pipes of the kernel's, and are
flushed before the answer is sent, so that what belongs to a call has been written when it ends.

A host runs what nobody has vouched for. Its messages are therefore bounded in length, depth and
number of values, and one that can't be decoded ends the host, not the kernel.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from aiosd.abi import wire

MAX_MESSAGE: Final = 32 << 20
"""Bytes in one message; a tool's own limit on its output is lower."""

MAX_ARTEFACTS: Final = 256
"""Files that one call may name."""

MAX_BATCH: Final = 256
"""Calls that a model computes at once."""

Kind = Literal["error", "arguments", "result", "unavailable"]
"""Why a call failed: the tool raised; the arguments don't fit it; its result doesn't fit what it
declared, or can't be sent; it can't work here (a key, a library or a service is missing)."""

Ticket = Annotated[int, Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages. Fields are only ever added at the end, with a default."""


class Call(Message, frozen=True):
    """Carry out a tool: answered by Done or Failed.

    workspace: the directory that the call works in, as the host sees it. deadline_s: seconds that
    the call has; 0: no limit. The kernel ends the host when it takes longer.
    """

    ticket: Ticket
    tool: str
    arguments: dict[str, Any] = {}
    workspace: str = ""
    deadline_s: float = 0


class Batch(Message, frozen=True):
    """Carry out several calls of one tool at once: each is answered by its own Done or Failed."""

    calls: Annotated[list[Call], Meta(min_length=1, max_length=MAX_BATCH)]


class Cancel(Message, frozen=True):
    """Nobody waits for this call any more: end it if that is possible; it is answered even so."""

    ticket: Ticket


class Quit(Message, frozen=True):
    """Leave, after the call that is being carried out."""


class Ready(Message, frozen=True):
    """The host can take calls. tools: declarations, with the fields of a manifest."""

    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class Done(Message, frozen=True):
    """A call's result.

    artefacts: files that the call left in its workspace, as paths relative to it. metrics: numbers
    about the call, such as cpu_s (seconds of processor time).
    """

    ticket: Ticket
    value: Any
    artefacts: Annotated[list[str], Meta(max_length=MAX_ARTEFACTS)] = []
    metrics: Annotated[dict[str, float], Meta(max_length=64)] = {}


class Failed(Message, frozen=True):
    """A call has no result; ticket 0: the host can't begin, and ends. message: for the agent."""

    ticket: Ticket
    kind: Kind
    message: str


class Changed(Message, frozen=True):
    """The tools of the host are now these, and no others: said by bridges, at any time."""

    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)]


Command = Call | Cancel | Quit | Batch
Event = Ready | Done | Failed | Changed

encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(Command).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode


def pack(message: Message) -> bytes:
    """Return a message as one frame. ValueError says what of it can't be sent."""
    payload = encode(message)
    if wrong := refusal(payload):
        raise ValueError(f"the message {wrong}")
    return wire.frame(payload)


def refusal(payload: bytes) -> str:
    """Return what the other side would not take about an encoded message; "" when it would."""
    if len(payload) > MAX_MESSAGE:
        return f"has {len(payload)} bytes, the limit is {MAX_MESSAGE}"
    return wire.nesting(payload)


def decode_command(payload: bytes | bytearray) -> Command:
    """Return the kernel's message. ValueError says what is wrong with it."""
    command: Command = _decode_command(payload)
    return command


def decode_event(payload: bytes | bytearray) -> Event:
    """Return the host's message. ValueError says what is wrong with it, whatever was sent."""
    if wrong := wire.nesting(memoryview(payload)):
        raise ValueError(f"the message {wrong}")
    event: Event = _decode_event(payload)
    return event
