"""Weights: models whose weights were converted to another type, a file each in the user's cache.

A CPU computes some types in batches much faster than others (Q4_0 has kernels of its own, Q4_1 has
none), so a core may ask for its weights as another type. The conversion is llama.cpp's own
(quantize.py). A file is named after what it comes of: the source's digest, the type and the build;
so every kernel of the user may take it. Like all of a cache it may be deleted at any time.

What must hold: a file under its name is whole (it is written under another, synced, renamed), and
who finds it damaged makes it anew. One process makes a file, the others wait for it: they hold a
lock on it, which goes with the process, whatever it dies of. A worker holds what it uses, and what
is held is not removed. There are at most MOST files, unless more are in use, and the oldest go
first; they go too when the disk has no room for another. One that has none then is an error that
says so.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from aiosd.directory import sync_directory
from aiosd.engine import gguf
from aiosd.engine.protocol import CoreSetup
from aiosd.killpoint import reach


class Type(NamedTuple):
    """A type of weights: llama.cpp's number of such a file, and bytes of a weight."""

    number: int
    bytes: float


TYPES: Final = {
    "q4_0": Type(2, 18 / 32),
    "q8_0": Type(7, 34 / 32),
    "q4_k_m": Type(15, 0.62),
    "q5_k_m": Type(17, 0.72),
    "q6_k": Type(18, 210 / 256),
}
MOST: Final = 8
SPARE: Final = 16 << 20
"""Bytes that are left free on the disk."""
_EMBEDDED: Final = 34 / 32  # bytes of a weight of the vocabulary, which is kept more exactly
_LOOK_S: Final = 0.1  # between two looks at whether another process is done
_TRIES: Final = 5  # at a file that is removed as often as it is made

Quantize = Callable[[str, str, int], None]
"""Converts a file into another one, to a type by its number; raises OSError with the reason."""

_held: list[int] = []  # descriptors of files in use: locked as long as the process lives


def convert(setup: CoreSetup, alive: Callable[[], None]) -> CoreSetup:
    """Return a setup whose model has weights of the type that it asks for; it may take minutes.

    alive: called now and then meanwhile. Raises OSError: EINVAL for a type that there is not,
    ENOEXEC for a model that llama.cpp does not convert, ENOSPC with the bytes that are missing.
    """
    if not setup.quantize:
        return setup
    kind = find(setup.quantize)
    if gguf.check(setup.model).kind == kind.number:
        return setup
    from aiosd.engine import binding, quantize

    def make(source: str, target: str, number: int) -> None:
        quantize.quantize(source, target, number, setup.threads, alive)

    source = f"{gguf.digest(setup.model)} {setup.quantize} {binding.build()}"
    digest = hashlib.sha256(source.encode()).hexdigest()[:32]
    name = f"{os.fsdecode(os.fsencode(Path(setup.model).stem)[:150])}.{digest}"
    with _named(setup):
        path = Weights(Path(setup.weights), make, alive).get(setup.model, name, kind)
    return msgspec.structs.replace(setup, model=str(path))


def find(name: str) -> Type:
    """Return a type by its name; raises OSError(EINVAL) that lists those there are."""
    kind = TYPES.get(name)
    if kind is None:
        text = f"quantize {name!r}: weights are converted to {', '.join(TYPES)}; or leave it empty"
        raise OSError(errno.EINVAL, text)
    return kind


def title(setup: CoreSetup) -> str:
    """Return what a model is called by its file, or by the one that its weights come from."""
    stem = Path(setup.model).stem
    converted = setup.quantize and Path(setup.model).parent == Path(setup.weights)
    return stem.rpartition(".")[0] if converted else stem


def needed(source: str, kind: Type) -> int:
    """Return about how many bytes a file takes whose weights are converted."""
    found = gguf.check(source)
    total = found.data
    for name, dimensions, elements in found.tensors:
        exact = name in (b"token_embd.weight", b"output.weight")
        each = 4 if dimensions < 2 else max(_EMBEDDED, kind.bytes) if exact else kind.bytes
        total += int(elements * each)
    return total


