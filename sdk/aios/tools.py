"""Tools from Python functions: `tool` makes a declaration of a function's types and docstring.

    from typing import Annotated
    from aios.tools import Meta, tool

    @tool(needs={"network": ["api.example.org"]}, limits={"time": 10}, idempotent=True)
    def weather(city: Annotated[str, Meta(max_length=100)], days: int = 1) -> list[str]:
        \"\"\"Forecast the weather of a city, one line a day.

        city: its name in English
        days: how many to look ahead
        \"\"\"

The function stays an ordinary one. A tool host (`aios.toolhost`) serves it to the kernel: it turns
JSON into the arguments' types and the result into JSON, and refuses what doesn't fit. A function
whose types have no JSON form can't be declared, and a TypeError says why when it is defined.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal, TypedDict, TypeVar, overload

import msgspec
from msgspec import Meta

from aios import docstrings

__all__ = [
    "BadArguments",
    "BadResult",
    "Declared",
    "Limits",
    "Meta",
    "Needs",
    "Unavailable",
    "declared",
    "secret",
    "setting",
    "tool",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = Literal["json", "text", "image", "file"]
Together = Callable[[list[dict[str, Any]]], list[Any]]
"""Computes several calls: their arguments in, their results out, an exception for a failed one."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_MARK: Final = "__aios_tool__"
_MAGIC: Final = {
    b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
    b"BM": "image/bmp", b"II*\0": "image/tiff", b"MM\0*": "image/tiff",
    b"%PDF-": "application/pdf", b"PK\x03\x04": "application/zip",
}  # fmt: skip


class Needs(TypedDict, total=False):
    """What a tool asks for beyond its workspace; what it doesn't name it doesn't get.

    network: hosts, as "example.org", "*.example.org" or "host:port". read, write: paths.
    secrets: names of what the kernel's store holds; they come as environment variables.
    """

    network: list[str]
    read: list[str]
    write: list[str]
    secrets: list[str]


class Limits(TypedDict, total=False):
    """What one call may use; the kernel's settings say what holds where a tool says nothing.

    time: seconds. memory: bytes. processes: how many at a time. output: bytes of result and
    printing. rate: calls a second, of each agent; burst: how many of them at once. concurrent:
    calls of one agent under way.
    """

    time: float
    memory: int
    processes: int
    output: int
    rate: float
    burst: int
    concurrent: int


class BadArguments(ValueError):
    """The arguments don't fit the tool; a tool may raise it too."""


class BadResult(ValueError):
    """What a tool returned doesn't fit what it declared."""


class Unavailable(RuntimeError):
    """A tool can't work here: the sentence says what is missing and where to put it."""


