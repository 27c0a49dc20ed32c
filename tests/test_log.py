"""Lines for a person, and lines for the journal."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator

import pytest

from aiosd import log as logs
from aiosd.notify import Notifier


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
    with tempfile.TemporaryFile("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        logs.start("info", stream)
        logging.getLogger("aiosd.kernel").warning("one\ntwo")
        stream.seek(0)
        assert stream.read() == "<4>kernel: one\n<4>two\n"


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
