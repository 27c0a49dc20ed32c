"""System calls between agents: mailboxes and topics."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Aid, Call, Key, Limit, Record, syscall

Topic = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._/-]+$")]
Payload = Annotated[Any, Meta(description="any value, at most 64 KiB encoded")]


class Message(Record, frozen=True):
    """A message in a mailbox. topic is empty for one that was sent to the agent itself.

    sender 0 is a person; uid is the sender's.
    """

    id: int
    t: float
    sender: int
    topic: str
    body: Any
    uid: int = 0


class Sent(Record, frozen=True):
    """The id of an accepted message and to how many mailboxes it went."""

    id: int
    receivers: int


@syscall(60, reply=Sent, errors="ESRCH ENOBUFS", needs="message")
class SendMessage(Call, frozen=True):
    """Put a message in an agent's mailbox; acknowledged means durable."""

    aid: Aid
    body: Payload
    key: Key = ""


@syscall(61, reply=list[Message], errors="ETIMEDOUT")
class RecvMessage(Call, frozen=True):
    """Take messages that were sent to the calling agent itself, waiting for the first."""

    limit: Limit = 1
    timeout: Annotated[float, Meta(description="seconds; none: for ever; 0: don't wait")] | None = (
        None
    )
    key: Key = ""


@syscall(62, reply=Sent, errors="ENOBUFS", needs="message")
class Publish(Call, frozen=True):
    """Send a message to every agent that subscribes to a topic and that the caller may write to."""

    topic: Topic
    body: Payload
    key: Key = ""


@syscall(63, reply=None, chunk=Message, needs="message")
class Subscribe(Call, frozen=True):
    """Stream the messages of a topic until cancelled.

    While no stream is open because a connection was lost, the mailbox gathers what is published.
    """

    topic: Topic
