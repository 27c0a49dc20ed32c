"""The tools that agents need daily, called through a daemon and run in its sandbox."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.tools import ExecuteTool, ToolResult
from tests.conftest import World
from tests.daemon import Client
from tests.sandbox.boxes import needs_layers
from tests.tools.conftest import Bench, toml
from tests.tools.test_calls import refused

pytestmark = needs_layers

TOOLS = {
    "algebra": ["math_evaluate"],
    "files": ["file_read", "file_write"],
    "programs": ["python_exec", "shell_exec"],
    "units": ["unit_convert"],
    "web": ["http_fetch"],
}


class Page(BaseHTTPRequestHandler):
    """One page, and a way to another host."""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """Serve the page; gives host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def agent(world: World, page: str) -> Iterator[Client]:
    """Give an agent of a daemon with these tools."""
    bench = Bench(world)
    for module, names in TOOLS.items():
        for name in names:
            known: dict[str, Any] = {"name": name, "python": f"agents.tools.{module}:{name}"}
            known["limits"] = {"time": 180}
            if name == "http_fetch":
                known["needs"] = {"network": [page]}
            (bench.path / f"{name}.toml").write_text(toml(known))
    with bench.daemon, bench.agent() as client:
        yield client


def call(agent: Client, name: str, **arguments: Any) -> ToolResult:
    result: ToolResult = agent.call(ExecuteTool(name, arguments))
    return result


def test_formulas_and_units_are_computed(agent: Client) -> None:
    assert call(agent, "math_evaluate", expression="2^10").value["exact"] == "1024"
    assert call(agent, "unit_convert", value=36, unit="km/h", to="m/s").value["value"] == 10
    error = refused(agent, "math_evaluate", expression="__import__('os')")
    assert error.errno == errno.EINVAL and "no formula" in str(error)


def test_what_one_tool_writes_another_reads(agent: Client) -> None:
    written = call(agent, "file_write", path="notes/one.txt", content="grün")
    assert written.artefacts == ["notes/one.txt"]
    assert Path(written.workspace, "notes/one.txt").read_text() == "grün"
    code = "print(open('notes/one.txt').read())\nopen('two.txt', 'w').write('2')"
    ran = call(agent, "python_exec", code=code, timeout=120)
    assert (ran.value["stdout"], ran.artefacts) == ("grün\n", ["two.txt"])
    assert call(agent, "file_read", path="/workspace/two.txt").value["content"] == "2"
    assert refused(agent, "file_read", path="../../aios.db").errno == errno.EINVAL


def test_a_program_finds_neither_the_kernel_nor_a_network(agent: Client) -> None:
    command = f"ls {Path.home()} /run/user 2>&1; pwd; env; cat /proc/1/comm"
    seen = call(agent, "shell_exec", command=command, timeout=120).value
    assert "/workspace" in seen["stdout"] and "AIOS" not in seen["stdout"]
    code = "import socket; socket.create_connection(('127.0.0.1', 80), 60)"
    ran = call(agent, "python_exec", code=code, timeout=120).value
    assert ran["exit_code"] == 1 and "Error" in ran["stderr"]


def test_pages_come_from_the_named_host_through_the_proxy(agent: Client, page: str) -> None:
    fetched = call(agent, "http_fetch", url=f"http://{page}/", save_as="page.html")
    assert (fetched.value["status"], fetched.artefacts) == (200, ["page.html"])
    for url in (f"http://{page}/away", "http://127.0.0.1:1/", "http://169.254.169.254/"):
        error = refused(agent, "http_fetch", url=url)
        assert error.errno == errno.EREMOTEIO and "not among the hosts" in str(error)
