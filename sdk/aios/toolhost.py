"""A tool host: serves the tools of Python modules to the kernel, one call at a time.

    python -m aios.toolhost --fd N MODULE...       N: inherited end of a socketpair (abi/toolwire)
    python -m aios.toolhost --declare MODULE...    prints {"tools": [...], "failed": {MODULE: why}}

MODULE is a module's name, `module:function` for one of its tools, or the path of a .py file. The
kernel starts hosts by this name, in a sandbox, and never imports a tool itself.

Threads: the main one reads the socket and carries out calls, so that a call costs no change of
threads. One more watches: the process ends with its kernel in the middle of a call too, and a
cancelled call is interrupted by an exception, LOOK_S later at most. What a tool does to its process
stays the host's own trouble: an exception, sys.exit and a fork that comes back are survived; when
the process dies, the kernel sees the socket end.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.tools import BadArguments, BadResult, Declared, Unavailable, declared
from aios.workfiles import Workspace
from aiosd.abi import toolwire, wire
from aiosd.abi.wire import FrameError, Frames

EX_PROTOCOL: Final = 76
MESSAGE: Final = 4000  # characters of a failure's message
CHUNK: Final = 1 << 16
LOOK_S: Final = 0.05
"""Seconds between two looks at the socket while a call is carried out."""


class Cancelled(BaseException):
    """The call is no longer wanted; no `except Exception` of a tool's takes it."""


