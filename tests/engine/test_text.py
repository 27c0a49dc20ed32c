"""Text that is final: however the bytes are cut, nothing is emitted that must be taken back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aiosd.engine.text import TextStream

WORDS = st.text(alphabet="ab.é😀", max_size=24)
STOPS = st.lists(st.text(alphabet="ab.é", min_size=1, max_size=4), max_size=3)


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is completed first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(WORDS, STOPS, st.lists(st.integers(0, 99)))
def test_the_cuts_do_not_show(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(stops)
    out = "".join(stream.feed(piece) for piece in cut_up(text.encode(), cuts))
    assert (out + stream.finish(), stream.stopped) == expected(text, stops)


@given(WORDS, STOPS, st.lists(st.integers(0, 99)), st.integers(0, 9))
def test_a_rebuilt_stream_goes_on_where_the_first_was(
    text: str, stops: list[str], cuts: list[int], at: int
) -> None:
    pieces = cut_up(text.encode(), cuts)
    first, second = TextStream(stops), TextStream(stops)
    for piece in pieces[:at]:
        first.feed(piece)
        second.feed(piece)
    rest = [first.feed(piece) for piece in pieces[at:]]
    assert [second.feed(piece) for piece in pieces[at:]] == rest
    assert first.finish() == second.finish()


@given(st.binary(max_size=30), st.lists(st.integers(0, 99)))
def test_any_bytes_become_text(data: bytes, cuts: list[int]) -> None:
    stream = TextStream()
    out = "".join(stream.feed(piece) for piece in cut_up(data, cuts)) + stream.finish()
    assert out == data.decode("utf-8", "replace")


def test_text_that_may_still_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(["END"])
    assert stream.feed(b"one EN") == "one "
    assert stream.feed(b"E") == "EN"
    assert stream.feed(b"ND two") == ""
    assert stream.stopped
    assert stream.feed(b"more") == stream.finish() == ""
