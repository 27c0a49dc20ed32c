"""Reads what a tool's docstring says: its description, and that of each argument.

Three ways of describing an argument are understood: lines of the form `name: text` in a paragraph
of their own, Google's section `Args:`, and `:param name: text`. A description goes on in lines
that are indented deeper. Only names that the function has are looked for, so that a sentence with
a colon in it stays a sentence.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import NamedTuple

_PARAM = re.compile(r":param\s+(?:[^:]*\s)?(\w+):\s*(.*)")
_LINE = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)")
_ARGUMENTS = {"args:", "arguments:", "parameters:"}
_OTHER = re.compile(
    r"(returns|yields|raises|examples?|notes?|see also):\s*$|:(returns?|raises|rtype)\b"
)


class Docstring(NamedTuple):
    """description: for whoever chooses a tool. arguments: descriptions by argument."""

    description: str
    arguments: dict[str, str]


def parse(text: str | None, names: Collection[str]) -> Docstring:
    """Take a docstring apart. names: the function's arguments."""
    paragraphs: list[str] = []
    arguments: dict[str, str] = {}
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "").strip()):
        if _OTHER.match(block.partition("\n")[0].lower()):
            break
        rest = _arguments(block, names, arguments)
        if rest:
            paragraphs.append(" ".join(rest))
    return Docstring("\n\n".join(paragraphs), arguments)


def _arguments(block: str, names: Collection[str], found: dict[str, str]) -> list[str]:
    """Take the descriptions of arguments out of a paragraph; returns its other lines."""
    rest: list[str] = []
    name, depth = "", 0
    for line in block.splitlines():
        indent, words = len(line) - len(line.lstrip()), line.strip()
        begins = _PARAM.match(words) or _LINE.match(words)
        if begins and begins[1] in names:
            name, depth = begins[1], indent
            found[name] = begins[2]
        elif name and indent > depth:
            found[name] = f"{found[name]} {words}".strip()
        elif words.lower() not in _ARGUMENTS:
            name = ""
            rest.append(words)
    return rest
