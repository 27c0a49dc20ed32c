"""AIOS for programs: agents are processes, the language model is the CPU.

    import aios

    with aios.connect(name="math") as kernel:
        reply = kernel.llm_generate("What is 17 * 23?", max_tokens=64)
        print(reply.text)

`connect` gives a blocking `Kernel`, `connect_async` an `AsyncKernel` for asyncio; both have every
system call as a method of the same name. The kernel's errors arrive as OSError subclasses.
`aios.tools` makes tools of functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aios import tools as tools
    from aios.aio import AsyncKernel, connect_async
    from aios.errors import Busy, ConnectionLost, VersionError
    from aios.kernel import Kernel, connect
    from aios.loop import LoopResult, LoopStep
    from aios.prometheus import exposition
    from aios.streams import AsyncStream, Stream
    from aiosd.abi import LEVEL
    from aiosd.abi.accounts import AuditRecord, GrantRecord, Pending, Quota, UsageRow
    from aiosd.abi.cores import Core, Model, RouteCore, Routed
    from aiosd.abi.inference import (
        Beam,
        Chunk,
        Context,
        ContextTurn,
        Embeddings,
        Function,
        Generation,
        Image,
        Likely,
        Recalled,
        Snapshot,
        Timing,
        TokenUsage,
        ToolCall,
        Turn,
        TurnCall,
        Watermark,
    )
    from aiosd.abi.memory import Memory, Space
    from aiosd.abi.messages import Message, Sent
    from aiosd.abi.process import (
        Agent,
        ExitStatus,
        Happening,
        Identity,
        Interaction,
        LogRecord,
        Priority,
        Sched,
        SchedRow,
        Started,
        Status,
        Usage,
        Watched,
    )
    from aiosd.abi.storage import Passage, StorageSpace, StoredObject
    from aiosd.abi.system import (
        CallStatistics,
        Event,
        Gateway,
        Metric,
        Pong,
        Sample,
        SystemInfo,
        Welcome,
    )
    from aiosd.abi.tools import (
        FilePart,
        Layer,
        Tool,
        ToolResult,
        ToolServer,
        ToolSource,
        WorkspaceFile,
    )

__all__ = [
    "LEVEL",
    "Agent",
    "AsyncKernel",
    "AsyncStream",
    "AuditRecord",
    "Beam",
    "Busy",
    "CallStatistics",
    "Chunk",
    "ConnectionLost",
    "Context",
    "ContextTurn",
    "Core",
    "Embeddings",
    "Event",
    "ExitStatus",
    "FilePart",
    "Function",
    "Gateway",
    "Generation",
    "GrantRecord",
    "Happening",
    "Identity",
    "Image",
    "Interaction",
    "Kernel",
    "Layer",
    "Likely",
    "LogRecord",
    "LoopResult",
    "LoopStep",
    "Memory",
    "Message",
    "Metric",
    "Model",
    "Passage",
    "Pending",
    "Pong",
    "Priority",
    "Quota",
    "Recalled",
    "RouteCore",
    "Routed",
    "Sample",
    "Sched",
    "SchedRow",
    "Sent",
    "Snapshot",
    "Space",
    "Started",
    "Status",
    "StorageSpace",
    "StoredObject",
    "Stream",
    "SystemInfo",
    "Timing",
    "TokenUsage",
    "Tool",
    "ToolCall",
    "ToolResult",
    "ToolServer",
    "ToolSource",
    "Turn",
    "TurnCall",
    "Usage",
    "UsageRow",
    "VersionError",
    "Watched",
    "Watermark",
    "Welcome",
    "WorkspaceFile",
    "connect",
    "connect_async",
    "exposition",
]

_MODULES: Final = (
    "aios.kernel",
    "aios.errors",
    "aios.loop",
    "aios.prometheus",
    "aios.streams",
    "aiosd.abi",
    "aiosd.abi.accounts",
    "aiosd.abi.cores",
    "aiosd.abi.inference",
    "aiosd.abi.memory",
    "aiosd.abi.messages",
    "aiosd.abi.process",
    "aiosd.abi.storage",
    "aiosd.abi.system",
    "aiosd.abi.tools",
    "aios.aio",  # last: asyncio takes longer to import than all the others
)
"""Where the names of __all__ are looked for, in this order."""


def __getattr__(name: str) -> Any:
    """Bring in what is here when it is first asked for: all of it takes long to import.

    A tool's host needs next to nothing of it, and starts that much sooner.
    """
    if name == "tools":
        return importlib.import_module("aios.tools")
    for module in _MODULES if name in __all__ else ():
        found = vars(importlib.import_module(module))
        if name in found:
            globals()[name] = found[name]
            return found[name]
    raise AttributeError(f"module 'aios' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "tools"})
