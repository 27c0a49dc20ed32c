"""The heap: what was freed is kept for the next large message instead of handed back.

glibc gives blocks of some size, and the free end of its heap, back to the system at once. A kernel
through which objects pass in parts of 1 MB then gets every part's pages anew, zeroed, one fault
for each 4 KB: two thirds of its system time in sto_write, measured.
"""

from __future__ import annotations

import ctypes
from typing import Final

KEPT: Final = 16 << 20
"""Bytes that may lie free at the heap's end."""
LARGE: Final = 4 << 20
"""Bytes from which a block does not come from the heap: parts of objects are smaller."""

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


def keep() -> None:
    """Keep freed memory from now on, up to KEPT bytes; with another libc than glibc do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_MMAP_THRESHOLD, LARGE)
