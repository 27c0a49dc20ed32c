"""What runs first inside a tool's box: takes rights away from itself, then becomes the tool.

    python -I -c "..." FD        (START, with this module's own code and the order in FD)

The order is what `sandbox.start` wants, in marshal's format (both ends are one Python); the code
comes with it, compiled by the kernel once, as Python would compile a program's text at each start.
The layers come in an order in which each still lets the next be put on: limits, the listening
socket of the proxy, no_new_privs, Landlock, seccomp. Its cgroups are entered meanwhile by a second
thread, which has ended when the program begins: Linux lets who enters a group wait for all its
processors, 10 ms and more. Where no namespace ends with the tool, this process stays as a guard
over it, and a child of it goes on. Then the program: executed, or, where it is a module for this
very Python, run in place, which saves a second start of Python.

What must hold: nothing of the tool runs unless every layer of the order is on. The kernel hears
on the report's descriptor: "+" and an end, and the program runs, or "+errno message" or "errno
message", and it does not.

Standard library only, and as little of it as can be: this is on the way of every cold call.
"""

from __future__ import annotations

import _thread
import marshal
import os
import sys

TYPE_CHECKING = False  # that of typing, which takes as long to import as all that is done here
if TYPE_CHECKING:
    from typing import Any, BinaryIO, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine
RULE_PATH_BENEATH, RULE_NET_PORT = 1, 2
CONNECT_TCP = 2
ON_FILES = 0b1100_0000_0000_0111  # the Landlock rights that a file, not a directory, can have
SETUP_FAILED = 126

START = "import marshal,sys;f=open(int(sys.argv[1]),'rb');exec(marshal.load(f));main(f)"
"""How Python is told to run this: -c START FD."""


def main(file: BinaryIO) -> None:
    """Confine this process as the order says, then run the program. Returns when a module did.

    file: holds the order from where it is now; it is closed.
    """
    with file:
        order: dict[str, Any] = marshal.load(file)
    doing = "be watched"
    try:
        _stand_guard(order)
        doing = "enter its cgroup"
        group = _Entering(order["cgroups"])
        for step, act in (
            ("load its libraries", _load),
            ("be below its kernel", _go_below),
            ("set its limits", _set_limits),
            ("reach its proxy", _listen),
            ("give up new privileges", _no_new_privs),
            ("put on Landlock", _landlock),
            ("place its descriptors", _place_descriptors),
            ("put on seccomp", _seccomp),
            ("enter its workspace", _change_directory),
            ("see its kernel", _check_kernel),
        ):
            doing = step
            act(order)
        doing = "enter its cgroup"
        group.wait()
    except (OSError, ValueError) as error:
        _fail(order["report"], f"cannot {doing}", error)
    _run(order)


def _fail(report: int, what: str, error: OSError | ValueError) -> NoReturn:
    code = getattr(error, "errno", None) or 22
    text = getattr(error, "strerror", None) or str(error)
    os.write(report, f"{code} the box {what}: {text}".encode(errors="replace")[:4000])
    os._exit(SETUP_FAILED)


def _stand_guard(order: dict[str, Any]) -> None:
    """Go on as the child of a guard, where no namespace ends what a tool leaves behind.

    The guard gets all orphans of the tool, kills them when the tool or the kernel has ended, and
    ends as the tool did. It holds no descriptor, and no SIGTERM is meant for it.
    """
    if not order["leash"]:
        return
    import ctypes
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    news = {signal.SIGCHLD, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*news, signal.SIGTERM, signal.SIGINT})
    kernel = os.getppid()
    tool = os.fork()
    if not tool:
        os.setpgid(0, 0)  # a group can be killed at once
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    status = SETUP_FAILED
    try:
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0))
        tree: dict[str, Any] = {}
        exec(marshal.loads(order["tree"]), tree)  # aiosd.proctree
        if os.getppid() == kernel:
            status = _watch(tool, news)
        tree["kill_tree"](os.getpid())
        while True:
            os.waitpid(-1, 0)
    finally:
        os._exit(status)


def _watch(tool: int, news: set[Any]) -> int:
    """Return the status of a tool when it has ended, or that of a killed one for the kernel's."""
    import signal

    while signal.sigwait(news) == signal.SIGCHLD:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == tool:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code
    return 128 + signal.SIGKILL


