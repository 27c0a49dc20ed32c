"""Cores that are endpoints of a scripted server, and how tests ask them.

config = cores(frontier, "good", "bad", retries=0)
await_ready(daemon, "good", "bad")
ask(writer, "good", "Hello")
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.daemon import Daemon
from tests.frontier import WORDS, Frontier
from tests.system.agents import until
from tests.system.writer import Writer, core

TEXT = "".join(WORDS)
KEY = "sk-very-secret"


def cores(frontier: Frontier, *names: str, slots: int = 4, **more: Any) -> str:
    """Return the configuration of cores that are endpoints of a server."""
    lines = ""
    for name in names:
        remote = {
            "base_url": frontier.url(name),
            "api_key": "env:FRONTIER_KEY",
            "max_output": 100,
            **more,
        }
        table = ", ".join(f"{key} = {_toml(value)}" for key, value in remote.items())
        lines += f'[[cores]]\nname = "{name}"\ndriver = "openai"\nmodel = "m"\n'
        lines += f"slots = {slots}\n"
        lines += f"price_in = 1.0\nprice_out = 10.0\nremote = {{ {table} }}\n"
    return lines


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def ready(daemon: Daemon, name: str) -> bool:
    """Whether a core is ready."""
    return core(daemon, name).state == "ready"


def ask(writer: Writer, name: str, prompt: str = "Hello", **more: Any) -> Any:
    """Ask a core by name."""
    return writer.ask(prompt, raw=False, core=name, **more)


def await_ready(daemon: Daemon, *names: str) -> None:
    """Return once cores are ready."""
    for name in names:
        until(partial(ready, daemon, name), f"{name} is ready")
