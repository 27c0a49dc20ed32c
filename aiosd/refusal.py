"""What went wrong, as an errno and a sentence that names the field, the limit and the cure.

Every error that a client sees is made here or raised as an OSError by a handler.
"""

from __future__ import annotations

import difflib
import errno
import logging
import math
import re
import secrets
from typing import Final

import msgspec

from aiosd.abi import LEVEL
from aiosd.abi.call import Call, Syscall

log = logging.getLogger(__name__)

DAMAGED: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding raises for input that is no msgpack or no arguments of the call."""

_BY_CLASS: Final[dict[type[OSError], int]] = {
    PermissionError: errno.EPERM,
    ProcessLookupError: errno.ESRCH,
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    ChildProcessError: errno.ECHILD,
    BlockingIOError: errno.EAGAIN,
    TimeoutError: errno.ETIMEDOUT,
    BrokenPipeError: errno.EPIPE,
    IsADirectoryError: errno.EISDIR,
}

_PLACE: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")


def translate(call: Syscall, error: Exception) -> tuple[int, str]:
    """Return the errno and the sentence to answer with for whatever a handler raised.

    What no handler should raise is logged with its traceback; the answer carries a reference.
    """
    if isinstance(error, OSError):
        number = error.errno or _BY_CLASS.get(type(error), 0)
        if number:
            return number, _text(call, error, number)
    reference = secrets.token_hex(4)
    text = "%s: internal error, reference %s"
    log.error(text, call.name, reference, exc_info=error, extra={"call": call.name})
    return errno.EIO, f"{call.name}: internal error, see the kernel's log (reference {reference})"


def _text(call: Syscall, error: OSError, number: int) -> str:
    text = error.strerror or str(error) or errno.errorcode.get(number, str(number))
    if error.filename is not None:
        text = f"{text}: {error.filename!s}"
    return text if text.startswith(call.name) else f"{call.name}: {text}"


def of_arguments(call: Syscall, error: Exception) -> OSError:
    """Return the EINVAL for a body that did not decode as the call's arguments."""
    match = _PLACE.match(str(error))
    assert match is not None
    what, path = match["what"], match["path"] or ""
    if missing := _MISSING.search(what):
        wrong = f"field '{_join(path, missing[1])}' is missing"
    elif unknown := _UNKNOWN.search(what):
        wrong = _unknown(call, path, unknown[1])
    else:
        place = f"field '{path}'" if path else "the arguments"
        wrong = f"{place}: {what[:1].lower()}{what[1:].replace('`', '')}"
    return OSError(errno.EINVAL, f"{call.name}: {wrong}; see man 2aios {call.name}")


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _unknown(call: Syscall, path: str, field: str) -> str:
    shown = f"unknown field '{_join(path, field)[:80]}'"
    if path:
        return shown
    fields = call.args.__struct_fields__
    near = difflib.get_close_matches(field[:80], fields, 1)
    if near:
        return f"{shown}, did you mean '{near[0]}'"
    return f"{shown}, it has {', '.join(fields) or 'none'}"


def check_finite(call: Syscall, floats: tuple[str, ...], args: Call) -> None:
    """Raise OSError (EINVAL) when one of the arguments named is NaN or infinite."""
    for name in floats:
        value = getattr(args, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise OSError(
                errno.EINVAL,
                f"{call.name}: field '{name}': {value} is not finite; see man 2aios {call.name}",
            )


def misfit(level: int, oldest: int) -> str:
    """Return the sentence for an ABI level that this kernel doesn't speak: who is too old."""
    if level > LEVEL:
        return (
            f"hello: the caller speaks ABI level {level}, this kernel up to {LEVEL}: "
            "the kernel is too old; upgrade aiosd and restart it"
        )
    return (
        f"hello: the caller speaks ABI level {level}, this kernel {oldest} to {LEVEL}: "
        "the caller is too old; upgrade its aios package"
    )
