"""System calls for tools: declared programs that run in a sandbox."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Key, Name, Record, syscall


class Tool(Record, frozen=True):
    """A declared tool. input and output are JSON Schemas."""

    name: str
    version: str
    description: str
    input: dict[str, Any]
    output: dict[str, Any]
    needs: list[str]
    limits: dict[str, float]
    source: str


class ToolResult(Record, frozen=True):
    """What a tool call gave: its validated result and what the sandbox saw."""

    value: Any
    stdout: str
    stderr: str
    exit_code: int
    seconds: float
    artefacts: list[str]


@syscall(130, reply=ToolResult, errors="ENOENT EINVAL ETIMEDOUT EDQUOT", needs="tool")
class ExecuteTool(Call, frozen=True):
    """Run a declared tool with validated arguments in its sandbox."""

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


@syscall(133, reply=Tool, errors="EEXIST", needs="admin")
class RegisterTool(Call, frozen=True):
    """Declare a tool."""

    declaration: Annotated[dict[str, Any], Meta(max_length=64)]
    key: Key = ""
