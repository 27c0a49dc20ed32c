"""Snapshot files: one sequence's KV in a file, mapped into memory and used again.

The files lie on tmpfs, so they outlive a worker that dies. Fresh pages cost far more than the copy
itself, so a file only grows, and its mapping is kept while the file is still the one at its path.

Layout: a header of 64 bytes (magic, positions, payload size, fingerprint digest), then what
llama.cpp wrote. The header is cleared before a write and written after it: a file whose writer was
killed half-way is refused, as is one of another model, build or setting. Nothing unverified reaches
llama.cpp, which would abort the process.

A file that somebody else cuts short is noticed before it is used, and written or refused as any
other. Cut in the millisecond of a copy it ends the worker (SIGBUS), which costs a replay and no
more: reading it with `pread` instead would cost every switch another copy.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

HEADER = struct.Struct("<8sQQ32s8x")
MAGIC = b"AIOSKV\x00\x01"

Transfer = Callable[[int, int], int]
"""Called with (address, size) of the payload; returns the bytes written or read, 0 on failure."""


@dataclass(slots=True)
class _Mapping:
    memory: mmap.mmap
    identity: tuple[int, int]  # st_dev, st_ino
    size: int

    def address(self) -> int:
        # The ctypes object is dropped at once: the mapping could not be closed while it lives.
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + HEADER.size


class SnapshotFiles:
    """Reads and writes snapshot files; keeps up to `keep` of them mapped."""

    def __init__(self, fingerprint: str, keep: int) -> None:
        """fingerprint: what a file must come from to be restored here."""
        self._digest = hashlib.sha256(fingerprint.encode()).digest()
        self._keep = keep
        self._mappings: dict[str, _Mapping] = {}

    def write(self, path: str, kv: int, size: int, fill: Transfer) -> int:
        """Write kv positions, at most `size` bytes of payload, with `fill`.

        Returns the file's size in use, header included. Raises OSError (ENOSPC, EIO, ...).
        """
        self._forget_stale()
        mapping = self._mapped(path, HEADER.size + size)
        mapping.memory[: HEADER.size] = bytes(HEADER.size)
        written = fill(mapping.address(), size)
        if not written:
            raise OSError(errno.EIO, f"the KV of {kv} positions could not be copied out")
        HEADER.pack_into(mapping.memory, 0, MAGIC, kv, written, self._digest)
        return HEADER.size + written

    def read(self, path: str, kv: int, take: Transfer) -> None:
        """Give the payload of a file that must hold kv positions to `take`.

        Raises OSError: ENOENT, ESTALE (of another model or setting, or half-written), EIO.
        """
        mapping = self._mapped(path, 0)
        if mapping.size < HEADER.size:
            raise OSError(errno.ESTALE, f"snapshot {path} is too short; compute it again")
        magic, held, size, digest = HEADER.unpack_from(mapping.memory, 0)
        if magic != MAGIC or digest != self._digest:
            raise OSError(errno.ESTALE, f"snapshot {path} is not of this core; compute it again")
        if held != kv or HEADER.size + size > mapping.size:
            raise OSError(
                errno.ESTALE, f"snapshot {path} holds {held} positions, not {kv}; compute it again"
            )
        if not take(mapping.address(), size):
            raise OSError(errno.EIO, f"snapshot {path} was refused; compute it again")

    def close(self) -> None:
        """Drop every mapping."""
        for path in list(self._mappings):
            self._drop(path)

    def _mapped(self, path: str, need: int) -> _Mapping:
        """The mapping of the file at path, of at least `need` bytes (0: an existing file as is)."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if need else 0)
        held = self._mappings.pop(path, None)
        fd = -1
        try:
            fd = os.open(path, flags, 0o600)
            found = os.fstat(fd)
            identity = (found.st_dev, found.st_ino)
            if held and held.identity == identity and held.size == found.st_size >= need:
                self._mappings[path] = held
                return held
            if found.st_size < need:
                # Reserved, not just lengthened: a full tmpfs is then an error, not a SIGBUS.
                os.posix_fallocate(fd, 0, need)
            size = max(found.st_size, need)
            if size == 0:
                raise OSError(errno.ESTALE, f"snapshot {path} is empty; compute it again")
            populate = getattr(mmap, "MAP_POPULATE", 0)
            memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | populate)
        finally:
            if fd >= 0:
                os.close(fd)
        self._mappings[path] = mapping = _Mapping(memory, identity, size)
        while len(self._mappings) > self._keep:
            self._drop(next(iter(self._mappings)))
        return mapping

    def _forget_stale(self) -> None:
        """Unmap files that were removed or replaced: their memory is only held by us."""
        for path, mapping in list(self._mappings.items()):
            try:
                found = os.stat(path)
            except OSError:
                self._drop(path)
                continue
            if (found.st_dev, found.st_ino) != mapping.identity:
                self._drop(path)

    def _drop(self, path: str) -> None:
        self._mappings.pop(path).memory.close()
