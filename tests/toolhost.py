"""A tool host as a program, and the kernel's end of its socket and pipes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiosd.abi import toolwire
from aiosd.abi.wire import Frames

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0


class Host:
    """A host and the kernel's end of its socket."""

    def __init__(self, workspace: Path, *modules: str, **variables: str) -> None:
        self.workspace = workspace
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(PATIENCE_S)
        self._frames = Frames(toolwire.MAX_MESSAGE)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aios.toolhost", f"--fd={theirs.fileno()}", *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(**variables),
            )
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def send(self, message: toolwire.Message) -> None:
        self.ours.sendall(toolwire.pack(message))

    def event(self) -> toolwire.Event | None:
        """The host's next message; None when it has ended."""
        while (payload := self._frames.take()) is None:
            data = self.ours.recv(1 << 16)
            if not data:
                return None
            self._frames.add(data)
        return toolwire.decode_event(payload)

    def call(self, tool: str, **arguments: Any) -> toolwire.Event | None:
        self.send(toolwire.Call(7, tool, arguments, str(self.workspace)))
        return self.event()

    def printed(self) -> tuple[bytes, bytes]:
        """What lies in stdout's and stderr's pipes now."""
        assert self.process.stdout is not None and self.process.stderr is not None
        return self.process.stdout.read() or b"", self.process.stderr.read() or b""

    def close(self) -> int:
        """Close the kernel's end; returns the host's exit status."""
        self.ours.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.communicate()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/sdk", **more}
