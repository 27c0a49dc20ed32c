"""Pictures: what turns may show, and what a context keeps of it. Pure.

    pictures.check(args.messages)            # EINVAL that names the turn
    pictures.need(turns, core, sees)         # ENODEV: this core is shown none
    context.turns = pictures.kept(turns)

A picture goes to a provider as it came; nothing here decodes one.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

import msgspec

from aiosd.abi.chat import IMAGE_BYTES, IMAGES, Image, Turn

KEPT: Final = 1 << 20
"""Bytes of pictures that a context keeps: all of its turns is written whenever it moves on."""

_BEGINNINGS: Final = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/webp": b"RIFF",
    "image/gif": b"GIF8",
}
"""How a file of each media type begins."""


def shown(turns: Sequence[Turn]) -> bool:
    """Whether there is a picture in any of these turns."""
    return any(turn.images for turn in turns)


def size(turns: Sequence[Turn]) -> int:
    """Return the bytes of all pictures in these turns."""
    return sum(len(image.data) for turn in turns for image in turn.images)


def check(turns: Sequence[Turn]) -> None:
    """Refuse what can't be shown; raises OSError(EINVAL) that names the turn, limit and cure."""
    if not shown(turns):
        return
    count = sum(len(turn.images) for turn in turns)
    if count > IMAGES:
        raise _invalid(f"messages: {count} images, {IMAGES} are the most; show fewer")
    if size(turns) > IMAGE_BYTES:
        text = f"messages: images of {size(turns)} bytes, {IMAGE_BYTES} are the most together"
        raise _invalid(f"{text}; make them smaller")
    for place, turn in enumerate(turns):
        if turn.images and turn.role != "user":
            raise _invalid(f"messages[{place}]: images: they belong to turns of role user")
        for number, image in enumerate(turn.images):
            _check_one(image, f"messages[{place}].images[{number}]")


def need(turns: Sequence[Turn], core: str, sees: bool) -> None:
    """Raise OSError(ENODEV) where there are pictures and a core that is shown none."""
    if shown(turns) and not sees:
        raise OSError(
            errno.ENODEV,
            f"llm_generate: messages: there are images in this chat and core {core} has no vision; "
            "ask for features vision on a fresh context, or leave them out",
        )


def kept(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns with their latest pictures, no more than KEPT bytes; a line tells of others."""
    left, found = KEPT, []
    for turn in reversed(turns):
        fits = size([turn]) <= left
        left = left - size([turn]) if fits else 0
        found.append(turn if fits else _told(turn))
    return found[::-1]


def _told(turn: Turn) -> Turn:
    lines = [f"[a picture was shown here, {image.media_type}]" for image in turn.images]
    return msgspec.structs.replace(turn, content="\n".join([*lines, turn.content]), images=[])


def _check_one(image: Image, where: str) -> None:
    beginning = _BEGINNINGS.get(image.media_type)
    if beginning is None:
        known = ", ".join(_BEGINNINGS)
        raise _invalid(f"{where}: media_type: {image.media_type!r}; there are {known}")
    webp = image.media_type != "image/webp" or image.data[8:12] == b"WEBP"
    if not (image.data.startswith(beginning) and webp):
        raise _invalid(f"{where}: data: it is no file of {image.media_type}; send one that is")


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, f"llm_generate: {what}")
