"""What goes when a window is full, and the books of what stays."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd import window as windows
from aiosd.window import Window

SIZE = 160


def chat(*turns: tuple[int, int], head: int = 0, lead: int = 0) -> tuple[Window, int]:
    """Return the window of a context with prompts and replies of these lengths, and its length."""
    window, at = Window(lead=lead), 0
    for prompt, reply in turns:
        window.read(at, at + prompt, lead=lead if at else 0, head=head)
        at += prompt + reply
    return window, at


def test_the_oldest_turns_go_and_the_system_prompt_stays() -> None:
    window, length = chat((40, 20), (30, 10), (30, 29), head=20)
    kept, inside = windows.truncation(window, range(length), SIZE)
    assert not inside
    assert kept == [*range(20), *range(60, length)]
    window.restart(kept, length)
    assert [(t.number, t.start) for t in window.turns] == [
        (1, 0),
        (3, 20),
        (4, 50),
        (5, 60),
        (6, 90),
    ]
    assert (window.head, window.before) == (20, 40)


def test_without_a_system_prompt_what_closes_the_turn_before_goes_too() -> None:
    window, length = chat((60, 20), (40, 38), lead=3)
    kept, inside = windows.truncation(window, range(length), SIZE)
    assert (kept, inside) == (list(range(83, length)), False)


def test_a_turn_too_long_alone_loses_its_oldest_part() -> None:
    window, length = chat((30, 10), (100, 19), head=10)
    kept, inside = windows.truncation(window, range(length), 128)
    assert inside
    assert kept == [*range(10), *range(length - 86, length)]


def test_a_system_prompt_that_leaves_no_room_is_an_error() -> None:
    window, length = chat((155, 4), head=150)
    with pytest.raises(OSError, match="150 tokens") as found:
        windows.truncation(window, range(length), SIZE)
    assert found.value.errno == errno.ENOSPC


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_there_is_room_afterwards_and_the_newest_token_stays(
    turns: list[tuple[int, int]], head: int, lead: int
) -> None:
    window, length = chat(*turns, (SIZE // 3, SIZE), head=min(head, turns[0][0]), lead=lead)
    system, before = window.head, window.before
    kept, _ = windows.truncation(window, range(length), SIZE)
    assert len(kept) <= SIZE - SIZE // 8
    assert kept == sorted(set(kept)) and kept[-1] == length - 1
    assert kept[:system] == list(range(system))
    window.restart(kept, length)
    assert window.head == system
    assert window.before + len(kept) == before + length
    starts = [turn.start for turn in window.turns]
    assert starts == sorted(starts) and starts[-1] <= len(kept)


def test_turns_survive_the_journal() -> None:
    window, _ = chat((4, 5), (6, 7), head=2, lead=1)
    assert Window.of(window.meta()) == window
    assert Window.of({"policy": "slide", "unknown": 1}).policy == "slide"


def test_a_roll_back_forgets_the_turns_after_it() -> None:
    window, length = chat((10, 10), (10, 10))
    assert length == 40
    window.read(15, 20)
    assert [(t.role, t.start) for t in window.turns] == [
        ("user", 0), ("assistant", 10), ("user", 15), ("assistant", 20),
    ]  # fmt: skip
    window.read(25, 25)  # goes on in the same reply
    assert window.turns[-1].start == 20


@pytest.mark.parametrize(("head", "keep"), [(0, 4), (3, 4), (30, 30), (100, 4)])
def test_a_window_slides_by_whole_chunks_behind_a_short_system_prompt(head: int, keep: int) -> None:
    slide = windows.sliding(Window(head=head), 256, 16)
    assert (slide.keep, slide.gone % 16, slide.window) == (keep, 0, 256)
    assert 16 <= slide.gone <= (256 - keep) // 4


def test_a_window_smaller_than_a_chunk_cant_slide() -> None:
    with pytest.raises(OSError, match="too small"):
        windows.sliding(Window(), 64, 64)


def test_a_character_is_not_cut() -> None:
    pieces = [bytes([byte]) for byte in "😀é".encode()]
    assert [windows.whole(pieces[n:]) for n in range(5)] == [0, 3, 2, 1, 0]
    assert windows.whole([b"", b"\x80"]) == 0


@pytest.mark.parametrize(
    ("wanted", "beyond", "size"),
    [
        (9, False, 256),
        (257, False, 512),
        (600, False, 1000),
        (1000, True, 1000),
        (1001, True, 1024),
    ],
)
def test_slot_classes_double_up_to_the_trained_length(wanted: int, beyond: bool, size: int) -> None:
    assert windows.larger(256, wanted, 1000, beyond=beyond) == size


def test_beyond_the_trained_length_one_has_to_ask() -> None:
    with pytest.raises(OSError, match="trained for 1000") as found:
        windows.larger(256, 1001, 1000, beyond=False)
    assert found.value.errno == errno.EINVAL
