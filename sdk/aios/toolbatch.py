"""Several calls of a model, computed at once in its host: `together` of the tool's declaration.

frames = compute(tool, calls, refusal)

Each call is answered by a frame of its own. Arguments that don't fit, a result that is none, or an
exception in its place fail the call that they are of; an exception of `together` fails all.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aios.tools import BadArguments, BadResult, Declared
from aiosd.abi import toolwire

Refusal = Callable[[toolwire.Call, BaseException], bytes]
"""Returns the frame that answers a call which an exception has ended."""


def compute(tool: Declared, calls: Sequence[toolwire.Call], refusal: Refusal) -> list[bytes]:
    """Return a frame for each call, in their order."""
    answers: dict[int, bytes] = {}
    ready: list[tuple[toolwire.Call, dict[str, Any]]] = []
    for call in calls:
        try:
            ready.append((call, _found(tool.convert(call.arguments), call.workspace)))
        except BadArguments as error:
            answers[call.ticket] = refusal(call, error)
    if ready:
        values = _values(tool, [arguments for _, arguments in ready])
        for (call, _), value in zip(ready, values, strict=True):
            answers[call.ticket] = _framed(tool, call, value, refusal)
    return [answers[call.ticket] for call in calls]


def _values(tool: Declared, arguments: list[dict[str, Any]]) -> list[Any]:
    assert tool.together is not None
    values: Any = tool.together(arguments)
    if not isinstance(values, list) or len(values) != len(arguments):
        raise BadResult(f"{tool.name} gave no list of {len(arguments)} results, one for each call")
    return values


def _framed(tool: Declared, call: toolwire.Call, value: Any, refusal: Refusal) -> bytes:
    if isinstance(value, BaseException):
        return refusal(call, value)
    try:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        done = toolwire.Done(call.ticket, tool.result(value), metrics={"memory": memory})
        return toolwire.pack(done)
    except (BadResult, TypeError, ValueError, OverflowError, RecursionError) as error:
        return refusal(call, BadResult(str(error)))


def _found(arguments: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return arguments with the files of the call where they are: the host works in no one's."""
    return {name: _beneath(value, folder) for name, value in arguments.items()}


def _beneath(value: Any, folder: str) -> Any:
    if isinstance(value, Path):
        return Path(os.path.join(folder, value))
    if isinstance(value, list) and value and all(isinstance(each, Path) for each in value):
        return [_beneath(each, folder) for each in value]
    return value
