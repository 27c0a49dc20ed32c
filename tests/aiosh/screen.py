"""A screen as small as can be: where prompt-toolkit's drawing leads, as lines of text."""

from __future__ import annotations

import re

PIECES = re.compile(r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07]*\x07|\x1b.|[\r\n\b]|[^\x1b\r\n\b]+")


class Screen:
    """Lines of characters and a cursor; knows the few sequences that are drawn with here."""

    def __init__(self, lines: int, columns: int) -> None:
        self.size = (lines, columns)
        self.cells = [[" "] * columns for _ in range(lines)]
        self.row = self.column = 0

    def text(self) -> str:
        """Return what is seen."""
        return "\n".join("".join(line).rstrip() for line in self.cells)

    def feed(self, text: str) -> None:
        """Draw."""
        for match in PIECES.finditer(text):
            if match[2]:
                self._control(match[2], match[1])
            elif match[0] == "\r":
                self.column = 0
            elif match[0] == "\b":
                self._move(0, -1)
            elif match[0] == "\n":
                self._line_feed()
            elif match[0][0] != "\x1b":
                self._write(match[0])

    def _write(self, text: str) -> None:
        for character in text:
            self.cells[self.row][min(self.column, self.size[1] - 1)] = character
            self.column = min(self.column + 1, self.size[1])

    def _line_feed(self) -> None:
        if self.row + 1 == self.size[0]:
            self.cells = [*self.cells[1:], [" "] * self.size[1]]
        else:
            self.row += 1

    def _control(self, letter: str, given: str) -> None:
        numbers = [int(word) for word in re.findall(r"\d+", given)]
        number = numbers[0] if numbers else 1
        if letter in "ABCD":
            down, right = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}[letter]
            self._move(down * number, right * number)
        elif letter == "H":
            self.row, self.column = (numbers[0] - 1, numbers[1] - 1) if len(numbers) > 1 else (0, 0)
        elif letter == "K":
            self._erase(self.row, self.column)
        elif letter == "J":
            whole = given == "2"
            self._erase(0 if whole else self.row, 0 if whole else self.column)
            for row in range(0 if whole else self.row + 1, self.size[0]):
                self._erase(row, 0)

    def _move(self, down: int, right: int) -> None:
        self.row = min(max(0, self.row + down), self.size[0] - 1)
        self.column = min(max(0, self.column + right), self.size[1] - 1)

    def _erase(self, row: int, column: int) -> None:
        self.cells[row][column:] = [" "] * (self.size[1] - column)
