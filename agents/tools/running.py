"""Running a program: bounded in time and output, and with nothing of it left behind.

The sandbox that the kernel put the tool host in is what keeps the program from the rest of the
machine. Here it is seen to that a call ends when it should: at its limits, when its program ends
though something that it started still holds the pipes, and when the call is cancelled. What the
program has started is killed with it, whatever session or process group it went into: the host
adopts orphans (PR_SET_CHILD_SUBREAPER), and kills children until it has none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

CHUNK: Final = 1 << 16
FLOOD: Final = 16 << 20
"""Bytes of output at which a program is ended; what goes beyond the limit is dropped before."""
PR_SET_CHILD_SUBREAPER: Final = 36


class Ran(msgspec.Struct):
    """How a program ended.

    exit_code: 128+n when signal n ended it. stopped: "time" or "output" when it was ended at that
    limit, else "". truncated: some output was dropped.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    stopped: Literal["", "time", "output"] = ""
    truncated: bool = False


def run(argv: Sequence[str], *, stdin: str, timeout_s: float, limit: int) -> Ran:
    """Run a program in the current directory.

    limit: bytes of stdout, and of stderr, that are kept. The environment is a small one of its own:
    nothing that the host was given goes further.
    """
    _adopt_orphans()
    try:
        return _run(argv, stdin.encode(errors="replace"), timeout_s, limit)
    finally:  # a cancelled call may end between the program's birth and our knowing of it
        _kill_children()


def _run(argv: Sequence[str], stdin: bytes, timeout_s: float, limit: int) -> Ran:
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    output = _Output(process, stdin, limit)
    try:
        stopped = output.follow(began + timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.close()
    code = process.returncode
    return Ran(
        exit_code=code if code >= 0 else 128 - code,
        stdout=output.text(process.stdout),
        stderr=output.text(process.stderr),
        seconds=round(time.monotonic() - began, 3),
        stopped=stopped,
        truncated=output.truncated,
    )


def environment() -> dict[str, str]:
    """Return what a program finds in its environment."""
    here = os.getcwd()
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "TZ") if name in os.environ}
    return {"PATH": os.defpath, "HOME": here, "PYTHONPATH": here, "LANG": "C.UTF-8"} | kept


class _Output:
    """The three pipes of a program, until it ends or a limit is reached."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, limit: int) -> None:
        self.truncated = False
        self._process = process
        self._left = memoryview(stdin)
        self._limit = limit
        self._kept = {process.stdout: bytearray(), process.stderr: bytearray()}
        self._seen = 0
        self._exit = os.pidfd_open(process.pid)
        self._selector = selectors.DefaultSelector()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            writes = pipe is process.stdin
            self._selector.register(
                pipe, selectors.EVENT_WRITE if writes else selectors.EVENT_READ, pipe
            )
        self._selector.register(self._exit, selectors.EVENT_READ, None)

    def follow(self, deadline: float) -> Literal["", "time", "output"]:
        """Read and write until the program has ended; returns the limit that was reached."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "time"
            ready = {key.data for key, _ in self._selector.select(left)}
            for pipe in ready - {None}:
                self._write() if pipe is self._process.stdin else self._read(pipe)
            if self._seen > FLOOD:
                return "output"
            if None in ready:
                for pipe in self._kept:
                    self._drain(pipe)
                return ""

    def text(self, pipe: object) -> str:
        """Return what a pipe has given."""
        return self._kept[pipe].decode(errors="replace")  # type: ignore[index]

    def close(self) -> None:
        """Close everything."""
        self._selector.close()
        os.close(self._exit)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _drain(self, pipe: object) -> None:
        """Read what an ended program has left in a pipe: no more than a pipe holds."""
        for _ in range(FLOOD // CHUNK):
            if not self._read(pipe):
                return

    def _read(self, pipe: object) -> int:
        try:
            data = os.read(pipe.fileno(), CHUNK)  # type: ignore[attr-defined]
        except BlockingIOError:
            return 0
        if not data:
            self._forget(pipe)
        kept = self._kept[pipe]  # type: ignore[index]
        room = self._limit - len(kept)
        kept += data[:room]
        self._seen += len(data)
        self.truncated = self.truncated or len(data) > room
        return len(data)

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            self._left = self._left[os.write(pipe.fileno(), self._left[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not want to know
            self._left = self._left[:0]
        if not self._left:
            self._forget(pipe)
            pipe.close()

    def _forget(self, pipe: object) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(pipe)  # type: ignore[arg-type]


def _kill_children() -> None:
    """Kill all that this process has started, and wait for it."""
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _children() -> Iterator[int]:
    """Give this process's children until there are none: each that dies leaves us its own."""
    own = str(os.getpid())
    while True:
        found = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _parent(pid) == own]
        if not found:
            return
        yield from found


def _parent(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[1]
    except OSError:
        return ""


def _adopt_orphans() -> None:
    """Become the parent of what a child's death leaves behind."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER is refused here")
