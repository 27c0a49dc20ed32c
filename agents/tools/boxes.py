"""Where in a picture something is: what the tools that find things in pictures answer with."""

from __future__ import annotations

import msgspec


class Box(msgspec.Struct):
    """A rectangle, in pixels from the upper left corner of the picture."""

    x: int
    y: int
    width: int
    height: int


class Face(msgspec.Struct, omit_defaults=True):
    """A face. orientation: frontal, profile-left or profile-right. The rest: where asked for."""

    box: Box
    orientation: str = ""
    eyes: list[Box] = []
    nose: list[Box] = []
    mouth: list[Box] = []


class Faces(msgspec.Struct):
    """The faces of a picture; width, height: that of the picture, in pixels."""

    faces: list[Face]
    width: int
    height: int


class Object(msgspec.Struct):
    """What was found; score: how sure its own detector is, 0 at the edge of being found."""

    label: str
    box: Box
    score: float


class Objects(msgspec.Struct):
    """The objects of a picture, the surest first; width, height: that of the picture, in pixels."""

    objects: list[Object]
    width: int
    height: int


def overlap(one: Box, other: Box) -> float:
    """Return what two rectangles share, as part of what they cover together."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    if width <= 0 or height <= 0:
        return 0.0
    both = one.width * one.height + other.width * other.height
    return width * height / (both - width * height)
