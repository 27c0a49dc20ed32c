"""llama.cpp as it is loaded here: the one file that imports its bindings.

    from aiosd.engine.binding import L, reason, silence

L: the bindings, which have no types. What llama.cpp writes goes nowhere but to `reason`.
Whoever imports it from elsewhere may load the library before it is told how its threads wait.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from pathlib import Path
from typing import Any, Final

# How long OpenMP's threads spin before they sleep; read when the library loads. So an undisturbed
# step is as fast as with its own, sixty times longer, default, and a disturbed one, before `Pace`
# notices, takes 150 ms and not 1,600.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import llama_cpp
import llama_cpp.llama_chat_format

L: Any = llama_cpp

TemplateFormatter: Any = llama_cpp.llama_chat_format.Jinja2ChatFormatter
"""Renders a model's chat template."""
LOG_ERROR: Final = 4

_errors: deque[str] = deque(maxlen=4)


def _on_log(level: int, text: bytes, user: Any) -> None:
    if level == LOG_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


_log_callback = L.llama_log_callback(_on_log)  # kept: llama.cpp holds no reference of its own


def reason() -> str:
    """Return what llama.cpp said last of what went wrong."""
    return "; ".join(_errors) or "llama.cpp gave no reason"


def build() -> str:
    """Name this build of llama.cpp."""
    libraries = (Path(llama_cpp.__file__).parent / "lib").glob("*.so")
    sizes = sorted((file.name, file.stat().st_size) for file in libraries)
    return f"{llama_cpp.__version__} {sizes}"


def silence() -> None:
    """Keep llama.cpp from writing to standard error, and have its back ends ready."""
    L.llama_log_set(_log_callback, ctypes.c_void_p(0))
    L.llama_backend_init()
