"""A call of the table made ready for dispatch: its decoder, its handler, its statistics.

What must hold: everything that can be found out about a call before the first request is found
out here, so that a request costs nothing but itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgspec

from aiosd.abi.call import Syscall
from aiosd.abi.system import CallStatistics


class Entry:
    """A call of the table, prepared for dispatch, with its statistics.

    fast: the handler where the short way through `Dispatcher.handle` will do, else None. third:
    the name of the handler's third parameter, or "". keyed: the dispatcher keeps its answers by
    key; lasting: on disk too. floats: arguments that must be finite. free: its body admits free
    nesting. alone: nothing else of the session is handled until it is answered. failures: how often
    it failed, by errno.
    """

    __slots__ = (
        "alone", "asynchronous", "call", "calls", "decode", "errors", "failures", "fast", "floats",
        "free", "handler", "keyed", "lasting", "needs", "seconds", "slowest", "third", "waits",
    )  # fmt: skip

    def __init__(self, call: Syscall) -> None:
        self.call = call
        self.decode = msgspec.msgpack.Decoder(call.args).decode
        hints = get_type_hints(call.args)
        self.floats = tuple(name for name, hint in hints.items() if float in _types(hint))
        self.free = any(Any in _types(hint) for hint in hints.values())
        self.needs = bool(call.needs)
        self.handler: Callable[..., Any] | None = None
        self.fast: Callable[..., Any] | None = None
        self.asynchronous = self.keyed = self.lasting = self.waits = self.alone = False
        self.third = ""
        self.calls = self.errors = 0
        self.seconds = self.slowest = 0.0
        self.failures: dict[int, int] = {}

    def bind(self, handler: Callable[..., Any]) -> None:
        """Make `handler` the one that answers this call.

        Raises ValueError when it has one already or the handler's signature is none.
        """
        if self.handler is not None:
            raise ValueError(f"{self.call.name} has two handlers")
        self.asynchronous = inspect.iscoroutinefunction(handler)
        third = list(inspect.signature(handler).parameters)[2:]
        if third not in ([], ["stream"], ["session"]) or (third == ["stream"]) > self.asynchronous:
            raise ValueError(f"sys_{self.call.name}: its signature is not that of a handler")
        self.handler = handler
        self.third = "".join(third)
        self.keyed = not self.call.idempotent and not getattr(handler, "keeps_keys", False)
        self.lasting = getattr(handler, "lasting", False)
        streams = self.call.chunk is not None and self.call.reply is None
        self.waits = streams or getattr(handler, "waits", False)
        self.alone = self.asynchronous and self.third == "session"
        if not (self.asynchronous or self.keyed or self.third or self.free):
            self.fast = handler

    def count(self, seconds: float, failure: int) -> None:
        """Enter one answered request in the statistics. failure: its errno, 0 for none."""
        self.calls += 1
        self.seconds += seconds
        if seconds > self.slowest:
            self.slowest = seconds
        if failure:
            self.errors += 1
            self.failures[failure] = self.failures.get(failure, 0) + 1

    def statistics(self) -> CallStatistics:
        """Return the call's numbers so far."""
        return CallStatistics(self.call.name, self.calls, self.errors, self.seconds, self.slowest)


def _types(hint: Any) -> set[Any]:
    """Return the types that a field's annotation mentions, Annotated and unions opened."""
    inner = get_args(hint)
    if not inner:
        return {hint}
    return set().union(*map(_types, inner))