class _Entering:
    """Enters groups in a thread of its own. descriptors: of their cgroup.procs."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors
        self._error: OSError | None = None
        self._done = _thread.allocate_lock()
        if descriptors:
            self._done.acquire()
            _thread.start_new_thread(self._enter, ())

    def wait(self) -> None:
        """Return when this process is in all of them. Raises OSError."""
        with self._done:
            if self._error is not None:
                raise self._error

    def _enter(self) -> None:
        try:
            for fd in self._descriptors:
                os.write(fd, b"0")
                os.close(fd)
        except OSError as error:
            self._error = error
        self._done.release()


def _load(order: dict[str, Any]) -> None:
    """Import what takes long while the groups are entered; nothing of the tool's can be found."""
    import ctypes

    order["libc"] = ctypes.CDLL(None, use_errno=True)
    if order["module"]:
        import runpy

        order["run"] = runpy.run_module


def _go_below(order: dict[str, Any]) -> None:
    os.nice(order["nice"])
    if order["leash"]:  # without a namespace that ends with it
        _check(order["libc"].prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0))


def _set_limits(order: dict[str, Any]) -> None:
    import resource

    for kind, soft, hard in order["limits"]:
        most = resource.getrlimit(kind)[1]
        if most == resource.RLIM_INFINITY:
            most = max(soft, hard)
        resource.setrlimit(kind, (min(soft, most), min(hard, most)))


def _listen(order: dict[str, Any]) -> None:
    """Open the proxy's port in this network namespace, and hand it out to the kernel."""
    control = order["control"]
    if control < 0:
        return
    import _socket

    with _closing(_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        order["port"] = listening.getsockname()[1]
        with _closing(_socket.socket(fileno=control)) as channel:
            rights = listening.fileno().to_bytes(4, sys.byteorder)
            channel.sendmsg([b"l"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    proxy = f"http://127.0.0.1:{order['port']}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        order["env"][name] = proxy


class _closing:
    """contextlib.closing, without importing contextlib."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __enter__(self) -> Any:
        return self._thing

    def __exit__(self, *_: object) -> None:
        self._thing.close()


def _no_new_privs(order: dict[str, Any]) -> None:
    _check(order["libc"].prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _landlock(order: dict[str, Any]) -> None:
    rules = order["landlock"]
    if rules is None:
        return
    attributes, files, net = rules
    libc = order["libc"]
    ruleset = _check(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0))
    for path, rights in files:
        _allow(libc, ruleset, path, rights)
    if net and order["control"] >= 0:
        rule = CONNECT_TCP.to_bytes(8, sys.byteorder) + order["port"].to_bytes(8, sys.byteorder)
        _check(libc.syscall(ADD_RULE, ruleset, RULE_NET_PORT, rule, 0))
    _check(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(libc: Any, ruleset: int, path: str, rights: int) -> None:
    """Allow rights beneath a path; what does not exist needs no rule."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    if os.fstat(fd).st_mode & 0o170000 != 0o040000:
        rights &= ON_FILES
    rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
    _check(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0))
    os.close(fd)


def _place_descriptors(order: dict[str, Any]) -> None:
    for target, source in order["fds"].items():
        os.dup2(source, target, inheritable=True)
        os.close(source)


def _seccomp(order: dict[str, Any]) -> None:
    code = order["seccomp"]
    if code:
        import ctypes

        count = (len(code) // 8).to_bytes(2, sys.byteorder).ljust(8, b"\0")
        where = ctypes.cast(code, ctypes.c_void_p).value or 0
        program = count + where.to_bytes(8, sys.byteorder)  # struct sock_fprog
        _check(order["libc"].prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def _change_directory(order: dict[str, Any]) -> None:
    os.chdir(order["cwd"])


def _check_kernel(order: dict[str, Any]) -> None:
    """End when the kernel died while the box was built: nothing else would end it."""
    try:
        os.read(order["lifeline"], 1)
    except BlockingIOError:
        os.close(order["lifeline"])
        return
    os._exit(SETUP_FAILED)


def _check(result: int) -> int:
    if result < 0:
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _run(order: dict[str, Any]) -> None:
    argv, env, report = order["argv"], order["env"], order["report"]
    if order["module"]:
        os.write(report, b"+")
        os.close(report)
        _run_module(order["run"], order["path"], argv, env)
        return
    os.set_inheritable(report, False)
    if order["path"]:
        env["PYTHONPATH"] = ":".join([env.get("PYTHONPATH", ""), *order["path"]]).strip(":")
    os.write(report, b"+")
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        _fail(report, f"cannot execute {argv[0]}", error)


def _run_module(run: Any, path: list[str], argv: list[str], env: dict[str, str]) -> None:
    """Be `python -m MODULE ARGUMENT...`, but for the working directory in sys.path."""
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(":") if place] + path
    sys.argv = argv[2:]  # its first is set by runpy
    run(argv[2], run_name="__main__", alter_sys=True)
