"""Is this file a whole GGUF model? Asked before llama.cpp sees it, for a clear answer.

Only the header is read: magic and version, the metadata (of which little counts), and where each
tensor lies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from typing import BinaryIO, Final, NamedTuple

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_COUNT: Final = 1 << 24
STRING, ARRAY = 8, 9
SCALARS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type: bytes
BLOCKS: Final = {  # ggml type: (elements, bytes) of a block
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip


class Survey(NamedTuple):
    """What a file holds. kind: llama.cpp's number of its type of weights, -1 where it doesn't say.

    data: where the weights begin, end: where they end. tensors: name, dimensions and elements.
    """

    kind: int
    data: int
    end: int
    tensors: list[tuple[bytes, int, int]]


class _Short(Exception):
    """The file ended inside its header."""


def check(path: str) -> Survey:
    """Return what a file holds; raises OSError unless `path` is a complete GGUF file.

    ENOENT, EISDIR, EACCES as the system says; ENOEXEC: not GGUF, or of an unknown version;
    EIO: truncated.
    """
    try:
        with open(path, "rb") as f:
            info = os.fstat(f.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.ENOEXEC, f"{path} is not a regular file; give a GGUF file")
            return _check(f, path, info.st_size)
    except IsADirectoryError as e:
        raise OSError(errno.EISDIR, f"{path} is a directory; give the GGUF file in it") from e
    except FileNotFoundError as e:
        raise OSError(errno.ENOENT, f"{path} does not exist; check the path") from e
    except PermissionError as e:
        raise OSError(errno.EACCES, f"{path} may not be read; check its mode and owner") from e


def _check(f: BinaryIO, path: str, size: int) -> Survey:
    head = f.read(4)
    if head != MAGIC:
        what = "empty" if not size else "not a GGUF model"
        raise OSError(errno.ENOEXEC, f"{path} is {what}; give a file that llama.cpp can run")
    try:
        found = _survey(f, path)
    except _Short:
        raise OSError(
            errno.EIO, f"{path} is truncated: it ends inside its header; fetch it again"
        ) from None
    if found.end > size:
        raise OSError(
            errno.EIO, f"{path} is truncated: {size} bytes of at least {found.end}; fetch it again"
        )
    return found


def _survey(f: BinaryIO, path: str) -> Survey:
    (version,) = _read(f, "<I")
    if version not in VERSIONS:
        raise OSError(errno.ENOEXEC, f"{path} is GGUF version {version}; versions 2 and 3 work")
    tensors, pairs = _read(f, "<QQ")
    if max(tensors, pairs) > MAX_COUNT:
        raise OSError(errno.ENOEXEC, f"{path} has a damaged header; fetch it again")
    alignment, type_ = 32, -1
    for _ in range(pairs):
        key = _string(f)
        (kind,) = _read(f, "<I")
        if key == b"general.alignment" and kind == 4:
            (alignment,) = _read(f, "<I")
        elif key == b"general.file_type" and kind == 4:
            (type_,) = _read(f, "<I")
        else:
            _skip(f, kind, path)
    if not tensors:
        raise OSError(errno.ENOEXEC, f"{path} holds no tensors; give a whole model")
    found = [_tensor(f) for _ in range(tensors)]
    data = -(-f.tell() // max(alignment, 1)) * alignment
    return Survey(type_, data, data + max(each[3] for each in found), [each[:3] for each in found])


def _tensor(f: BinaryIO) -> tuple[bytes, int, int, int]:
    """Read a tensor's name, dimensions and elements, and where it ends in the data."""
    name = _string(f)
    (dimensions,) = _read(f, "<I")
    if dimensions > 8:
        raise _Short
    elements = 1
    for n in _read(f, f"<{dimensions}Q"):
        elements *= n
    kind, offset = _read(f, "<IQ")
    per, size = BLOCKS.get(kind, (1, 0))
    return name, dimensions, elements, int(offset + elements // per * size)


def _skip(f: BinaryIO, kind: int, path: str) -> None:
    """Step over one metadata value."""
    if kind == STRING:
        _string(f)
    elif kind in SCALARS:
        _seek(f, SCALARS[kind])
    elif kind == ARRAY:
        inner, count = _read(f, "<IQ")
        if inner in SCALARS:
            _seek(f, SCALARS[inner] * count)
        else:
            for _ in range(count):
                _skip(f, inner, path)
    else:
        raise OSError(errno.ENOEXEC, f"{path} has a damaged header; fetch it again")


def _string(f: BinaryIO) -> bytes:
    (length,) = _read(f, "<Q")
    if length > 1 << 30:
        raise _Short
    data = f.read(length)
    if len(data) < length:
        raise _Short
    return data


def _read(f: BinaryIO, layout: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    data = f.read(size)
    if len(data) < size:
        raise _Short
    return struct.unpack(layout, data)


def _seek(f: BinaryIO, size: int) -> None:
    f.seek(size, os.SEEK_CUR)


def digest(path: str) -> str:
    """Return a digest of a file: of its size, its head, and blocks all over it, not every byte."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        found.update(f"{size}".encode())
        found.update(f.read(1 << 20))
        for i in range(64):
            f.seek(max(0, size - (1 << 16)) * i // 63)
            found.update(f.read(1 << 16))
    return found.hexdigest()
