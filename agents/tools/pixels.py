"""Pictures as arrays: a file of the workspace in, a PNG in the workspace out.

pixels = load("image_denoising", "photo.jpg")     # uint8, (height, width) or (height, width, 3)
path = save("image_denoising", pixels, "photo-denoised.png")

What must hold: a picture that would not fit into memory is refused by its header, before any of it
is unpacked; nothing is read or written outside the workspace.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from aios.tools import BadArguments

from . import picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

FILE: Final = 32 << 20
"""Bytes of a picture's file."""
PIXELS: Final = 12_000_000
"""Width times height."""


def load(tool: str, image: str | Path) -> Pixels:
    """Return a picture, turned as its camera was held: grey values, or red, green and blue."""
    import numpy as np
    from PIL import Image, ImageOps

    data = picture.read(tool, str(image), FILE).data
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if opened.width * opened.height > PIXELS:
                raise BadArguments(
                    f"{tool}: image {str(image)[:200]!r} is {opened.width} x {opened.height}, "
                    f"the limit is {PIXELS} pixels; make it smaller"
                )
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits
                return (np.asarray(upright, dtype=np.uint32) >> 8).astype(np.uint8)
            grey = upright.mode in ("1", "L", "LA", "F")
            return np.asarray(upright.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadArguments):
            raise
        raise BadArguments(f"{tool}: image {str(image)[:200]!r} can't be read: {error}") from None


def save(tool: str, pixels: Pixels, image: str | Path, ending: str, name: str) -> Path:
    """Write a PNG into the workspace's top directory; return its name.

    name: wanted for it; "": that of `image` with `ending`.
    """
    from PIL import Image

    name = name or f"{Path(image).stem[:100]}-{ending}.png"
    if os.sep in name or name.startswith(".") or not name.endswith(".png"):
        raise BadArguments(f"{tool}: save_as {name[:200]!r} is no plain name that ends in .png")
    if os.path.lexists(name):
        os.unlink(name)  # a link is replaced, not followed
    Image.fromarray(pixels).save(name, "PNG")
    return Path(name)
