"""Tools for pictures: how much better they get by them, and what is found in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio as psnr

from agents.tools import labels
from agents.tools.labels import image_classification
from agents.tools.restoring import image_deblurring, image_denoising
from agents.tools.seeing import face_rect_local, object_detection
from aios.tools import BadArguments, Unavailable

Picture = NDArray[Any]
PUBLIC = ("astronaut", "camera", "chelsea")
GAIN = 3.0
"""Decibels that are asked for."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    labels._model.cache_clear()
    return tmp_path


def public(name: str) -> Picture:
    """Return one of scikit-image's own pictures."""
    picture: Picture = getattr(data, name)()
    return picture


def middle(picture: Picture) -> Picture:
    """Return a part of it: what lies around is blurred into it, as with a camera."""
    top, left = ((side - 160) // 2 for side in picture.shape[:2])
    return picture[top : top + 160, left : left + 160]


def blurred(picture: Picture, *sizes: int) -> Picture:
    return middle(ndimage.uniform_filter(picture.astype(float), sizes[: picture.ndim]))


def write(picture: Picture) -> Path:
    whole = np.asarray(np.rint(np.clip(picture, 0, 255)), dtype=np.uint8)
    Image.fromarray(whole).save("given.png")
    return Path("given.png")


def gained(original: Picture, given: Path, made: Path) -> float:
    before, after = (np.asarray(Image.open(path).copy()) for path in (given, made))
    return float(psnr(original, after) - psnr(original, before))


@pytest.mark.parametrize("name", PUBLIC)
def test_noise_of_sigma_25_is_taken_out(name: str) -> None:
    original = middle(public(name))
    noise = np.random.default_rng(1).normal(0, 25, original.shape)
    given = write(original + noise)
    made = image_denoising(given, 25)
    assert made == Path("given-denoised.png")
    assert gained(original, given, made) >= GAIN
    estimated = image_denoising(given, save_as="estimated.png")
    assert gained(original, given, estimated) >= GAIN


@pytest.mark.parametrize("name", PUBLIC)
def test_a_known_motion_is_undone(name: str) -> None:
    given = write(blurred(public(name), 1, 9, 1))
    made = image_deblurring(given, "motion", 9, save_as="new.png")
    assert made == Path("new.png")
    assert gained(middle(public(name)), given, made) >= GAIN


def test_other_known_blurs_are_undone() -> None:
    original = public("camera")
    gaussian = ndimage.gaussian_filter(original.astype(float), 2)
    given = write(middle(gaussian))
    assert gained(middle(original), given, image_deblurring(given, "gaussian", 2)) >= GAIN
    given = write(blurred(original, 5, 5))
    assert gained(middle(original), given, image_deblurring(given, "box", 5)) >= GAIN
    given = write(blurred(original, 9, 1))
    made = image_deblurring(given, "motion", 9, angle=90)
    assert gained(middle(original), given, made) >= GAIN


def test_a_face_is_where_it_is() -> None:
    given = write(data.astronaut())
    found = face_rect_local(given, features=True)
    assert (found.width, found.height) == (512, 512)
    (face,) = found.faces
    assert face.orientation == "frontal"
    assert 165 < face.box.x < 190 and 55 < face.box.y < 80 and 80 < face.box.width < 105
    left, right = face.eyes
    assert left.x < 210 < right.x and all(80 < eye.y < 130 for eye in face.eyes)


def test_objects_are_named_and_only_those_asked_for() -> None:
    given = write(data.astronaut())
    assert [found.label for found in object_detection(given).objects] == ["face"]
    assert object_detection(given, ["number plate"]).objects == []
    assert object_detection(write(data.coffee())).objects == []


def test_a_large_picture_is_found_in_at_its_own_scale() -> None:
    large = Image.fromarray(data.astronaut()[:400, 80:400]).resize((1280, 1600))
    face = object_detection(write(np.asarray(large)), ["face"]).objects[0]  # the surest
    assert 350 < face.box.x < 440 and 320 < face.box.width < 420


def test_pictures_are_classified_by_the_model_that_comes_along() -> None:
    first, second = image_classification(write(data.astronaut()))
    assert first.label == "fit for all" and first.score > 0.9
    assert second.label == "pornographic" and first.score + second.score == pytest.approx(1, 1e-4)
    assert len(image_classification(Path("given.png"), top=1)) == 1


def test_another_classifier_takes_its_place(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundled,) = importlib.util.find_spec(labels.BUNDLED).submodule_search_locations  # type: ignore[union-attr,misc]
    (workspace / "labels.txt").write_text("good\n")
    own = {
        "MODEL": f"{bundled}/open_nsfw.onnx", "LABELS": str(workspace / "labels.txt"),
        "SIZE": "224", "LAYOUT": "nhwc", "ORDER": "bgr", "MEAN": "104 117 123", "STD": "1",
    }  # fmt: skip
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    first, second = image_classification(write(data.astronaut()))
    assert (first.label, second.label) == ("good", "kind 1") and first.score > 0.8


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MODEL", "/nowhere.onnx", r"/nowhere\.onnx is no ONNX file"),
        ("LABELS", "/nowhere.txt", "No such file"),
        ("LAYOUT", "tall", "'tall' is neither nchw nor nhwc"),
        ("MEAN", "much", "'much' is not one number or three"),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setattr(labels, "_net", labels._net if name == "MODEL" else str)
    monkeypatch.setenv("MODEL", "/nowhere.onnx")
    monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match=f"setting {name}: .*{why}"):
        image_classification(write(data.camera()))


def test_what_is_no_picture_or_too_large_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "half.png").write_bytes(write(middle(public("camera"))).read_bytes()[:900])
    with pytest.raises(BadArguments, match=r"half\.png' can't be read"):
        image_denoising(Path("half.png"))
    with pytest.raises(BadArguments, match="outside the workspace"):
        face_rect_local(Path("../other.png"))
    with pytest.raises(BadArguments, match=r"no plain name that ends in \.png"):
        image_denoising(write(middle(public("camera"))), 25, save_as="../out.png")
    monkeypatch.setattr("agents.tools.pixels.PIXELS", 1000)
    with pytest.raises(BadArguments, match="is 160 x 160, the limit is 1000 pixels"):
        image_deblurring(write(middle(public("camera"))))


def test_grey_deep_and_clear_pictures_are_read() -> None:
    deep = Image.fromarray(middle(public("camera")).astype(np.uint16) * 257)
    deep.save("given.png")
    assert image_denoising(Path("given.png"), 5) == Path("given-denoised.png")
    with Image.open("given-denoised.png") as made:
        assert made.mode == "L"
    Image.fromarray(data.astronaut()).convert("RGBA").save("clear.png")
    assert len(face_rect_local(Path("clear.png")).faces) == 1
