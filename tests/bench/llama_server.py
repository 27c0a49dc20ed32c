"""llama.cpp's own server, from the package xllamacpp: the yardstick, in a process of its own.

    python -m tests.bench.llama_server MODEL SLOTS N_CTX THREADS     prints its address

    with LlamaServer(...) as server: server.together(prompts)

It runs as nice as our workers do. Its best settings: continuous batching, prompt cache, flash
attention, one KV stream per slot. The
client is this module's: one connection per request on uvloop, the answer in one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvloop

from aiosd.sched.workload import Agent, Workload
from tests.bench.crowd import TOKENS
from tests.bench.play import Served, play
from tests.daemon import ROOT

T = TypeVar("T")


class LlamaServer:
    """The server's process and a client of it. n_ctx is tokens per slot."""

    def __init__(self, model: str, slots: int, n_ctx: int, threads: int) -> None:
        self._arguments = [model, str(slots), str(n_ctx), str(threads)]

    def __enter__(self) -> LlamaServer:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        command = [sys.executable, "-m", "tests.bench.llama_server", *self._arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # it serves until this closes
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        address = urlsplit(self._process.stdout.readline().decode().strip())
        if not address.port:
            self.__exit__()
            raise RuntimeError("llama.cpp's server did not start")
        self._host, self._port = str(address.hostname), address.port
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        return self._host, self._port

    def together(self, texts: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
        """Ask for all continuations at once: (tokens/s, answers)."""
        return self._runner.run(self._together(texts))

    async def _together(self, texts: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
        began = perf_counter()
        answers = await asyncio.gather(*(self._ask(text) for text in texts))
        seconds = perf_counter() - began
        return sum(answer["tokens_predicted"] for answer in answers) / seconds, answers

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what talks to the server, on its client's loop."""
        return self._runner.run(work)

    async def complete(self, text: str, tokens: int) -> str:
        """Return how the server goes on with a text, for exactly so many tokens."""
        asked = {"prompt": text, "n_predict": tokens, "temperature": 0, "cache_prompt": True}
        reader, writer = await self._post({**asked, "ignore_eos": True})
        answer = _answer(await reader.read())
        writer.close()
        await writer.wait_closed()
        if answer["tokens_predicted"] != tokens:
            raise RuntimeError(f"llama.cpp's server: {answer['tokens_predicted']} of {tokens}")
        return str(answer["content"])

    def play(self, workload: Workload, salt: int) -> list[Served]:
        """Play a workload."""
        return self._runner.run(play(workload, self._stream, salt))

    async def _stream(self, agent: Agent, text: str, tokens: int) -> list[float]:
        """Ask for exactly so many tokens; return when each came."""
        asked = {"prompt": text, "n_predict": tokens, "temperature": 0, "cache_prompt": True}
        reader, writer = await self._post({**asked, "stream": True, "ignore_eos": True})
        times = [
            perf_counter()
            async for line in reader
            if line.startswith(b"data: ") and not json.loads(line[6:]).get("stop")
        ]
        writer.close()
        await writer.wait_closed()
        if not times:
            raise RuntimeError(f"llama.cpp's server said nothing to {agent.name}")
        return times

    async def _ask(self, text: str) -> dict[str, Any]:
        asked = {"prompt": text, "n_predict": TOKENS, "temperature": 0, "cache_prompt": True}
        reader, writer = await self._post(asked)
        answer = _answer(await reader.read())
        writer.close()
        await writer.wait_closed()
        if answer["tokens_predicted"] != TOKENS:
            raise RuntimeError(f"the model had no more to say: {text!r}")
        return answer

    async def _post(
        self, asked: dict[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        body = json.dumps(asked).encode()
        head = (
            f"POST /completion HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(head.encode() + body)
        return reader, writer


def _answer(reply: bytes) -> dict[str, Any]:
    """Return the body of a reply; raises RuntimeError when it is none."""
    status, _, rest = reply.partition(b"\r\n")
    if b" 200 " not in status:
        raise RuntimeError(f"llama.cpp's server: {reply[:500]!r}")
    answer: dict[str, Any] = json.loads(rest.partition(b"\r\n\r\n")[2])
    return answer


def _serve(model: str, slots: int, n_ctx: int, threads: int) -> None:
    import xllamacpp

    os.nice(19)  # as our workers are: on a machine that is never quiet both get the same share
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel, params.n_ctx = slots, slots * n_ctx
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cont_batching = params.cache_prompt = True
    params.kv_unified = False
    params.verbosity, params.port = 0, 0
    server = xllamacpp.Server(params)
    sys.stdout.write(server.listening_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], *(int(argument) for argument in sys.argv[2:5]))
