"""llama.cpp's conversion of weights to another type."""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from aiosd.engine.binding import LOG_ERROR, L

_deaf = L.llama_log_callback(lambda level, text, user: None)  # kept: llama.cpp holds no reference


def quantize(
    source: str, target: str, number: int, threads: int, alive: Callable[[], None]
) -> None:
    """Convert a GGUF file to a type, by llama.cpp's number of it; raises OSError(ENOEXEC).

    alive: called for each line that llama.cpp has to say of it, one or more for each tensor.
    """
    errors: deque[str] = deque(maxlen=4)

    def hear(level: int, text: bytes, user: Any) -> None:
        if level == LOG_ERROR:
            errors.append(text.decode("utf-8", "replace").strip())
        alive()

    callback = L.llama_log_callback(hear)
    L.llama_log_set(callback, ctypes.c_void_p(0))  # the runner that opens the model sets its own
    L.llama_backend_init()
    params = L.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = number, threads, True
    try:
        failed = L.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(params)
        )
    finally:
        L.llama_log_set(_deaf, ctypes.c_void_p(0))
    if failed:
        reason = "; ".join(errors) or "it gave no reason"
        text = f"{source}: llama.cpp does not convert its weights: {reason}"
        raise OSError(errno.ENOEXEC, f"{text}; take another type, or leave quantize empty")