class Declared:
    """A tool: its function, its declaration, and the types of its arguments and result."""

    def __init__(
        self,
        function: Callable[..., Any],
        declaration: dict[str, Any],
        arguments: type[msgspec.Struct],
        result: Any,
    ) -> None:
        self.function = function
        self.declaration = declaration
        self.name = str(declaration["name"])
        self.is_async = inspect.iscoroutinefunction(function)
        self.names_file = _is_path(_plain(result))
        """Whether the result is the path of a file in the workspace."""
        self.together: Together | None = None
        self._arguments = arguments
        self._result = result

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Turn arguments from JSON into what the function takes, defaults included.

        Raises BadArguments, which says what doesn't fit and where.
        """
        try:
            made = msgspec.convert(dict(arguments), self._arguments, dec_hook=_from_json)
        except (msgspec.ValidationError, ValueError) as error:
            raise BadArguments(f"{self.name}: {error}") from None
        return {name: getattr(made, name) for name in self._arguments.__struct_fields__}

    def result(self, value: Any) -> Any:
        """Turn what the function returned into values of JSON. Raises BadResult.

        Bytes become a table with `data` in base64 and `media_type`, paths strings.
        """
        try:
            plain = msgspec.to_builtins(value, enc_hook=_to_json, str_keys=True)
            msgspec.convert(plain, self._result, dec_hook=_from_json)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadResult(f"{self.name} returned what it has not declared: {error}") from None
        if isinstance(value, bytes):
            return {"data": plain, "media_type": _media_type(value)}
        return plain


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(
    *,
    name: str = "",
    version: str = "1",
    kind: Kind | None = None,
    needs: Needs | None = None,
    limits: Limits | None = None,
    idempotent: bool = False,
    exclusive: str = "",
    model: bool = False,
    batch: int = 1,
    together: Together | None = None,
) -> Callable[[Function], Function]: ...


def tool(
    function: Any = None,
    /,
    *,
    name: str = "",
    version: str = "1",
    kind: Kind | None = None,
    needs: Needs | None = None,
    limits: Limits | None = None,
    idempotent: bool = False,
    exclusive: str = "",
    model: bool = False,
    batch: int = 1,
    together: Together | None = None,
) -> Any:
    """Declare a function as a tool; the function itself stays what it is.

    name: default the function's. kind: what the result is; default "text" for str, "file" for bytes
    and paths, otherwise "json". idempotent: a call may be made again after a failure. exclusive:
    the name of a resource that only one call at a time may hold. model: one host computes for all
    agents, and finds of a workspace the files of arguments that are of the type Path. batch: how
    many calls at most `together` computes at once: it takes the arguments of each, by name, and
    returns their results in this order, values and no files; an exception among them is of one.

    Raises TypeError when no declaration can be made of the function: what is wrong, and the cure.
    """

    def declare(function: Function) -> Function:
        signature = _signature(function)
        hints = _hints(function)
        doc = docstrings.parse(function.__doc__, signature.parameters)
        if not doc.description:
            raise _error(function, "has no docstring: a model chooses tools by what it says")
        arguments = _arguments(function, signature, hints, doc.arguments)
        result = hints["return"]
        declaration = {
            "name": _name(function, name),
            "version": version,
            "description": doc.description,
            "input": _input(function, arguments),
            "output": _output(function, result),
            "kind": kind or _kind(result),
            "needs": _checked(function, "needs", needs, Needs),
            "limits": _checked(function, "limits", limits, Limits),
            "idempotent": idempotent,
            "exclusive": exclusive,
            "python": f"{function.__module__}:{function.__qualname__}",
            **_model(function, hints, model, batch, together),
        }
        made = Declared(function, declaration, arguments, result)
        made.together = together
        setattr(function, _MARK, made)
        return function

    return declare if function is None else declare(function)


def declared(function: object) -> Declared | None:
    """Return what `tool` has made of a function; None when it is no tool."""
    found = getattr(function, _MARK, None)
    return found if isinstance(found, Declared) and found.function is function else None


def secret(name: str) -> str:
    """Return a secret that the tool's declaration names. Raises Unavailable when there is none."""
    if value := os.environ.get(name):
        return value
    raise Unavailable(
        f"the secret {name} is missing: an operator puts it into aiosd's store of secrets "
        "(see aios-tools(7)), and the tool's declaration names it under needs.secrets"
    )


def setting(name: str, default: str = "") -> str:
    """Return what `[tools.settings.TOOL]` of aiosd.toml sets for this tool, or the default."""
    return os.environ.get(name, default)


def _model(
    function: Callable[..., Any],
    hints: Mapping[str, Any],
    model: bool,
    batch: int,
    together: Together | None,
) -> dict[str, Any]:
    """Return what the declaration of a model says besides."""
    if not model and (batch != 1 or together):
        raise _error(function, "computes several calls at once, which models do: model=True")
    if (batch > 1) != (together is not None):
        raise _error(function, "has batch or together alone: a list of calls needs both")
    if not model:
        return {}
    named = [name for name, kind in hints.items() if name != "return" and _names_files(kind)]
    return {"model": True, "batch": batch, "files": named}


def _names_files(kind: Any) -> bool:
    """Tell whether a type is that of a file in the workspace, or of a list of them."""
    plain = _plain(kind)
    if typing.get_origin(plain) is list:
        return _is_path(_plain(typing.get_args(plain)[0]))
    return _is_path(plain)


def _error(function: Callable[..., Any], sentence: str) -> TypeError:
    return TypeError(f"tool {getattr(function, '__qualname__', function)!s} {sentence}")


def _name(function: Callable[..., Any], name: str) -> str:
    name = name or function.__name__
    if not NAME.fullmatch(name):
        raise _error(
            function, f"can't be called {name!r}: at most 64 letters, digits and . _ : -, name= it"
        )
    return name


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if not inspect.isfunction(function):
        raise _error(function, "is no function: declare the function under it")
    if "." in function.__qualname__:
        raise _error(function, "must stand at the top of a module, where a host can find it")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _error(function, "is a generator: return a list")
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise _error(function, f"takes {parameter.name} by position: arguments have names")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _error(function, f"takes *{parameter.name}: name each argument")
        if parameter.annotation is parameter.empty:
            raise _error(function, f"doesn't say of what type {parameter.name} is")
    if signature.return_annotation is signature.empty:
        raise _error(function, "doesn't say what it returns: Any, when it can be anything")
    return signature


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are evaluated: anything may come
        raise _error(function, f"has types that can't be resolved here: {error}") from error


