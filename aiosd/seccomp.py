"""The seccomp filter of a box, as a classic BPF program made for this machine.

    program = build(network=False)

Calls newer than this list are answered with ENOSYS, as an older Linux would: nothing that Linux
learns later is open by itself. Of the known ones those are refused that no tool needs and that
reach beyond a process's own files and memory, and some are looked at more closely: socket, clone,
ioctl, and whatever can leave a set-user-ID file behind.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from typing import Final

ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
LD_W_ABS, JEQ, JGE, JSET, AND, RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NR, ARCH, ARGS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes
NEWEST: Final = 466
"""The newest call that was looked at."""

AF_UNIX, AF_INET, AF_INET6, SOCK_STREAM = 1, 2, 10, 1
NAMESPACES: Final = 0x7E020000  # the flags of clone that make a namespace
SET_ID: Final = 0o6000
O_CREAT_OR_TMPFILE: Final = 0o100 | 0o20000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C

ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Number on x86_64, number on aarch64 (-1: it does not have that call).
REFUSED: Final = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, -1),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, -1),
    "query_module": (178, -1),
    "finit_module": (313, 273),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "uselib": (134, -1),
    "sysfs": (139, -1),
    "_sysctl": (156, -1),
    "syslog": (103, 116),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "vhangup": (153, 58),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
# Answered with ENOSYS, so that a C library falls back on the older call, whose arguments a filter
# can see.
MISSING: Final = {"clone3": (435, 435), "openat2": (437, 437)}

# What a mode is for: (name, (numbers), position of the mode, position of the flags or -1).
MODES: Final = (
    ("chmod", (90, -1), 1, -1),
    ("fchmod", (91, 52), 1, -1),
    ("fchmodat", (268, 53), 2, -1),
    ("fchmodat2", (452, 452), 2, -1),
    ("creat", (85, -1), 1, -1),
    ("mknod", (133, -1), 1, -1),
    ("mknodat", (259, 33), 2, -1),
    ("open", (2, -1), 2, 1),
    ("openat", (257, 56), 3, 2),
)
CLONE: Final = (56, 220)
SOCKET: Final = (41, 198)
SOCKETPAIR: Final = (53, 199)
IOCTL: Final = (16, 29)
PERSONALITY: Final = (135, 92)

Code = list[tuple[int, int, int, int]]


def machine() -> str:
    """Return this machine's name when there is a filter for it, else an empty text."""
    name = os.uname().machine
    return name if name in ARCHES else ""


@functools.cache
def build(network: bool) -> bytes:
    """Return the program, as an array of struct sock_filter.

    network: whether TCP sockets may be made (they reach no further than the box's own network
    namespace). Raises OSError(ENOTSUP) on a machine that it was not written for.
    """
    name = machine()
    if not name:
        raise OSError(errno.ENOTSUP, f"there is no seccomp filter for {os.uname().machine}")
    column = list(ARCHES).index(name)
    code = [_load(ARCH), *_unless(JEQ, ARCHES[name], _refuse(errno.ENOSYS)), _load(NR)]
    code += _when(JGE, NEWEST + 1, _refuse(errno.ENOSYS))
    for calls, error in ((MISSING, errno.ENOSYS), (REFUSED, errno.EPERM)):
        for numbers in calls.values():
            if numbers[column] >= 0:
                code += _when(JEQ, numbers[column], _refuse(error))
    for _, numbers, mode, flags in MODES:
        if numbers[column] >= 0:
            code += _when(JEQ, numbers[column], _mode(mode, flags))
    for numbers, block in (
        (CLONE, [_argument(0), *_when(JSET, NAMESPACES, _refuse(errno.EPERM)), *_allow()]),
        (SOCKET, _socket(network)),
        (SOCKETPAIR, [_argument(0), *_when(JEQ, AF_UNIX, _allow()), *_refuse(errno.EACCES)]),
        (IOCTL, _ioctl()),
        (PERSONALITY, _personality()),
    ):
        code += _when(JEQ, numbers[column], block)
    code += _allow()
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _mode(mode: int, flags: int) -> Code:
    """Refuse a set-user-ID or set-group-ID bit, where the mode counts."""
    check = [_argument(mode), *_when(JSET, SET_ID, _refuse(errno.EPERM))]
    if flags < 0:
        return [*check, *_allow()]
    return [_argument(flags), *_when(JSET, O_CREAT_OR_TMPFILE, check), *_allow()]


def _socket(network: bool) -> Code:
    """Allow TCP where there is a network; a path's or another family's socket never."""
    if not network:
        return _refuse(errno.EACCES)
    stream = [_argument(1), (AND, 0, 0, 0xF), *_when(JEQ, SOCK_STREAM, _allow())]
    code: Code = [_argument(0)]
    for family in (AF_INET, AF_INET6):
        code += _when(JEQ, family, [*stream, *_refuse(errno.EACCES)])
    return [*code, *_refuse(errno.EACCES)]


def _ioctl() -> Code:
    """Refuse what puts input into a terminal."""
    code: Code = [_argument(1)]
    for request in (TIOCSTI, TIOCLINUX):
        code += _when(JEQ, request, _refuse(errno.EPERM))
    return [*code, *_allow()]


def _personality() -> Code:
    code: Code = [_argument(0)]
    for usual in (0, 0xFFFFFFFF):
        code += _when(JEQ, usual, _allow())
    return [*code, *_refuse(errno.EPERM)]


def _load(offset: int) -> tuple[int, int, int, int]:
    return (LD_W_ABS, 0, 0, offset)


def _argument(position: int) -> tuple[int, int, int, int]:
    """Load the lower half of an argument: both machines are little-endian."""
    return _load(ARGS + 8 * position)


def _when(test: int, value: int, block: Code) -> Code:
    return [(test, 0, len(block), value), *block]


def _unless(test: int, value: int, block: Code) -> Code:
    return [(test, len(block), 0, value), *block]


def _refuse(error: int) -> Code:
    return [(RET, 0, 0, ERRNO | error)]


def _allow() -> Code:
    return [(RET, 0, 0, ALLOW)]
