"""Turns the words of a command line into the plain values that our commands take.

Typer does it through pydantic, whose import is a third of a short command's time; our parameters
are texts and numbers. `lighten` puts the few lines below in its place, where this version of typer
has such a place: elsewhere, and for any other type, typer's own way stays.
"""

from __future__ import annotations

from typing import Any, Final

import typer

KINDS: Final[dict[Any, Any]] = {str: str, int: int, float: float, bool: bool, list[str]: str}
"""Types of parameters, and what each word becomes."""


class Plain:
    """Takes the place of typer's coercion for one parameter."""

    def __init__(self, kind: Any, least: float | None, most: float | None) -> None:
        self._kind = kind
        self._least = least
        self._most = most

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value of a parameter. Raises typer.BadParameter for a wrong word."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        if many:
            return [self._one(word, param, ctx) for word in value]
        return self._one(value, param, ctx)

    def _one(self, word: Any, param: Any, ctx: Any) -> Any:
        try:
            value = self._kind(word)
        except ValueError:
            what = "an integer" if self._kind is int else "a number"
            raise typer.BadParameter(f"{word!r} is not {what}", ctx=ctx, param=param) from None
        if isinstance(value, int | float):
            self._within(value, param, ctx)
        return value

    def _within(self, value: float, param: Any, ctx: Any) -> None:
        low, high = self._least, self._most
        # Written so that nan, which is neither, is refused.
        if (low is None or value >= low) and (high is None or value <= high) and value == value:
            return
        limits = " to ".join(str(limit) for limit in (low, high) if limit is not None)
        word = "from" if high is None else "up to" if low is None else "within"
        raise typer.BadParameter(f"{value} is not {word} {limits}", ctx=ctx, param=param)


def lighten(command: Any, parent: Any = None) -> Any:
    """Make the parameters of a command and of all below it plain, where possible; return it.

    parent: the context of the command above.
    """
    context = command.context_class(command, parent=parent, **command.context_settings)
    for param in command.get_params(context):  # --help among them
        if getattr(param, "is_flag", False):
            param.metavar = ""  # typer's help writes <bool> there, as if a flag took a word
        descriptor = getattr(param, "type_descriptor", None)
        kind = KINDS.get(getattr(descriptor, "annotation", None))
        if kind is not None and getattr(param, "_runtime_param", 0) is None:
            info = descriptor.parameter_info  # type: ignore[union-attr]
            param._runtime_param = Plain(kind, info.min, info.max)
    for below in getattr(command, "commands", {}).values():
        lighten(below, context)
    return command
