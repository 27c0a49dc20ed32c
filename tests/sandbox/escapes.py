"""Ways out of a box, tried from inside. Run as a program: prints, as JSON, which of them worked.

Each is tried in a process of its own and is bounded in time and size, so that where nothing stops
it no harm is done. What it goes for, the test puts into the environment as JSON (ESCAPES).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

GOALS: dict[str, Any] = json.loads(os.environ.get("ESCAPES", "{}"))
BOMB = 40
FLOOD = 80 << 20
CLONE_NEWUSER = 0x10000000
PTRACE_SEIZE = 0x4206
KEYCTL, IO_URING_SETUP = {"x86_64": (250, 425), "aarch64": (219, 425)}.get(
    os.uname().machine, (-1, -1)
)

libc = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> bool:
    with open(path, "rb") as file:
        return bool(file.read(1))


def home() -> bool:
    return read(GOALS["home"])


def kernel_state() -> bool:
    return read(GOALS["state"])


def kernel_socket() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(GOALS["socket"])
    return True


def abstract_socket() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + GOALS["abstract"])
    return True


def other_workspace() -> bool:
    return read(GOALS["other"])


def write_outside() -> bool:
    with open(GOALS["outside"], "w") as file:
        file.write("here I was")
    return True


def symbolic_link() -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.unlink("link")
    os.symlink(GOALS["state"], "link")
    return read("link")


def other_root() -> bool:
    return read(f"/proc/{GOALS['pid']}/root{GOALS['state']}")


def reopened_descriptor() -> bool:
    """Open a file for writing that was lent for reading."""
    with open("/proc/self/fd/5", "r+b") as file:
        file.write(b"changed")
    return True


def proc_of_others() -> bool:
    return read(f"/proc/{GOALS['pid']}/environ")


def signal_others() -> bool:
    os.kill(GOALS["pid"], 0)
    return True


def ptrace_others() -> bool:
    return int(libc.ptrace(PTRACE_SEIZE, GOALS["pid"], None, None)) == 0


def sysctl() -> bool:
    with open("/proc/sys/kernel/core_pattern", "r+b"):
        return True


def tcp() -> bool:
    with socket.create_connection(("127.0.0.1", GOALS["tcp"]), timeout=5):
        return True


def udp() -> bool:
    """Send something; the test looks whether it arrived."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"I got out", ("127.0.0.1", GOALS["udp"]))
    return False


def user_namespace() -> bool:
    return bool(libc.unshare(CLONE_NEWUSER) == 0)


def keyring() -> bool:
    return bool(libc.syscall(KEYCTL, 0, -3, 0) >= 0)


def io_uring() -> bool:
    parameters = ctypes.create_string_buffer(120)
    return bool(libc.syscall(IO_URING_SETUP, 1, parameters) >= 0)


def set_user_id() -> bool:
    """Leave a program behind that whoever runs it runs as us."""
    with open("planted", "w") as file:
        os.fchmod(file.fileno(), 0o755)
    os.chmod("planted", 0o4755)
    return bool(os.stat("planted").st_mode & 0o4000)


def gain_privileges() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        return "NoNewPrivs:\t1" not in file.read()


def fork_bomb() -> bool:
    """Have many children at once. They end with us."""
    held, hold = os.pipe()
    children = []
    try:
        for _ in range(BOMB):
            if (pid := os.fork()) == 0:
                os.close(hold)
                os.read(held, 1)
                os._exit(0)
            children.append(pid)
    finally:
        os.close(hold)
        for pid in children:
            os.waitpid(pid, 0)
    return True


def memory_flood() -> bool:
    return len(bytearray(b"x") * FLOOD) == FLOOD


def file_flood() -> bool:
    try:
        with open("flood", "wb") as file:
            for _ in range(4):
                file.write(bytes(1 << 20))
        return True
    finally:
        os.unlink("flood")


def disk_flood() -> bool:
    """Fill /tmp with files that are small enough each."""
    names = [f"/tmp/aios-flood-{os.getpid()}-{n}" for n in range(4)]
    try:
        for name in names:
            with open(name, "wb") as file:
                file.write(bytes(1 << 19))
        return True
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name)


def daemon() -> bool:
    """Leave a process behind that ignores what it can; it holds descriptor 6."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for sig in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(sig, signal.SIG_IGN)
            for stream in (1, 2):
                os.dup2(os.open("/dev/null", os.O_RDWR), stream)
            os.write(6, b"%d" % os.getpid())
            os.write(theirs, b"+")
            time.sleep(20)
        os._exit(0)
    os.close(theirs)
    os.read(ours, 1)
    return False


WAYS: dict[str, Callable[[], bool]] = {
    way.__name__: way
    for way in (
        home,
        kernel_state,
        kernel_socket,
        abstract_socket,
        other_workspace,
        write_outside,
        symbolic_link,
        other_root,
        reopened_descriptor,
        proc_of_others,
        signal_others,
        ptrace_others,
        sysctl,
        tcp,
        udp,
        user_namespace,
        keyring,
        io_uring,
        set_user_id,
        gain_privileges,
        fork_bomb,
        file_flood,
        disk_flood,
        daemon,
        memory_flood,  # last: where it is stopped, all of us may be
    )
}


def attempt(way: Callable[[], bool]) -> str:
    """Try a way out in a child; return "out", or what stopped it."""
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            text = "out" if way() else "nothing gained"
        except (OSError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}"
        os.write(theirs, text.encode()[:500])
        os._exit(0)
    os.close(theirs)
    data = os.read(ours, 500)
    os.close(ours)
    os.waitpid(pid, 0)
    return data.decode() or "killed"


def main() -> None:
    for name, way in WAYS.items():
        print(json.dumps([name, attempt(way)]), flush=True)


if __name__ == "__main__":
    main()
