"""Starting an agent's process: fork, limits, identity, and the one report of what failed.

Used by the shim alone. Part of the shim: standard library only, one thread (it forks).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal

from aiosd.proctree import Cgroup, prctl

CREDENTIAL_FD = 3
EXEC_FAILED = 127

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38

LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "cpu": resource.RLIMIT_CPU,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "as": resource.RLIMIT_AS,  # last: the child still runs Python until it executes the agent
}


class Order:
    """What to run, as the kernel hands it over (spawn.Spec says what each field means)."""

    def __init__(
        self,
        *,
        argv: list[str],
        cwd: str,
        env: dict[str, str],
        uid: int | None,
        gid: int | None,
        groups: list[int],
        rlimits: dict[str, int],
        log_limit: int,
        orphan_timeout: float,
        kill_timeout: float,
        cgroup: str | None,
    ) -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.rlimits = rlimits
        self.log_limit = log_limit
        self.orphan_timeout = orphan_timeout
        self.kill_timeout = kill_timeout
        self.cgroup = cgroup


def launch(order: Order, cgroup: Cgroup, credential: int) -> tuple[int, int, int, int]:
    """Fork the agent.

    Returns its pid and three descriptors to read: stdout, stderr, and one that ends without a
    byte when the program was executed, or carries `errno message` when it could not be.
    """
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    status, status_end = os.pipe()
    # Above every number the agent may get, so that no dup2 in the child hits it.
    report = fcntl.fcntl(status_end, fcntl.F_DUPFD_CLOEXEC, 10)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(order, cgroup, parent, (out_end, err_end, credential, report))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # the child does so too: whoever comes first
    for fd in (out_end, err_end, status_end, report):
        os.close(fd)
    if credential >= 0:
        os.close(credential)
    return pid, out, err, status


def _child(order: Order, cgroup: Cgroup, parent: int, fds: tuple[int, int, int, int]) -> None:
    """In the forked child: become the agent, or report why not and end. Never returns."""
    out, err, credential, report = fds
    step = "prepare the process"
    try:
        os.setpgid(0, 0)
        cgroup.enter()
        os.dup2(out, 1)
        os.dup2(err, 2)
        env = dict(order.env)
        if credential >= 0:
            os.dup2(credential, CREDENTIAL_FD)
            os.set_inheritable(CREDENTIAL_FD, True)
            env["AIOS_CREDENTIAL_FD"] = str(CREDENTIAL_FD)
        step = "set the resource limits"
        _set_limits(order.rlimits)
        step = f"switch to uid {order.uid}"
        _switch_user(order)
        # Only now: a change of identity clears the death signal.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXEC_FAILED)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        step = f"enter the working directory {order.cwd}"
        os.chdir(order.cwd)
        step = f"execute {order.argv[0]}"
        _reset_signals()
        os.execvpe(order.argv[0], order.argv, env)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        why = os.strerror(code) if isinstance(error, OSError) else str(error)
        if code == errno.ENOENT and step.startswith("execute") and os.path.exists(order.argv[0]):
            why = "the interpreter that its first line names does not exist"
        os.write(report, f"{code} cannot {step}: {why}".encode(errors="replace")[:4096])
    finally:
        os._exit(EXEC_FAILED)


def _set_limits(limits: dict[str, int]) -> None:
    """Lower the limits; one above what we may have ourselves becomes what we may have."""
    limits.setdefault("core", 0)
    for name, kind in LIMITS.items():
        if name in limits:
            hard = resource.getrlimit(kind)[1]
            value = limits[name]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(kind, (value, value))


def _switch_user(order: Order) -> None:
    """Take on groups, gid and uid, in the one order that works."""
    if order.uid is not None and order.gid is not None:
        os.setgroups(order.groups)
        os.setresgid(order.gid, order.gid, order.gid)
        os.setresuid(order.uid, order.uid, order.uid)


def _reset_signals() -> None:
    """Give every signal its default action and unblock it."""
    for sig in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(sig, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
