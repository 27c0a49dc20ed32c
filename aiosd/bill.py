"""Bills: what a provider may ask for a request at most, and what it says in the end. Pure.

At most: a token of a prompt stands for one byte or more, and a reply has no more tokens than it was
allowed. In the end the provider's own figures count, as far as they stay within that: what is
reserved is never exceeded, whatever a provider says, and figures beyond it are marked as disputed.
Where a request was cut off before there were figures, the prompt counts at its most, and of the
reply what came of it, a token for each byte; of one whose reply nobody has seen, because the kernel
died meanwhile, all of it.
"""

from __future__ import annotations

from typing import Final

import msgspec

FRAME: Final = 64
"""Tokens around a turn, a function or a schema, at most, in whatever form a model is given it."""


class Bill(msgspec.Struct):
    """One request's. most_prompt and most_output: tokens at most. sent: it is with the provider, or
    was. known: the figures are the provider's last word. lost: nobody has seen what came of it.
    """

    most_prompt: int
    most_output: int
    sent: bool = False
    prompt: int = -1
    cached: int = 0
    output: int = 0
    known: bool = False
    lost: bool = False
    disputed: bool = False

    def metered(self, prompt: int, cached: int, output: int) -> None:
        """Take the provider's figures so far."""
        self.disputed = self.disputed or prompt > self.most_prompt or output > self.most_output
        self.prompt = max(self.prompt, min(prompt, self.most_prompt))
        self.cached = min(max(self.cached, cached), self.prompt)
        self.output = max(self.output, min(output, self.most_output))

    def unsent(self) -> None:
        """Nothing was done of it, whatever was said of tokens."""
        self.sent = self.known = False
        self.prompt, self.cached, self.output = -1, 0, 0

    def finished(self) -> None:
        """The reply is whole: what was metered is the last word, if anything was."""
        self.known = self.prompt >= 0

    def read(self) -> int:
        """Return the tokens of the prompt that are charged, cached ones included."""
        if self.prompt >= 0:
            return self.prompt
        return self.most_prompt if self.sent else 0

    def said(self, size: int) -> int:
        """Return the tokens of the reply that are charged; size: bytes that came of it."""
        if self.known:
            return self.output
        if self.lost:
            return self.most_output
        return min(self.most_output, max(self.output, size)) if self.sent else 0