class Host:
    """The tools, and the call that is being carried out."""

    def __init__(self, tools: list[Declared]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._pid = os.getpid()
        self._workspace = Workspace()
        self.running: int | None = None  # ticket of the call that may be interrupted
        self.pending: set[int] = set()  # tickets of calls that are not yet answered
        self._unwanted: set[int] = set()  # those of them that were cancelled

    def run(self, call: toolwire.Call) -> bytes:
        """Carry out a call, whatever happens in it, and return the answer's frame.

        What the call printed has been written when this returns.
        """
        answer = b""
        with contextlib.suppress(Cancelled):  # comes while _attempt runs, and at no other time
            answer = self._attempt(call)
        self.pending.discard(call.ticket)
        self._unwanted.discard(call.ticket)
        if os.getpid() != self._pid:  # a fork in the tool came back: only the first may answer
            _flush()
            os._exit(0)
        _flush()
        return answer or _failed(call, "error", f"{call.tool} was cancelled")

    def cancel(self, ticket: int) -> None:
        """Keep a call from beginning, or from going on: `interrupt` is called then."""
        if ticket in self.pending:
            self._unwanted.add(ticket)

    def interrupt(self, *_: object) -> None:
        """Raise Cancelled in a call that is not wanted any more. In the main thread."""
        if self.running in self._unwanted:
            self.running = None
            raise Cancelled

    def _attempt(self, call: toolwire.Call) -> bytes:
        self.running = call.ticket
        self.interrupt()
        try:
            answer = self._done(call)
        except Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 (sys.exit is no reason to end the host)
            answer = _refusal(call, error)
        self.running = None
        return answer

    def run_all(self, calls: list[toolwire.Call]) -> bytes:
        """Carry out several calls at once, as `run` does one; returns their answers' frames."""
        answers = [_failed(call, "error", f"{call.tool} was cancelled") for call in calls]
        with contextlib.suppress(Cancelled):
            answers = self._attempt_all(calls)
        for call in calls:
            self.pending.discard(call.ticket)
            self._unwanted.discard(call.ticket)
        if os.getpid() != self._pid:
            _flush()
            os._exit(0)
        _flush()
        return b"".join(answers)

    def _attempt_all(self, calls: list[toolwire.Call]) -> list[bytes]:
        self.running = calls[0].ticket
        self.interrupt()
        try:
            tool = self._tools.get(calls[0].tool)
            if tool is None or tool.together is None:
                raise Unavailable(f"this host computes no calls of {calls[0].tool} at once")
            from aios import toolbatch  # few hosts need it

            os.chdir(os.path.dirname(calls[0].workspace) or ".")
            answers = toolbatch.compute(tool, calls, _refusal)
        except Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 (as for one call)
            answers = [_refusal(call, error) for call in calls]
        self.running = None
        return answers

    def _done(self, call: toolwire.Call) -> bytes:
        tool = self._tools.get(call.tool)
        if tool is None:
            raise Unavailable(f"this host has no tool {call.tool}: {', '.join(self._tools)}")
        os.chdir(call.workspace or ".")
        root = Path.cwd() if tool.names_file else None
        self._workspace.begin(call.workspace)
        used, _ = _used()
        value = tool.result(_call(tool, call))
        files = self._workspace.changed()
        if root is not None:
            file = _artefact(root, value)
            value = {"artefact": file}
            files = [file, *(name for name in files if name != file)]
        if len(files) > toolwire.MAX_ARTEFACTS:
            sys.stderr.write(f"{len(files)} files changed, {toolwire.MAX_ARTEFACTS} are named\n")
        now, memory = _used()
        metrics = {"cpu_s": now - used, "memory": memory}
        done = toolwire.Done(call.ticket, value, files[: toolwire.MAX_ARTEFACTS], metrics)
        return _framed(tool, done)


def _call(tool: Declared, call: toolwire.Call) -> Any:
    arguments = tool.convert(call.arguments)
    if tool.is_async:
        import asyncio  # takes longer to import than all the rest

        return asyncio.run(tool.function(**arguments))
    return tool.function(**arguments)


def _artefact(root: Path, value: str) -> str:
    """Return a result that is a file, relative to the workspace. Raises BadResult."""
    path = (root / value).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise BadResult(f"the result {value} is no file in the workspace")
    return path.relative_to(root).as_posix()


def _framed(tool: Declared, done: toolwire.Done) -> bytes:
    """Return a result as a frame; BadResult says what of it can't be sent."""
    try:
        payload = toolwire.encode(done)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadResult(f"the result of {tool.name} can't be sent: {error}") from None
    if wrong := toolwire.refusal(payload):
        raise BadResult(f"the result of {tool.name} {wrong}")
    return wire.frame(payload)


def _refusal(call: toolwire.Call, error: BaseException) -> bytes:
    """Return the answer to a call that an exception has ended."""
    if isinstance(error, BadArguments):
        return _failed(call, "arguments", error)
    if isinstance(error, BadResult):
        return _failed(call, "result", error)
    if isinstance(error, ModuleNotFoundError):
        cure = f"it needs {error.name}; install that for aiosd (pip install 'aios[tools,images]')"
        return _failed(call, "unavailable", error, f"{cure}; ")
    if isinstance(error, Unavailable):
        return _failed(call, "unavailable", error)
    if isinstance(error, Exception):
        _show(error)
        return _failed(call, "error", error, f"{type(error).__name__}: ")
    return _failed(call, "error", f"{call.tool} ended itself by {type(error).__name__}")


def _failed(call: toolwire.Call, kind: toolwire.Kind, error: object, prefix: str = "") -> bytes:
    message = f"{prefix}{error}"[:MESSAGE].encode(errors="replace").decode()
    return toolwire.pack(toolwire.Failed(call.ticket, kind, message))


def _show(error: BaseException) -> None:
    """Print where in the tool an exception came from, without the host's own frames."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__]
    sys.stderr.write("".join(traceback.format_list(own)))
    sys.stderr.write("".join(traceback.format_exception_only(error)))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a tool may have closed it
            stream.flush()


def _used() -> tuple[float, float]:
    """Return processor time, in seconds, and the most bytes that were in memory, so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, own.ru_maxrss * 1024.0


class Link:
    """The socket to the kernel, and the thread that ends the process when the kernel has gone.

    Only the main thread takes messages, whole ones: the other looks at what waits behind them.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames(toolwire.MAX_MESSAGE)
        self._inbox: deque[toolwire.Command] = deque()
        self._begun = 0  # calls
        self._asleep = False  # the watcher, until it is woken
        self._wake = os.eventfd(0)

    def send(self, event: toolwire.Event) -> None:
        """Send one message. Raises BrokenPipeError when the kernel has gone."""
        self._sock.sendall(toolwire.pack(event))

    def serve(self, host: Host) -> None:
        """Carry out calls until told to leave, or the kernel has gone."""
        signal.signal(signal.SIGUSR1, host.interrupt)
        threading.Thread(target=self._watch, args=(host,), name="watcher", daemon=True).start()
        try:
            while (command := self._next(host)) and not isinstance(command, toolwire.Quit):
                if isinstance(command, toolwire.Call):
                    self._begin()
                    self._sock.sendall(host.run(command))
                elif isinstance(command, toolwire.Batch):
                    self._begin()
                    self._sock.sendall(host.run_all(command.calls))
        except (FrameError, ValueError) as error:
            sys.stderr.write(f"aios.toolhost: {error}\n")
            sys.stderr.flush()
            os._exit(EX_PROTOCOL)

    def _next(self, host: Host) -> toolwire.Command | None:
        """Return the kernel's next message; None when it has gone."""
        while not self._inbox or self._frames.pending:
            data = self._receive(0)
            if not data:
                return None
            for payload in self._frames.feed(data):
                command = toolwire.decode_command(payload)
                self._inbox.append(command)
                if isinstance(command, toolwire.Call):
                    host.pending.add(command.ticket)
                elif isinstance(command, toolwire.Batch):
                    host.pending.update(call.ticket for call in command.calls)
                elif isinstance(command, toolwire.Cancel):
                    host.cancel(command.ticket)
        return self._inbox.popleft()

    def _receive(self, flags: int) -> bytes:
        try:
            return self._sock.recv(CHUNK, flags)
        except ConnectionError:
            return b""

    def _begin(self) -> None:
        self._begun += 1
        if self._asleep:
            os.eventfd_write(self._wake, 1)

    # The other thread.

    def _watch(self, host: Host) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        poller.register(self._wake, select.POLLIN)
        seen = 0
        while True:
            busy = host.running is not None or self._begun != seen
            seen = self._begun
            self._asleep = not busy
            if self._begun != seen:  # it did not see that this one was falling asleep
                continue
            events = dict(poller.poll(LOOK_S * 1000 if busy else None))
            waiting = self._waiting()
            if self._sock.fileno() in events:  # the kernel has gone, or a tool has closed it
                if not any(isinstance(command, toolwire.Quit) for command in waiting):
                    os._exit(0)
                return
            if self._wake in events:
                os.eventfd_read(self._wake)
            self._cancel(host, waiting)

    def _waiting(self) -> list[toolwire.Command]:
        """Return the messages that the main thread has not taken, as far as they can be seen."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._receive(socket.MSG_PEEK | socket.MSG_DONTWAIT)
        with contextlib.suppress(FrameError, ValueError):  # the main thread will say so
            frames = Frames(toolwire.MAX_MESSAGE)
            return [toolwire.decode_command(payload) for payload in frames.feed(data)]
        return []

    def _cancel(self, host: Host, waiting: list[toolwire.Command]) -> None:
        running = host.running
        if any(isinstance(c, toolwire.Cancel) and c.ticket == running for c in waiting):
            host.cancel(running or 0)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def load(name: str) -> list[Declared]:
    """Import MODULE and return its tools, or the one behind the colon.

    Raises Unavailable, which says what is wrong: no such module, it raised, it has no such tool.
    """
    module_name, _, function = name.partition(":")
    if module_name.endswith(".py"):
        module_name = str(Path(module_name).resolve())
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:
        raise Unavailable(f"{module_name}: {type(error).__name__}: {error}") from error
    found = [tool for value in vars(module).values() if (tool := declared(value))]
    own = [tool for tool in found if tool.function.__module__ == module.__name__]
    if function:
        own = [tool for tool in found if tool.function.__name__ == function]
    if not own:
        what = f"no tool {function}" if function else "no function that is declared by aios.tools"
        raise Unavailable(f"{module_name} has {what}")
    for tool in own:
        tool.declaration["python"] = f"{module_name}:{tool.function.__name__}"
    return own


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    called = f"aios_tool_{Path(name).stem}"  # a name of its own: it may be called math.py
    spec = importlib.util.spec_from_file_location(called, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # annotations and pickle look a module up by its name
    spec.loader.exec_module(module)
    return module


def declare(names: list[str]) -> int:
    """Print the declarations of these modules as JSON. Returns the exit status."""
    tools: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with _printing_to_stderr() as out:
        for name in names:
            try:
                tools += [tool.declaration for tool in load(name)]
            except Unavailable as error:
                failed[name] = str(error)
        _flush()
        os.write(out, msgspec.json.encode({"tools": tools, "failed": failed}) + b"\n")
    return 0 if tools else 1


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[int]:
    """Keep what imports print, C libraries included, out of stdout; gives its descriptor."""
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        yield out
    finally:
        os.dup2(out, 1)
        os.close(out)


def serve(fd: int, names: list[str]) -> int:
    """Serve the tools of these modules on an inherited socket. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)  # what a tool starts must not hold the kernel's socket
    link = Link(sock)
    try:
        try:
            tools = [tool for name in names for tool in load(name)]
        except Unavailable as error:
            _flush()
            link.send(toolwire.Failed(0, "unavailable", str(error)[:MESSAGE]))
            return 1
        _flush()
        link.send(toolwire.Ready([tool.declaration for tool in tools]))
        link.serve(Host(tools))
    except BrokenPipeError:
        return 0  # the kernel has gone
    return 0


def main() -> int:
    """Run the host; returns its exit status."""
    match sys.argv[1:]:  # the kernel's own ways, which are to be short
        case ["--fd", fd, name] if fd.isdecimal():
            return serve(int(fd), [name])
        case ["--declare", name]:
            return declare([name])
    import argparse

    parser = argparse.ArgumentParser(prog="aios.toolhost", description="serve Python tools")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fd", type=int, help="inherited socket to the kernel")
    what.add_argument("--declare", action="store_true", help="print declarations as JSON")
    parser.add_argument("modules", nargs="+", metavar="MODULE[:FUNCTION]")
    options = parser.parse_args()
    if options.declare:
        return declare(options.modules)
    return serve(options.fd, options.modules)


if __name__ == "__main__":
    status = main()
    _flush()
    os._exit(status)  # threads and atexit handlers of a tool don't hold up the end
