"""How a process of the kernel's own begins: bound to its kernel, niced below it, one socket.

    sock = begin("aiosd.engine", "AIOS core worker", "AIOS_ENGINE_NICE")

Used by what runs as `python -m NAME --fd N`: core workers, their bridges to other machines, and the
embedder. N is the inherited end of a socketpair; its end of file is the other sign that the kernel
has gone.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
from typing import Final

from aiosd.proctree import prctl

EX_PROTOCOL: Final = 76
"""Exit status after a malformed frame (sysexits.h)."""
EX_TEMPFAIL: Final = 75
"""Exit status of one whose place has gone, through no fault of its work (sysexits.h)."""
PR_SET_PDEATHSIG: Final = 1


def begin(name: str, description: str, niceness: str) -> socket.socket:
    """Read the command line and return the socket to the kernel.

    niceness: the environment variable that says how far below the kernel to run (19 unless set).
    """
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the kernel")
    options = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the kernel's business
    os.nice(int(os.environ.get(niceness, "19")))
    return socket.socket(fileno=options.fd)


def die_with_parent() -> None:
    """Have the kernel's end kill this process; an earlier end shows as another parent."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
