"""Snapshot files: one sequence's KV in a file that says itself what it holds.

One format for memory (tmpfs) and disk. A file begins with a prelude of 64 bytes (magic, format
version, lengths, checksums), then a msgpack header (`Header`: of which core, which tokens, how each
range was computed, what was being generated), then, at a page's beginning, what llama.cpp wrote.

The prelude is cleared before a write and written last: a file whose writer was killed half-way is
refused. So is one of another core, of a newer format, cut short, or with a single bit turned. What
fails is an OSError that names the file and the reason: ESTALE for one that is not what it should
be, EIO for one whose bytes are not those that were written. Nothing unverified reaches llama.cpp,
which would abort the process.

Buffers (`*.kv`, on tmpfs) are written again and again: fresh pages cost far more than the copy, so
they only grow, and their mappings are kept while the file is still the one at its path. Any other
file is mapped for one use.

A file that somebody else cuts short is noticed before it is used. Cut in the millisecond of a copy
it ends the worker (SIGBUS), which costs a replay and no more: reading it with `pread` instead would
cost every switch another copy.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import xxhash

from aiosd.engine.beams import Tree
from aiosd.engine.protocol import Goal, Run
from aiosd.killpoint import reach

MAGIC: Final = b"AIOS-KV\x00"
VERSION: Final = 2
# magic, version, bytes of header, payload's offset, its bytes, its xxh3, xxh3 of all before it
PRELUDE: Final = struct.Struct("<8sIIQQQQ16x")
POOLED: Final = ".kv"  # how the name of a buffer ends
LARGE: Final = 8 << 20  # bytes; buffers from this size on ...
ROOM: Final = 512 << 10  # ... are lengthened by so many: less than a kernel reserves for each
MAX_HEADER: Final = 64 << 20  # bytes; a longer one was never written

Transfer = Callable[[int, int], int]
"""Called with (address, size) of the payload; returns the bytes written or read, 0 on failure."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot holds: KV of `tokens`, computed as `runs` say.

    cid: the context that it was taken of. goal: what was being generated, and accepted: how many
    tokens of it there were. created: Unix seconds. tree: of a beam search; the payload then holds
    the KV of each live branch, one after the other: of `tokens` and of the branch but for its last
    token.
    """

    cid: int
    tokens: list[int]
    runs: list[Run]
    goal: Goal | None
    accepted: int
    created: float
    tree: Tree | None = None


class Header(msgspec.Struct, frozen=True, array_like=True):
    """A record, and the core that its KV fits: fingerprint, and types of keys and values."""

    fingerprint: str
    kv_types: tuple[str, str]
    record: Record


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Header).decode

Check = Callable[[Record], None]
"""Raises OSError(ESTALE) for a record that is not the one wanted."""


@dataclass(slots=True, frozen=True)
class Layout:
    """Where things are in a file: its header, and the payload's offset, size and checksum."""

    header: Header
    offset: int
    size: int
    checksum: int

    @property
    def used(self) -> int:
        """Bytes of the file that mean something."""
        return self.offset + self.size


@dataclass(slots=True)
class _Mapping:
    memory: mmap.mmap
    identity: tuple[int, int]  # st_dev, st_ino
    size: int

    def address(self, offset: int) -> int:
        # The ctypes object is dropped at once: the mapping could not be closed while it lives.
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + offset

    def checksum(self, offset: int, size: int) -> int:
        with memoryview(self.memory) as whole, whole[offset : offset + size] as part:
            return xxhash.xxh3_64_intdigest(part)


