"""The table of system calls: every call there is, by number and by name."""

from __future__ import annotations

from typing import Final

from aiosd.abi import (  # noqa: F401 - importing a group enters its calls
    accounts,
    cores,
    inference,
    memory,
    messages,
    process,
    storage,
    system,
    tools,
)
from aiosd.abi.call import Call, Syscall, registered

TABLE: Final[dict[int, Syscall]] = dict(sorted(registered.items()))
BY_NAME: Final[dict[str, Syscall]] = {call.name: call for call in TABLE.values()}
BY_ARGS: Final[dict[type[Call], Syscall]] = {call.args: call for call in TABLE.values()}
