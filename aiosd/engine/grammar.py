"""Grammars on llama.cpp: `Grammars` reads and keeps them, `Grammar` is where a sequence stands.

llama.cpp ends the process when it is given a token that its grammar forbids, and its reader hangs
on some texts. So it reads only what `gbnf` has written, and takes only tokens that it has allowed.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiosd.engine import gbnf
from aiosd.engine.binding import L

KEPT: Final = 32  # grammars that are kept ready
SLOW_S: Final = 1.0  # a grammar that holds up everybody for so long is refused

TOO_SLOW: Final = (
    f"grammar: one token took more than {SLOW_S:g} s, since it can be read in too many ways; "
    "make it less ambiguous"
)

Tokens = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class Grammars:
    """The grammars of a model's vocabulary. Any thread may use it."""

    def __init__(self, vocabulary: Any, piece: Callable[[int], bytes]) -> None:
        """vocabulary: llama.cpp's; piece: the bytes of a token."""
        self._vocabulary = vocabulary
        self._piece = piece
        self._ragged = np.zeros(0, np.bool_)
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def compile(self, text: str) -> None:
        """Read a grammar; raises OSError(EINVAL) with the reason when it is none."""
        with self._lock:
            self._found(text)

    def open(self, text: str) -> Grammar:
        """Begin with a grammar; raises OSError(EINVAL)."""
        with self._lock:
            if not len(self._ragged):
                size = int(L.llama_vocab_n_tokens(self._vocabulary))
                self._ragged = np.array([not _is_whole(self._piece(t)) for t in range(size)])
            return Grammar(L.llama_sampler_clone(self._found(text)), self._piece, self._ragged)

    def _found(self, text: str) -> Any:
        found = self._kept.pop(text, None)
        if found is None:
            written = gbnf.render(gbnf.parse(text)).encode()
            found = L.llama_sampler_init_grammar(self._vocabulary, written, b"root")
            if not found:
                raise OSError(errno.EINVAL, "grammar: llama.cpp can't use it")
        self._kept[text] = found
        while len(self._kept) > KEPT:
            L.llama_sampler_free(self._kept.pop(next(iter(self._kept))))
        return found


class Grammar:
    """Where one sequence stands in its grammar: it follows from the tokens that were taken."""

    def __init__(
        self, sampler: Any, piece: Callable[[int], bytes], ragged: npt.NDArray[np.bool_]
    ) -> None:
        """ragged: whether a token's bytes are no whole characters."""
        self._ragged = ragged
        self._sampler = sampler
        self._piece = piece
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._array = L.llama_token_data_array()
        self._slow = False

    def __del__(self) -> None:
        L.llama_sampler_free(self._sampler)

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        return bool(self.allowed(np.array([token], np.int32))[0])

    def allowed(self, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Which of some tokens may come next. The text stays UTF-8, which llama.cpp is lax about.

        Raises OSError(EINVAL) when it takes, or the last `accept` took, too long.
        """
        candidates = np.zeros(len(tokens), [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        candidates["id"] = tokens
        array = self._array
        array.data = ctypes.cast(candidates.ctypes.data, L.llama_token_data_p)
        array.size, array.selected, array.sorted = len(tokens), -1, False
        began = perf_counter()
        L.llama_sampler_apply(self._sampler, ctypes.byref(array))
        if self._slow or perf_counter() - began > SLOW_S:
            raise OSError(errno.EINVAL, TOO_SLOW)
        allowed: npt.NDArray[np.bool_] = candidates["logit"] > -np.inf
        begun = self._text.getstate()[0]
        suspects = allowed if begun else allowed & self._ragged[tokens]
        for place in np.flatnonzero(suspects):
            allowed[place] = _goes_on(begun, self._piece(int(tokens[place])))
        return allowed

    def accept(self, token: int) -> None:
        """Take a token that is allowed."""
        began = perf_counter()
        L.llama_sampler_accept(self._sampler, token)
        self._text.decode(self._piece(token))
        self._slow = perf_counter() - began > SLOW_S

    def replay(self, tokens: Sequence[int]) -> None:
        """Take the tokens that are there already; OSError(EINVAL) when they break the grammar."""
        for token in tokens:
            if not self.allows(token):
                raise OSError(errno.EINVAL, "grammar: what was generated before does not follow it")
            self.accept(token)


def _is_whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _goes_on(begun: bytes, piece: bytes) -> bool:
    """Whether the bytes of a character that has begun may be followed by these."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begun + piece)
    except UnicodeDecodeError:
        return False
    return bool(piece)
