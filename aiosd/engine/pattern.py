"""Regular expressions as grammars: the inside of a JSON string that a pattern matches.

Only what a pattern surely matches is described, so it may be less than the pattern's whole
language: `.` and negated sets leave out what JSON must escape, \\d, \\w and \\s mean their ASCII
characters. Where a pattern is not anchored, other characters may stand around its match.
"""

from __future__ import annotations

from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as regex  # type: ignore[attr-defined]
from typing import Any, Final

from aiosd.engine.gbnf import MOST_REPEATS, TOP, Chars, chars

CHAR: Final = (
    r'[^"\\\x00-\x1F\x7F\u0085\u2028\u2029] | "\\" (["\\/bfnrt] | '
    r'"u" ([0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)
"""A rule for one character in a JSON string, escaped or not; no surrogates."""

ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
BARE: Final = [(0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x85), (0x2028, 0x2029)]
"""Characters that are never written as they are: JSON's, and ends of lines."""

CLASSES: Final = {
    "CATEGORY_DIGIT": [(0x30, 0x39)],
    "CATEGORY_WORD": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "CATEGORY_SPACE": [(0x20, 0x20)],
}


def grammar(pattern: str, char: str) -> str:
    """Return an expression for texts that a pattern matches; char: the rule for any character.

    Raises ValueError that says what of the pattern can't be expressed.
    """
    try:
        tree = list(regex.parse(pattern))
    except (regex.error, RecursionError, OverflowError) as e:
        raise ValueError(f"no regular expression: {e}") from e
    before, after = f"{char}*", f"{char}*"
    if tree and _is_at(tree[0], "AT_BEGINNING", "AT_BEGINNING_STRING"):
        before, tree = "", tree[1:]
    if tree and _is_at(tree[-1], "AT_END", "AT_END_STRING"):
        after, tree = "", tree[:-1]
    return f'{before} {_sequence(tree)} {after} ""'


def _is_at(item: Any, *names: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) in names


def _sequence(items: Any) -> str:
    return " ".join(_item(*item) for item in items) or '""'


def _item(kind: Any, value: Any) -> str:
    name = str(kind)
    if name == "LITERAL":
        return _literal(value)
    if name == "NOT_LITERAL":
        return _class(chars([(value, value), *BARE], negated=True))
    if name == "ANY":
        return _class(chars(BARE, negated=True))
    if name == "IN":
        return _class(_set(value))
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        return _repeat(*value)
    if name == "SUBPATTERN":
        _, add, remove, inside = value
        if add or remove:
            raise ValueError("flags")
        return f"({_sequence(inside)})"
    if name == "BRANCH":
        return f"({' | '.join(_sequence(branch) for branch in value[1])})"
    raise ValueError(f"{name.lower()} can't be kept to")


def _repeat(least: int, most: Any, inside: Any) -> str:
    endless = most is sre.MAXREPEAT
    if max(least, 0 if endless else most) > MOST_REPEATS:
        raise ValueError(f"more than {MOST_REPEATS} repetitions")
    return f"({_sequence(inside)}){{{least},{'' if endless else most}}}"


def _set(items: Any) -> Chars:
    """The characters of a set that need no escape."""
    negated = str(items[0][0]) == "NEGATE"
    ranges: list[tuple[int, int]] = []
    for kind, value in items[negated:]:
        name = str(kind)
        if name == "LITERAL":
            ranges.append((value, value))
        elif name == "RANGE":
            ranges.append(value)
        elif name == "CATEGORY":
            ranges += _category(str(value), negated)
        else:
            raise ValueError(f"{name.lower()} in a set can't be kept to")
    if negated:
        return chars([*ranges, *BARE], negated=True)
    return _without(chars(ranges), chars(BARE))


def _category(name: str, negated: bool) -> list[tuple[int, int]]:
    """ASCII's part of a class; in a negated set all that lies beyond ASCII counts as part of it."""
    wanted, inverse = name.replace("_NOT", ""), "_NOT" in name
    if wanted not in CLASSES:
        raise ValueError(f"{name.lower()} can't be kept to")
    ranges = list(CLASSES[wanted])
    if inverse:
        ranges = list(chars([*ranges, (0x80, TOP)], negated=True))
    return [*ranges, (0x80, TOP)] if negated else ranges


def _without(some: Chars, others: Chars) -> Chars:
    kept = chars([*chars(list(some), negated=True), *others], negated=True)
    return tuple(kept)


def _literal(point: int) -> str:
    char = chr(point)
    written = ESCAPES.get(char, char)
    if written == char and any(low <= point <= high for low, high in BARE):
        raise ValueError(f"character {point:#x} can't be kept to")
    return '"' + "".join(f"\\U{ord(c):08X}" for c in written) + '"'


def _class(ranges: Chars) -> str:
    if not ranges:
        raise ValueError("a set without any character that can be written")
    return "[" + "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in ranges) + "]"
