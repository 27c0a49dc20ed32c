"""GBNF, llama.cpp's notation for grammars, read strictly and written plainly.

`parse` turns a grammar into `Rules`: alternatives of sequences of characters and rules, with groups
and repetitions taken apart. `render` writes rules down again. Only text that came out of `render`
reaches llama.cpp, whose own reader hangs or dies on some inputs.

What must hold: rules that `parse` returns have no rule that begins with itself, are within the
limits below, and mean what llama.cpp takes them to mean. Every refusal is OSError(EINVAL) that
names the line and what is wrong there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final, TypeVar

MOST_SYMBOLS: Final = 50_000  # of all rules, with repetitions written out
MOST_REPEATS: Final = 10_000
MOST_DEPTH: Final = 64  # of groups in groups
MOST_LEADING: Final = 256  # rules that begin with a rule that begins with a rule ...
TOP: Final = 0x10FFFF
SURROGATES: Final = (0xD800, 0xDFFF)

Chars = tuple[tuple[int, int], ...]
"""One character: any of these ranges of code points, ascending, not touching."""
Symbol = int | Chars
"""A rule's number, or one character."""
Rules = list[list[list[Symbol]]]
"""Each rule's alternatives; rule 0 is the root."""

S = TypeVar("S", bound=Symbol)

ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
HEX: Final = {"x": 2, "u": 4, "U": 8}
NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def parse(text: str) -> Rules:
    """Read a grammar; raises OSError(EINVAL) with the line and the reason."""
    return _Parser(text).rules()


def render(rules: Rules) -> str:
    """Write rules down for llama.cpp."""
    return "\n".join(
        f"{_name(number)} ::= " + " | ".join(_sequence(each) for each in rule)
        for number, rule in enumerate(rules)
    )


def chars(ranges: list[tuple[int, int]], negated: bool = False) -> Chars:
    """Bring ranges in order; negated: all other characters. NUL and surrogates are none."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    if negated:
        edges = [0, *(e for low, high in merged for e in (low, high + 1)), TOP + 1]
        merged = [(a, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    return tuple(_real(merged))


def _real(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is left of ranges without NUL and the surrogates."""
    for low, high in ranges:
        for first, last in ((max(low, 1), min(high, 0xD7FF)), (max(low, 0xE000), high)):
            if first <= last:
                yield first, last


