"""Blobs: bytes kept under a key that begins with their SHA-256, in a back end.

    draft = backend.draft(); draft.write(part); blob = draft.finish()
    key = draft.commit()                                 # or draft.discard()
    reader = backend.open(key); reader.read(offset, size); reader.close()

Everything here blocks and is called in threads. backends.py knows the back ends by name: blobdir.py
is the one in directories, remote.py what those beyond a network have in common.

What must hold: once `commit` has returned, the blob is there whatever is killed; before, nothing
refers to it. Each piece of PIECE bytes has a checksum of its own, so that a part of a large blob is
verified without reading all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import xxhash

PIECE: Final = 1 << 20
"""Bytes with a checksum of their own."""
SUM: Final = 8
"""Bytes of a checksum (xxh3, little-endian)."""


@dataclass(frozen=True)
class Blob:
    """What is known of stored bytes. sums: the checksums of its pieces, one after the other.

    seal: of encrypted ones what sealing.py keeps of them, else empty. place: the back end that has
    them and their key there, as NAME:KEY.
    """

    digest: str
    size: int
    sums: bytes
    seal: bytes = b""
    place: str = ""


class Reader(Protocol):
    """An open blob; it can be read to its end whatever happens to the blob meanwhile."""

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer only at the end. offset is a multiple of PIECE, size at most that.

        Raises OSError: FileNotFoundError when they are gone, ETIMEDOUT, EIO, EACCES.
        """

    def close(self) -> None:
        """Let go of it."""


class Draft(Protocol):
    """A blob that is being written. size: bytes so far."""

    size: int

    def write(self, data: bytes) -> None:
        """Append; raises OSError (ENOSPC, ...)."""

    def finish(self) -> Blob:
        """Make what was written durable, still under no key, and return what it is."""

    def commit(self) -> str:
        """Put it in its place, durably, and return its key. After `finish`."""

    def discard(self) -> None:
        """Remove it. Idempotent."""


class Backend(Protocol):
    """Where blobs are kept. Raises OSError; FileNotFoundError for a key that is not there."""

    def draft(self) -> Draft:
        """Begin a blob."""

    def open(self, key: str) -> Reader:
        """Open a blob."""

    def delete(self, key: str) -> None:
        """Remove a blob, or what there is of it; nothing when it is not there."""

    def all(self) -> Iterator[str]:
        """Yield all that is there, whole or not."""

    def free(self) -> int:
        """Return how many bytes there is room for."""

    def close(self) -> None:
        """Let go of what it holds."""


def good(blob: Blob, number: int, piece: bytes) -> bool:
    """Whether a piece is what was written."""
    wanted = blob.sums[number * SUM : (number + 1) * SUM]
    return xxhash.xxh3_64_intdigest(piece).to_bytes(SUM, "little") == wanted
