"""Pictures in messages: `image_url` of chats and `input_image` of responses, as data: URLs.

The gateway fetches nothing: who could name a URL could have it ask whatever it can reach.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from aios import Image

from .refusal import Refusal

KINDS: Final = ("image_url", "input_image")
"""Types of parts that are pictures."""


def image(given: Any, where: str) -> Image:
    """Return a picture. given: a URL, or an object with one. Raises Refusal that says what to send.

    Of which media types there may be pictures, and how large they may be, the kernel says.
    """
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url.startswith("data:"):
        sentence = (
            f"{where}: the gateway fetches no pictures and keeps no files; send this one as "
            "data:image/png;base64,..."
        )
        raise Refusal(400, sentence, param=where, code="unsupported")
    head, comma, coded = url.removeprefix("data:").partition(",")
    media_type, *more = head.split(";")
    if not comma or more[-1:] != ["base64"]:
        raise Refusal(400, f"{where}: it is no data:MEDIA/TYPE;base64,... URL", param=where)
    try:
        return Image(media_type.lower()[:32], base64.b64decode(coded, validate=True))
    except binascii.Error as error:
        raise Refusal(400, f"{where}: its base64 can't be read: {error}", param=where) from None
