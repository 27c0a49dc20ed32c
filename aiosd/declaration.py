"""Declarations: what a tool says of itself before it may be called. Pure.

    tool = declare({"name": "add", "command": ["./add"], "input": {...}}, "register_tool")
    (wrong := tool.arguments.wrong({"a": 1}))

A declaration has one of three ways to carry a call out: `command` (a program: JSON arguments on its
standard input, JSON or text on its standard output), `python` ("module:function", served by a warm
host), or `server` (the name of an MCP server). `needs` is all that its sandbox lets in: it has no
network, no file beside its workspace and no secret that is not named there.

What must hold: every field is checked here, and nothing unknown is dropped; an error names the
tool, the field, the limit and the cure.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from aiosd.shape import Shape

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SECRET: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_Paths = Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=64)]


class Part(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A table of a declaration."""


class Needs(Part, frozen=True, kw_only=True):
    """What a tool needs from outside its box.

    network: hosts ("example.org", "*.example.org", "example.org:8443"); none: no network at all.
    read, write: absolute paths. secrets: names in the kernel's store.
    """

    network: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    read: _Paths = ()
    write: _Paths = ()
    secrets: Annotated[tuple[str, ...], Meta(max_length=32)] = ()


class Limits(Part, frozen=True, kw_only=True):
    """What one call may use, and how often there may be one.

    time: seconds. memory: bytes. output: bytes of the result, of stdout and of stderr each.
    rate: calls per second of one agent, 0: any; burst: calls at once before the rate counts.
    concurrent: calls of one agent that run at a time, 0: any.
    """

    time: Annotated[float, Meta(gt=0, le=86_400)] = 30.0
    memory: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 1 << 30
    processes: Annotated[int, Meta(ge=1, le=4096)] = 64
    output: Annotated[int, Meta(ge=1, le=4 << 20)] = 1 << 20
    rate: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    burst: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    concurrent: Annotated[int, Meta(ge=0, le=4096)] = 0


class Declaration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True,
    dict=True,
):  # fmt: skip
    """One tool. source: where the declaration comes from, filled in by the catalog.

    output: {} admits anything. kind: what the result is: "json" (any value), "text", "image" or
    "file" (a table with `data` in base64 and `media_type`, or with `artefact`, a file's name in the
    workspace). idempotent: asking twice does no more than asking once. exclusive: the name of what
    only one call at a time may use, over all tools; "": nothing. isolation "none" runs without
    sandbox, which only an operator's manifest may say. model: one host computes for all agents, at
    most `batch` calls at once, and sees of a workspace the files that the arguments `files` name.
    """

    name: str
    version: Annotated[str, Meta(min_length=1, max_length=64)] = "1"
    description: Annotated[str, Meta(max_length=8192)] = ""
    input: dict[str, Any] = {}
    output: dict[str, Any] = {}
    kind: Literal["json", "text", "image", "file"] = "json"
    needs: Needs = Needs()
    limits: Limits = Limits()
    idempotent: bool = False
    exclusive: Annotated[str, Meta(max_length=64)] = ""
    command: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    python: str = ""
    server: str = ""
    isolation: Literal["full", "none"] = "full"
    model: bool = False
    batch: Annotated[int, Meta(ge=1, le=256)] = 1
    files: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    source: str = ""

    @cached_property
    def arguments(self) -> Shape:
        """What its arguments must be."""
        return Shape(self.input, f"tool {self.name}: field 'input'")

    @cached_property
    def result(self) -> Shape:
        """What its result must be."""
        schema = self.output or _MEDIA.get(self.kind, {})
        return Shape(schema, f"tool {self.name}: field 'output'")

    @cached_property
    def digest(self) -> str:
        """What tells it from another declaration of the same name."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


_MEDIA: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "image": {
        "type": "object",
        "properties": {
            "data": {"type": "string"},
            "media_type": {"type": "string"},
            "artefact": {"type": "string"},
        },
        "oneOf": [{"required": ["data", "media_type"]}, {"required": ["artefact"]}],
    },
}
_MEDIA["file"] = _MEDIA["image"]


def declare(
    raw: Mapping[str, Any], source: str, *, base: str = "", operator: bool = False
) -> Declaration:
    """Return a checked declaration.

    source: where it comes from. base: the directory that a relative command is in, "" where there
    is none. operator: it is the daemon's owner who wrote it. Raises OSError(EINVAL).
    """
    shown = raw.get("name")
    tool = f"tool {shown}" if isinstance(shown, str) and NAME.fullmatch(shown) else "tool"
    try:
        found = msgspec.convert({**raw, "source": source}, Declaration, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong(tool, *_place(str(error))) from None
    if not NAME.fullmatch(found.name):
        raise _wrong(tool, "name", "1 to 64 of letters, digits, . _ : -, the first no sign")
    if found.input.get("type", "object") != "object":
        raise _wrong(tool, "input", 'describes arguments by name: its type is "object"')
    found = msgspec.structs.replace(
        found,
        input={"type": "object", **found.input},
        command=_command(tool, found.command, base),
    )
    _check_way(tool, found, operator)
    _check_needs(tool, found.needs)
    _ = found.arguments, found.result  # raises for what is no schema
    return found


def widen(tool: Declaration, more: Mapping[str, list[str]]) -> Declaration:
    """Return a tool that needs more: what an operator adds to its own needs, field by field.

    Raises OSError(EINVAL) that names the setting.
    """
    try:
        added = msgspec.convert(more, Needs)
        _check_needs(f"tool {tool.name}", added)
    except msgspec.ValidationError as error:
        reason = ": ".join(_place(str(error)))
        raise OSError(errno.EINVAL, f"[tools.needs.{tool.name}]: {reason}") from None
    except OSError as error:
        raise OSError(errno.EINVAL, f"[tools.needs.{tool.name}]: {error.strerror}") from None
    own = msgspec.structs.asdict(tool.needs)
    both = {field: tuple(dict.fromkeys([*own[field], *getattr(added, field)])) for field in own}
    return msgspec.structs.replace(tool, needs=Needs(**both))


def _command(tool: str, command: tuple[str, ...], base: str) -> tuple[str, ...]:
    """Return argv with a program in the manifest's directory made absolute."""
    if not command:
        return ()
    if not all(command[:1]) or any("\0" in word for word in command):
        raise _wrong(tool, "command", "is a program and its arguments, without NUL")
    program = command[0]
    if "/" in program and not os.path.isabs(program):
        if not base:
            raise _wrong(tool, "command", f"{program!r} is relative; give its absolute path")
        program = os.path.normpath(os.path.join(base, program))
    return (program, *command[1:])


