"""An agent's output: captured, bounded, readable across rotation, never in the agent's way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.agentlog import read_log
from aiosd.output import PIECE, Log, Stream
from aiosd.shim import TELL_EVERY
from tests.shim.kernel import Kernel, until


async def test_both_streams(kernel: Kernel) -> None:
    began = time.time()
    await kernel.start("/bin/sh", "-c", "echo one; echo two >&2; printf three; printf 'naïve\\n'")
    await kernel.exit()
    records = kernel.output()
    assert "".join(r.text for r in records if r.stream == "out") == "one\nthreenaïve\n"
    assert "".join(r.text for r in records if r.stream == "err") == "two\n"
    assert all(began <= r.time <= time.time() for r in records)


async def test_a_prompt_is_seen_before_its_line_ends(kernel: Kernel) -> None:
    await kernel.start("/bin/sh", "-c", "printf 'name? '; sleep 1000")
    assert await kernel.text("name? ") == "name? "


async def test_binary_output(kernel: Kernel) -> None:
    await kernel.python(
        "import os; os.write(1, bytes(range(256)) + b'\\n' + '\\u00e9'.encode()[:1])"
    )
    record = await kernel.exit()
    assert record.code == 0
    text = "".join(r.text for r in kernel.output())
    assert text == (bytes(range(256)) + b"\n\xc3").decode(errors="replace")


async def test_rotation_keeps_the_end(kernel: Kernel) -> None:
    code = "for i in range(5000): print(f'line {i:05}')"
    await kernel.python(code, log_limit=32768)
    record = await kernel.exit()
    lines = [int(r.text.split()[1]) for r in kernel.output()]
    assert lines == list(range(lines[0], 5000))
    assert 100 < len(lines) < 5000
    files = [kernel.dir / "7" / name for name in ("log", "log.1")]
    assert sum(file.stat().st_size for file in files) <= 32768
    assert kernel.spawner.read_log(7, record.log_size, 10) == (record.log_size, [])


async def test_reading_goes_on_where_it_stopped(kernel: Kernel) -> None:
    await kernel.python("for i in range(1000): print(i)", log_limit=1 << 20)
    await kernel.exit()
    offset, seen = 0, []
    while True:
        following, records = kernel.spawner.read_log(7, offset, 7)
        if not records:
            break
        assert len(records) <= 7
        seen += [int(r.text) for r in records]
        offset = following
    assert seen == list(range(1000))
    with pytest.raises(OSError, match="not the start of a record"):
        kernel.spawner.read_log(7, offset - 3, 7)
    with pytest.raises(FileNotFoundError):
        kernel.spawner.read_log(8, 0, 7)


async def test_a_dead_kernel_never_blocks_the_agent(kernel: Kernel) -> None:
    code = "import sys\nsys.stdin.read()\nfor i in range(40): print('x' * 100000)"
    shim = await kernel.python(code, log_limit=1 << 20)
    shim.detach()
    await until((kernel.dir / "7" / "exit.json").exists, "it ended")
    await kernel.adopt()
    record = await kernel.exit()
    assert record.code == 0
    assert record.log_size > 4_000_000


async def test_log_events_are_few(kernel: Kernel) -> None:
    code = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: print('x')"
    began = time.monotonic()
    await kernel.python(code)
    record = await kernel.exit()
    took = time.monotonic() - began
    sizes = [size for name, _, size in kernel.events if name == "log"]
    assert 1 <= len(sizes) <= 5 + took / TELL_EVERY
    assert sizes == sorted(sizes)
    assert sizes[-1] <= record.log_size


@given(st.text(), st.lists(st.integers(1, 40)))
def test_a_stream_loses_and_splits_nothing(text: str, cuts: list[int]) -> None:
    data = text.encode(errors="replace")
    stream = _stream()
    pieces = []
    for cut in cuts:
        if data:
            pieces += stream.feed(data[:cut], 0.0)
            data = data[cut:]
    if data:
        pieces += stream.feed(data, 0.0)
    pieces += stream.feed(b"", 0.0)
    assert "".join(pieces) == text.encode(errors="replace").decode()
    assert all("\n" not in piece[:-1] and piece for piece in pieces)


def test_long_lines_are_cut() -> None:
    stream = _stream()
    assert [len(p) for p in stream.feed(b"x" * (2 * PIECE + 5), 1.0)] == [PIECE, PIECE]
    assert stream.flush_at > 1.0
    assert stream.flush() == ["xxxxx"]
    assert stream.feed(b"\n", 2.0) == ["\n"]


def _stream() -> Stream:
    return Stream("out")


def test_a_full_disk_loses_output_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = Log(1 << 20)
    log.append("out", ["before\n"])
    size = log.size
    good, log.fd = log.fd, os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "ftruncate", lambda fd, length: None)
    log.append("out", ["lost\n"])
    os.close(log.fd)
    log.fd = good
    assert log.size == size
    log.append("out", ["after\n"])
    os.close(log.fd)
    assert [r.text for r in read_log(tmp_path, 0, 10)[1]] == ["before\n", "after\n"]
