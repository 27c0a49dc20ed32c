"""Files for tools: into the directory in which the caller's tools work, and back, part by part."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aiosd.abi.tools import FILE_PART
from aiosh import link

if TYPE_CHECKING:
    from aios import Kernel


def put(kernel: Kernel, file: Path, name: str = "") -> str:
    """Copy a file to the workspace under a name, its own by default; return where it is.

    Raises link.Failure for a file that can't be read, OSError for what the kernel refuses.
    """
    name = name or file.name
    try:
        source = file.open("rb")
    except OSError as error:
        raise link.Failure(f"{file}: {error.strerror}") from None
    with source:
        return _put(kernel, source, name)


def _put(kernel: Kernel, source: BinaryIO, name: str) -> str:
    offset, last = 0, False
    while not last:
        data = source.read(FILE_PART)
        last = len(data) < FILE_PART
        if data or not offset:
            stored = kernel.put_file(name, data, offset=offset)
        offset += len(data)
    return os.path.join(stored.workspace, name)


def get(kernel: Kernel, name: str, file: Path | None) -> None:
    """Copy a file of the workspace to one here, or to stdout.

    Raises link.Failure for a file that can't be written, OSError for what the kernel refuses.
    """
    part = kernel.get_file(name)  # what there is not is refused before anything is made here
    try:
        target: BinaryIO = file.open("wb") if file else sys.stdout.buffer
        offset = target.write(part.data)
        while part.data and offset < part.size:
            part = kernel.get_file(name, offset=offset)
            offset += target.write(part.data)
        target.flush()
        if file:
            target.close()
    except OSError as error:
        if error.filename is None:
            raise
        raise link.Failure(f"{file}: {error.strerror}") from None
