"""Converted weights: made once, whole or not at all, held while in use, and the oldest go."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiosd.engine import gguf, weights
from aiosd.engine.weights import MOST, SPARE, TYPES, Type, Weights
from tests.daemon import PATIENCE
from tests.engine.test_gguf import model

KIND = TYPES["q8_0"]


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """Let go of what this process holds."""
    yield
    release()


def release() -> None:
    while weights._held:
        os.close(weights._held.pop())


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.gguf"
    path.write_bytes(model())
    return str(path)


class Maker:
    """Stands for llama.cpp: writes what it is told to, and counts."""

    def __init__(self, place: Path, content: bytes = model()) -> None:
        self.heard = threading.Event()
        self.weights = Weights(place, self, self.heard.set)
        self.content = content
        self.made: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, source: str, target: str, number: int) -> None:
        self.made.append(Path(target).name)
        with open(target, "wb") as file:
            file.write(self.content)
        assert self.may_go_on.wait(PATIENCE)

    def get(self, source: str, name: str, kind: Type = KIND) -> Path:
        return self.weights.get(source, name, kind)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_file_is_made_once_and_found_again(tmp_path: Path, source: str) -> None:
    place = tmp_path / "cache" / "weights"
    first, second = Maker(place), Maker(place)
    path = first.get(source, "a")
    assert second.get(source, "a") == path == place / "a.gguf"
    assert (first.made, second.made) == (["a.part"], [])
    assert names(place) == ["a.gguf"] and path.stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700


def test_of_two_at_once_one_makes_it_and_the_other_waits(tmp_path: Path, source: str) -> None:
    place = tmp_path / "weights"
    one, other = Maker(place), Maker(place)
    one.may_go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one.get, source, "a")
        while not one.made:
            assert not first.done()
        second = threads.submit(other.get, source, "a")
        assert other.heard.wait(PATIENCE)  # it sees that the other one gets on
        one.may_go_on.set()
        assert first.result(PATIENCE) == second.result(PATIENCE)
    assert other.made == [] and names(place) == ["a.gguf"]


def test_what_a_dead_process_left_is_not_used(tmp_path: Path, source: str) -> None:
    maker = Maker(tmp_path)
    (tmp_path / "a.part").write_bytes(model()[:50])
    (tmp_path / "b.part").write_bytes(b"x")
    maker.get(source, "a")
    assert names(tmp_path) == ["a.gguf", "source.gguf"]
    gguf.check(str(tmp_path / "a.gguf"))


def test_one_that_is_damaged_is_made_anew(
    tmp_path: Path, source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "weights"
    maker = Maker(place)
    path = maker.get(source, "a")
    path.write_bytes(model()[:-8])
    assert maker.get(source, "a") == path
    assert maker.made == ["a.part"] * 2 and "truncated" in capfd.readouterr().err
    gguf.check(str(path))


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, source: str) -> None:
    place = tmp_path / "weights"
    with pytest.raises(OSError, match="truncated"):
        Maker(place, model()[:-8]).get(source, "a")
    assert names(place) == []


def test_a_link_is_not_followed(tmp_path: Path, source: str) -> None:
    place = tmp_path / "weights"
    place.mkdir()
    (place / "a.gguf").symlink_to(source)
    with pytest.raises(OSError, match="symbolic links") as refused:
        Maker(place).get(source, "a")
    assert refused.value.errno == errno.ELOOP


def test_the_oldest_that_nobody_uses_make_room(tmp_path: Path, source: str) -> None:
    place = tmp_path / "weights"
    maker = Maker(place)
    for number in range(MOST):
        path = maker.get(source, f"{number}")
        os.utime(path, (number, number))
        if number:  # the first is held, though it is the oldest
            os.close(weights._held.pop())
    maker.get(source, "new")
    assert names(place) == sorted([f"{n}.gguf" for n in range(MOST) if n != 1] + ["new.gguf"])


def test_a_full_disk_costs_unused_files_and_then_says_what_is_missing(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "weights"
    maker = Maker(place)
    maker.get(source, "held")
    maker.get(source, "unused")
    os.close(weights._held.pop())
    need = weights.needed(source, KIND)
    room = SPARE + need
    monkeypatch.setattr(weights, "_free", lambda place: room - len(list(place.glob("*.gguf"))))
    with pytest.raises(OSError, match=f"about {need} bytes; {room - 1} are free") as refused:
        maker.get(source, "more")
    assert refused.value.errno == errno.ENOSPC and names(place) == ["held.gguf"]
    release()
    maker.get(source, "more")
    assert names(place) == ["more.gguf"]


def test_a_disk_that_fills_meanwhile(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 0, 0])
    monkeypatch.setattr(weights, "_free", lambda place: next(free))

    def broken(source: str, target: str, number: int) -> None:
        raise OSError(errno.ENOEXEC, "iostream error")

    with pytest.raises(OSError, match="no room for converted weights") as refused:
        Weights(tmp_path / "w", broken, lambda: None).get(source, "a", KIND)
    assert refused.value.errno == errno.ENOSPC


def test_bytes_follow_the_type(source: str) -> None:
    found = gguf.check(source)
    assert (found.kind, found.end - found.data) == (-1, 64)
    assert weights.needed(source, KIND) == found.data + 64  # one dimension: it stays as it is
