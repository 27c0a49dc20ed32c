"""gateway: what HTTP costs, and how it compares with llama.cpp's own server through one client.

Claims: eight agents at once, 64 tokens each, greedy, take at most 1.05 times as long over the
gateway as through the SDK; and over the gateway they get at least 0.95 times the tokens per second
of llama.cpp's server (xllamacpp). Shown beside it, without a claim: the same with streams, where
each token is an event of its own.

How: same model file, threads, slots and context; the same raw prompts by POST /v1/completions, from
one client with a connection for each agent and request; each server a process of its own, and only
the one that is measured has work. Seconds run from the first request to the last answer. New
prompts in every round, so no prompt cache has a part in it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any, Final

import uvloop

from aiosd.abi.process import RegisterAgent
from aiosd.abi.system import GetGateway
from aiosd.config import PACKAGED_MODEL, find_model
from tests.bench.crowd import TOKENS, Crowd, prompts
from tests.bench.kernel import N_CTX, Kernel, core
from tests.bench.llama_server import LlamaServer
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import Client

ROUNDS: Final = 3
COUNT: Final = 8


class Http:
    """A client of an OpenAI-compatible server. keys: one for each of its agents."""

    def __init__(self, host: str, port: int, keys: list[str]) -> None:
        self._host, self._port, self._keys = host, port, keys
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def together(self, texts: list[str], stream: bool = False) -> float:
        """Ask for all continuations at once: tokens/s."""
        began = perf_counter()
        self._runner.run(self._together(texts, stream))
        return len(texts) * TOKENS / (perf_counter() - began)

    def close(self) -> None:
        """Be done."""
        self._runner.close()

    async def _together(self, texts: list[str], stream: bool) -> None:
        pairs = zip(texts, self._keys, strict=True)
        await asyncio.gather(*(self._ask(text, key, stream) for text, key in pairs))

    async def _ask(self, text: str, key: str, stream: bool) -> None:
        asked = {"prompt": text, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
        more = {"stream_options": {"include_usage": True}} if stream else {}
        body = json.dumps({**asked, **more}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(head.encode() + body)
        reply = await reader.read()
        writer.close()
        if b" 200 " not in reply.split(b"\r\n", 1)[0] or _tokens(reply, stream) != TOKENS:
            raise RuntimeError(f"not {TOKENS} tokens: {reply[:500]!r}")


def _tokens(reply: bytes, stream: bool) -> int:
    """Return how many tokens a server says that it made."""
    data = reply.partition(b"\r\n\r\n")[2]
    if stream:
        data = data[data.rindex(b"data: {") + 6 :].split(b"\n", 1)[0]
    answer: dict[str, Any] = json.loads(data.strip())
    return int(answer["usage"]["completion_tokens"])


def run(rounds: int) -> Iterator[Ratio]:
    """Measure the SDK, the gateway and the peer in turns."""
    model = str(find_model(PACKAGED_MODEL))
    with Kernel(core("c", slots=COUNT)) as kernel:
        kernel.cores()
        clients = [kernel.connect() for _ in range(COUNT)]
        keys = [client.call(RegisterAgent(name="http")).credential for client in clients]
        with (
            LlamaServer(model, COUNT, N_CTX, os.cpu_count() or 1) as server,
            Crowd(kernel, COUNT) as crowd,
        ):
            ours = Http("127.0.0.1", _port(clients[0]), keys)
            theirs = Http(*server.address, [""] * COUNT)
            yield from _measured(rounds or ROUNDS, crowd, ours, theirs)
            ours.close()
            theirs.close()
        for client in clients:
            client.close()


def _measured(rounds: int, crowd: Crowd, ours: Http, theirs: Http) -> Iterator[Ratio]:
    turn = iter(range(10_000))

    def timed(together: Callable[[list[str]], Any]) -> Callable[[], float]:
        return lambda: float(together(prompts(next(turn), COUNT)))

    sides = (
        timed(lambda texts: crowd.together(texts)[0]),
        timed(ours.together),
        timed(theirs.together),
        timed(lambda texts: ours.together(texts, True)),
        timed(lambda texts: theirs.together(texts, True)),
    )
    for side in sides:
        side()
    (sdk, http, peer, http_s, peer_s), noise = interleave(rounds, *sides)
    rows: list[tuple[str, list[float], list[float], float | None, bool]] = [
        ("seconds, over the gateway / through the SDK", sdk, http, 1.05, True),
        ("tokens/s, gateway / llama.cpp's server", http, peer, 0.95, False),
        ("tokens/s with streams, gateway / llama.cpp's server", http_s, peer_s, None, False),
    ]
    for what, above, below, limit, at_most in rows:
        yield Ratio(
            bench="gateway",
            what=f"{COUNT} at once, {what}",
            rounds=divide(above, below),
            limit=limit,
            at_most=at_most,
            noise=noise,
            figures={"above/s": median(above), "below/s": median(below)},
        )


def _port(client: Client) -> int:
    return int(client.call(GetGateway()).http.rpartition(":")[2])
