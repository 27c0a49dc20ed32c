"""The tiers of a real kernel: killed at every point at which a file is written, forks, faults."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd.abi.inference import GenRestore, GenSnapshot, GetContext, ListContexts, ListSnapshots
from aiosd.abi.process import Fork
from aiosd.engine.snapshot import verify
from tests.daemon import PATIENCE, Daemon
from tests.system.agents import until
from tests.system.writer import Writer, held, info

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 4096
options = {step_ms = 1, eog = 0.0}
"""
TINY = CORE + "[sched]\nquantum = 8\n"  # and so little memory that files go to disk


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A daemon with one exact core of two slots."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=TINY) as running:
        yield running


def files(daemon: Daemon, kv_dir: Path) -> list[Path]:
    places = [kv_dir, daemon.state_dir / "contexts"]
    return [p for place in places if place.is_dir() for p in place.iterdir() if p.is_file()]


def tell(daemon: Daemon, count: int, credentials: list[str] | None = None) -> list[list[int]]:
    """Let some agents speak at once, in keyed streams; what each has said."""
    said = []
    writers = [Writer(daemon, f"w{i}") for i in range(count)]
    with held(daemon):  # so that they are there together, and push each other out
        wanted = [w.begin("word " * (8 + 9 * i), max_tokens=60) for i, w in enumerate(writers)]
        until(lambda: info(daemon).requests == count, "all are there")
    for writer, ask in zip(writers, wanted, strict=True):
        said.append(writer.finish(ask).token_ids)
        writer.close()
    return said


WORKER = ["snapshot.cleared", "snapshot.filled", "snapshot.written"]
KERNEL = ["begun", "copied", "synced", "renamed", "kept", "row"]


@pytest.mark.parametrize("point", WORKER)
def test_a_worker_killed_while_it_writes(
    daemon: Daemon, kv_dir: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    alone = tell(daemon, 4)
    daemon.stop()
    mark = daemon.state_dir / "died"
    monkeypatch.setenv("AIOS_KILL_AT", f"{point}:3:{mark}")
    daemon.start()
    assert tell(daemon, 4) == alone
    assert mark.exists()


@pytest.mark.parametrize("point", KERNEL)
def test_a_kernel_killed_while_it_takes_a_snapshot(
    daemon: Daemon, kv_dir: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with Writer(daemon, "solo") as solo:
        told = solo.ask("Once upon", max_tokens=100)
        left = solo.ask(" left", context=told.context, max_tokens=40).token_ids
    daemon.stop()
    mark = daemon.state_dir / "died"
    monkeypatch.setenv("AIOS_KILL_AT", f"snapshot.{point}:1:{mark}")
    daemon.start()
    with Writer(daemon) as a:
        context = a.ask("Once upon", max_tokens=100).context
        with pytest.raises((OSError, EOFError)):
            a.call(GenSnapshot(context))
        credential = a.credential
    assert daemon.process.wait(PATIENCE) == daemon.stop() == -signal.SIGKILL and mark.exists()
    daemon.start()
    with Writer(daemon, credential=credential) as a:
        assert a.call(ListSnapshots(context)) == []  # it was never acknowledged
        made = a.call(GenSnapshot(context))
        assert a.ask(" left", context=context, max_tokens=40).token_ids == left
        a.call(GenRestore(context, made.id))
        assert a.ask(" left", context=context, max_tokens=40).token_ids == left
        held = a.call(ListContexts())
    left_over = [p for p in files(daemon, kv_dir) if p.suffix not in (".kv", ".snapshot")]
    assert not left_over
    stored = list((daemon.state_dir / "contexts").glob("*.snapshot"))
    for path in stored:
        assert verify(path).header.record.cid in [row.cid for row in held] + [told.context]
    daemon.stop()


def test_contexts_of_a_kernel_that_was_stopped_are_on_disk(daemon: Daemon, kv_dir: Path) -> None:
    with Writer(daemon) as a:
        told = a.ask("Once upon", max_tokens=100)
        credential = a.credential
    with Writer(daemon, "solo") as solo:
        twin = solo.ask("Once upon", max_tokens=100)
        more = solo.ask(" and", context=twin.context, max_tokens=30).token_ids
    daemon.stop()
    for path in kv_dir.glob("*.kv"):
        path.unlink()  # as a reboot does
    daemon.start()
    with Writer(daemon, credential=credential) as a:
        row = a.call(GetContext(told.context))
        assert (row.tier, row.kv) == ("disk", len("Once upon") + 99)
        assert a.ask(" and", context=told.context, max_tokens=30).token_ids == more
        assert a.call(GetContext(told.context)).note == ""


def test_a_snapshot_that_cant_be_written_is_an_error_and_nothing_else(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        told = a.ask("Once upon", max_tokens=20)
        other = b.begin("Once upon", max_tokens=300)
        place = daemon.state_dir / "contexts"
        place.rename(daemon.state_dir / "elsewhere")
        place.touch()
        with pytest.raises(OSError, match="can't be written to"):
            a.call(GenSnapshot(told.context))
        assert a.call(ListSnapshots(told.context)) == []
        assert a.ask(" and", context=told.context, max_tokens=20).finish_reason == "length"
        assert len(b.finish(other).token_ids) == 300
        place.unlink()
        (daemon.state_dir / "elsewhere").rename(place)
        assert a.call(GenSnapshot(told.context)).bytes > 0


def test_sixteen_forks_share_a_file_and_go_their_own_ways(daemon: Daemon, kv_dir: Path) -> None:
    with Writer(daemon) as parent:
        told = parent.ask("word " * 190, max_tokens=50)
        children = [parent.call(Fork(parent.aid)) for _ in range(16)]
        contexts = [parent.call(ListContexts(child.aid))[0] for child in children]
        assert all(row.tokens == 1000 and row.kv == 999 for row in contexts)
        assert sum(1 for _ in kv_dir.glob("*.kv")) <= 2  # one file for all
        asked = []
        for index, (child, row) in enumerate(zip(children, contexts, strict=True)):
            writer = Writer(daemon, credential=child.credential)
            prompt = f" and number {index}"
            asked.append((writer, writer.submit(prompt, context=row.cid, max_tokens=12), prompt))
        said = [writer.finish(ask) for writer, ask, _ in asked]
        assert all(reply.usage.cached_tokens == 999 for reply in said)
    for (writer, _, prompt), reply in zip(asked, said, strict=True):
        with Writer(daemon, "solo") as solo:
            first = solo.ask("word " * 190, max_tokens=50)
            assert first.token_ids == told.token_ids
            alone = solo.ask(prompt, context=first.context, max_tokens=12)
        assert reply.token_ids == alone.token_ids
        writer.close()
