"""face_rect: where faces are in a picture, by the FaceRect API of apicloud (through RapidAPI)."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec

from aios.tools import Meta, tool

from . import picture
from .boxes import Box, Face, Faces
from .service import Service, ServiceError, clip

FACERECT: Final = Service(
    "face_rect", "FaceRect", "FACERECT_URL", "https://apicloud-facerect.p.rapidapi.com"
)

_FACES: Final = 200


class _Face(msgspec.Struct):
    x: int
    y: int
    width: int
    height: int
    orientation: str = ""
    features: dict[str, Any] | None = None


class _Size(msgspec.Struct, frozen=True):
    width: int = 0
    height: int = 0


class _Answer(msgspec.Struct):
    faces: list[_Face] | None = None
    image: _Size = _Size()
    error: str = ""


@tool(
    needs={"network": ["apicloud-facerect.p.rapidapi.com"], "secrets": ["RAPIDAPI_KEY"]},
    limits={"time": 60, "rate": 2, "burst": 5},
    idempotent=True,
)
def face_rect(
    image: Annotated[str, Meta(min_length=1, max_length=2000)], features: bool = False
) -> Faces:
    """Find the faces in a picture with the FaceRect service (face_rect_local needs none).

    image: a file in the workspace (PNG, JPEG or GIF, up to 10 MB) or an https address
    features: find eyes, nose and mouth of frontal faces too
    """
    key = FACERECT.key("RAPIDAPI_KEY", "https://rapidapi.com/apicloud/api/facerect")
    headers = {"X-RapidAPI-Key": key, "X-RapidAPI-Host": urlsplit(FACERECT.address).netloc}
    form = {"features": "true" if features else "false"}
    if picture.on_web("face_rect", image):
        answer = FACERECT.get(
            "/process-url.json", _Answer, params={**form, "url": image}, headers=headers,
            conceal=(key,),
        )  # fmt: skip
    else:
        shown = picture.read("face_rect", image, 10 << 20)
        answer = FACERECT.post(
            "/process-file.json", _Answer, form=form, headers=headers, conceal=(key,),
            files={"image": (shown.name, shown.data, shown.media_type)},
        )  # fmt: skip
    if answer.faces is None:
        why = clip(answer.error, 300) or "its answer has no field faces"
        raise ServiceError(f"face_rect: {FACERECT.name} refused the picture: {why}")
    faces = [_face(face) for face in answer.faces[:_FACES]]
    return Faces(faces, answer.image.width, answer.image.height)


def _face(face: _Face) -> Face:
    parts = {name: _boxes((face.features or {}).get(name)) for name in ("eyes", "nose", "mouth")}
    return Face(Box(face.x, face.y, face.width, face.height), face.orientation, **parts)


def _boxes(found: Any) -> list[Box]:
    """Return the rectangles of a feature: the service gives one, or a list of them, or nothing."""
    several = found if isinstance(found, list) else [found] if found else []
    try:
        return msgspec.convert(several[:_FACES], list[Box])
    except msgspec.ValidationError as error:
        raise FACERECT.garbage(str(error)) from None
