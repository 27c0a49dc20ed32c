"""Tools for the tests of the tool host: well and badly behaved ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from aios.tools import BadArguments, Meta, Unavailable, secret, setting, tool


@tool(idempotent=True)
def add(a: int, b: Annotated[int, Meta(le=100)] = 1) -> int:
    """Add two numbers.

    a: the first
    b: the second
    """
    return a + b


@tool
async def later(text: str) -> str:
    """Give a text back in a while."""
    await asyncio.sleep(0)
    return text


@tool
def say(out: str, err: str) -> None:
    """Print to both, the second from a program of its own."""
    print(out, end="")
    subprocess.run(["sh", "-c", f"echo -n {err} >&2"], check=True)


@tool
def write(name: Path, text: str) -> Path:
    """Write a file, and another one beside it."""
    name.write_text(text)
    Path("beside").mkdir(exist_ok=True)
    Path("beside/log").write_text(text)
    return name


@tool(kind="image")
def picture() -> bytes:
    """Draw."""
    return b"\x89PNG\r\n\x1a\n"


@tool
def fail(how: str) -> Any:
    """Do not give a result, in one of many ways."""
    ways: dict[str, Callable[[], Any]] = {
        "raise": lambda: [0][len(how)],
        "exit": lambda: sys.exit(3),
        "interrupt": lambda: _raise(KeyboardInterrupt()),
        "cancelled": lambda: _raise(asyncio.CancelledError()),
        "unavailable": lambda: secret("SAMPLE_KEY"),
        "missing": lambda: __import__("no_such_library"),
        "arguments": lambda: _raise(BadArguments("how: not so")),
        "setting": lambda: _raise(Unavailable(setting("SAMPLE_URL", "nowhere"))),
        "object": object,
        "surrogate": lambda: "\udc80",
        "huge": lambda: 1 << 70,
        "long": lambda: "x" * (33 << 20),
        "deep": _deep,
        "fork": os.fork,
        "die": lambda: os._exit(9),
        "close": lambda: [sys.stdout.close(), sys.stderr.close()],
    }
    return ways[how]()


@tool
def lie() -> int:
    """Return something else than was said."""
    return str(1)  # type: ignore[return-value]


@tool
def outside() -> Path:
    """Name a file outside the workspace."""
    return Path(__file__)


@tool
def hang() -> str:
    """Say that it hangs, and do."""
    Path("hanging").touch()
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 (as tools do that retry everything)
            continue


def _raise(error: BaseException) -> NoReturn:
    raise error


def _deep() -> object:
    nested: object = None
    for _ in range(100):
        nested = [nested]
    return nested