class _Parser:
    """Reads a text once, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._rules: list[list[list[Symbol]] | None] = []
        self._used: dict[int, int] = {}  # rule -> where it was first named
        self._symbols = 0

    def rules(self) -> Rules:
        """Read everything."""
        self._number("root")
        self._space(lines=True)
        while self._at < len(self._text):
            self._rule()
        for number, at in self._used.items():
            if self._rules[number] is None:
                raise self._error(f"rule {self._names[number]!r} is not defined", at)
        if self._rules[0] is None:
            raise self._error("there is no rule 'root'")
        found = [rule if rule is not None else [] for rule in self._rules]
        self._check_leading(found)
        return found

    # Notation.

    def _rule(self) -> None:
        begin = self._at
        name = self._word()
        if not name:
            raise self._error("a rule's name is expected")
        self._space()
        if not self._take("::="):
            raise self._error(f"'::=' is expected after {name!r}")
        self._space(lines=True)
        number = self._number(name)
        if self._rules[number] is not None:
            raise self._error(f"rule {name!r} is defined twice", begin)
        self._rules[number] = []
        self._rules[number] = self._alternatives(0)
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._error(f"{self._text[self._at]!r} is not expected here")
        self._space(lines=True)

    def _alternatives(self, depth: int) -> list[list[Symbol]]:
        if depth > MOST_DEPTH:
            raise self._error(f"groups in groups, more than {MOST_DEPTH} deep")
        found = [self._sequence(depth)]
        while self._another():
            self._space(lines=True)
            found.append(self._sequence(depth))
        return found

    def _another(self) -> bool:
        """Take a `|`, be it on the next line."""
        begin = self._at
        self._space(lines=True)
        if self._take("|"):
            return True
        self._at = begin
        return False

    def _sequence(self, depth: int) -> list[Symbol]:
        found: list[Symbol] = []
        while (item := self._item(depth)) is not None:
            self._space(lines=depth > 0)
            found += self._repeated(item)
            self._space(lines=depth > 0)
        return found

    def _item(self, depth: int) -> list[Symbol] | None:
        """Read one thing that may be repeated; None when something else comes."""
        begin, next = self._at, self._text[self._at : self._at + 1]
        if next == '"':
            return self._literal()
        if next == "[":
            return [self._class()]
        if self._take("."):
            return [self._grown(chars([(0, TOP)]))]
        if self._take("("):
            self._space(lines=True)
            inside = self._alternatives(depth + 1)
            if not self._take(")"):
                raise self._error("')' is missing", begin)
            return [self._new(inside)]
        if next in NAME and next:
            number = self._number(self._word())
            self._used.setdefault(number, begin)
            return [self._grown(number)]
        if next in ("<", "!"):
            raise self._error("tokens can't be named here, only characters")
        return None

    def _literal(self) -> list[Symbol]:
        begin = self._at
        self._at += 1
        found: list[Symbol] = []
        while not self._take('"'):
            point = self._character(begin)
            found.append(self._grown(self._checked([(point, point)], False)))
        return found

    def _class(self) -> Symbol:
        begin = self._at
        self._at += 1
        negated = self._take("^")
        ranges = []
        while not self._take("]"):
            low = high = self._character(begin)
            if self._text[self._at : self._at + 1] == "-" and (
                self._text[self._at + 1 : self._at + 2] != "]"
            ):
                self._at += 1
                high = self._character(begin)
            if high < low:
                raise self._error("a range of characters that ends before it begins")
            ranges.append((low, high))
        return self._grown(self._checked(ranges, negated))

    def _checked(self, ranges: list[tuple[int, int]], negated: bool) -> Chars:
        found = chars(ranges, negated)
        if not found:
            raise self._error("no character is left to choose (NUL and surrogates are none)")
        return found

    def _character(self, begin: int) -> int:
        """Read one character, escaped or not."""
        char = self._text[self._at : self._at + 1]
        if not char or (char == "\\" and self._at + 1 == len(self._text)):
            raise self._error("it is not closed", begin)
        self._at += 1
        if char != "\\":
            return ord(char)
        kind = self._text[self._at]
        self._at += 1
        if kind in ESCAPES:
            return ord(ESCAPES[kind])
        width = HEX.get(kind, 0)
        digits = self._text[self._at : self._at + width]
        self._at += width
        try:
            point = int(digits, 16) if width and len(digits) == width else -1
        except ValueError:
            point = -1
        if not 0 <= point <= TOP:
            raise self._error(f"\\{kind}{digits} is no character")
        return point

    def _repeated(self, item: list[Symbol]) -> list[Symbol]:
        """Read what follows an item, and return what both together are."""
        least, most = 1, 1
        repeated = False
        while (bounds := self._bounds()) is not None:
            if repeated:
                item = [self._new([self._times(item, least, most)])]
            (least, most), repeated = bounds, True
            self._space()
        return self._times(item, least, most) if repeated else item

    def _bounds(self) -> tuple[int, int] | None:
        """Read * + ? {m} {m,} {m,n}; the most is -1 when there is none."""
        for sign, bounds in (("*", (0, -1)), ("+", (1, -1)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        begin = self._at
        if not self._take("{"):
            return None
        self._space()
        least = self._count()
        self._space()
        most = least
        if self._take(","):
            self._space()
            most = self._count() if self._text[self._at : self._at + 1].isdigit() else -1
            self._space()
        if not self._take("}"):
            raise self._error("a repetition is {n}, {n,} or {n,m}", begin)
        if 0 <= most < least:
            raise self._error(f"a repetition of at least {least} and at most {most}", begin)
        return least, most

    def _count(self) -> int:
        begin = self._at
        while self._text[self._at : self._at + 1] in tuple("0123456789"):
            self._at += 1
        digits = self._text[begin : self._at]
        if not digits or len(digits) > 5 or int(digits) > MOST_REPEATS:
            raise self._error(f"a number of repetitions up to {MOST_REPEATS} is expected", begin)
        return int(digits)

    def _times(self, item: list[Symbol], least: int, most: int) -> list[Symbol]:
        """Write a repetition out: `least` copies, then optional ones, each in a rule of its own."""
        if len(item) != 1:
            item = [self._new([item])]
        found = [self._grown(symbol) for _ in range(least) for symbol in item]
        if most < 0:
            number = self._open()
            self._rules[number] = [[*item, self._grown(number)], []]
            return [*found, self._grown(number)]
        tail: list[Symbol] = []
        for _ in range(most - least):
            tail = [self._new([[*item, *tail], []])]
        return found + tail

    # Rules.

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._open(name)
        return self._numbers[name]

    def _open(self, name: str = "(a group)") -> int:
        self._rules.append(None)
        self._names.append(name)
        return len(self._rules) - 1

    def _new(self, alternatives: list[list[Symbol]]) -> int:
        number = self._open()
        self._rules[number] = alternatives
        return self._grown(number)

    def _grown(self, symbol: S) -> S:
        self._symbols += 1
        if self._symbols > MOST_SYMBOLS:
            raise self._error(f"more than {MOST_SYMBOLS} symbols with all repetitions written out")
        return symbol

    def _check_leading(self, rules: Rules) -> None:
        """Refuse rules that begin with themselves, or with too long a chain of others."""
        empty = _nullable(rules)
        state: dict[int, int] = {}  # rule -> 0 while it is looked at
        for start in range(len(rules)):
            stack = [(start, _leading(rules[start], empty))] if start not in state else []
            state.setdefault(start, 0)
            while stack:
                number, leads = stack[-1]
                lead = next(leads, None)
                if lead is None:
                    state[number] = 1
                    stack.pop()
                elif state.get(lead) == 0:
                    raise self._error(
                        f"rule {self._known(stack)} begins with itself, "
                        "or repeats something that may be empty"
                    )
                elif lead not in state:
                    state[lead] = 0
                    stack.append((lead, _leading(rules[lead], empty)))
                    if len(stack) > MOST_LEADING:
                        raise self._error(f"rules that begin with rules, over {MOST_LEADING} deep")

    def _known(self, stack: list[tuple[int, Iterator[int]]]) -> str:
        names = [self._names[number] for number, _ in stack]
        return repr(next((name for name in reversed(names) if name in self._numbers), "root"))

    # Characters of the text.

    def _word(self) -> str:
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] in NAME:
            self._at += 1
        return self._text[begin : self._at]

    def _space(self, lines: bool = False) -> None:
        """Skip blanks and comments; lines: ends of lines too."""
        skipped = " \t\r\n" if lines else " \t"
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._text[self._at] in skipped:
                self._at += 1
            else:
                return

    def _take(self, wanted: str) -> bool:
        if not self._text.startswith(wanted, self._at):
            return False
        self._at += len(wanted)
        return True

    def _error(self, message: str, at: int | None = None) -> OSError:
        place = min(self._at if at is None else at, len(self._text))
        line = self._text.count("\n", 0, place) + 1
        column = place - (self._text.rfind("\n", 0, place) + 1) + 1
        return OSError(errno.EINVAL, f"grammar: line {line}, column {column}: {message}")


def _nullable(rules: Rules) -> set[int]:
    """Return the rules that may be empty."""
    users: dict[int, list[tuple[int, int]]] = {}
    missing: dict[tuple[int, int], int] = {}  # alternative -> symbols not known to be empty
    todo: list[int] = []
    found: set[int] = set()
    for number, rule in enumerate(rules):
        for place, sequence in enumerate(rule):
            if not sequence:
                todo.append(number)
            elif all(isinstance(symbol, int) for symbol in sequence):
                missing[number, place] = len(sequence)
                for symbol in sequence:
                    assert isinstance(symbol, int)
                    users.setdefault(symbol, []).append((number, place))
    while todo:
        number = todo.pop()
        if number in found:
            continue
        found.add(number)
        for user in users.get(number, []):
            missing[user] -= 1
            if not missing[user]:
                todo.append(user[0])
    return found


def _leading(rule: list[list[Symbol]], empty: set[int]) -> Iterator[int]:
    """Yield the rules that what a rule stands for may begin with."""
    for sequence in rule:
        for symbol in sequence:
            if not isinstance(symbol, int):
                break
            yield symbol
            if symbol not in empty:
                break


def _name(number: int) -> str:
    return f"r{number}" if number else "root"


def _sequence(symbols: list[Symbol]) -> str:
    return (
        " ".join(_name(symbol) if isinstance(symbol, int) else _class(symbol) for symbol in symbols)
        or '""'
    )


def _class(ranges: Chars) -> str:
    parts = (
        _point(low) if low == high else f"{_point(low)}-{_point(high)}" for low, high in ranges
    )
    return f"[{''.join(parts)}]"


def _point(point: int) -> str:
    char = chr(point)
    return char if char.isascii() and char.isalnum() else f"\\U{point:08X}"
