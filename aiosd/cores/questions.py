"""Questions to a core's worker that are answered at once: tokens, text, grammars, vectors.

    tokens = await questions.tokenize(prompt, "", True, False)

What must hold: each is answered, or ended with the reason; one that was with a worker that died is
asked of the next one, for none of them changes anything.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from aiosd.cores.core import Vectors
from aiosd.engine import protocol as p

AT_ONCE: Final = 16  # texts that a worker embeds before it says something

Question = p.Ask
Answer = p.Tokens | p.Pieces | p.Compiled | p.Detected | p.Embedded | p.Refused


class Questions:
    """Those of one core. able: returns when it can answer, or raises OSError that says why it never
    will; send: gives a question to the worker, if one is there."""

    def __init__(
        self, able: Callable[[], Awaitable[None]], send: Callable[[Question], None]
    ) -> None:
        self._able = able
        self._send = send
        self._tickets = count(1)
        self._open: dict[int, tuple[Question, asyncio.Future[Answer]]] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    async def tokenize(self, prompt: str, messages: str, raw: bool, follow: bool) -> list[int]:
        """Return a request's tokens (see protocol.Tokenize); raises OSError with the reason."""
        return (await self.read(prompt, messages, raw, follow)).tokens

    async def read(
        self, prompt: str, messages: str, raw: bool, follow: bool, tools: str = ""
    ) -> p.Tokens:
        """Return a request's tokens and their outline; raises OSError with the reason."""
        ask = p.Tokenize(next(self._tickets), prompt, messages, raw, follow, tools)
        answer = await self._ask(ask)
        assert isinstance(answer, p.Tokens)
        return answer

    async def pieces(self, tokens: list[int]) -> list[bytes]:
        """Return the bytes of tokens; raises OSError with the reason."""
        answer = await self._ask(p.Detokenize(next(self._tickets), tokens))
        assert isinstance(answer, p.Pieces)
        return answer.pieces

    async def compile(self, grammar: str, schema: str, offer: str = "") -> str:
        """Return the grammar of a goal (see protocol.Compile); raises OSError(EINVAL)."""
        answer = await self._ask(p.Compile(next(self._tickets), grammar, schema, offer))
        assert isinstance(answer, p.Compiled)
        return answer.grammar

    async def detect(self, text: str, tokens: list[int]) -> p.Detected:
        """Look for the kernel's watermark in tokens, or in a text; raises OSError."""
        answer = await self._ask(p.Detect(next(self._tickets), text, tokens))
        assert isinstance(answer, p.Detected)
        return answer

    async def embed(self, texts: list[str]) -> Vectors:
        """Return a vector of unit length for each text; raises OSError with the reason."""
        found, tokens = array("f"), 0
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            answer = await self._ask(p.Embed(next(self._tickets), some))
            assert isinstance(answer, p.Embedded)
            found.frombytes(answer.vectors)
            tokens += answer.tokens
        dim = len(found) // len(texts)
        return Vectors([found[at : at + dim].tolist() for at in range(0, len(found), dim)], tokens)

    def answered(self, answer: Answer) -> None:
        """Pass on what the worker says."""
        _, waiter = self._open.get(answer.ticket, (None, None))
        if waiter is None or waiter.done():
            return  # nobody waits any more
        if isinstance(answer, p.Refused):
            waiter.set_exception(OSError(answer.errno, answer.message))
        else:
            waiter.set_result(answer)

    def again(self) -> None:
        """Ask a new worker all that the last one did not answer."""
        for ask, _ in list(self._open.values()):
            self._send(ask)

    def end(self, code: int, message: str) -> None:
        """Nothing will be answered any more."""
        for _, waiter in self._open.values():
            if not waiter.done():
                waiter.set_exception(OSError(code, message))

    async def _ask(self, ask: Question) -> Answer:
        await self._able()
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[ask.ticket] = (ask, waiter)
        try:
            self._send(ask)
            return await waiter
        finally:
            self._open.pop(ask.ticket, None)
