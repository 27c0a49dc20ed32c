"""Lines for a person, and lines for the journal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd import journald
from aiosd import log as logs
from aiosd.notify import Notifier
from tests.daemon import PATIENCE


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Put the root logger back as it was."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], _ = before
    logger.setLevel(before[1])


def test_a_person_gets_time_level_and_room() -> None:
    stream = io.StringIO()
    logs.start("info", stream)
    logging.getLogger("aiosd.server").info("hello %s", "there")
    logging.getLogger("aiosd.server").debug("not this")
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info    server: hello there\n"
    assert re.fullmatch(pattern, stream.getvalue())


def test_the_journal_gets_a_priority_on_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where journald itself can't be reached, its stream can."""
    monkeypatch.setattr(journald, "SOCKET", "/none/such")
    with tempfile.TemporaryFile("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        logs.start("info", stream)
        logging.getLogger("aiosd.kernel").warning("one\ntwo")
        stream.seek(0)
        assert stream.read() == "<4>kernel: one\n<4>two\n"
        logging.getLogger().handlers[0].close()


def _fields(datagram: bytes) -> dict[str, str]:
    """Read journald's native protocol."""
    found = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_records_with_fields(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    path = str(runtime_dir / "journal")
    monkeypatch.setattr(journald, "SOCKET", path)
    stream = io.StringIO()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(PATIENCE)
        logs.start("info", stream, "journal")
        logger = logging.getLogger("aiosd.cores.local")
        logger.warning("it %s", "died\nof age", extra={"core": "large", "context": 7})
        told = _fields(server.recv(1 << 16))
        logger.error("x" * 200_000)
        assert len(server.recv(1 << 20)) < 200_000
    assert told["MESSAGE"] == "cores.local: it died\nof age" and told["PRIORITY"] == "4"
    assert (told["AIOS_CORE"], told["AIOS_CONTEXT"]) == ("large", "7")
    assert (told["SYSLOG_IDENTIFIER"], told["AIOS_ROOM"]) == ("aiosd", "cores.local")
    assert told["CODE_FUNC"] == "test_the_journal_gets_records_with_fields"
    assert stream.getvalue() == ""
    logger.warning("nobody there")
    assert "nobody there" in stream.getvalue()
    logging.getLogger().handlers[0].close()
    os.unlink(path)


def test_a_collector_gets_an_object_a_line() -> None:
    stream = io.StringIO()
    logs.start("info", stream, "json")
    logging.getLogger("aiosd.server").error("two\nlines", extra={"call": "ping"})
    [line] = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["message"], told["level"], told["room"], told["call"]) == (
        "two\nlines", "error", "server", "ping",
    )  # fmt: skip


def test_a_stream_without_a_file_is_no_journal() -> None:
    assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_a_notifier_without_a_manager_is_silent_and_one_that_lost_it_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Notifier({}).ready()
    assert not caplog.records
    environ = {"NOTIFY_SOCKET": "/none/such"}
    notifier = Notifier(environ)
    assert environ == {}  # no agent inherits it
    notifier.stopping()
    assert "can't notify /none/such" in caplog.text
