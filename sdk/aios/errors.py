"""What goes wrong between a program and the kernel, and how a program tells it apart.

OSError                      the kernel's answer: errno and a sentence
+-- PermissionError ...      whatever Python makes of the errno (FileNotFoundError, ...)
+-- Busy                     too much to do (EAGAIN): `retry_after` seconds
+-- VersionError             program and kernel speak ABI levels that don't fit (EPROTO)
+-- ConnectionRefusedError   aiosd is not running
+-- ConnectionLost           it was there and went away (a ConnectionResetError)
"""

from __future__ import annotations

import errno
import os
import re

from aiosd.abi import LEVEL
from aiosd.abi.call import Call, Syscall


class VersionError(OSError):
    """The program's SDK and the running kernel don't understand each other.

    mine: the SDK's ABI level. theirs: the kernel's, 0 where it did not say.
    """

    def __init__(self, sentence: str, theirs: int = 0) -> None:
        super().__init__(errno.EPROTO, sentence)
        self.mine = LEVEL
        self.theirs = theirs


class ConnectionLost(ConnectionResetError):
    """The connection ended while a request was under way.

    call: its name. key: the key to ask again with, empty where none is needed. maybe_done: whether
    the kernel may have acted on it.
    """

    def __init__(
        self, sentence: str, call: str = "", key: str = "", maybe_done: bool = True
    ) -> None:
        super().__init__(errno.ECONNRESET, sentence)
        self.call = call
        self.key = key
        self.maybe_done = maybe_done


def not_running(path: str, cause: OSError) -> OSError:
    """Return what to raise when the socket at `path` can't be opened."""
    if isinstance(cause, PermissionError):
        return PermissionError(
            errno.EACCES,
            f"no permission to use {path}: aiosd there serves another user; "
            "ask its owner, or start an own aiosd and point AIOS_SOCKET at its socket",
        )
    if isinstance(cause, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return ConnectionRefusedError(
            errno.ECONNREFUSED,
            f"aiosd is not running at {path}; start it with `aiosd`, "
            "or point AIOS_SOCKET at the socket of one that runs",
        )
    number = cause.errno or errno.EIO
    return OSError(number, f"can't connect to aiosd at {path}: {cause.strerror or cause}")


def too_old(path: str, theirs: int) -> VersionError:
    """Return what to raise when the kernel's level is below ours."""
    return VersionError(
        f"aiosd at {path} is too old: it speaks ABI level {theirs}, this program needs {LEVEL}; "
        "update it and restart it",
        theirs,
    )


def refused_level(path: str, sentence: str) -> VersionError:
    """Return what to raise when the kernel refuses our level."""
    return VersionError(
        f"aiosd at {path} refuses ABI level {LEVEL} of this program: {sentence}; "
        "install the `aios` package of the same version as aiosd's, or restart aiosd with it"
    )


def foreign(path: str) -> VersionError:
    """Return what to raise when what listens at `path` does not speak our protocol."""
    return VersionError(
        f"what listens at {path} does not speak ABI level {LEVEL} or is not aiosd at all; "
        "check AIOS_SOCKET, or restart aiosd"
    )


def lost(call: Syscall, args: Call, sent: bool, after: str = "") -> ConnectionLost:
    """Return what to raise when the connection ended before the answer to a call.

    sent: whether the request had left. after: what was tried since.
    """
    key = str(getattr(args, "key", ""))
    if not sent:
        state = "the call was not made"
    elif call.idempotent:
        state = "it may have been done, and asking again does no harm"
    elif not key:
        state = "it can't be known whether it was done, since it had no key to ask again with"
    else:
        state = f"it may have been done; asking again with key={key!r} gives the first answer"
    sentence = f"the connection to aiosd was lost during {call.name}{after}: {state}"
    return ConnectionLost(sentence, call.name, key, sent)


def unreadable(call: Syscall, cause: Exception) -> VersionError:
    """Return what to raise when the kernel's answer is not what our table says."""
    return VersionError(
        f"{call.name}: aiosd answers in a form that this program does not know ({cause}); "
        "install the `aios` package of the same version as aiosd's"
    )


class Busy(BlockingIOError):
    """The kernel has too much to do (EAGAIN).

    retry_after: seconds until there is likely a place, None where the kernel can't tell.
    """

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)
        named = re.search(r"try again in (\d+(?:\.\d+)?) s", sentence)
        self.retry_after = float(named[1]) if named else None


def answer(number: int, sentence: str) -> OSError:
    """Return the kernel's error as the OSError subclass that Python has for its errno."""
    if number == errno.EAGAIN:
        return Busy(number, sentence)
    return OSError(number, sentence or os.strerror(number))
