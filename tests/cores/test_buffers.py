"""The pool of files that hold KV off the core."""

from pathlib import Path

from aiosd.cores.buffers import Buffers

MIB = 1 << 20


def fill(path: str, size: int) -> None:
    Path(path).write_bytes(bytes(size))


def test_the_limit_holds_for_what_is_taken(kv_dir: Path) -> None:
    pool = Buffers(kv_dir, 3 * MIB)
    pool.boot()
    assert pool.take(2 * MIB) and pool.take(2 * MIB) is None and pool.take(MIB)
    assert pool.room == 0


def test_a_returned_buffer_is_reused_and_counts_as_room(kv_dir: Path) -> None:
    pool = Buffers(kv_dir, 4 * MIB)
    pool.boot()
    first = pool.take(MIB)
    assert first
    fill(first, MIB)
    pool.booked(first, MIB)
    pool.give(first)
    assert pool.used == 0 and pool.take(MIB) == first


def test_idle_files_give_way_to_the_limit(kv_dir: Path) -> None:
    pool = Buffers(kv_dir, 2 * MIB)
    pool.boot()
    first = pool.take(MIB)
    assert first
    fill(first, MIB)
    pool.give(first)
    assert pool.take(2 * MIB) == first or not Path(first).exists()


def test_a_shared_buffer_lives_until_its_last_holder(kv_dir: Path) -> None:
    pool = Buffers(kv_dir, 4 * MIB)
    pool.boot()
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


def test_boot_removes_what_an_earlier_kernel_left(kv_dir: Path) -> None:
    fill(str(kv_dir / "7.kv"), 10)
    Buffers(kv_dir, MIB).boot()
    assert not list(kv_dir.iterdir())
