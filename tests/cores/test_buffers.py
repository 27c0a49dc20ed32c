"""The pool of files that hold KV off the core."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiosd.cores.buffers import Buffers

MIB = 1 << 20


@pytest.fixture
def make(kv_dir: Path) -> Iterator[Callable[[int], Buffers]]:
    """Make a pool with a limit in bytes; its files go with the test."""
    pools: list[Buffers] = []

    def pool(limit: int) -> Buffers:
        pools.append(Buffers(kv_dir, limit))
        pools[-1].boot()
        return pools[-1]

    yield pool
    for made in pools:
        made.close()
    for path in kv_dir.glob("*.kv"):
        path.unlink()


def fill(path: str, size: int) -> None:
    Path(path).write_bytes(bytes(size))


def test_the_limit_holds_for_what_is_taken(make: Callable[[int], Buffers]) -> None:
    pool = make(3 * MIB)
    assert pool.take(2 * MIB) and pool.take(2 * MIB) is None and pool.take(MIB)
    assert pool.room == 0


def test_a_returned_buffer_is_reused_and_counts_as_room(make: Callable[[int], Buffers]) -> None:
    pool = make(4 * MIB)
    first = pool.take(MIB)
    assert first
    fill(first, MIB)
    pool.booked(first, MIB)
    pool.give(first)
    assert pool.used == 0 and pool.take(MIB) == first


def test_idle_files_give_way_to_the_limit(make: Callable[[int], Buffers]) -> None:
    pool = make(2 * MIB)
    first = pool.take(MIB)
    assert first
    fill(first, MIB)
    pool.give(first)
    assert pool.take(2 * MIB) == first or not Path(first).exists()


def test_a_shared_buffer_lives_until_its_last_holder(make: Callable[[int], Buffers]) -> None:
    pool = make(4 * MIB)
    path = pool.take(MIB)
    assert path
    fill(path, MIB)
    pool.share(path)
    pool.share(path)
    for _ in range(2):
        pool.give(path)
        assert pool.used == MIB
    pool.give(path)
    assert pool.used == 0


def test_a_file_of_an_earlier_kernel_is_left_alone(
    kv_dir: Path, make: Callable[[int], Buffers]
) -> None:
    kv_dir.mkdir(exist_ok=True)
    old = str(kv_dir / "7.kv")
    fill(old, 10)
    pool = Buffers(kv_dir, MIB)
    assert pool.boot() == [old]
    taken = pool.take(10)
    assert taken is not None and taken != old and Path(old).exists()
    pool.booked(old, 10)
    pool.give(taken)
    pool.give(old)
    pool.close()
    assert not Path(old).exists()


def test_what_is_held_when_a_pool_is_sealed_stays(kv_dir: Path) -> None:
    pool = Buffers(kv_dir, 4 * MIB)
    pool.boot()
    held, idle = pool.take(MIB), pool.take(MIB)
    assert held and idle
    for path in (held, idle):
        fill(path, MIB)
    pool.give(idle)
    pool.seal()
    pool.give(held)
    pool.close()
    assert [str(path) for path in kv_dir.iterdir()] == [held]
    assert pool.take(1) is None
    Path(held).unlink()


def test_a_pool_on_disk_deletes_what_is_given_back(tmp_path: Path) -> None:
    removed: list[str] = []
    pool = Buffers(tmp_path / "contexts", MIB, ".snapshot", reuse=False, remove=removed.append)
    pool.boot()
    path = pool.take(MIB)
    assert path and path.endswith(".snapshot") and pool.take(1) is None
    pool.give(path)
    assert removed == [path] and pool.room == MIB
