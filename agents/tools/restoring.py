"""image_denoising, image_deblurring: what a camera has spoilt, made better with scikit-image.

No model is learned here: non-local means for noise; for a known blur a Wiener filter where it is
smooth (gaussian), Richardson and Lucy's iteration where it has sharp borders (motion, box).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from aios.tools import Meta, tool

from . import pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Name = Annotated[str, Meta(max_length=200)]

STEPS: Final = 50
"""Of Richardson and Lucy's iteration, for a picture without noise."""
BALANCE: Final = 2e-4
"""Of the Wiener filter between sharp and smooth, for a picture without noise."""


@tool(kind="image", model=True, limits={"time": 120, "memory": 3 << 30}, idempotent=True)
def image_denoising(
    image: Path, sigma: Annotated[float, Meta(ge=0, le=100)] = 0.0, save_as: Name = ""
) -> Path:
    """Take the noise out of a picture (non-local means); gives a PNG of the same size.

    image: a file in the workspace (PNG, JPEG, GIF or WebP, up to 12 megapixels)
    sigma: how strong the noise is, as standard deviation of pixel values 0-255; 0: estimated
    save_as: name of the new file, ending in .png; empty: that of the image with -denoised
    """
    from skimage import restoration

    noisy = _floats(pixels.load("image_denoising", image))
    channel = -1 if noisy.ndim == 3 else None
    noise = sigma / 255 or _estimated(noisy, channel)
    clean = restoration.denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.8 * noise, sigma=noise, channel_axis=channel
    )
    return pixels.save("image_denoising", _bytes(clean), image, "denoised", save_as)


@tool(kind="image", model=True, limits={"time": 240, "memory": 3 << 30}, idempotent=True)
def image_deblurring(
    image: Path,
    blur: Literal["gaussian", "motion", "box"] = "gaussian",
    size: Annotated[float, Meta(ge=0.3, le=50)] = 2.0,
    angle: Annotated[float, Meta(ge=-180, le=180)] = 0.0,
    noise: Annotated[float, Meta(ge=0, le=50)] = 0.0,
    save_as: Name = "",
) -> Path:
    """Sharpen a picture whose blur is known; gives a PNG of the same size.

    image: a file in the workspace (PNG, JPEG, GIF or WebP, up to 12 megapixels)
    blur: gaussian (out of focus), motion (the camera moved along a line) or box (an average)
    size: in pixels: the gaussian's standard deviation, the way that it moved, the box's width
    angle: of a motion, in degrees against the clock, 0 is to the right
    noise: standard deviation of pixel values 0-255; the more, the more careful it is
    save_as: name of the new file, ending in .png; empty: that of the image with -sharp
    """
    blurred = _floats(pixels.load("image_deblurring", image))
    spread = _spread(blur, size, angle)
    sharp = _sharpened(blurred, spread, blur, noise)
    return pixels.save("image_deblurring", _bytes(sharp), image, "sharp", save_as)


def _sharpened(picture: Floats, spread: Floats, blur: str, noise: float) -> Floats:
    """Return a picture without its blur; around it is a border for what was blurred into it."""
    import numpy as np
    from skimage import restoration

    border = 2 * max(spread.shape)
    sides = ((border, border), (border, border), (0, 0))[: picture.ndim]
    padded = np.pad(picture, sides, mode="edge")
    if blur != "gaussian":
        found = _iterated(padded, spread, border, max(5, round(STEPS / (1 + noise))))
    else:
        balance = max(BALANCE, 10 * (noise / 255) ** 2)
        layers = [padded] if padded.ndim == 2 else list(np.moveaxis(padded, -1, 0))
        each = [restoration.wiener(one, spread, balance, clip=False) for one in layers]
        found = each[0] if padded.ndim == 2 else np.stack(each, axis=-1)
    return np.asarray(found[border:-border, border:-border])


def _iterated(padded: Floats, spread: Floats, border: int, steps: int) -> Floats:
    """Return what Richardson and Lucy's iteration makes of a picture.

    Only the picture itself has been seen: what its border may be is made up on the way, else the
    guess would come back as rings. scikit-image's iteration takes the border for seen.
    """
    import cv2
    import numpy as np

    mirrored = spread[::-1, ::-1].copy()
    seen = np.zeros_like(padded)
    seen[border:-border, border:-border] = 1
    weight = np.maximum(cv2.filter2D(seen, -1, spread, borderType=cv2.BORDER_CONSTANT), 0.05)
    found = np.maximum(padded, 1e-3)
    for _ in range(steps):
        blurred = cv2.filter2D(found, -1, mirrored, borderType=cv2.BORDER_REPLICATE)
        ratio = seen * padded / np.maximum(blurred, 1e-4)
        found *= cv2.filter2D(ratio, -1, spread, borderType=cv2.BORDER_CONSTANT) / weight
    return found


def _spread(blur: str, size: float, angle: float) -> Floats:
    """Return what a blur makes of a single point: odd in width, its sum is 1."""
    import numpy as np
    from skimage import transform

    half = max(1, round(3 * size if blur == "gaussian" else size / 2))
    around = np.arange(-half, half + 1, dtype=np.float64)
    if blur == "gaussian":
        line = np.exp(-(around**2) / (2 * size**2))
        spread = np.outer(line, line)
    else:
        line = np.clip(size / 2 + 0.5 - np.abs(around), 0, 1)
        spread = np.outer(line, line if blur == "box" else around == 0).T
        if blur == "motion":
            spread = transform.rotate(spread, angle, order=1)
    return np.asarray(spread / spread.sum())


def _estimated(noisy: Floats, channel: int | None) -> float:
    """Return the noise's strength, by how much the finest detail varies."""
    import numpy as np
    from scipy import ndimage

    grey = noisy if channel is None else noisy.mean(axis=-1)
    detail = ndimage.convolve(grey, np.array([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]))
    scale = 1.0 if channel is None else noisy.shape[-1] ** 0.5  # the mean has less noise
    return max(float(np.median(np.abs(detail)) / 0.6745 / 6 * scale), 0.5 / 255)


def _floats(picture: pixels.Pixels) -> Floats:
    return picture.astype("float64") / 255


def _bytes(picture: Any) -> pixels.Pixels:
    import numpy as np

    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255), dtype=np.uint8)
