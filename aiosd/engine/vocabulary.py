"""A model's tokens and its chat template, by llama.cpp. Any thread may use them."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from typing import Any

import msgspec

from aiosd.engine import callstyle
from aiosd.engine.binding import L, TemplateFormatter
from aiosd.engine.prompt import Template, common, outline, segments
from aiosd.engine.protocol import Tokenize


class Vocabulary:
    """A model's tokens. Reads only what never changes: any thread may use it."""

    def __init__(self, model: Any) -> None:
        self.handle = L.llama_model_get_vocab(model)
        self.size = int(L.llama_vocab_n_tokens(self.handle))
        self._pieces: dict[int, bytes] = {}
        self._controls = self._control_words()
        self.ends = [t for t in range(self.size) if L.llama_vocab_is_eog(self.handle, t)]
        self._eog = set(self.ends)
        self._bos = int(L.llama_vocab_bos(self.handle))
        self._adds_bos = bool(L.llama_vocab_get_add_bos(self.handle)) and self._bos >= 0
        template = L.llama_model_chat_template(model, None)
        self._template = self._open_template(template) if template else None

    @property
    def has_template(self) -> bool:
        """True when the model carries a chat template."""
        return self._template is not None

    @property
    def calls(self) -> str:
        """How the chat template writes calls, see `protocol.Loaded`."""
        style = callstyle.derive(self._template, self._controls) if self._template else None
        return "" if style is None else msgspec.json.encode(style).decode()

    def encode(self, request: Tokenize) -> list[int]:
        """Tokens of a request; OSError(EINVAL) when the template refuses it."""
        tokens: list[int] = []
        for segment in segments(request, self._template, self._controls):
            tokens += self.tokens(segment.text, segment.control)
        if self._adds_bos and not request.follow and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def outline(self, request: Tokenize, tokens: Sequence[int]) -> tuple[int, int]:
        """Head and lead of a request's tokens, see `protocol.Tokens`."""
        texts = outline(request, self._template, self._controls)
        head, lead = (self.tokens(text, True) for text in texts)
        if self._adds_bos and tokens[:1] == [self._bos] != head[:1]:
            head.insert(0, self._bos)
        return common(head, tokens), len(lead)

    def tokens(self, text: str, control: bool) -> list[int]:
        """Tokens of a text; control: control tokens in it mean what they say."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = L.llama_tokenize(self.handle, data, len(data), buffer, room, False, control)
        if count < 0:
            raise OSError(errno.EINVAL, "the prompt can't be tokenized")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._read_piece(token, False)
        return found

    def is_eog(self, token: int) -> bool:
        """True when the token ends a generation."""
        return token in self._eog

    def _read_piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = L.llama_token_to_piece(self.handle, token, buffer, 256, 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = L.llama_token_to_piece(self.handle, token, buffer, -size, 0, special)
        return buffer.raw[:size]

    def _control_words(self) -> list[str]:
        marked = (t for t in range(self.size) if L.llama_vocab_is_control(self.handle, t))
        words = (self._read_piece(t, True).decode("utf-8", "replace") for t in marked)
        return sorted({w for w in words if w}, key=len, reverse=True)

    def _open_template(self, template: bytes) -> Template:
        words = [
            self._read_piece(t, True).decode("utf-8", "replace") if t >= 0 else ""
            for t in (L.llama_vocab_eos(self.handle), L.llama_vocab_bos(self.handle))
        ]
        formatter = TemplateFormatter(template.decode("utf-8", "replace"), words[0], words[1])

        def render(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
            try:
                return str(formatter(messages=messages, tools=tools).prompt)
            except Exception as e:  # the template is the model's program and may raise anything
                raise ValueError(str(e)) from e

        return render
