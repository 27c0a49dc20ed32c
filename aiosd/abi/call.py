"""What a system call is: one frozen struct for its arguments, and one line of facts about it.

A group's file defines a call so:

    @syscall(24, reply=None, errors="EPERM ESRCH EINVAL", needs="signal")
    class Kill(Call):
        \"\"\"Send a signal to an agent.\"\"\"

        aid: Aid
        signal: Annotated[str, Meta(max_length=16, description="name or number")] = "TERM"
        key: Key = ""

The name of the call is the class's name in snake case. From this one entry come decoding and
validation, the permission check, statistics, the SDK's method, the man page and the reference.

What must hold: a released number, field name, type or meaning never changes; new fields have a
default and stand last; a call that is not idempotent has a field `key`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all calls' arguments: a map on the wire, unknown fields refused."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all replies: a map on the wire, unknown fields tolerated."""


class Syscall(msgspec.Struct, frozen=True):
    """One row of the table of system calls.

    number: on the wire. name: snake case. args: the struct of its arguments. reply: the type of
    its answer (None: no body). chunk: the type of a stream's chunks, or None when it never streams.
    errors: the errno names it may answer with beside the general ones. needs: the capability that
    the access manager must grant. since: the ABI level that brought it. doc: one paragraph.
    """

    number: int
    name: str
    group: str
    args: type[Call]
    reply: Any
    chunk: Any
    errors: tuple[str, ...]
    needs: str
    since: int
    doc: str

    @property
    def idempotent(self) -> bool:
        """Whether asking twice does no more than asking once."""
        return "key" not in self.args.__struct_fields__


GENERAL_ERRORS: Final = ("EINVAL", "ENOSYS", "EPERM", "EAGAIN", "ECANCELED", "EIO")
"""Errors that any call may answer with; a call's own list names those with a meaning of its own."""

registered: Final[dict[int, Syscall]] = {}

C = TypeVar("C", bound=type[Call])


def snake(name: str) -> str:
    """Return CamelCase as snake_case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def syscall(
    number: int, *, reply: Any, errors: str = "", needs: str = "", chunk: Any = None, since: int = 1
) -> Callable[[C], C]:
    """Enter the decorated struct in the table of system calls.

    Raises ValueError when the number is taken or an error's name is not an errno.
    """

    def enter(args: C) -> C:
        if number in registered:
            raise ValueError(f"system call {number} is {registered[number].name} already")
        unknown = [name for name in errors.split() if not hasattr(errno, name)]
        if unknown:
            raise ValueError(f"{args.__name__}: unknown errno {unknown}")
        registered[number] = Syscall(
            number=number,
            name=snake(args.__name__),
            group=args.__module__.rpartition(".")[2],
            args=args,
            reply=reply,
            chunk=chunk,
            errors=tuple(errors.split()),
            needs=needs,
            since=since,
            doc=(args.__doc__ or "").strip(),
        )
        return args

    return enter


Aid = Annotated[int, Meta(ge=1, le=2**31 - 1, description="agent id")]
Cid = Annotated[int, Meta(ge=1, le=2**53, description="context id")]
Nice = Annotated[int, Meta(ge=-20, le=19, description="-20 (urgent) to 19 (patient)")]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="letters, digits, . _ : -",
    ),
]
Key = Annotated[
    str,
    Meta(
        max_length=64,
        description="idempotency key: the same key again gives the first answer, for 10 minutes",
    ),
]
Text = Annotated[str, Meta(max_length=1 << 20, description="at most 1 Mi characters")]
Credential = Annotated[str, Meta(max_length=128, description="secret that proves an identity")]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000, description="seconds")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Limit = Annotated[int, Meta(ge=1, le=10_000, description="at most this many, 1 to 10000")]
