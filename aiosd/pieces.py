"""Pieces of stored objects: read from a back end, verified, opened where they are sealed.

Blocks, and is called in threads. What is wrong with a piece is said as a sentence about storage.
"""

from __future__ import annotations

import errno

from aiosd import blobs
from aiosd.blobs import PIECE, Blob, Reader
from aiosd.sealing import Seal
from aiosd.versions import Version


def read(reader: Reader, blob: Blob, number: int, found: Version, seal: Seal | None) -> bytes:
    """Return the object's bytes in piece `number` of its blob.

    Raises OSError: EUCLEAN for a damaged piece, ENOKEY for one that can't be opened.
    """
    piece = reader.read(number * PIECE, PIECE)
    if not blobs.good(blob, number, piece):
        raise damaged(found, f"its checksum is wrong at byte {number * PIECE}")
    if seal is None:
        return piece
    try:
        return seal.open(piece, number, found.size)
    except OSError as error:
        if error.errno != errno.EBADMSG:
            raise told(error, f"version {found.version} of object {found.name!r}") from None
        raise damaged(found, f"piece {number} is not what was encrypted there") from None


def damaged(found: Version, how: str) -> OSError:
    """Return the error for a version whose bytes are not what was written."""
    return OSError(
        errno.EUCLEAN,
        f"version {found.version} of object {found.name!r} is damaged: {how} (blob {found.digest})"
        "; restore the file from a backup, write the object again, or sto_rollback to a sound one",
    )


def told(error: OSError, call: str) -> OSError:
    """Return an error of the disk as a sentence about storage."""
    if error.errno == errno.ENOKEY:
        return OSError(errno.ENOKEY, f"{call}: {error.strerror}")
    if error.errno == errno.ENOSPC:
        return OSError(errno.ENOSPC, f"{call}: no space left on the disk of storage; free some")
    return error
