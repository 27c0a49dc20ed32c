"""Tiers: whatever becomes of the files that KV lies in, a sequence says what it says alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiosd.cores.sequence import DISK, RAM, Sequence
from aiosd.cores.tiers import Tiers
from aiosd.engine.snapshot import read_layout, verify
from tests.cores.conftest import Bench, MakeBench, Result, within

PROMPTS = [f"agent {i} says hello to the world. " * (2 + 3 * i) for i in range(8)]
Deed = Callable[[Path, Path], None]


async def crowd(b: Bench, deed: Callable[[], None] | None = None) -> list[Sequence]:
    """Run all prompts alone, then all at once with a deed every few tokens, and compare."""
    solo = [await b.solo(prompt) for prompt in PROMPTS]
    runs = [await b.submit(prompt) for prompt in PROMPTS]
    for count in range(2, 36, 2):
        await runs[count % len(runs)][1].reach(count)
        if deed:
            deed()
    assert [await ended(result) for _, result in runs] == solo
    return [sequence for sequence, _ in runs]


async def ended(result: Result) -> list[int]:
    await within(result.done)
    return result.tokens


def kv_files(*places: Path) -> list[Path]:
    found = [p for place in places if place.is_dir() for p in place.iterdir()]
    return [p for p in found if p.suffix in (".kv", ".snapshot")]


def delete(ram: Path, disk: Path) -> None:
    for path in kv_files(ram, disk):
        path.unlink(missing_ok=True)


turns = itertools.count(1)


def damage(ram: Path, disk: Path) -> None:
    """Turn a bit in every file that is one, without a change of its length.

    Each time another one: the same bit turned twice would be no damage.
    """
    turn = next(turns)
    for path in kv_files(ram, disk):
        with contextlib.suppress(OSError):  # no snapshot, or given up meanwhile
            layout = read_layout(path)
            with path.open("r+b") as file:
                file.seek(layout.offset + (layout.size // 3 + turn) % layout.size)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


def cut_short(ram: Path, disk: Path) -> None:
    for path in kv_files(disk):
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("deed", [delete, damage, cut_short])
def test_files_that_are_lost_or_damaged(
    bench: MakeBench, kv_dir: Path, tmp_path: Path, deed: Deed
) -> None:
    async def main() -> None:
        disk = tmp_path / "contexts"
        async with bench(slots=2, quantum=4, ram=20_000, step_ms=1, eog=0.0) as b:
            await b.core.start()
            for sequence in await crowd(b, lambda: deed(kv_dir, disk)):
                assert sequence.deaths == 0  # a bad file is nobody's fault
                b.core.forget(sequence)
            assert any(news.startswith("fell back") for news in b.news), b.news
            if deed is damage:
                assert any("checksum" in news for news in b.news), b.news

    asyncio.run(main())


@pytest.mark.parametrize("ram", [0, 30_000, 1 << 30])
@pytest.mark.parametrize("disk", [0, 30_000, 1 << 30])
def test_every_size_of_the_tiers(bench: MakeBench, ram: int, disk: int) -> None:
    async def main() -> None:
        async with bench(slots=2, quantum=6, ram=ram, disk=disk, eog=0.0) as b:
            await b.core.start()
            sequences = await crowd(b)
            tiers = {s.snapshot.tier for s in sequences if s.snapshot}
            if ram < 1 << 30 == disk:
                assert DISK in tiers
            if ram == 0 or ram == 1 << 30:
                assert (RAM in tiers) == (ram > 0)
            assert b.tiers.ram.used <= ram and b.tiers.disk.used <= disk
            for sequence in sequences:
                b.core.forget(sequence)
            assert b.tiers.ram.used == b.tiers.disk.used == 0

    asyncio.run(main())


@pytest.mark.parametrize("place", ["memory", "disk", "both"])
def test_a_tier_that_cant_be_written_to(
    bench: MakeBench, kv_dir: Path, tmp_path: Path, place: str
) -> None:
    """A file where the directory was: nothing can be made there, not even by root."""
    broken = {"memory": [kv_dir], "disk": [tmp_path / "contexts"]}
    wanted = broken.get(place) or [kv_dir, tmp_path / "contexts"]

    def block() -> None:
        for path in wanted:
            if path.is_dir():
                path.rename(tmp_path / f"{path.name}-moved")
                path.touch()

    async def main() -> None:
        async with bench(slots=2, quantum=4, ram=30_000, step_ms=1, eog=0.0) as b:
            await b.core.start()
            sequences = await crowd(b, block)
            tiers = {s.snapshot.tier for s in sequences if s.snapshot}
            if place == "memory":
                assert DISK in tiers
            assert b.core.restarts == 0
        for path in wanted:
            path.unlink()

    asyncio.run(main())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("tier", [RAM, DISK])
def test_a_file_system_that_is_full(
    bench: MakeBench, kv_dir: Path, small: Path, tmp_path: Path, tier: str
) -> None:
    """The limit is not reached, but others have filled the place up."""
    link = kv_dir if tier == RAM else tmp_path / "contexts"
    if tier == RAM:
        kv_dir.rmdir()
    link.symlink_to(small)

    async def main() -> None:
        ram = 1 << 30 if tier == RAM else 0
        async with bench(slots=2, quantum=4, ram=ram, eog=0.0) as b:
            await b.core.start()
            sequences = await crowd(b)
            assert b.core.restarts == 0 and tier in b.tiers._trouble
            assert all(s.deaths == 0 for s in sequences)
            if tier == RAM:
                assert any(s.tier == DISK for q in sequences for s in q.snapshots)
            for sequence in sequences:
                b.core.forget(sequence)
        link.unlink()

    asyncio.run(main())


def test_what_is_worth_least_goes_to_the_disk_by_itself(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(slots=1, quantum=4, ram=100_000, eog=0.0) as b:
            await b.core.start()
            runs = []
            for prompt in PROMPTS * 2:
                runs.append(await b.submit(prompt))
                await within(runs[-1][1].done)
            spilling = b.tiers._spilling
            if spilling is not None:
                await spilling
            assert b.tiers.ram.used <= 0.9 * b.tiers.ram.limit
            on_disk = [s for s, _ in runs if s.snapshot and s.snapshot.tier == DISK]
            assert on_disk
            for sequence in on_disk:
                assert sequence.snapshot is not None
                verify(sequence.snapshot.path)

    asyncio.run(main())


def test_the_next_kernel_finds_both_tiers(kv_dir: Path, tmp_path: Path, bench: MakeBench) -> None:
    async def main() -> None:
        disk_dir = tmp_path / "contexts"
        async with bench(slots=1, quantum=6, ram=60_000, eog=0.0) as b:
            await b.core.start()
            sequences = await crowd(b)
            await b.core.placement.save_all()
            before = {s.cid: s.snapshot for s in sequences}
            (disk_dir / "99.snapshot.tmp").write_bytes(b"half a copy")
            (disk_dir / "98.snapshot").write_bytes(b"no snapshot")
            b.tiers.seal()
            again = {s.cid: reborn(s) for s in sequences[1:]}  # the first is gone
            copy = reborn(sequences[1])
            copy.cid = 77  # began as a fork, and shared the file
            again[copy.cid] = copy
            nobody = reborn(sequences[2])
            nobody.cid, nobody.tokens = 78, [1, *nobody.tokens[1:]]
            again[nobody.cid] = nobody
            tiers = Tiers(kv_dir, 1 << 30, disk_dir, 1 << 30)
            tiers.boot()
            await tiers.adopt(again, lambda sequence: 64, [])
            for cid, old in before.items():
                if cid in again and old is not None:
                    new = again[cid].snapshot
                    assert new and (new.kv, new.path) == (old.kv, old.path)
            assert copy.snapshot and nobody.snapshot is None
            held = {s.path for q in again.values() for s in q.snapshots}
            assert {str(p) for p in kv_files(kv_dir, disk_dir)} == held
            assert not list(disk_dir.glob("*.tmp"))
            for sequence in again.values():
                for snapshot in sequence.snapshots:
                    tiers.give(snapshot.path)
            tiers.close()
            assert not kv_files(kv_dir, disk_dir)

    asyncio.run(main())


@pytest.mark.model
def test_forks_of_a_real_context(bench: MakeBench, model_path: Path) -> None:
    """Each goes on from the parent's KV as if it had computed it itself."""
    prompt, tails = "The lighthouse keeper wrote a letter. " * 16, [" He", " She"]

    async def main() -> None:
        async with bench(model=str(model_path), slots=2) as b:
            await b.core.start()
            alone = [await b.solo(prompt, tail, max_tokens=8) for tail in tails]
            parent, result = await b.submit(prompt, max_tokens=8)
            await within(result.done)
            await b.core.placement.save(parent)
            for tail, expected in zip(tails, alone, strict=True):
                child = type(parent)(cid=50 + len(tail), aid=9, uid=0, nice=0)
                child.tokens, child.kv = list(parent.tokens), parent.kv
                child.history = list(parent.history)
                b.core.add(child)
                b.core.placement.copy_snapshot(parent, child)
                assert child.held == parent.kv
                _, said = await b.submit(tail, sequence=child, max_tokens=8)
                await within(said.done)
                assert result.tokens + said.tokens == expected
                b.core.forget(child)
            b.core.forget(parent)
            assert b.tiers.ram.used == 0

    asyncio.run(main())


def reborn(sequence: Sequence) -> Sequence:
    """The sequence as a journal would give it back."""
    again = Sequence(sequence.cid, sequence.aid, sequence.uid, sequence.nice)
    again.tokens, again.history = list(sequence.tokens), list(sequence.history)
    again.kv = sequence.kv
    return again
