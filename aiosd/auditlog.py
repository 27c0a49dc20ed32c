"""The audit log's files: an append-only chain of records in segments. Blocks; one thread's own.

    log = AuditLog(directory, segment=8 << 20, limit=256 << 20)
    log.open()                                    # cuts a torn last record, goes on with the chain
    log.append([Entry(t, uid, aid, kind, data)]); log.sync()
    for record in log.read(since): ...            # from any thread
    log.close()

A record is a line: its digest, a space, its canonical JSON (abi/chain.py). A file is named after
its first record, which is of kind audit.segment and names the digest before it. When all files
together are larger than the limit, the oldest goes, and that is a record too.

What must hold: a line without its end (the kernel was killed while it was written) is cut off and
that is recorded; a whole line is never changed, whatever is wrong with it; a write that failed
leaves nothing behind. The directory is ours alone, and no name in it is followed as a link.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from aiosd.abi.accounts import AuditRecord
from aiosd.abi.chain import BROKEN, SEGMENT, START, canonical, digest

log = logging.getLogger(__name__)

RECORD_MAX: Final = 16 << 10
"""Bytes of a record; what is longer is kept as its size alone."""
LINE_MAX: Final = 1 << 20
"""Bytes after which a line is given up as one."""

_FILE: Final = re.compile(r"(\d{16})\.log")
_decode = msgspec.json.Decoder(tuple[int, float, int, int, str, dict[str, Any]]).decode


class Entry(NamedTuple):
    """What is to be recorded: when, by whose uid and aid (0: none), what kind, which facts."""

    t: float
    uid: int
    aid: int
    kind: str
    data: dict[str, Any]


class AuditLog:
    """One chain. last: the id of the newest record; torn: bytes cut off when it was opened."""

    def __init__(self, directory: str, *, segment: int, limit: int) -> None:
        self.directory = directory
        self.segment = segment
        self.limit = limit
        self.last = 0
        self.torn = 0
        self._digest = START
        self._folder = -1
        self._file = -1
        self._size = 0

    def open(self) -> None:
        """Find the end of the chain and make ready to go on there; OSError when it can't be."""
        try:
            self._open_end()
        except BaseException:
            self.close()
            raise

    def _open_end(self) -> None:
        if not os.path.lexists(self.directory):
            os.mkdir(self.directory, 0o700)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._folder = os.open(self.directory, flags)
        _check_ours(self._folder, self.directory)
        names = self._names()
        while names:
            self._open(names[-1])
            if self._find_end():
                return
            os.close(self._file)  # nothing whole in it: its making was cut short
            self._file = -1
            os.unlink(names.pop(), dir_fd=self._folder)
        self._begin()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write records behind the last one; OSError when the disk fails, then none is written."""
        if self._size >= self.segment:
            self._begin()
        before = (self.last, self._digest)
        lines = b"".join([self._line(entry) for entry in entries])
        self._write(lines, before)

    def sync(self) -> None:
        """Return once all that was written is on disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1

    def read(self, since: int) -> Iterator[AuditRecord]:
        """Yield the records after one, oldest first, as far as they are written."""
        names = self._names()
        begin = 0
        for i, name in enumerate(names):
            if int(name[:16]) <= since + 1:
                begin = i
        expected = 0
        for name in names[begin:]:
            for record in self._records(name, max(expected, int(name[:16]))):
                expected = record.id + 1
                if record.id > since:
                    yield record

    # -- reading --------------------------------------------------------------------------------

    def _records(self, name: str, expected: int) -> Iterator[AuditRecord]:
        try:
            file = os.fdopen(self._reopen(name), "rb")
        except FileNotFoundError:
            return  # the oldest one, gone meanwhile
        with file:
            while line := file.readline(LINE_MAX):
                if len(line) < LINE_MAX and not line.endswith(b"\n"):
                    return  # it is being written just now
                record = _parse(line, expected)
                expected = record.id + 1
                yield record

    def _reopen(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)

    def _names(self) -> list[str]:
        # Through a descriptor of its own: listing moves its place, and readers are other threads.
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            return sorted(name for name in os.listdir(folder) if _FILE.fullmatch(name))
        finally:
            os.close(folder)

    # -- writing --------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        try:
            _check_ours(file, f"{self.directory}/{name}")
        except OSError:
            os.close(file)
            raise
        self._file = file
        self._size = os.fstat(file).st_size

    def _find_end(self) -> bool:
        """Cut off a torn last line; take up the chain at the last whole one. False: there is none.

        A whole line that is no record is left for whoever verifies: the chain goes on after it.
        """
        tail = b""
        at = self._size
        while at and tail.count(b"\n") < 2 and len(tail) < LINE_MAX:
            begin = max(0, at - (RECORD_MAX + 256))
            tail = os.pread(self._file, at - begin, begin) + tail
            at = begin
        whole = tail.rfind(b"\n") + 1
        self.torn = len(tail) - whole
        if self.torn:
            self._size -= self.torn
            os.ftruncate(self._file, self._size)
        lines = tail[:whole].splitlines(keepends=True)
        if not lines:
            return False
        record = _parse(lines[-1], 0)
        if record.kind == BROKEN:
            record = self._last_sound(record)
        self.last, self._digest = record.id, record.digest
        return True

    def _last_sound(self, broken: AuditRecord) -> AuditRecord:
        """Return a stand-in for a broken last line: its place in the order, and what is there."""
        id = sum(1 for _ in self._records(self._names()[-1], 0)) + int(self._names()[-1][:16]) - 1
        return msgspec.structs.replace(broken, id=id, digest=str(broken.data.get("digest", START)))

    def _begin(self) -> None:
        """Begin a new file; drop the oldest ones beyond the limit."""
        before, old = self._digest, self._file
        if old >= 0:
            os.fdatasync(old)
        self._open(f"{self.last + 1:016d}.log")
        if old >= 0:
            os.close(old)
        gone = self._drop_oldest()
        data: dict[str, Any] = {"before": before}
        if gone:
            data["dropped"] = gone
        state = (self.last, self._digest)
        self._write(self._line(Entry(time.time(), os.geteuid(), 0, SEGMENT, data)), state)
        os.fdatasync(self._file)
        os.fsync(self._folder)

    def _drop_oldest(self) -> list[str]:
        names = self._names()
        sizes = {name: os.stat(name, dir_fd=self._folder).st_size for name in names}
        gone = []
        while len(names) > 2 and sum(sizes[name] for name in names) > self.limit:
            os.unlink(names[0], dir_fd=self._folder)
            gone.append(names.pop(0))
        return gone

    def _line(self, entry: Entry) -> bytes:
        self.last += 1
        record = canonical(self.last, *entry)
        if len(record) > RECORD_MAX:
            short = {"too_long": len(record), "limit": RECORD_MAX}
            record = canonical(self.last, entry.t, entry.uid, entry.aid, entry.kind[:64], short)
        self._digest = digest(self._digest, record)
        return b"%s %s\n" % (self._digest.encode(), record)

    def _write(self, lines: bytes, before: tuple[int, str]) -> None:
        """Write lines wholly or not at all; after a failure the chain ends at `before`."""
        try:
            done = 0
            while done < len(lines):
                done += os.write(self._file, lines[done:])
        except OSError:
            os.ftruncate(self._file, self._size)
            self.last, self._digest = before
            raise
        self._size += len(lines)


def _parse(line: bytes, expected: int) -> AuditRecord:
    """Return a line's record, or one of kind audit.broken that stands for it."""
    claimed, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        id, t, uid, aid, kind, data = _decode(text)
        return AuditRecord(id, t, uid, aid, kind, data, claimed.decode("ascii"))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = claimed[:64].decode("ascii", "replace")
        facts = {"reason": str(error), "digest": shown}
        return AuditRecord(expected, 0.0, 0, 0, BROKEN, facts, shown)


def _check_ours(descriptor: int, path: str) -> None:
    """Raise PermissionError for what is another user's, open to others, or has another name."""
    found = os.fstat(descriptor)
    regular = stat.S_ISREG(found.st_mode)
    if not regular and not stat.S_ISDIR(found.st_mode):
        raise PermissionError(errno.EPERM, "is neither a file nor a directory", path)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or (regular and found.st_nlink > 1):
        raise PermissionError(
            errno.EPERM,
            "is not ours alone (owner, mode or a second name): move it away; aiosd makes a new one",
            path,
        )
