"""Writes the manual pages of section 2, and their overview, from the table of system calls.

    python -m aiosd.abi.manual [man/man2]

One page per call goes into the directory given, in a section of its own so that none hides a page
of Linux (kill, wait); aios-syscalls.7 goes into man7 beside it. Pages of
calls that are no more are removed. The source is in the `man` macros, as the pages by hand are.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from aiosd.abi import LEVEL
from aiosd.abi.bindings import CONNECTION, POSITIONAL
from aiosd.abi.call import GENERAL_ERRORS, Syscall
from aiosd.abi.describe import Argument, arguments, element, fields, records, spell
from aiosd.abi.table import TABLE

OVERVIEW: Final = "aios-syscalls.7"
SECTION: Final = "2aios"

GROUPS: Final = {
    "system": "The kernel itself",
    "process": "Agents as processes",
    "messages": "Messages between agents",
    "inference": "Inference and contexts",
    "memory": "Memory",
    "storage": "Storage",
    "tools": "Tools",
    "accounts": "Access and accounts",
    "cores": "Cores",
}

GENERAL: Final = {
    "EINVAL": "An argument is wrong; the message names it, its limit and the cure.",
    "ENOSYS": "This kernel has no handler for the call.",
    "EPERM": "The caller may not do this.",
    "EAGAIN": "Too much is under way; try again, in as many seconds as the sentence says.",
    "ECANCELED": "The request was cancelled.",
    "EIO": "Something in the kernel failed; its log says what.",
}

KIN: Final = "an agent has it over itself and its descendants, a person over agents of the same uid"

CAPABILITIES: Final = {
    "admin": "the daemon's owner and root have it, in person",
    **dict.fromkeys(("signal", "observe", "wait", "fork", "context"), KIN),
}


def pages() -> dict[str, str]:
    """Return the text of every page by its path below the manual's root."""
    found = {f"man2/{call.name}.{SECTION}": page(call) for call in TABLE.values()}
    found[f"man7/{OVERVIEW}"] = overview()
    return found


def page(call: Syscall) -> str:
    """Return the page of one call."""
    summary, _, rest = call.doc.partition("\n\n")
    parts = [
        _head(call.name, SECTION, "AIOS System Calls"),
        section("NAME", f"{escape(call.name)} \\- {escape(_clause(summary))}\n"),
        section("SYNOPSIS", "".join(_synopsis(call))),
        section(
            "DESCRIPTION", _prose(summary) + "".join(f".PP\n{_prose(p)}" for p in _split(rest))
        ),
    ]
    if taken := arguments(call):
        parts.append(section("ARGUMENTS", "".join(_argument(each) for each in taken)))
    parts.append(section("RETURN VALUE", "".join(_returns(call))))
    parts.append(section("ERRORS", "".join(_errors(call))))
    parts.append(section("NOTES", "".join(_notes(call))))
    parts.append(section("SEE ALSO", _see_also(call)))
    return "".join(parts)


def overview() -> str:
    """Return the page that lists all calls."""
    intro = (
        f"The calls that aiosd serves at ABI level {LEVEL}, by group. Each is a method of the same "
        "name in the Python package aios, and can be made from the shell with aiosctl syscall."
    )
    parts = [
        _head("aios-syscalls", "7", "AIOS Manual"),
        section("NAME", "aios\\-syscalls \\- the system calls of AIOS\n"),
        section("DESCRIPTION", _prose(intro)),
    ]
    for group, title in GROUPS.items():
        parts.append(f".SS {title}\n")
        parts += [_row(call) for call in TABLE.values() if call.group == group]
    general = "".join(f".TP\n.B {name}\n{_prose(GENERAL[name])}" for name in GENERAL_ERRORS)
    parts.append(section("ERRORS", _prose("Any call may answer with these:") + general))
    parts.append(section("SEE ALSO", ".BR aios (7),\n.BR aiosd (1),\n.BR aiosctl (1)\n"))
    return "".join(parts)


def section(title: str, body: str) -> str:
    """Return a section of a page."""
    return f".SH {title}\n{body}"


