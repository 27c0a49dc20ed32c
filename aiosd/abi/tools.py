"""System calls for tools: declared programs that run in a sandbox."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from aiosd.abi.call import Call, Count, Key, Name, Record, syscall


class Tool(Record, frozen=True):
    """A declared tool. input and output are JSON Schemas.

    needs: what its sandbox lets in, as "network:HOST", "read:PATH", "write:PATH", "secret:NAME".
    limits: by name, 0 for none. source: who declared it. kind: json, text, image or file. running,
    queued and warm: calls at this moment, and hosts that wait for one. model: one host computes for
    all agents, at most `batch` calls at once; list_cores shows it.
    """

    name: str
    version: str
    description: str
    input: dict[str, Any]
    output: dict[str, Any]
    needs: list[str]
    limits: dict[str, float]
    source: str
    kind: str = "json"
    idempotent: bool = False
    exclusive: str = ""
    isolation: str = "full"
    running: int = 0
    queued: int = 0
    warm: int = 0
    model: bool = False
    batch: int = 1


class ToolResult(Record, frozen=True):
    """What a tool call gave: its validated result and what the sandbox saw.

    stdout, stderr: what it printed beside its result. artefacts: files that it left, by their names
    in `workspace`, a directory of this machine. seconds: from its start to its end; waiting_s:
    before it. digest: SHA-256 of the result as JSON. warm: its process had been there before.
    """

    value: Any
    stdout: str
    stderr: str
    exit_code: int
    seconds: float
    artefacts: list[str]
    workspace: str = ""
    waiting_s: float = 0.0
    digest: str = ""
    warm: bool = False
    metrics: dict[str, float] = {}


@syscall(
    130,
    reply=ToolResult,
    errors="ENOENT EINVAL ETIMEDOUT EDQUOT EREMOTEIO EPROTO EMSGSIZE ENODEV ENOKEY ENOTSUP",
    needs="tool",
)
class ExecuteTool(Call, frozen=True):
    """Run a declared tool with validated arguments in its sandbox.

    It waits while as many calls run as may, and for what the tool needs for itself alone; EAGAIN
    beyond the tool's rate says when to come back. EREMOTEIO: the tool failed or died; EPROTO: its
    result is not what it declared; EMSGSIZE: too much output; ENODEV, ENOKEY, ENOTSUP: what it
    needs is missing here, with the cure. timeout counts from the call, waiting included.
    """

    name: Name
    arguments: Annotated[dict[str, Any], Meta(max_length=256)] = {}
    timeout: Annotated[float, Meta(ge=0, description="seconds; none: the tool's own")] | None = None
    key: Key = ""


@syscall(131, reply=list[Tool])
class ListTools(Call, frozen=True):
    """List the tools that the caller may see."""


@syscall(132, reply=Tool, errors="ENOENT")
class DescribeTool(Call, frozen=True):
    """Return a tool's declaration."""

    name: Name


@syscall(133, reply=Tool, errors="EEXIST ENOENT ENOSPC", needs="admin")
class RegisterTool(Call, frozen=True):
    """Declare a tool for good, or take one away that was declared so.

    The declaration has the fields of a manifest (aios-tools(7)); to remove, its name is enough.
    """

    declaration: Annotated[dict[str, Any], Meta(max_length=64)]
    key: Key = ""
    replace: Annotated[bool, Meta(description="in place of the registered one")] = False
    remove: bool = False


class Layer(Record, frozen=True):
    """A layer of the sandbox on this machine.

    reason: what provides it, or why it is missing; cure: what to do then. stops: what it keeps a
    tool from. needed: without it no tool runs that asks for isolation.
    """

    name: str
    available: bool
    reason: str
    cure: str
    stops: str
    needed: bool


@syscall(134, reply=list[Layer], since=2)
class ListLayers(Call, frozen=True):
    """List the layers of the sandbox, and what this machine can enforce."""


class ToolServer(Record, frozen=True):
    """A server that tools come from. kind: stdio or http. since: Unix time of its state.

    state: starting, ready, waiting (it has ended, and is started again), failed (it can't be
    started) or stopped; reason says why. pid: 0 for none. restarts: since the kernel runs. tools:
    how many it has. refused: those that are not offered, and why.
    """

    name: str
    kind: str
    state: str
    pid: int
    since: float
    restarts: int
    tools: int
    refused: dict[str, str]
    reason: str


@syscall(135, reply=list[ToolServer], since=2)
class ListToolServers(Call, frozen=True):
    """List the servers of the Model Context Protocol, and what has become of each."""


class ToolSource(Record, frozen=True):
    """What declares tools: manifest:FILE, registered, package:NAME, mcp:SERVER or kernel.

    tools: how many it declares. problem: what is wrong with it, or with one of its tools; "" when
    all is well.
    """

    name: str
    tools: int
    problem: str


@syscall(166, reply=list[ToolSource], since=2)
class ListToolSources(Call, frozen=True):
    """List what declares tools, and what is wrong with it."""


FileName = Annotated[
    str,
    Meta(min_length=1, max_length=1024, description="path inside the workspace, as notes/a.txt"),
]
FILE_PART: Final = 4 << 20
"""Bytes of a file that go in one call."""


class WorkspaceFile(Record, frozen=True):
    """A file of a workspace. size: bytes now. workspace: the directory, on this machine."""

    name: str
    size: int
    workspace: str


@syscall(
    167,
    reply=WorkspaceFile,
    errors="EINVAL ENOENT EISDIR ELOOP ENOTDIR ENXIO EDQUOT ENOSPC",
    needs="tool",
    since=2,
)
class PutFile(Call, frozen=True):
    """Put a file where the caller's tools work, in place of what has its name.

    A larger file goes in parts: with an offset, the file goes on with the data from there, and
    ends with them. Directories on its way are made; links are not followed. EDQUOT: the
    workspace is full.
    """

    name: FileName
    data: Annotated[bytes, Meta(max_length=FILE_PART, description="at most 4 MiB at a time")]
    offset: Count = 0


class FilePart(Record, frozen=True):
    """Bytes of a file of a workspace. size: of the whole file."""

    data: bytes
    size: int


@syscall(
    168,
    reply=FilePart,
    errors="EINVAL ENOENT EISDIR ELOOP ENOTDIR ENXIO",
    needs="tool",
    since=2,
)
class GetFile(Call, frozen=True):
    """Read a part of a file of the caller's workspace, such as one that a tool left."""

    name: FileName
    offset: Count = 0
    size: Annotated[
        int, Meta(ge=0, le=FILE_PART, description="bytes at most; fewer at the end")
    ] = FILE_PART
