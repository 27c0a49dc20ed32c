"""Embeddings by llama.cpp: one text at a time through a context of its own."""

from __future__ import annotations

import errno
from typing import Any

from aiosd.engine import gguf
from aiosd.engine.binding import L, silence
from aiosd.engine.embed import too_long, unit
from aiosd.engine.protocol import CoreSetup
from aiosd.engine.vocabulary import Vocabulary
from aiosd.engine.weights import title


class LlamaEmbedder:
    """A GGUF model that embeds; see `embed.Embedder`. One that was made to generate does too."""

    def __init__(self, setup: CoreSetup) -> None:
        """Raises OSError: the model is missing, unreadable, foreign, truncated or too large."""
        gguf.check(setup.model)
        silence()
        params = L.llama_model_default_params()
        params.n_gpu_layers = setup.gpu_layers
        self._model = L.llama_model_load_from_file(setup.model.encode(), params)
        if not self._model:
            raise OSError(errno.ENOEXEC, f"{setup.model}: llama.cpp can't open it")
        self._context = self._open(setup, L.LLAMA_POOLING_TYPE_UNSPECIFIED)
        if L.llama_pooling_type(self._context) == L.LLAMA_POOLING_TYPE_NONE:
            L.llama_free(self._context)  # it gives a vector for each token: take their mean
            self._context = self._open(setup, L.LLAMA_POOLING_TYPE_MEAN)
        self._vocabulary = Vocabulary(self._model)
        self._dim = int(L.llama_model_n_embd(self._model))
        self.name = title(setup)
        self.n_ctx = setup.n_ctx
        self.n_ctx_train = int(L.llama_model_n_ctx_train(self._model))
        self.n_vocab = self._vocabulary.size
        self.fingerprint = f"embed-{self.name}-{setup.quantize}"

    def _open(self, setup: CoreSetup, pooling: int) -> Any:
        params = L.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = setup.n_ctx
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = setup.threads
        params.embeddings, params.pooling_type = True, pooling
        context = L.llama_init_from_model(self._model, params)
        if not context:
            raise OSError(errno.ENOMEM, f"{setup.model}: no context of {setup.n_ctx} tokens")
        return context

    def embed(self, text: str) -> tuple[list[float], int]:
        """Return a text's vector and its tokens, those that the model puts around it counted."""
        tokens = self._tokens(text)
        if len(tokens) > self.n_ctx:
            raise too_long(len(tokens), self.n_ctx)
        memory = L.llama_get_memory(self._context)
        if memory:
            L.llama_memory_clear(memory, True)
        array = (L.llama_token * len(tokens))(*tokens)
        if L.llama_decode(self._context, L.llama_batch_get_one(array, len(tokens))) != 0:
            raise OSError(errno.EIO, "texts: llama.cpp could not compute one")
        found = L.llama_get_embeddings_seq(self._context, 0)
        if not found:
            raise OSError(errno.ENOTSUP, f"model {self.name} gives no embeddings")
        return unit(found[: self._dim]), len(tokens)

    def _tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        array = (L.llama_token * room)()
        handle = self._vocabulary.handle
        count = L.llama_tokenize(handle, data, len(data), array, room, True, False)
        if count <= 0:
            raise OSError(errno.EINVAL, "texts: one has no tokens")
        return list(array[:count])
