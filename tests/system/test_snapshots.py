"""gen_snapshot, gen_restore, list_snapshots: points of a context that it goes back to, exactly."""

from __future__ import annotations

import errno
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aiosd.abi.inference import (
    ClrContext,
    GenRestore,
    GenSnapshot,
    GetContext,
    ListSnapshots,
)
from aiosd.engine.snapshot import verify
from tests.daemon import PATIENCE, Daemon
from tests.system.agents import until
from tests.system.writer import Watcher, Writer

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 4096
options = {step_ms = 1, eog = 0.0}
"""


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A daemon with one exact core of two slots."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE) as running:
        yield running


def files(daemon: Daemon) -> list[Path]:
    """The files that named snapshots lie in."""
    return sorted((daemon.state_dir / "contexts").glob("named-*"))


def marks(daemon: Daemon) -> int:
    with closing(sqlite3.connect(daemon.state_dir / "aios.db", timeout=PATIENCE)) as db:
        found = db.execute("select count(*) from snapshots").fetchone()
        return int(found[0])


def turn(path: Path) -> None:
    """Turn a bit in the middle of a file's payload."""
    layout = verify(path)
    with path.open("r+b") as file:
        file.seek(layout.offset + layout.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def test_a_context_goes_back_and_says_the_same_again(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        told = a.ask("Once upon", max_tokens=150)
        mark = a.call(GenSnapshot(told.context, "fork in the road"))
        left = a.ask(" left", context=told.context, max_tokens=60)
        later = a.call(GenSnapshot(told.context, "left"))
        assert [m.name for m in a.call(ListSnapshots(told.context))] == ["fork in the road", "left"]
        back = a.call(GenRestore(told.context, mark.id))
        assert (back.tokens, back.snapshots) == (len("Once upon") + 150, 2)
        right = a.ask(" right", context=told.context, max_tokens=60)
        assert right.token_ids != left.token_ids
        a.call(GenRestore(told.context, mark.id))
        assert a.ask(" left", context=told.context, max_tokens=60).token_ids == left.token_ids
        further = a.ask(" on", context=told.context, max_tokens=30).token_ids
        forward = a.call(GenRestore(told.context, later.id))  # from further on, and from before
        assert forward.tokens == later.tokens
        assert a.ask(" on", context=told.context, max_tokens=30).token_ids == further
        assert all(verify(path).header.record.cid == told.context for path in files(daemon))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_snapshots_outlive_the_kernel(daemon: Daemon, number: int) -> None:
    with Writer(daemon) as a:
        told = a.ask("Once upon", max_tokens=150)
        mark = a.call(GenSnapshot(told.context))
        left = a.ask(" left", context=told.context, max_tokens=60)
        credential = a.credential
    daemon.stop(number)
    daemon.start()
    with Writer(daemon, credential=credential) as a:
        assert a.call(ListSnapshots(told.context)) == [mark]
        assert a.call(GenRestore(told.context)).tier in ("ram", "disk")
        assert a.ask(" left", context=told.context, max_tokens=60).token_ids == left.token_ids
        a.call(ClrContext(told.context))
    until(lambda: not files(daemon) and not marks(daemon), "snapshots go with their context")


def test_back_to_a_point_of_the_running_generation(daemon: Daemon) -> None:
    with Writer(daemon, "solo") as solo:
        alone = solo.ask("Once upon", max_tokens=2000)
    with Writer(daemon) as a, daemon.connect() as person:
        first = a.ask("Once", max_tokens=1)
        older = person.call(GenSnapshot(first.context))
        a.call(ClrContext(first.context))
        wanted = a.begin("Once upon", max_tokens=2000)
        a.read_tokens(wanted, 40)
        context = next(c for c in range(1, 9) if c not in (alone.context, first.context))
        mark = person.call(GenSnapshot(context, "early"))
        assert 40 <= mark.tokens - len("Once upon") < 2000 and older.id != mark.id
        a.read_tokens(wanted, 120)
        row = person.call(GenRestore(context, mark.id))
        assert row.busy
        assert a.finish(wanted).token_ids == alone.token_ids == a.seen[wanted]


def test_an_older_point_is_refused_while_a_request_runs(daemon: Daemon) -> None:
    with Writer(daemon) as a, daemon.connect() as person:
        told = a.ask("Once", max_tokens=10)
        mark = person.call(GenSnapshot(told.context))
        wanted = a.begin(" upon", context=told.context, max_tokens=3000)
        a.read_tokens(wanted, 5)
        with pytest.raises(OSError, match="cancel it first") as busy:
            person.call(GenRestore(told.context, mark.id))
        assert busy.value.errno == errno.EBUSY
        a.cancel(wanted)
        assert a.finish(wanted).finish_reason == "cancelled"
        assert person.call(GenRestore(told.context, mark.id)).tokens == mark.tokens


def test_a_point_within_a_generation_is_gone_on_from(daemon: Daemon) -> None:
    with Writer(daemon, "solo") as solo:
        alone = solo.ask("Once upon", max_tokens=1500)
    with Writer(daemon) as a, daemon.connect() as person:
        wanted = a.begin("Once upon", max_tokens=1500)
        a.read_tokens(wanted, 60)
        context = alone.context + 1
        mark = person.call(GenSnapshot(context))
        a.cancel(wanted)
        a.finish(wanted)
        a.ask(" something else", context=context, max_tokens=20)
        person.call(GenRestore(context, mark.id))
        said = mark.tokens - len("Once upon")
        rest = a.ask("", context=context, max_tokens=1500 - said)
        assert rest.token_ids == alone.token_ids[said:]


@pytest.mark.parametrize("both", [False, True], ids=["in memory", "on disk too"])
def test_a_damaged_file_is_set_aside_and_the_context_falls_back(
    daemon: Daemon, kv_dir: Path, both: bool
) -> None:
    with Writer(daemon) as a, Watcher(daemon, "context.") as watcher:
        told = a.ask("Once upon", max_tokens=150)
        mark = a.call(GenSnapshot(told.context))
        left = a.ask(" left", context=told.context, max_tokens=60)
        damaged = [*kv_dir.glob("*.kv"), *(files(daemon) if both else [])]
        for path in damaged:
            turn(path)
        a.call(GenRestore(told.context, mark.id))
        again = a.ask(" left", context=told.context, max_tokens=60)
        assert again.token_ids == left.token_ids
        event = watcher.await_event("context.fallback", context=told.context)
        assert "checksum" in event.data["why"]
        row = a.call(GetContext(told.context))
        assert "damaged" in row.note
        assert ("its tokens" if both else "positions on disk") in row.note
        places = [kv_dir, daemon.state_dir / "contexts"]
        aside = [place / "damaged" for place in places]
        until(
            lambda: sum(len(list(p.iterdir())) for p in aside if p.exists()) == 1 + both,
            "the files are set aside",
        )
        a.call(GenRestore(told.context, mark.id))  # the tokens are still there
        assert a.ask(" left", context=told.context, max_tokens=60).token_ids == left.token_ids


def test_the_oldest_go_and_none_is_taken_of_nothing(daemon: Daemon) -> None:
    with daemon.config.open("a") as file:
        file.write("max_snapshots = 2\n")
    daemon.stop()
    daemon.start()
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        told = a.ask("Once upon", max_tokens=20)
        with pytest.raises(FileNotFoundError, match="there are: none"):
            a.call(GenRestore(told.context))
        ids = [a.call(GenSnapshot(told.context, str(i))).id for i in range(4)]
        assert [m.id for m in a.call(ListSnapshots(told.context))] == ids[-2:]
        until(lambda: len(files(daemon)) == marks(daemon) == 2, "the oldest go")
        with pytest.raises(FileNotFoundError, match=f"no snapshot {ids[0]}"):
            a.call(GenRestore(told.context, ids[0]))
        with pytest.raises(PermissionError):
            b.call(GenSnapshot(told.context))
        with pytest.raises(PermissionError):
            b.call(GenRestore(told.context, ids[-1]))
        assert b.call(ListSnapshots()) == []
        with pytest.raises(FileNotFoundError):
            b.call(GenSnapshot(99))


def test_a_limit_of_bytes(daemon: Daemon) -> None:
    with daemon.config.open("a") as file:
        file.write("snapshot_limit = 9000\n")
    daemon.stop()
    daemon.start()
    with Writer(daemon) as a:
        one, two = (a.ask("Once upon", max_tokens=100).context for _ in range(2))
        first = a.call(GenSnapshot(one))
        assert 4000 < first.bytes < 9000
        assert a.call(GenSnapshot(one)).id != first.id
        assert len(a.call(ListSnapshots(one))) == 1
        with pytest.raises(OSError, match="snapshot_limit") as full:
            a.call(GenSnapshot(two))
        assert full.value.errno == errno.ENOSPC
