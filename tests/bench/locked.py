"""The bare side of headline: agents that share one llama_cpp.Llama behind a lock.

    python -m tests.bench.locked MODEL N_CTX THREADS TOKENS

Reads numbers from standard input, one a line; for each it runs so many agents at once, a thread
each, and answers with the seconds until the last of them was done. The agents are the programs of
agents/, the very functions that the kernel's side runs; only what they ask is another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from typing import Any, Final, cast

import llama_cpp

from aios.kernel import Kernel
from aios.program import Options, Program
from aiosd.abi.inference import Generation, Timing, TokenUsage
from tests.daemon import ROOT

AGENTS: Final = ("math", "narrative", "rec")
"""The three agents, which take turns."""


class Locked:
    """What the agents ask instead of a kernel: one model, one request at a time."""

    aid = 0

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama
        self._lock = threading.Lock()
        self._chats: dict[int, list[dict[str, str]]] = {}
        self._numbers = itertools.count(1)

    def llm_generate(
        self, prompt: str, *, max_tokens: int, temperature: float, context: int, core: str
    ) -> Generation:
        """Answer a prompt, as Kernel.llm_generate does; a chat is sent whole each time."""
        chat = [*self._chats.get(context, []), {"role": "user", "content": prompt}]
        with self._lock:
            reply = cast(
                dict[str, Any],
                self._llama.create_chat_completion(
                    cast(Any, chat), max_tokens=max_tokens, temperature=temperature
                ),
            )
        text = reply["choices"][0]["message"]["content"]
        number = next(self._numbers)
        self._chats[number] = [*chat, {"role": "assistant", "content": text}]
        used = TokenUsage(reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
        return Generation(text, [], "stop", used, Timing(0, 0), number, core)


def main(model: str, n_ctx: int, threads: int, tokens: int) -> None:
    """Load the model, then measure as often as is asked."""
    llama = llama_cpp.Llama(
        model, n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    kernel = Locked(llama)
    programs = [_program(cast(Kernel, kernel), name, tokens) for name in AGENTS]
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            took = _measure([programs[n % len(programs)] for n in range(int(line))])
        print(took, flush=True)


def _program(kernel: Kernel, name: str, tokens: int) -> Callable[[], None]:
    """Return what one of the agents does."""
    file = ROOT / "agents" / f"{name}.py"
    prompts = tomllib.loads((file.parent / "prompts" / f"{name}.toml").read_text("utf-8"))
    spec = importlib.util.spec_from_file_location(f"{name}_agent", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = Options(task="", max_tokens=tokens, core="", json=False)
    return lambda: module.run(Program(kernel, name, prompts, options))


def _measure(programs: list[Callable[[], None]]) -> float:
    began = time.perf_counter()
    threads = [threading.Thread(target=program) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
