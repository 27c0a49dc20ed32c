"""Blobs in a directory, the seldom used ones in a second one; and the drafts of all back ends.

What must hold: a blob is there whole or not at all, whatever kills the kernel or the machine: it is
written under another name, synced, renamed, and the directory synced.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import xxhash

from aiosd.blobs import PIECE, SUM, Blob
from aiosd.directory import sync_directory
from aiosd.settings import Storage

BESIDE: Final = 256 << 10
"""Bytes from which a part is hashed while it is written: less than that is not worth a thread."""
_sums: Final = ThreadPoolExecutor(2, "aiosd-sums")


class Directory:
    """Blobs as files dir/ab/cdef..., the seldom used ones in a second directory of that kind.

    A key is the digest.
    """

    def __init__(self, settings: Storage) -> None:
        self._hot = Path(settings.dir)
        self._cold = Path(settings.cold_dir) if settings.cold_dir else None
        self._drafts = self._hot / "drafts"

    def prepare(self) -> None:
        """Make the directories, and remove drafts."""
        for place in (self._hot, self._cold, self._drafts):
            if place is not None:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (self._drafts, *([self._cold] if self._cold else [])):
            for left in place.glob("*.part"):
                left.unlink(missing_ok=True)

    def draft(self, place: Callable[[Path, str], str] | None = None) -> FileDraft:
        """Begin a file. place: puts it somewhere else, by its digest, and returns the key."""
        return FileDraft(self._drafts / f"{secrets.token_hex(8)}.part", place or self._place)

    def open(self, digest: str) -> FileReader:
        """Open a file, wherever it is."""
        try:
            return FileReader(_path(self._hot, digest))
        except FileNotFoundError:
            if self._cold is None:
                raise
            return FileReader(_path(self._cold, digest))

    def delete(self, digest: str) -> None:
        """Unlink the file."""
        for root in (self._hot, self._cold):
            if root is not None:
                _path(root, digest).unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        """Yield the digests of all files."""
        for root in (self._hot, self._cold):
            for file in root.glob("??/*") if root is not None else ():
                if len(file.name) == 62:
                    yield file.parent.name + file.name

    def free(self) -> int:
        """Return the bytes free for the kernel's user."""
        found = os.statvfs(self._hot)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Nothing is held."""

    def cold(self, digest: str) -> bool:
        """Whether only the second directory has it."""
        return self._cold is not None and not _path(self._hot, digest).exists()

    def cool(self, digest: str) -> None:
        """Copy to the second directory, then unlink."""
        if self._cold is not None:
            _move(_path(self._hot, digest), self._cold, digest)

    def warm(self, digest: str) -> None:
        """Copy back, then unlink."""
        if self._cold is not None:
            _move(_path(self._cold, digest), self._hot, digest)

    def _place(self, draft: Path, digest: str) -> str:
        _rename(draft, _path(self._hot, digest))
        if self._cold is not None:
            _path(self._cold, digest).unlink(missing_ok=True)
        return digest


class FileDraft:
    """A file that is being written, and its digest and checksums so far."""

    def __init__(self, path: Path, place: Callable[[Path, str], str]) -> None:
        self.size = 0
        self._path = path
        self._place = place
        self._digest = hashlib.sha256()
        self._sums = bytearray()
        self._piece = xxhash.xxh3_64()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append to the file."""
        view = memoryview(data)
        summed: Future[None] | None = None
        if len(view) < BESIDE:
            self._sum(view)
        else:  # SHA-256 takes longer than the disk's cache
            summed = _sums.submit(self._sum, view)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        finally:
            if summed is not None:
                summed.result()

    def _sum(self, view: memoryview) -> None:
        self._digest.update(view)
        while view:
            part = view[: PIECE - self.size % PIECE]
            self._piece.update(part)
            self.size += len(part)
            if not self.size % PIECE:
                self._end_piece()
            view = view[len(part) :]

    def _end_piece(self) -> None:
        self._sums += self._piece.intdigest().to_bytes(SUM, "little")
        self._piece.reset()

    def finish(self) -> Blob:
        """Sync the file."""
        if self.size % PIECE:
            self._end_piece()
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1
        self._name = self._digest.hexdigest()
        return Blob(self._name, self.size, bytes(self._sums))

    def commit(self) -> str:
        """Put it where it belongs."""
        return self._place(self._path, self._name)

    def discard(self) -> None:
        """Close and unlink it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._path.unlink(missing_ok=True)


class FileReader:
    """An open file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, offset: int, size: int) -> bytes:
        """Read at a place."""
        return os.pread(self._file, size, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _path(root: Path, digest: str) -> Path:
    return root / digest[:2] / digest[2:]


def _rename(source: Path, target: Path) -> None:
    """Rename durably: the directory is synced, and where it is new the one above it too."""
    try:
        target.parent.mkdir(mode=0o700)
        sync_directory(target.parent.parent)
    except FileExistsError:
        pass
    os.replace(source, target)
    sync_directory(target.parent)


def _move(source: Path, root: Path, digest: str) -> None:
    """Copy a file to another root, durably, and unlink it."""
    partial = root / f"{digest}.part"
    try:
        with source.open("rb") as old, partial.open("wb") as new:
            while data := old.read(PIECE):
                new.write(data)
            new.flush()
            os.fsync(new.fileno())
        _rename(partial, _path(root, digest))
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    source.unlink()
