"""object_detection, face_rect_local: what OpenCV's own detectors find in a picture.

The models are those that come inside opencv-python-headless: Haar cascades (Viola and Jones, by
Lienhart and others) for faces, eyes, cats' faces, bodies and number plates, and the people detector
on histograms of gradients by Dalal and Triggs. They are small, quick and from before deep learning:
upright, well lit and not too small things are found, and now and then one that is none.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from aios.tools import Meta, tool

from . import pixels
from .boxes import Box, Face, Faces, Object, Objects, overlap

if TYPE_CHECKING:
    from collections.abc import Iterable

What = Literal["person", "face", "cat face", "upper body", "number plate"]
Found = list[tuple[Box, float]]

SIDE: Final = 800
"""Pixels: a larger picture is made smaller before it is looked at."""
THREADS: Final = 4
MOST: Final = 200
PERSON: Final = 1.0
"""What the people detector must say at least: below it sees people in tree trunks and folds."""
SAME: Final = 0.3
"""Of two rectangles that share more than this, the less sure one is left out."""

_CASCADES: Final[dict[str, tuple[str, int]]] = {
    "face": ("frontalface_default", 6),
    "profile": ("profileface", 6),
    "cat face": ("frontalcatface_extended", 3),
    "upper body": ("upperbody", 6),
    "number plate": ("russian_plate_number", 6),
    "eyes": ("eye", 6),
}
"""By what they find: the cascade's name, and how many neighbours must agree."""


@tool(model=True, limits={"time": 60, "memory": 2 << 30}, idempotent=True)
def object_detection(
    image: Path,
    what: Annotated[list[What], Meta(min_length=1, max_length=5)] = [  # noqa: B006
        "person", "face", "cat face",
    ],
) -> Objects:  # fmt: skip
    """Find people, faces, cats' faces, upper bodies and number plates in a picture, and where.

    The models are OpenCV's own: the HOG people detector (upright, whole figures) and Haar cascades
    (seen from the front; plates of the Russian and similar formats). They know nothing else.

    image: a file in the workspace (PNG, JPEG, GIF or WebP, up to 12 megapixels)
    what: which of them to look for
    """
    seen, scale, (height, width) = _look("object_detection", image)
    found = [(label, box, score) for label in what for box, score in _find(seen, label, scale)]
    found.sort(key=lambda each: -each[2])
    objects = [Object(label, box, round(score, 3)) for label, box, score in found[:MOST]]
    return Objects(objects, width, height)


@tool(model=True, limits={"time": 60, "memory": 2 << 30}, idempotent=True)
def face_rect_local(image: Path, features: bool = False) -> Faces:
    """Find faces in a picture with OpenCV's Haar cascades (frontal and profile), without a service.

    image: a file in the workspace (PNG, JPEG, GIF or WebP, up to 12 megapixels)
    features: find the eyes of frontal faces too; these models know neither nose nor mouth
    """
    seen, scale, (height, width) = _look("face_rect_local", image)
    faces = [Face(box, "frontal") for box, _ in _find(seen, "face", scale)]
    if features:
        for face in faces:
            face.eyes = _eyes(seen, face.box, scale)
    for box, orientation in _profiles(seen, scale):
        if all(overlap(box, face.box) <= SAME for face in faces):
            faces.append(Face(box, orientation))
    return Faces(faces[:MOST], width, height)


def _look(tool: str, image: Path) -> tuple[Any, float, tuple[int, int]]:
    """Return a picture's grey values, what a pixel of them stands for, and its height and width."""
    import cv2

    cv2.setNumThreads(THREADS)
    seen: Any = pixels.load(tool, image)
    height, width = seen.shape[:2]
    if seen.ndim == 3:
        seen = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    scale = max(1.0, max(height, width) / SIDE)
    if scale > 1:
        smaller = (round(width / scale), round(height / scale))
        seen = cv2.resize(seen, smaller, interpolation=cv2.INTER_AREA)
    return seen, scale, (height, width)


def _find(seen: Any, label: str, scale: float) -> Found:
    """Return where something is, the surest first, each thing once."""
    found = _people(seen) if label == "person" else _cascaded(seen, label)
    apart: Found = []
    for box, score in sorted(found, key=lambda each: -each[1]):
        if all(overlap(box, other) <= SAME for other, _ in apart):
            apart.append((box, score))
    return [(_scaled(box, scale), score) for box, score in apart]


def _cascaded(seen: Any, label: str) -> Found:
    import cv2

    _, neighbours = _CASCADES[label]
    boxes, _, weights = _cascade(label).detectMultiScale3(
        cv2.equalizeHist(seen), 1.1, neighbours, minSize=(24, 24), outputRejectLevels=True
    )
    pairs = zip(_boxes(boxes), weights, strict=True)
    return [(box, float(weight)) for box, weight in pairs if weight > 0]


def _people(seen: Any) -> Found:
    if min(seen.shape) < 128 or seen.shape[1] < 64:
        return []  # smaller than the window that it looks through
    boxes, weights = _person().detectMultiScale(
        seen, winStride=(8, 8), padding=(16, 16), scale=1.05
    )
    pairs = zip(_boxes(boxes), weights, strict=True)
    return [(box, float(weight) - PERSON) for box, weight in pairs if weight > PERSON]


def _profiles(seen: Any, scale: float) -> list[tuple[Box, str]]:
    """Return faces from the side: the cascade knows one side, the other is that of a mirror."""
    import cv2

    left = _find(seen, "profile", scale)
    right = _find(cv2.flip(seen, 1), "profile", scale)
    width = round(seen.shape[1] * scale)
    turned = [(Box(width - b.x - b.width, b.y, b.width, b.height), s) for b, s in right]
    return [(box, "profile-left") for box, _ in left] + [
        (box, "profile-right") for box, _ in turned
    ]


def _eyes(seen: Any, face: Box, scale: float) -> list[Box]:
    """Return the eyes in the upper part of a face, two at most, from left to right."""
    x, y, size = (round(part / scale) for part in (face.x, face.y, face.width))
    part = seen[max(0, y) : y + round(size * 0.6), max(0, x) : x + size]
    eyes = [box for box, _ in _find(part, "eyes", 1.0)][:2]
    moved = [Box(eye.x + max(0, x), eye.y + max(0, y), eye.width, eye.height) for eye in eyes]
    return sorted((_scaled(eye, scale) for eye in moved), key=lambda eye: eye.x)


def _boxes(found: Iterable[Any]) -> list[Box]:
    return [Box(*(int(part) for part in each)) for each in found]


def _scaled(box: Box, scale: float) -> Box:
    return Box(*(round(part * scale) for part in (box.x, box.y, box.width, box.height)))


@cache
def _cascade(label: str) -> Any:
    import cv2
    import cv2.data

    name = f"haarcascade_{_CASCADES[label][0]}.xml"
    return cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, name))


@cache
def _person() -> Any:
    import cv2
    import numpy as np

    detector = cv2.HOGDescriptor()
    detector.setSVMDetector(np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector()))
    return detector
