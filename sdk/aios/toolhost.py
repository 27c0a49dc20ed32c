"""A tool host: serves the tools of Python modules to the kernel, one call at a time.

    python -m aios.toolhost --fd N MODULE...       N: inherited end of a socketpair (abi/toolwire)
    python -m aios.toolhost --declare MODULE...    prints {"tools": [...], "failed": {MODULE: why}}

MODULE is a module's name, `module:function` for one of its tools, or the path of a .py file. The
kernel starts hosts by this name, in a sandbox, and never imports a tool itself.

Threads: the main one carries out calls; one more reads the socket, so that the process ends with
its kernel in the middle of a call too, and a cancelled call is interrupted by an exception. What
a tool does to its process stays the host's own trouble: an exception, sys.exit and a fork that
comes back are survived; when the process dies, the kernel sees the socket end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from aios.tools import BadArguments, BadResult, Declared, Unavailable, declared
from aios.workfiles import changed, survey
from aiosd.abi import toolwire
from aiosd.abi.wire import FrameError, Frames

EX_PROTOCOL: Final = 76
MESSAGE: Final = 4000  # characters of a failure's message


class Cancelled(BaseException):
    """The call is no longer wanted; no `except Exception` of a tool's takes it."""


class Host:
    """The tools, and the call that is being carried out."""

    def __init__(self, tools: list[Declared]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._pid = os.getpid()
        self._running: int | None = None  # ticket of the call that may be interrupted
        self._pending: set[int] = set()  # tickets of calls that are not yet answered
        self._unwanted: set[int] = set()  # those of them that were cancelled

    def run(self, call: toolwire.Call) -> toolwire.Done | toolwire.Failed:
        """Carry out a call, whatever happens in it. What it printed has been written after it."""
        answer: toolwire.Done | toolwire.Failed
        answer = toolwire.Failed(call.ticket, "error", f"{call.tool} was cancelled")
        with contextlib.suppress(Cancelled):  # comes while _attempt runs, and at no other time
            answer = self._attempt(call)
        self._pending.discard(call.ticket)
        self._unwanted.discard(call.ticket)
        if os.getpid() != self._pid:  # a fork in the tool came back: only the first may answer
            _flush()
            os._exit(0)
        _flush()
        return answer

    def expect(self, ticket: int) -> None:
        """Note a call that has come. For the reading thread."""
        self._pending.add(ticket)

    def cancel(self, ticket: int) -> None:
        """Interrupt a call, or keep it from beginning. For the reading thread."""
        if ticket not in self._pending:
            return
        self._unwanted.add(ticket)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def interrupt(self, *_: object) -> None:
        """Handle the signal of `cancel`, in the main thread."""
        if self._running in self._unwanted:
            self._running = None
            raise Cancelled

    def _attempt(self, call: toolwire.Call) -> toolwire.Done | toolwire.Failed:
        self._running = call.ticket
        self.interrupt()
        try:
            answer: toolwire.Done | toolwire.Failed = self._done(call)
        except BadArguments as error:
            answer = _failed(call, "arguments", error)
        except BadResult as error:
            answer = _failed(call, "result", error)
        except (Unavailable, ModuleNotFoundError) as error:
            answer = _failed(call, "unavailable", error)
        except Exception as error:  # noqa: BLE001 (a tool may raise what it likes)
            _show(error)
            answer = _failed(call, "error", error, f"{type(error).__name__}: ")
        except Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 (sys.exit is no reason to end the host)
            answer = _failed(call, "error", f"{call.tool} ended itself by {type(error).__name__}")
        self._running = None
        return answer

    def _done(self, call: toolwire.Call) -> toolwire.Done:
        tool = self._tools.get(call.tool)
        if tool is None:
            raise Unavailable(f"this host has no tool {call.tool}: {', '.join(self._tools)}")
        os.chdir(call.workspace or ".")
        root = Path.cwd()
        before = survey(call.workspace)
        used = _processor_seconds()
        value = tool.result(_call(tool, call))
        files = changed(before, survey(call.workspace))
        if tool.names_file:
            file = _artefact(root, value)
            value = {"artefact": file}
            files = [file, *(name for name in files if name != file)]
        if len(files) > toolwire.MAX_ARTEFACTS:
            sys.stderr.write(f"{len(files)} files changed, {toolwire.MAX_ARTEFACTS} are named\n")
        metrics = {"cpu_s": _processor_seconds() - used, "memory": _memory()}
        done = toolwire.Done(call.ticket, value, files[: toolwire.MAX_ARTEFACTS], metrics)
        return _sendable(tool, done)


def _call(tool: Declared, call: toolwire.Call) -> Any:
    arguments = tool.convert(call.arguments)
    if inspect.iscoroutinefunction(tool.function):
        import asyncio  # takes longer to import than all the rest

        return asyncio.run(tool.function(**arguments))
    return tool.function(**arguments)


def _artefact(root: Path, value: str) -> str:
    """Return a result that is a file, relative to the workspace. Raises BadResult."""
    path = (root / value).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise BadResult(f"the result {value} is no file in the workspace")
    return path.relative_to(root).as_posix()


def _sendable(tool: Declared, done: toolwire.Done) -> toolwire.Done:
    try:
        wrong = toolwire.refusal(toolwire.encode(done))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        wrong = f"can't be sent: {error}"
    if wrong:
        raise BadResult(f"the result of {tool.name} {wrong}")
    return done


def _failed(
    call: toolwire.Call, kind: toolwire.Kind, error: object, prefix: str = ""
) -> toolwire.Failed:
    message = f"{prefix}{error}"[:MESSAGE].encode(errors="replace").decode()
    return toolwire.Failed(call.ticket, kind, message)


def _show(error: BaseException) -> None:
    """Print where in the tool an exception came from, without the host's own frames."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__]
    sys.stderr.write("".join(traceback.format_list(own)))
    sys.stderr.write("".join(traceback.format_exception_only(error)))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a tool may have closed it
            stream.flush()


def _processor_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)


def _memory() -> float:
    """Return the most bytes that this process has had in memory so far."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Link:
    """The socket to the kernel; its thread ends the process when the kernel has gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._quitting = False
        self._inbox: SimpleQueue[toolwire.Call | None] = SimpleQueue()

    def send(self, event: toolwire.Event) -> None:
        """Send one message. Raises BrokenPipeError when the kernel has gone."""
        self._sock.sendall(toolwire.pack(event))

    def serve(self, host: Host) -> None:
        """Carry out calls until told to leave."""
        signal.signal(signal.SIGUSR1, host.interrupt)
        threading.Thread(target=self._read, args=(host,), name="reader", daemon=True).start()
        while call := self._inbox.get():
            self.send(host.run(call))

    def _read(self, host: Host) -> None:
        try:
            for command in self._commands():
                self._take(host, command)
        except (FrameError, ValueError) as error:
            sys.stderr.write(f"aios.toolhost: {error}\n")
            sys.stderr.flush()
            os._exit(EX_PROTOCOL)
        if not self._quitting:
            os._exit(0)

    def _commands(self) -> Iterator[toolwire.Command]:
        frames = Frames(toolwire.MAX_MESSAGE)
        with contextlib.suppress(OSError):
            while data := self._sock.recv(1 << 16):
                for payload in frames.feed(data):
                    yield toolwire.decode_command(payload)

    def _take(self, host: Host, command: toolwire.Command) -> None:
        if isinstance(command, toolwire.Call):
            host.expect(command.ticket)
            self._inbox.put(command)
        elif isinstance(command, toolwire.Cancel):
            host.cancel(command.ticket)
        else:
            self._quitting = True
            self._inbox.put(None)


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
        os.write(out, json.dumps({"tools": tools, "failed": failed}).encode() + b"\n")
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
    parser = argparse.ArgumentParser(prog="aios.toolhost", description="serve Python tools")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fd", type=int, help="inherited socket to the kernel")
    what.add_argument("--declare", action="store_true", help="print declarations as JSON")
    parser.add_argument("modules", nargs="+", metavar="MODULE[:FUNCTION]")
    options = parser.parse_args()
    if options.declare:
        return declare(options.modules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return serve(options.fd, options.modules)


if __name__ == "__main__":
    status = main()
    _flush()
    os._exit(status)  # threads and atexit handlers of a tool don't hold up the end
