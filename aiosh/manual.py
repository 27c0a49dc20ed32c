"""A system call's manual page as plain text, from the table: what `man` shows without files."""

from __future__ import annotations

import textwrap
from difflib import get_close_matches
from typing import Final

from aiosd.abi import describe
from aiosd.abi.call import GENERAL_ERRORS, Syscall
from aiosd.abi.table import BY_NAME, TABLE

PAGES: Final = ("aiosd", "aiosctl", "aiosh", "aiosd.toml", "aios", "aios-syscalls")
"""The pages that are not about one system call."""


def page(name: str) -> str | None:
    """Return the page of a system call, or of `syscalls`; None where there is none."""
    if name in ("syscalls", "syscall"):
        return _listing()
    call = BY_NAME.get(name)
    return None if call is None else _page(call)


def hint(name: str) -> str:
    """Return where to look instead of a page that there is not."""
    near = get_close_matches(name, [*BY_NAME, *PAGES], 1)
    return f"did you mean {near[0]!r}?" if near else "`man syscalls` lists the system calls"


def _listing() -> str:
    lines = ["System calls, by number", ""]
    for number, call in TABLE.items():
        summary = call.doc.splitlines()[0]
        lines.append(f"{number:4}  {call.group:10} {call.name:20} {summary}")
    return "\n".join(lines)


def _page(call: Syscall) -> str:
    taken = describe.arguments(call)
    synopsis = ", ".join(f"{a.name}: {describe.spell(a.type)}" for a in taken)
    parts = [
        f"{call.name.upper()}(2aios)",
        f"NAME\n    {call.name} - {call.doc.splitlines()[0]}",
        f"SYNOPSIS\n    {call.name}({synopsis}) -> {describe.spell(call.reply)}",
        "DESCRIPTION\n" + textwrap.indent(call.doc, "    "),
    ]
    if taken:
        parts.append("ARGUMENTS\n" + "\n".join(_argument(a) for a in taken))
    if call.chunk is not None:
        parts.append(f"STREAM\n    of {describe.spell(describe.element(call.chunk))}")
    errors = " ".join(call.errors) or "none of its own"
    parts.append(f"ERRORS\n    {errors}; any call: {' '.join(GENERAL_ERRORS)}")
    facts = f"number {call.number}, since level {call.since}, needs {call.needs or 'nothing'}"
    parts.append(f"NOTES\n    {facts}")
    return "\n\n".join(parts)


def _argument(argument: describe.Argument) -> str:
    kind = describe.spell(argument.type)
    default = "required" if argument.required else f"default {argument.default!r}"
    words = "; ".join(filter(None, (argument.text, argument.limits, default)))
    return f"    {argument.name}: {kind}\n        {words}"