class SnapshotFiles:
    """Reads and writes snapshot files of one core; keeps up to `keep` buffers mapped."""

    def __init__(self, fingerprint: str, keep: int, kv_types: tuple[str, str] = ("", "")) -> None:
        """fingerprint: what a file must come from to be restored here."""
        self._fingerprint = fingerprint
        self._kv_types = kv_types
        self._keep = keep
        self._mappings: dict[str, _Mapping] = {}

    def write(self, path: str, record: Record, size: int, fill: Transfer) -> int:
        """Write a record and, with `fill`, at most `size` bytes of payload.

        Returns the file's size in use. Raises OSError (ENOSPC, EROFS, EIO, ...).
        """
        self._forget_stale()
        head = _encode(Header(self._fingerprint, self._kv_types, record))
        offset = _aligned(PRELUDE.size + len(head))
        mapping = self._mapped(path, offset + size)
        try:
            memory = mapping.memory
            memory[: PRELUDE.size] = bytes(PRELUDE.size)
            reach("snapshot.cleared")
            written = fill(mapping.address(offset), size)
            if not written:
                text = f"the KV of {len(record.tokens)} positions could not be copied out"
                raise OSError(errno.EIO, text, path)
            checksum = mapping.checksum(offset, written)
            memory[PRELUDE.size : PRELUDE.size + len(head)] = head
            reach("snapshot.filled")
            memory[: PRELUDE.size] = _prelude(head, offset, written, checksum)
            reach("snapshot.written")
        finally:
            self._used(path)
        return offset + written

    def read(self, path: str, check: Check, take: Transfer) -> int:
        """Give the payload of a file to `take`, when `check` accepts its record.

        Returns the bytes in use. Raises OSError with the file's name: ENOENT, ESTALE (of another
        core, half-written, not what was wanted), EIO (damaged).
        """
        mapping = self._mapped(path, 0)
        try:
            layout = parse(mapping.memory, mapping.size, path)
            if layout.header.fingerprint != self._fingerprint:
                text = f"snapshot {path} is of another model, build or setting; compute it again"
                raise OSError(errno.ESTALE, text, path)
            check(layout.header.record)
            if mapping.checksum(layout.offset, layout.size) != layout.checksum:
                raise _damaged(path, "its checksum is wrong")
            if not take(mapping.address(layout.offset), layout.size):
                raise OSError(errno.EIO, f"snapshot {path} was refused; compute it again", path)
        finally:
            self._used(path)
        return layout.used

    def close(self) -> None:
        """Drop every mapping."""
        for path in list(self._mappings):
            self._drop(path)

    def _used(self, path: str) -> None:
        if not path.endswith(POOLED) and path in self._mappings:
            self._drop(path)

    def _mapped(self, path: str, need: int) -> _Mapping:
        """The mapping of the file at path, of at least `need` bytes (0: an existing file as is)."""
        held = self._mappings.pop(path, None)
        fd, shared = _open(path, writing=bool(need))
        try:
            found = os.fstat(fd)
            identity = (found.st_dev, found.st_ino)
            if held and held.identity == identity and held.size == found.st_size >= need:
                self._mappings[path] = held
                return held
            grown = _grown(path, need) if found.st_size < need else 0
            if grown:
                # Reserved, not just lengthened: a full tmpfs is then an error, not a SIGBUS.
                os.posix_fallocate(fd, 0, grown)
            size = max(found.st_size, grown)
            if size == 0:
                raise OSError(errno.ESTALE, f"snapshot {path} is empty; compute it again", path)
            memory = mmap.mmap(fd, size, flags=shared)
        finally:
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


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read a file's header, without its payload; raises OSError as `SnapshotFiles.read` does."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(PRELUDE.size)
        length = PRELUDE.unpack(start)[2] if len(start) == PRELUDE.size else 0
        return parse(start + file.read(min(length, MAX_HEADER)), size, os.fspath(path))


def verify(path: str | os.PathLike[str]) -> Layout:
    """Read all of a file and return its layout; raises OSError when any of it is not as written."""
    layout = read_layout(path)
    with _whole(os.fspath(path)) as memory:
        with memoryview(memory) as whole, whole[layout.offset : layout.used] as part:
            right = xxhash.xxh3_64_intdigest(part) == layout.checksum
        if not right:
            raise _damaged(os.fspath(path), "its checksum is wrong")
    return layout


def parse(data: bytes | mmap.mmap, size: int, path: str) -> Layout:
    """Check the beginning of a file of `size` bytes and say where things are; raises OSError."""
    if len(data) < PRELUDE.size:
        raise _stale(path, f"has {size} bytes, too few for a header")
    magic, version, length, offset, payload, checksum, own = PRELUDE.unpack(data[: PRELUDE.size])
    if magic != MAGIC:
        raise _stale(path, "is no snapshot, or was not written to its end")
    if version != VERSION:
        kind = "a newer" if version > VERSION else "an older"
        raise _stale(path, f"is of {kind} aios (format {version}; this one reads {VERSION})")
    head = data[PRELUDE.size : PRELUDE.size + length]
    if offset + payload > size or PRELUDE.size + length > offset or len(head) < length:
        raise _stale(path, f"is cut short: {size} of {offset + payload} bytes")
    if _checksum(head, offset, payload, checksum) != own:
        raise _damaged(path, "its header's checksum is wrong")
    try:
        return Layout(_decode(head), offset, payload, checksum)
    except msgspec.MsgspecError as error:
        raise _stale(path, f"has a header that can't be read ({error})") from None


def _prelude(head: bytes, offset: int, size: int, checksum: int) -> bytes:
    own = _checksum(head, offset, size, checksum)
    return PRELUDE.pack(MAGIC, VERSION, len(head), offset, size, checksum, own)


def _checksum(head: bytes, offset: int, size: int, checksum: int) -> int:
    start = PRELUDE.pack(MAGIC, VERSION, len(head), offset, size, checksum, 0)
    return xxhash.xxh3_64_intdigest(start + head)


def _aligned(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _grown(path: str, need: int) -> int:
    """How long to make a file. A large buffer gets some room, so as not to grow at every token."""
    if need < LARGE or not path.endswith(POOLED):
        return need
    return -(-need // ROOM) * ROOM


def _open(path: str, writing: bool) -> tuple[int, int]:
    """Open a file; returns its descriptor and the flags to map it with."""
    populate = getattr(mmap, "MAP_POPULATE", 0)
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if writing else 0)
    try:
        return os.open(path, flags, 0o600), mmap.MAP_SHARED | populate
    except OSError as error:
        if writing or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), mmap.MAP_PRIVATE


@contextmanager
def _whole(path: str) -> Iterator[mmap.mmap]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        yield memory


def _stale(path: str, what: str) -> OSError:
    return OSError(errno.ESTALE, f"snapshot {path} {what}; compute it again", path)


def _damaged(path: str, why: str) -> OSError:
    return OSError(errno.EIO, f"snapshot {path} is damaged: {why}; compute it again", path)