def escape(text: str) -> str:
    """Return text so that roff shows it as it stands."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    for char, name in (("~", "ti"), ("^", "ha"), ("`", "ga"), ("'", "aq"), ('"', "dq")):
        text = text.replace(char, f"\\({name}")
    return re.sub(r"^(?=[.])", r"\\&", text, flags=re.MULTILINE)


def _head(name: str, number: str, manual: str) -> str:
    source = "python \\-m aiosd.abi.manual"
    return (
        f'.\\" Generated from the table of system calls by {source}.\n'
        f'.TH {escape(name.upper())} {number} "ABI level {LEVEL}" AIOS "{manual}"\n'
    )


def _prose(text: str) -> str:
    """Return running text, a sentence to a line as roff wants it."""
    joined = re.sub(r"\s+", " ", text).strip()
    return escape(re.sub(r"([.!?]) (?=[A-Z])", "\\1\n", joined)) + "\n"


def _clause(summary: str) -> str:
    """Return a sentence as the NAME section has it: no capital, no full stop."""
    text = re.sub(r"\s+", " ", summary).strip().removesuffix(".")
    return text[:1].lower() + text[1:]


def _split(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def _synopsis(call: Syscall) -> Iterator[str]:
    """Yield how the call is made from Python and from the shell."""
    if call.name in CONNECTION:
        yield _prose("Made by aios.connect() and aios.connect_async(), once for each connection.")
        return
    taken = arguments(call)
    first = POSITIONAL.get(call.name)
    required = [each for each in taken if each.required or each.name == first]
    optional = [each for each in taken if each not in required]
    inner = [_declared(each) for each in required]
    inner += ["*", *map(_declared, optional)] if optional else []
    result = spell(call.reply)
    if call.chunk is not None:
        result = f"Stream[{spell(element(call.chunk))}, {result}]"
        if "stream" in call.args.__struct_fields__:
            result = f"{spell(call.reply)} | {result}"
    yield ".nf\n.B import aios\n.PP\n"
    if len(inner) > 3:
        lines = [f"kernel.{call.name}(", *(f"    {each}," for each in inner), f") -> {result}"]
    else:
        lines = [f"kernel.{call.name}({', '.join(inner)}) -> {result}"]
    yield "".join(f"{escape(line)}\n" for line in lines)
    words = [f"{each.name}=VALUE" for each in required] + ["[NAME=VALUE ...]"] * bool(optional)
    yield f".PP\n{escape(' '.join(['aiosctl syscall', call.name, *words]))}\n.fi\n"


def _declared(argument: Argument) -> str:
    text = f"{argument.name}: {spell(argument.type)}"
    return text if argument.required else f"{text} = {_shown(argument.default)}"


def _shown(default: Any) -> str:
    """Return a default as Python source, with double quotes."""
    return f'"{default}"' if isinstance(default, str) else repr(default)


def _argument(argument: Argument) -> str:
    told = [part for part in (argument.text, argument.limits) if part]
    told = [told[0], *(part for part in told[1:] if part not in told[0])] if told else []
    told.append("Required" if argument.required else f"Default {_shown(argument.default)}")
    sentences = ". ".join(part[:1].upper() + part[1:] for part in told)
    kind = spell(argument.type)
    return f'.TP\n.BR {escape(argument.name)} " ({escape(kind)})"\n{escape(sentences)}.\n'


def _returns(call: Syscall) -> Iterator[str]:
    """Yield what a call answers with, and the fields of every record in it."""
    if call.chunk is not None:
        asked = " when asked for with stream" if "stream" in call.args.__struct_fields__ else ""
        yield _prose(f"A stream of {spell(element(call.chunk))}{asked}; it can be cancelled.")
        yield ".PP\n"
    if call.reply is None:
        yield _prose("Nothing." if call.chunk is None else "Nothing more when the stream ends.")
    else:
        yield _prose(f"{spell(call.reply)}.")
    seen = set()
    for kind in (call.chunk, call.reply):
        for record in records(kind):
            if record not in seen:
                seen.add(record)
                yield from _record(record)


def _record(record: Any) -> Iterator[str]:
    paragraphs = _split(record.__doc__ or "")
    yield f".SS {record.__name__}\n" + ".PP\n".join(_prose(part) for part in paragraphs)
    yield ".PP\n.nf\n"
    for field in fields(record):
        yield f"{escape(f'    {field.name}: {spell(field.type)}')}\n"
    yield ".fi\n"


def _errors(call: Syscall) -> Iterator[str]:
    own = [name for name in call.errors if name not in GENERAL]
    for name in own:
        yield f".TP\n.B {name}\n{escape(os.strerror(getattr(errno, name)))}.\n"
    if own:
        yield ".PP\n"
    also = ", ".join(GENERAL_ERRORS)
    yield _prose(f"Any call may answer with {also}; see aios-syscalls(7).")
    yield _prose("In Python an error is an OSError, or the subclass that its errno has.")


def _notes(call: Syscall) -> Iterator[str]:
    yield _prose(f"System call {call.number}, since ABI level {call.since}.")
    if call.needs:
        who = CAPABILITIES.get(call.needs, "")
        yield _prose(f"Needs the capability {call.needs}{': ' * bool(who)}{who}.")
    if call.idempotent:
        yield _prose("Asking twice does no more than asking once.")
    else:
        yield _prose(
            "A call asked again with the same key gives the first answer and does nothing more; "
            "the Python package gives every call a fresh key and asks again by itself when the "
            "connection is lost."
        )


def _see_also(call: Syscall) -> str:
    mates = [each.name for each in TABLE.values() if each.group == call.group and each != call]
    names = [f".BR {escape(name)} ({SECTION})" for name in sorted(mates)]
    return ",\n".join([*names, ".BR aios (7)", ".BR aios\\-syscalls (7)"]) + "\n"


def _row(call: Syscall) -> str:
    summary = _clause(call.doc.partition("\n\n")[0])
    return (
        f".TP\n.BR {escape(call.name)} ({SECTION})\n{escape(summary[:1].upper() + summary[1:])}.\n"
    )


def write(directory: Path) -> list[Path]:
    """Write all pages below the parent of `directory`, which is man2; return what was removed."""
    root = directory.parent
    wanted = pages()
    for name, text in wanted.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    stale = [path for path in sorted(directory.glob("*.2*")) if f"man2/{path.name}" not in wanted]
    for path in stale:
        path.unlink()
    return stale


def main(argv: Sequence[str]) -> int:
    """Write the pages; return the exit status."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        sys.stderr.write("usage: python -m aiosd.abi.manual [man/man2]\n")
        return 2
    directory = Path(argv[0] if argv else "man/man2")
    if directory.name != "man2":
        sys.stderr.write(f"{directory}: the directory must be called man2\n")
        return 2
    stale = write(directory)
    sys.stderr.write(f"{len(pages())} pages written below {directory.parent}")
    sys.stderr.write(f", {len(stale)} removed\n" if stale else "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