def _check_way(tool: str, found: Declaration, operator: bool) -> None:
    ways = [name for name in ("command", "python", "server") if getattr(found, name)]
    if len(ways) != 1:
        raise _wrong(tool, "command", "one of command, python and server says how it is run")
    if found.python and not _FUNCTION.fullmatch(found.python):
        raise _wrong(tool, "python", f"{found.python!r} is not module:function")
    if found.isolation == "none" and not operator:
        raise _wrong(
            tool, "isolation", '"none" is the operator\'s to say, in a manifest ([tools] path)'
        )
    if found.exclusive and not NAME.fullmatch(found.exclusive):
        raise _wrong(tool, "exclusive", "a name of letters, digits, . _ : -")
    _check_model(tool, found)
    if found.limits.burst and not found.limits.rate:
        raise _wrong(tool, "limits.burst", "means nothing without limits.rate")


def _check_model(tool: str, found: Declaration) -> None:
    """Check what a model declares: its host is shared, and its calls may be made again."""
    if not found.model:
        if found.batch != 1 or found.files:
            field = "files" if found.files else "batch"
            raise _wrong(tool, field, "is of tools that are models (model = true)")
        return
    if found.source == "registered":
        raise _wrong(tool, "model", "its host is shared: a manifest or a package declares it")
    if not found.python:
        raise _wrong(tool, "model", "is a function (python = ...), whose host stays")
    if not found.idempotent or found.exclusive:
        raise _wrong(
            tool, "model", "is idempotent, computed again where a host died; not exclusive"
        )
    if unknown := sorted(set(found.files) - set(found.input.get("properties", {}))):
        raise _wrong(tool, "files", f"{unknown[0]!r} is none of its arguments")


def _check_needs(tool: str, needs: Needs) -> None:
    for host in needs.network:
        if not _is_host(host):
            raise _wrong(
                tool, "needs.network", f"{host[:80]!r} is not a host, *.domain or host:port"
            )
    for field in ("read", "write"):
        for path in getattr(needs, field):
            if not os.path.isabs(path) or "\0" in path or os.path.normpath(path) != path:
                raise _wrong(tool, f"needs.{field}", f"{path[:80]!r} is no plain absolute path")
            if path == "/":
                raise _wrong(tool, f"needs.{field}", "'/' is everything; name what it needs")
    for name in needs.secrets:
        if not _SECRET.fullmatch(name):
            raise _wrong(tool, "needs.secrets", f"{name[:80]!r}: letters, digits and _, up to 64")


def _is_host(text: str) -> bool:
    """Whether a text is a host, one with a port, or all hosts of a domain."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, "1"
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        return False
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return len(host) <= 253 and _HOST.fullmatch(host) is not None
    return True


def _place(text: str) -> tuple[str, str]:
    """Return the field and the sentence of msgspec's error."""
    what, _, path = text.partition(" - at `$")
    field = path.strip("`.")
    what = what.replace("`", "'")
    if what.startswith("Object missing required field '"):
        return what.split("'")[1], "is missing"
    if what.startswith("Object contains unknown field '"):
        inner = what.split("'")[1]
        return (f"{field}.{inner}" if field else inner), "is not known; see aios-tools(7)"
    return field or "name", what[:1].lower() + what[1:]


def _wrong(tool: str, field: str, sentence: str) -> OSError:
    return OSError(errno.EINVAL, f"{tool}: field '{field}': {sentence}")
