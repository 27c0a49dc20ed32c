"""Pictures in turns: what may be shown, and what is kept."""

from __future__ import annotations

import pytest

from aiosd import pictures
from aiosd.abi.chat import IMAGE_BYTES, Image, Turn
from aiosd.abi.inference import LlmGenerate
from aiosd.cores.offer import VISION, wish
from aiosd.remotely import bill_of, chat_of

PNG = b"\x89PNG\r\n\x1a\n"


def turn(*sizes: int, role: str = "user", kind: str = "image/png", begins: bytes = PNG) -> Turn:
    """Return a turn with pictures of so many bytes."""
    images = [Image(kind, begins + bytes(size - len(begins))) for size in sizes]
    return Turn(role, "Look.", images=images)


def test_pictures_of_the_user_may_be_shown() -> None:
    webp = turn(20, kind="image/webp", begins=b"RIFF\0\0\0\0WEBP")
    pictures.check([turn(10), webp, Turn("assistant", "Yes.")])


@pytest.mark.parametrize(
    ("turns", "named"),
    [
        ([turn(10, role="system")], r"messages\[0\]: images: .* role user"),
        ([Turn("user", "x"), turn(10, kind="image/tiff")], r"messages\[1\]\.images\[0\]: media_ty"),
        ([turn(10, 12, kind="image/gif")], r"images\[0\]: data: it is no file of image/gif"),
        ([turn(20, kind="image/webp", begins=b"RIFF\0\0\0\0WAVE")], "no file of image/webp"),
        ([turn(*[9] * 9), turn(*[9] * 8)], "17 images, 16 are the most"),
        ([turn(IMAGE_BYTES), turn(8)], "bytes, 6291456 are the most together"),
    ],
)
def test_what_can_t_be_shown_is_named(turns: list[Turn], named: str) -> None:
    with pytest.raises(OSError, match=named):
        pictures.check(turns)


def test_the_latest_pictures_are_kept_and_a_line_stands_for_others() -> None:
    most = pictures.KEPT
    turns = [turn(8), turn(most - 100, 50), Turn("assistant", "Yes."), turn(50), turn(1 << 21)]
    assert pictures.kept(turns[:4]) == [
        Turn("user", "[a picture was shown here, image/png]\nLook."), *turns[1:4],
    ]  # fmt: skip
    last = pictures.kept(turns)
    assert not pictures.shown(last) and len(last) == len(turns)
    assert last[1].content.count("[a picture") == 2


def test_a_request_with_pictures_needs_vision_and_reserves_for_them() -> None:
    args = LlmGenerate(messages=[turn(1000), turn(1000, 1000)])
    assert VISION in wish(args, "", 0).features
    assert VISION not in wish(LlmGenerate("x"), "", 0).features
    assert VISION in wish(LlmGenerate("x"), "", 0, args.messages).features
    chat = chat_of(args, list(args.messages), 9)
    assert [len(message.images) for message in chat.messages] == [1, 2]
    assert 3 * 500 < bill_of(chat, 500).most_prompt < 3 * 500 + 1000
