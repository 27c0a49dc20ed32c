"""A core worker: `python -m aiosd.engine --fd N`, started by the kernel.

N is the inherited end of a socketpair that speaks `aiosd.engine.protocol`. The process dies with
its kernel: by the socket's end, and by PR_SET_PDEATHSIG. It runs niced below the kernel
(AIOS_ENGINE_NICE, 19 unless set).

Threads: this one owns the model; one more reads the socket, answers what needs no KV (Ask) itself
and queues the rest. Exit status: 0 when told to leave or when the kernel has gone, 1 when the model
can't be opened, 76 (EX_PROTOCOL) on a malformed frame, 70 (EX_SOFTWARE) with a traceback on
standard error when an invariant is broken.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
import time
from queue import SimpleQueue

import msgspec

from aiosd.child import EX_PROTOCOL, begin
from aiosd.engine import calls, callstyle, embed, schema, watermark, weights
from aiosd.engine import protocol as p
from aiosd.engine.link import Link
from aiosd.engine.loop import Loop
from aiosd.engine.runner import Runner, open_runner

EX_SOFTWARE = 70


class Worker:
    """The two threads' meeting point."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox: SimpleQueue[p.Command] = SimpleQueue()
        self._runner: Runner | None = None
        self._embedder: embed.Embedder | None = None
        self._secret = b""

    def serve(self) -> int:
        """Open the model that the first command names, then compute until the process ends."""
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        reader.start()
        first = self._inbox.get()
        if not isinstance(first, p.Load):
            raise ValueError(f"the first command was {type(first).__name__}, not Load")
        began = time.perf_counter()
        try:
            setup = weights.convert(first.setup, lambda: self._link.send(p.Opening()))
            if setup.runner.endswith(embed.SUFFIX):
                return self._embed(setup, began)
            runner = open_runner(setup, first.secret)
        except OSError as e:
            self._link.send(p.Failed(e.errno or errno.EIO, e.strerror or str(e)))
            return 1
        self._secret = first.secret
        self._runner = runner
        self._link.send(_loaded(runner, setup, time.perf_counter() - began))
        Loop(runner, setup, self._inbox, self._link.send).run()
        return 0

    def _embed(self, setup: p.CoreSetup, began: float) -> int:
        """Open a model that embeds; the reader's thread answers for it until the process ends."""
        found = embed.open_embedder(setup)
        self._embedder = found
        self._link.send(_opened(found, setup, time.perf_counter() - began))
        while True:
            self._inbox.get()

    def _read(self) -> None:
        """Feed the main thread; end the process when the kernel goes, whatever that one does."""
        try:
            while (command := self._link.receive()) is not None:
                if isinstance(command, p.Quit):
                    break
                if isinstance(command, p.Ask):
                    self._answer(command)
                else:
                    self._inbox.put(command)
        except BrokenPipeError:
            pass
        except ValueError as e:
            sys.stderr.write(f"aiosd.engine: {e}\n")
            sys.stderr.flush()
            os._exit(EX_PROTOCOL)
        os._exit(0)

    def _answer(self, request: p.Ask) -> None:
        if self._runner is None and self._embedder is None:
            message = "the model is still being opened; ask again after Loaded"
            self._link.send(p.Refused(request.ticket, errno.EAGAIN, message))
            return
        try:
            if self._runner is None:
                answer: p.Event = self._vectors(request)
            else:
                answer = self._found(self._runner, request)
        except OSError as e:
            message = e.strerror or str(e)
            answer = p.Refused(request.ticket, e.errno or errno.EINVAL, message)
        self._link.send(answer)

    def _vectors(self, request: p.Ask) -> p.Answer:
        if not isinstance(request, p.Embed) or self._embedder is None:
            raise OSError(errno.ENOTSUP, "this core embeds, and does nothing else")
        found = [self._embedder.embed(text) for text in request.texts]
        vectors = embed.packed([vector for vector, _ in found])
        return p.Embedded(request.ticket, vectors, sum(tokens for _, tokens in found))

    def _found(self, runner: Runner, request: p.Ask) -> p.Answer:
        if isinstance(request, p.Tokenize):
            tokens = runner.encode(request)
            return p.Tokens(request.ticket, tokens, *runner.outline(request, tokens))
        if isinstance(request, p.Detokenize):
            return p.Pieces(request.ticket, [runner.piece(token) for token in request.tokens])
        if isinstance(request, p.Detect):
            asked = p.Tokenize(request.ticket, request.text, "", raw=True, follow=True)
            tokens = request.tokens or runner.encode(asked)
            return p.Detected(request.ticket, len(tokens), *watermark.count(self._secret, tokens))
        if isinstance(request, p.Embed):
            raise OSError(errno.ENOTSUP, "this core generates; add one with embedding = true")
        grammar = _grammar(request)
        runner.compile(grammar)
        return p.Compiled(request.ticket, grammar)


def _grammar(request: p.Compile) -> str:
    """Return the grammar of what is to be compiled; raises OSError(EINVAL)."""
    if request.offer:
        offer = msgspec.json.decode(request.offer, type=calls.Offer)
        return calls.grammar(offer) if offer.style is None else callstyle.grammar(offer)
    return schema.grammar(request.schema) if request.schema else request.grammar


def _loaded(runner: Runner, setup: p.CoreSetup, seconds: float) -> p.Loaded:
    info = runner.info
    return p.Loaded(
        name=info.name,
        fingerprint=info.fingerprint,
        n_vocab=info.n_vocab,
        n_ctx=info.n_ctx,
        n_ctx_train=info.n_ctx_train,
        slots=setup.slots,
        grid=setup.grid,
        chat_template=info.chat_template,
        exact=info.exact,
        setting=info.setting,
        verdict=info.verdict,
        kv_bytes_per_token=info.kv_bytes_per_token,
        rss=_rss(),
        seconds=seconds,
        shifts=info.shifts,
        rolls_back=info.rolls_back,
        calls=info.calls,
    )


def _opened(model: embed.Embedder, setup: p.CoreSetup, seconds: float) -> p.Loaded:
    return p.Loaded(
        name=model.name,
        fingerprint=model.fingerprint,
        n_vocab=model.n_vocab,
        n_ctx=model.n_ctx,
        n_ctx_train=model.n_ctx_train,
        slots=setup.slots,
        grid=setup.grid,
        chat_template=False,
        exact=None,
        setting="embeddings",
        verdict="",
        kv_bytes_per_token=0,
        rss=_rss(),
        seconds=seconds,
    )


def _rss() -> int:
    """Resident memory in bytes."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run a worker; returns its exit status."""
    sock = begin("aiosd.engine", "AIOS core worker", "AIOS_ENGINE_NICE")
    try:
        return Worker(Link(sock)).serve()
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    # The other thread waits inside the socket's buffer, and tidying up would wait for it.
    atexit.register(os._exit, EX_SOFTWARE)  # reached after an exception's traceback
    os._exit(main())