@contextmanager
def _named(setup: CoreSetup) -> Iterator[None]:
    """Have an error of the cache say whose it is, and where."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        text = f"quantize = {setup.quantize!r}: {error.filename}: {error.strerror}"
        cure = "[kernel] cache_dir says where converted weights are kept"
        raise OSError(error.errno, f"{text}; {cure}") from error


class Weights:
    """The files of a directory, which is made with the first one."""

    def __init__(self, place: Path, quantize: Quantize, alive: Callable[[], None]) -> None:
        self._place = place
        self._quantize = quantize
        self._alive = alive

    def get(self, source: str, name: str, kind: Type) -> Path:
        """Return the file of that name, made of `source` where there is none; it is held."""
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._place / f"{name}.gguf"
        for _ in range(_TRIES):
            if self._hold(path):
                return path
            self._make(source, path, kind)
        raise OSError(errno.EBUSY, f"{path} is removed as often as it is made; try again")

    def _hold(self, path: Path) -> bool:
        """Take a whole file of ours in use; False when there is none (any more)."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            if not _is_at(file, path):
                os.close(file)
                return False
            if os.fstat(file).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "another user's; remove it", str(path))
            os.utime(path)
            gguf.check(str(path))
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.EIO, errno.ENOEXEC):
                raise
            sys.stderr.write(f"converted weights are made anew: {error.strerror}\n")
            path.unlink(missing_ok=True)
            return False
        _held.append(file)
        return True

    def _make(self, source: str, path: Path, kind: Type) -> None:
        """Make the file, unless another process makes it: then wait for that."""
        part = path.with_suffix(".part")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(part, flags, 0o600)
        try:
            if not self._lock(file, part):
                return
            if path.exists():
                part.unlink()
                return
            os.ftruncate(file, 0)
            try:
                self._write(source, part, kind, file)
            except BaseException:
                part.unlink(missing_ok=True)  # a cache may be emptied at any time
                raise
            part.rename(path)
            sync_directory(self._place)
        finally:
            os.close(file)

    def _write(self, source: str, part: Path, kind: Type, file: int) -> None:
        need = needed(source, kind)
        self._make_room(part, need)
        try:
            self._quantize(source, str(part), kind.number)
            gguf.check(str(part))
        except OSError as error:
            if _free(self._place) < min(SPARE, need):
                raise self._full(need) from error
            raise
        reach("weights.written")
        os.fsync(file)
        reach("weights.synced")

    def _lock(self, file: int, part: Path) -> bool:
        """Wait for a lock; who has it is alive while the file grows. False when it is done."""
        size = -1
        while _is_at(file, part):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return _is_at(file, part)
            if (now := os.fstat(file).st_size) != size:
                size = now
                self._alive()
            time.sleep(_LOOK_S)
        return False

    def _make_room(self, part: Path, need: int) -> None:
        """Remove what a dead process left, and the oldest files while there are too many."""
        for other in self._place.glob("*.part"):
            if other != part:
                _remove(other)
        files = sorted(self._place.glob("*.gguf"), key=_age)
        left = len(files)
        for file in files:
            if left < MOST and _free(self._place) >= need + SPARE:
                return
            left -= _remove(file)
        if _free(self._place) < need + SPARE:
            raise self._full(need)

    def _full(self, need: int) -> OSError:
        text = f"{self._place}: no room for converted weights of about {need} bytes"
        return OSError(
            errno.ENOSPC, f"{text}; {_free(self._place)} are free: make room, or unset quantize"
        )


def _age(file: Path) -> float:
    with suppress(FileNotFoundError):
        return file.lstat().st_mtime
    return 0.0


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds; False when it stays."""
    with suppress(OSError):  # gone already, in use, or not ours: it stays
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink()
                return True
        finally:
            os.close(file)
    return False


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is (still) the one at a path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.lstat())
    return False


def _free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