def _arguments(
    function: Callable[..., Any],
    signature: inspect.Signature,
    hints: Mapping[str, Any],
    texts: Mapping[str, str],
) -> type[msgspec.Struct]:
    """Make the struct that a call's arguments are converted to; unknown ones are refused."""
    fields: list[Any] = []
    for parameter in signature.parameters.values():
        kind = hints[parameter.name]
        if (text := texts.get(parameter.name)) and not _description(kind):
            kind = Annotated[kind, Meta(description=text)]
        _schema(function, kind, f"argument {parameter.name}")
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
            continue
        plain = _default(function, parameter, kind)
        kind = Annotated[kind, Meta(extra_json_schema={"default": plain})]
        fields.append((parameter.name, kind, msgspec.field(default_factory=_copy(parameter))))
    return msgspec.defstruct(
        function.__name__, fields, kw_only=True, forbid_unknown_fields=True, module=__name__
    )


def _copy(parameter: inspect.Parameter) -> Callable[[], Any]:
    """Return what makes a fresh default, so that no call sees what another did to it."""
    return lambda: copy.deepcopy(parameter.default)


def _description(kind: Any) -> str:
    """Return what the type itself says about the argument."""
    metas = getattr(kind, "__metadata__", ())
    return next((m.description for m in metas if isinstance(m, Meta) and m.description), "")


def _default(function: Callable[..., Any], parameter: inspect.Parameter, kind: Any) -> Any:
    """Return a default as a value of JSON."""
    try:
        plain = msgspec.to_builtins(parameter.default, enc_hook=_to_json, str_keys=True)
        msgspec.convert(plain, kind, dec_hook=_from_json)
    except (TypeError, ValueError) as error:
        raise _error(
            function, f"has a default of {parameter.name} that doesn't fit: {error}"
        ) from None
    return plain


def _schema(function: Callable[..., Any], kind: Any, what: str = "") -> dict[str, Any]:
    """Return the JSON Schema of a type, whatever is referred to inside it."""
    if kind is Any:
        return {}
    try:
        schema = msgspec.json.schema(kind, schema_hook=_schema_of)
    except (TypeError, ValueError) as error:
        reason = str(error).rpartition("\n")[2]
        raise _error(
            function,
            f"can't be declared, {what or 'an argument'} has no JSON form: {reason}; use str, int, "
            "float, bool, list, dict, Literal, Path, or a dataclass or msgspec.Struct of these",
        ) from None
    return schema


def _input(function: Callable[..., Any], arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the schema of all arguments: an object, not a reference to one."""
    schema = _schema(function, arguments)
    shared: dict[str, Any] = schema["$defs"]
    schema = dict(shared.pop(schema["$ref"].removeprefix("#/$defs/")))
    del schema["title"]
    if shared:
        schema["$defs"] = shared
    return schema


def _output(function: Callable[..., Any], result: Any) -> dict[str, Any]:
    """Return the schema of a result; that of a file is the kernel's own."""
    schema = _schema(function, result, "what it returns")
    return {} if _is_media(result) else schema


def _kind(result: Any) -> Kind:
    if _plain(result) is str:
        return "text"
    return "file" if _is_media(result) else "json"


def _is_media(result: Any) -> bool:
    return _plain(result) is bytes or _is_path(_plain(result))


def _media_type(data: bytes) -> str:
    """Tell by its first bytes what a file is; application/octet-stream when that says nothing."""
    found = (kind for magic, kind in _MAGIC.items() if data.startswith(magic))
    return next(found, "application/octet-stream")


def _plain(kind: Any) -> Any:
    """Return a type without its annotations."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _checked(
    function: Callable[..., Any], what: str, given: Mapping[str, Any] | None, type: Any
) -> dict[str, Any]:
    """Check a dict against a TypedDict, unknown names too."""
    values = dict(given or {})
    if strange := sorted(set(values) - set(type.__annotations__)):
        known = ", ".join(type.__annotations__)
        raise _error(function, f"has {what} {strange[0]!r}, which is none of {known}")
    try:
        checked: dict[str, Any] = msgspec.convert(values, type)
    except msgspec.ValidationError as error:
        raise _error(function, f"has {what} that don't fit: {error}") from None
    return checked


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


def _schema_of(kind: Any) -> dict[str, Any]:
    if _is_path(kind):
        return {"type": "string", "minLength": 1}
    raise NotImplementedError


def _from_json(kind: Any, value: Any) -> Any:
    if _is_path(kind) and isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("a path is empty or holds a NUL")
        return Path(value)
    raise TypeError(f"Expected a path, got {type(value).__name__}")


def _to_json(value: Any) -> Any:
    if isinstance(value, PurePath):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")
