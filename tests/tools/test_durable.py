"""What a killed kernel leaves of tools: what was registered, no process, nothing done twice."""

from __future__ import annotations

import errno
import signal

import psutil
import pytest

from aiosd.abi.tools import DescribeTool, ExecuteTool, ListTools, RegisterTool, ToolResult
from tests.conftest import World
from tests.daemon import PATIENCE
from tests.tools.conftest import Bench

DECLARED = {"name": "registered", "command": ["cat"], "description": "Say it again."}


def test_what_a_killed_kernel_leaves(world: World) -> None:
    """One story, to start few daemons."""
    bench = Bench(world)
    bench.pipes()
    bench.add("pay", f"cat >/dev/null; echo x >> {bench.path}/paid; echo 1")
    bench.add("slow", bench.gated, limits={"time": 120})
    daemon = bench.daemon
    daemon.start()
    try:
        with daemon.connect() as person:
            person.call(RegisterTool(DECLARED, key="r"))
            with pytest.raises(FileExistsError):
                person.call(RegisterTool(DECLARED))
            person.call(RegisterTool({**DECLARED, "version": "2"}, replace=True))
            assert person.call(RegisterTool(DECLARED, key="r")).version == "1"  # answered before
            first = person.call(ExecuteTool("pay", key="p"))
            person.send(ExecuteTool("slow", {"a": 1}, key="s"))
            running = psutil.Process(bench.begun())
            daemon.stop(signal.SIGKILL)
        running.wait(PATIENCE)
        daemon.start()
        with daemon.connect() as person:
            assert person.call(DescribeTool("registered")).version == "2"
            again = person.call(ExecuteTool("pay", key="p"))
            assert isinstance(again, ToolResult) and again == first
            assert (bench.path / "paid").read_text() == "x\n"
            person.send(ExecuteTool("slow", {"a": 1}, key="s"))
            reply = person.read()
            assert reply.errno == errno.EIO and b"is not known: look" in bytes(reply.body)
            person.call(RegisterTool({"name": "registered"}, remove=True))
            with pytest.raises(FileNotFoundError):
                person.call(RegisterTool({"name": "registered"}, remove=True))
            assert "registered" not in [tool.name for tool in person.call(ListTools())]
    finally:
        daemon.__exit__()  # whichever of the two runs
