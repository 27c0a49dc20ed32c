"""A picture that an agent hands to a tool: a file in its workspace, or an address on the web.

picture = read(tool, "photo.png", limit=10 << 20)
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aios.tools import BadArguments

_BEGINNINGS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


@dataclass(frozen=True)
class Picture:
    """A picture's file name, bytes and media type."""

    name: str
    data: bytes
    media_type: str

    @property
    def base64(self) -> str:
        """The bytes as text."""
        return base64.b64encode(self.data).decode()

    @property
    def data_url(self) -> str:
        """The picture as an address that holds all of it."""
        return f"data:{self.media_type};base64,{self.base64}"


def on_web(tool: str, image: str) -> bool:
    """Tell whether a picture is named by its address. Raises BadArguments for one not of https."""
    if image.startswith(("http://", "data:", "file:")):
        raise BadArguments(f"{tool}: image is a file in the workspace or an https:// address")
    return image.startswith("https://")


def read(tool: str, image: str, limit: int) -> Picture:
    """Return a picture of the workspace. limit: bytes. Raises BadArguments that says why not."""
    here = Path.cwd().resolve()
    path = (here / image).resolve()
    if not path.is_relative_to(here):
        raise BadArguments(f"{tool}: image {image[:200]!r} is outside the workspace; copy it there")
    try:
        with open(path, "rb", opener=_opener) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BadArguments(f"{tool}: image {image[:200]!r}: {error.strerror}") from None
    if len(data) > limit:
        raise BadArguments(
            f"{tool}: image {image[:200]!r} has more than {limit} bytes; make it smaller"
        )
    return Picture(path.name, data, media_type(tool, image, data))


def _opener(path: str, flags: int) -> int:
    """Open without waiting for a writer, where the name is that of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def media_type(tool: str, image: str, data: bytes) -> str:
    """Return the type of a picture by how it begins."""
    for beginning, found in _BEGINNINGS.items():
        if data.startswith(beginning):
            return found
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise BadArguments(f"{tool}: image {image[:200]!r} is no PNG, JPEG, GIF or WebP file")
