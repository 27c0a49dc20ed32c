"""The audit log's files: the chain, what tampering looks like, torn ends, rotation, links."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.accounts import AuditRecord
from aiosd.abi.chain import SEGMENT, Verifier
from aiosd.access import Caller
from aiosd.audit import FLOOD, Audit
from aiosd.auditlog import RECORD_MAX, AuditLog, Entry

MIB = 1 << 20


@contextmanager
def opened(place: Path, segment: int = MIB, limit: int = 64 * MIB) -> Iterator[AuditLog]:
    log = AuditLog(str(place / "audit"), segment=segment, limit=limit)
    log.open()
    try:
        yield log
    finally:
        log.close()


def entries(count: int, **data: object) -> list[Entry]:
    return [Entry(float(i), 0, i, "test", {"n": i, **data}) for i in range(count)]


def verify(records: list[AuditRecord]) -> Verifier:
    verifier = Verifier()
    for each in records:
        if not verifier.feed(each.id, each.t, each.uid, each.aid, each.kind, each.data,
                             each.digest):  # fmt: skip
            break
    return verifier


def file(place: Path) -> Path:
    return max((place / "audit").iterdir())


def test_the_chain_goes_on_from_one_kernel_to_the_next(tmp_path: Path) -> None:
    for round in range(3):
        with opened(tmp_path) as log:
            log.append(entries(5, round=round, text="ü", real=0.1))
            log.sync()
    with opened(tmp_path) as log:
        records = list(log.read(0))
        assert [record.id for record in records] == list(range(1, 17))
        assert records[0].kind == SEGMENT
        assert [record.data.get("round") for record in log.read(11)] == [2] * 5
    assert verify(records).broken == ""
    assert verify(records).records == 16


@pytest.mark.parametrize("change", ["edit", "drop", "swap", "garble", "cut"])
def test_the_first_broken_record_is_named(tmp_path: Path, change: str) -> None:
    with opened(tmp_path) as log:
        log.append(entries(9))
    lines = file(tmp_path).read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[5] = lines[5].replace(b'"test"', b'"text"')
    elif change == "drop":
        del lines[5]
    elif change == "swap":
        lines[5], lines[6] = lines[6], lines[5]
    elif change == "garble":
        lines[5] = b"\xff" * 80 + b"\n"
    else:
        del lines[0:5]
    file(tmp_path).write_bytes(b"".join(lines))
    with opened(tmp_path) as log:
        log.append(entries(3))  # a log that was touched goes on all the same
        verifier = verify(list(log.read(0)))
    assert f"record {7 if change in ('drop', 'swap') else 6}:" in verifier.broken


def test_a_torn_end_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(entries(3))
    whole = file(tmp_path).read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        file(tmp_path).write_bytes(whole[:-cut])
        with opened(tmp_path) as log:
            assert log.torn == len(whole.splitlines()[-1]) + 1 - cut
            assert log.last == 3
            log.append(entries(1))
            assert verify(list(log.read(0))).broken == ""
        file(tmp_path).write_bytes(whole)


def test_a_file_whose_making_was_cut_short(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(entries(3))
    (tmp_path / "audit" / f"{5:016d}.log").touch(0o600)
    with opened(tmp_path) as log:
        log.append(entries(1))
        assert [record.id for record in log.read(0)] == [1, 2, 3, 4, 5]


def test_the_oldest_files_go(tmp_path: Path) -> None:
    with opened(tmp_path, segment=4096, limit=16384) as log:
        for _ in range(40):
            log.append(entries(10, fill="x" * 100))
        names = sorted((tmp_path / "audit").iterdir())
        assert sum(name.stat().st_size for name in names) <= 16384 + 2 * 4096
        records = list(log.read(0))
    assert records[0].kind == SEGMENT
    assert records[0].id > 1
    assert records[0].id == int(names[0].stem)
    assert verify(records).broken == ""
    assert any(record.data.get("dropped") for record in records)


def test_what_is_too_long_is_kept_as_its_size(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(entries(1, fill="x" * RECORD_MAX))
        assert next(log.read(1)).data["too_long"] > RECORD_MAX
        assert verify(list(log.read(0))).broken == ""


@pytest.mark.parametrize("trick", ["link", "second name", "open file", "open directory"])
def test_what_is_not_ours_alone_is_not_written_to(tmp_path: Path, trick: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    place = tmp_path / "audit"
    place.mkdir(0o700)
    name = place / f"{1:016d}.log"
    if trick == "link":
        name.symlink_to(victim)
    elif trick == "second name":
        os.link(victim, name)
    elif trick == "open file":
        name.touch()
        name.chmod(0o666)
    else:
        place.chmod(0o777)
    with pytest.raises(OSError, match=r"audit|link") as caught, opened(tmp_path):
        pass
    assert caught.value.errno in (errno.ELOOP, errno.EPERM)
    assert victim.read_text() == "precious"


def coroutine(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


@coroutine
async def test_records_that_come_again_are_counted(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "audit"), segment=MIB, limit=MIB)
    audit.open()
    for _ in range(1000):
        audit.decision("access.deny", Caller(1, 1, 1), 7, {"call": "kill"})
    audit.decision("access.deny", Caller(2, 2, 2), 7, {"call": "kill"})
    await audit.close()
    with opened(tmp_path) as log:
        found = [(record.uid, record.data.get("count")) for record in log.read(1)]
        assert found == [(1, None), (2, None), (1, 999)]


@coroutine
async def test_refusals_do_not_flood_the_log(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "audit"), segment=MIB, limit=MIB)
    audit.open()
    for aid in range(5000):
        audit.decision("access.miss", Caller(1, 1, 1), aid, {"call": "kill"})
        audit.decision("access.allow", Caller(1, 1, 1), aid, {"call": "wait"})
        audit.decision("access.invalid", Caller(1, 1, 1), 0, {"call": "wait", "reason": f"{aid}"})
    audit.decision("access.deny", Caller(2, 2, 2), 7, {"call": "kill"})
    await audit.close()
    with opened(tmp_path) as log:
        records = list(log.read(1))
    refused = [record for record in records if record.uid == 1 and record.kind == "access.miss"]
    assert len(refused) == FLOOD
    floods = [record.data.get("count", 1) for record in records if record.kind == "access.flood"]
    assert sum(record.kind == "access.invalid" for record in records) == FLOOD
    assert sum(floods) == 2 * (5000 - FLOOD)
    assert sum(record.kind == "access.allow" for record in records) == 5000
    assert any(record.uid == 2 for record in records)


@coroutine
async def test_a_missing_end_is_noticed(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "audit"), segment=MIB, limit=MIB)
    told: list[int] = []
    audit.on_synced = told.append
    audit.open()
    for i in range(10):
        audit.record("test", None, 0, {"n": i})
    await audit.synced()
    await audit.close()
    lines = file(tmp_path).read_bytes().splitlines(keepends=True)
    file(tmp_path).write_bytes(b"".join(lines[:6]))
    audit = Audit(str(tmp_path / "audit"), segment=MIB, limit=MIB)
    audit.open(written=told[-1])
    await audit.close()
    with opened(tmp_path) as log:
        assert "up to 11 were written" in verify(list(log.read(0))).broken


def record_all(audit: Audit, count: int) -> None:
    for n in range(count):
        audit.record("test", None, 0, {"n": n})


@coroutine
async def test_a_disk_that_fails_holds_up_what_must_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosd.audit.MAX_BEHIND", 4)
    monkeypatch.setattr("aiosd.audit.RETRY_S", 0.01)
    audit = Audit(str(tmp_path / "audit"), segment=MIB, limit=MIB)
    audit.open()
    await audit.synced()
    real = os.write

    def full(file: int, data: bytes) -> int:
        if file != audit._log._file or len(data) > 1:
            return real(file, data if file != audit._log._file else data[:1])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="records behind"):
        record_all(audit, 1000)
    monkeypatch.setattr(os, "write", real)
    await audit.synced()
    audit.record("test", None, 0, {"n": "after"})
    await audit.close()
    with opened(tmp_path) as log:
        records = list(log.read(0))
        assert verify(records).broken == ""
        assert [record.data["n"] for record in records[1:]] == [*range(len(records) - 2), "after"]
