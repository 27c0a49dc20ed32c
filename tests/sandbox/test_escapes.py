"""Ways out of a box, and which layer stops which: with all layers, each missing, each alone, none.

TABLE is the truth that aios-tools(7) tells. A way is stopped by any one of the sets of layers
beside it. Every configuration is one box that tries all ways (escapes.py), so that "out" in the
rows without the right layer shows that the way itself works, and the others that it is the layer
that stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd import boxgroup, landlock, sandbox
from aiosd.sandbox import ALL, Box
from tests.sandbox import escapes
from tests.sandbox.boxes import needs_layers, run

pytestmark = needs_layers

NAMESPACES, CGROUP, RLIMITS, LANDLOCK, SECCOMP = (
    {"namespaces"},
    {"cgroup"},
    {"rlimits"},
    {"landlock"},
    {"seccomp"},
)
ALWAYS: set[str] = set()
COUNTED = boxgroup.place().controllers
SCOPED = [LANDLOCK] if landlock.version() >= landlock.SCOPES else []
PORTS = [LANDLOCK] if landlock.version() >= landlock.PORTS else []
PIDS = [CGROUP] if "pids" in COUNTED else []
MEMORY = [CGROUP] if "memory" in COUNTED else []
# A limit on processes binds an ordinary user, and counts a box alone where it has a namespace.
NPROC = [{"rlimits", "namespaces"}] if os.geteuid() else []
# Linux lets whoever has CAP_PERFMON read of a process what Landlock keeps from others.
FOREIGN = [LANDLOCK] if os.geteuid() else []

TABLE: dict[str, list[set[str]]] = {
    "home": [NAMESPACES, LANDLOCK],
    "kernel_state": [NAMESPACES, LANDLOCK],
    "kernel_socket": [NAMESPACES, SECCOMP],
    "abstract_socket": [NAMESPACES, SECCOMP, *SCOPED],
    "other_workspace": [NAMESPACES, LANDLOCK],
    "write_outside": [NAMESPACES, LANDLOCK],
    "symbolic_link": [NAMESPACES, LANDLOCK],
    "other_root": [NAMESPACES, LANDLOCK],
    "reopened_descriptor": [LANDLOCK],
    "proc_of_others": [NAMESPACES, *FOREIGN],
    "signal_others": [NAMESPACES, *SCOPED],
    "ptrace_others": [NAMESPACES, LANDLOCK, SECCOMP],
    "sysctl": [NAMESPACES, LANDLOCK],
    "tcp": [NAMESPACES, SECCOMP, *PORTS],
    "udp": [NAMESPACES, SECCOMP],
    "user_namespace": [NAMESPACES, SECCOMP],
    "keyring": [SECCOMP],
    "io_uring": [SECCOMP],
    "set_user_id": [SECCOMP],
    "gain_privileges": [ALWAYS],
    "fork_bomb": [*PIDS, *NPROC],
    "file_flood": [RLIMITS],
    "disk_flood": [NAMESPACES, LANDLOCK],
    "daemon": [ALWAYS],
    "memory_flood": [*MEMORY, RLIMITS],
}

CONFIGURATIONS = [ALL, *(ALL - {layer} for layer in sorted(ALL))]
CONFIGURATIONS += [*(frozenset({layer}) for layer in sorted(ALL)), frozenset()]


def name(layers: frozenset[str]) -> str:
    if len(layers) == len(ALL) - 1:
        return f"without-{min(ALL - layers)}"
    return "only-" + min(layers) if len(layers) == 1 else "all" if layers else "none"


class Outside:
    """What is there to be reached outside of the box."""

    def __init__(self, root: Path, stack: contextlib.ExitStack) -> None:
        self.root = root
        self.workspace = root / "mine"
        for place in ("mine", "home", "state", "other"):
            (root / place).mkdir()
        for path in ("home/secret", "state/aios.db", "other/notes", "state/lent"):
            (root / path).write_text("secret")
        shutil.copy(escapes.__file__, self.workspace / "escapes.py")
        self.unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.unix.bind(str(root / "state/aiosd.sock"))
        self.abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.abstract.bind(f"\0aios-test-{os.getpid()}")
        self.tcp = stack.enter_context(socket.socket())
        self.tcp.bind(("127.0.0.1", 0))
        self.udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        for listening in (self.unix, self.abstract, self.tcp):
            listening.listen(64)
        self.bystander = subprocess.Popen(["sleep", "1000"])
        stack.callback(self.bystander.wait)
        stack.callback(self.bystander.kill)

    def goals(self) -> dict[str, Any]:
        return {
            "home": str(self.root / "home/secret"),
            "state": str(self.root / "state/aios.db"),
            "other": str(self.root / "other/notes"),
            "socket": str(self.root / "state/aiosd.sock"),
            "abstract": f"aios-test-{os.getpid()}",
            "outside": str(self.root / "home/left"),
            "pid": self.bystander.pid,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
        }

    def heard(self) -> bool:
        """Tell whether a datagram has arrived."""
        try:
            return bool(self.udp.recv(100))
        except BlockingIOError:
            return False


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with contextlib.ExitStack() as stack:
        yield Outside(tmp_path_factory.mktemp("outside"), stack)


@pytest.mark.parametrize("layers", CONFIGURATIONS, ids=name)
def test_ways_out_are_stopped_by_the_layers_of_the_table(
    layers: frozenset[str], outside: Outside
) -> None:
    assert TABLE.keys() == escapes.WAYS.keys()
    found = run(attempt(layers, outside))
    expected = {way: any(stopping <= layers for stopping in stops) for way, stops in TABLE.items()}
    out = {way for way, text in found.items() if text == "out"}
    wrong = {way: found[way] for way, stopped in expected.items() if stopped == (way in out)}
    assert not wrong, f"with the layers {sorted(layers)}"
    assert (outside.root / "state/aios.db").read_text() == "secret"


async def attempt(layers: frozenset[str], outside: Outside) -> dict[str, str]:
    """Try every way in one box; what can only be seen from here is looked at here."""
    box = Box(
        argv=(sys.executable, "-I", "escapes.py"),
        env={"ESCAPES": json.dumps(outside.goals())},
        workspace=str(outside.workspace),
        memory=48 << 20,
        processes=24,
        file_bytes=1 << 20,
        tmp_bytes=1 << 20,
        layers=layers,
    )
    with contextlib.ExitStack() as stack:
        lent = stack.enter_context(io.FileIO(outside.root / "state/lent"))
        output, out = os.pipe()
        left, leaving = os.pipe()
        stack.callback(os.close, left)
        boxed = sandbox.start(box, fds={5: lent.fileno(), 6: leaving}, stdout=out, stderr=out)
        os.close(out)
        os.close(leaving)
        with io.FileIO(output) as file:
            data = await asyncio.to_thread(file.read)
        await boxed.exited
        found = dict.fromkeys(escapes.WAYS, "killed")
        for line in data.splitlines():
            way, text = json.loads(line)
            found[way] = text
        if outside.heard():
            found["udp"] = "out"
        found["daemon"] = survivor(left)
        return found


def survivor(left: int) -> str:
    """Tell whether somebody of the ended box still holds the pipe, and end him."""
    pid = int(os.read(left, 100))  # inside its namespace, where it has one
    poll = select.poll()
    poll.register(left, 0)
    if poll.poll(0):
        return "killed"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return "out"
