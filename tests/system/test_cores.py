"""Cores through the daemon's door: how they come and go, who runs on them, and when."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.cores import AddCore, Core, DrainCore, ListCores, RemoveCore
from aiosd.abi.inference import ListContexts
from aiosd.abi.process import GetSched, Kill, ListAgents, SetPriority, SetSched
from aiosd.abi.system import Event
from tests.daemon import Daemon, answer
from tests.system.agents import agent, until
from tests.system.writer import Watcher, Writer, core, held, info

MakeDaemon = Callable[[str], Daemon]
LONG: dict[str, Any] = {"max_tokens": 40_000}  # which takes most of a minute


def config(name: str = "c", *, sched: str = 'policy = "rr"', slots: int = 4, **options: Any) -> str:
    """Return a configuration with one fake core."""
    given = ", ".join(f"{key} = {value}" for key, value in {"eog": 0.0, **options}.items())
    return (
        f"[sched]\n{sched}\n"
        f'[[cores]]\nname = "{name}"\ndriver = "fake"\nslots = {slots}\nn_ctx = 40960\n'
        f"options = {{{given}}}\n"
    )


@pytest.fixture
def make(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[MakeDaemon]:
    """Make a daemon with this configuration, whose cores are ready, or have failed."""
    with ExitStack() as stack:

        def start(text: str) -> Daemon:
            daemon = Daemon(state_dir, runtime_dir, kv_dir, config=text)
            stack.enter_context(daemon)
            over = ("ready", "failed")
            until(lambda: all(row.state in over for row in rows(daemon)), "cores are ready")
            return daemon

        yield start


def rows(daemon: Daemon) -> list[Core]:
    with daemon.connect() as client:
        found: list[Core] = client.call(ListCores())
    return found


def fake(name: str, **options: Any) -> AddCore:
    return AddCore("fake", name, "fake", n_ctx=40960, options={"eog": 0.0, **options})


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def children(daemon: Daemon) -> list[str]:
    pid = daemon.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


# Coming.


@pytest.mark.parametrize("content", [b"", b"text\n" * 99, b"GGUF", b"GGUF" + b"\xff" * 9000, None])
@pytest.mark.model
def test_a_file_that_is_no_model(make: MakeDaemon, tmp_path: Path, content: bytes | None) -> None:
    refuse(make(""), tmp_path, content, model_path=None)


@pytest.mark.model
def test_a_truncated_model(make: MakeDaemon, tmp_path: Path, model_path: Path) -> None:
    refuse(make(""), tmp_path, None, model_path=model_path)


def refuse(daemon: Daemon, place: Path, content: bytes | None, model_path: Path | None) -> None:
    """Offer a wrong file: the error names it, and nothing is left of the attempt."""
    file = place / "model.gguf"
    if model_path is not None:
        with model_path.open("rb") as whole:
            content = whole.read(1 << 20)
    if content is not None:
        file.write_bytes(content)
    with daemon.connect() as person:
        before = descriptors(daemon)
        with pytest.raises(OSError, match=re.escape(str(file))) as found:
            person.call(AddCore(str(file)))
        wanted = {errno.ENOENT} if content is None else {errno.ENOEXEC, errno.EIO}
        assert found.value.errno in wanted, found.value
        assert rows(daemon) == []
        until(lambda: children(daemon) == [] and descriptors(daemon) <= before, "nothing is left")


def test_wrong_cores_are_named(make: MakeDaemon, tmp_path: Path) -> None:
    daemon = make("")
    wrong = [
        (AddCore(str(tmp_path)), errno.EISDIR, "directory"),
        (AddCore("/nowhere/x.gguf"), errno.ENOENT, "/nowhere/x.gguf"),
        (AddCore("x", driver="abacus"), errno.EINVAL, "llama"),
        (AddCore("x", options={"driver": "fake"}), errno.EINVAL, "driver"),
        (AddCore("x", options={"grid": 0}), errno.EINVAL, "grid"),
        (AddCore("x", driver="fake", options={"speed": 1}), errno.EINVAL, "speed"),
        (fake("c", fail_load="out of luck"), errno.ENOEXEC, "out of luck"),
        (fake("c", load_ms=-1), errno.EIO, "worker died"),
    ]
    with daemon.connect() as person:
        before = descriptors(daemon)
        for call, number, word in wrong:
            with pytest.raises(OSError, match=word) as found:
                person.call(call)
            assert found.value.errno == number, found.value
        until(lambda: children(daemon) == [] and descriptors(daemon) <= before, "nothing is left")
        assert person.call(ListCores()) == []
        assert person.call(AddCore("/models/My Model_1.gguf", driver="fake")).name == "My-Model_1"


def test_a_name_is_given_once(make: MakeDaemon) -> None:
    daemon = make(config())
    with daemon.connect() as person, Writer(daemon) as a:
        with pytest.raises(FileExistsError, match="core c"):
            person.call(fake("c"))
        with pytest.raises(PermissionError):
            a.call(fake("d"))
        person.call(RemoveCore("c"))
        person.call(fake("c"))
        assert a.ask(max_tokens=2).core == "c"


def test_a_configured_core_that_can_not_load_tells_every_request(make: MakeDaemon) -> None:
    text = '[[cores]]\nname = "gone"\nmodel = "/nowhere/x.gguf"\n'
    daemon = make(text)
    with Writer(daemon) as a:
        for options in ({}, {"core": "gone"}):
            with pytest.raises(OSError, match=r"/nowhere/x\.gguf"):
                a.ask(**options)


# Going.


def test_a_core_removed_under_load_takes_only_its_own_requests(make: MakeDaemon) -> None:
    daemon = make(config(slots=2, sched='policy = "rr"\nquantum = 8', step_ms=1))
    with ExitStack() as stack:
        person = stack.enter_context(daemon.connect())
        person.call(fake("d", step_ms=1))
        writers = [stack.enter_context(Writer(daemon, f"w{i}")) for i in range(6)]
        doomed = [w.begin(core="c", **LONG) for w in writers]
        for writer, wanted in zip(writers, doomed, strict=True):
            writer.read_tokens(wanted, 20)
        well = writers[0].submit(core="d", max_tokens=300)
        loose = writers[1].submit("x" * 1000, core="c")  # may not be tokenized yet
        person.call(RemoveCore("c"))
        for writer, wanted in [*zip(writers, doomed, strict=True), (writers[1], loose)]:
            with pytest.raises(OSError, match="core c was removed"):
                writer.finish(wanted)
        assert len(writers[0].finish(well).token_ids) == 300
        assert [row.name for row in rows(daemon)] == ["d"]
        assert info(daemon).kv_ram == 0 and len(children(daemon)) == 1
        context = person.call(ListContexts(writers[2].aid))[0].cid
        with pytest.raises(OSError, match="core c was removed"):
            writers[2].ask(context=context)


def test_a_drained_core_finishes_what_it_has(make: MakeDaemon) -> None:
    daemon = make(config(slots=1, step_ms=1))
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        first = a.ask(max_tokens=2).context
        running = a.begin(max_tokens=400)
        a.read_tokens(running, 1)
        with held(daemon):
            queued = b.submit(max_tokens=20)
            until(lambda: info(daemon).requests == 2, "both are taken")
            person.call(DrainCore("c"))
            assert core(daemon).state == "draining"
            for options in ({}, {"core": "c"}, {"context": first}):
                with pytest.raises(OSError, match="draining"):
                    b.ask(**options) if "context" not in options else a.ask(**options)
        assert len(a.finish(running).token_ids) == 400
        assert len(b.finish(queued).token_ids) == 20
        until(lambda: rows(daemon) == [] and children(daemon) == [], "the core is gone")


def test_requests_of_a_drained_core_that_still_loads_are_served(make: MakeDaemon) -> None:
    daemon = make("")
    with Writer(daemon) as a, daemon.connect() as adder, daemon.connect() as person:
        adder.send(fake("c", load_ms=4000))
        until(lambda: [row.name for row in rows(daemon)] == ["c"], "the core is there")
        wanted = a.submit(max_tokens=5)
        until(lambda: info(daemon).requests == 1, "the request is taken")
        person.call(DrainCore("c"))
        assert len(a.finish(wanted).token_ids) == 5
        until(lambda: rows(daemon) == [], "the core is gone")


# Choice.


def test_the_core_with_least_to_do_is_chosen(make: MakeDaemon) -> None:
    daemon = make(config(step_ms=2))
    with Writer(daemon) as a, daemon.connect() as person:
        person.call(fake("d", step_ms=2))
        wanted = [a.begin(**LONG) for _ in range(6)]
        shares = [2, 4]  # the second has twice as many slots
        until(lambda: [row.running for row in rows(daemon)] == shares, "each has its share")
        person.call(Kill(a.aid, "INT", generation=True))
        assert {a.finish(one).core for one in wanted} == {"c", "d"}


# Schedule.


def test_the_policy_changes_while_requests_run(make: MakeDaemon) -> None:
    daemon = make(config(slots=2, sched='policy = "fifo"', step_ms=1))
    with ExitStack() as stack:
        person = stack.enter_context(daemon.connect())
        writers = [stack.enter_context(Writer(daemon, f"w{i}")) for i in range(6)]
        solo = [w.ask(f"writer {i}", max_tokens=120).token_ids for i, w in enumerate(writers)]
        with held(daemon):
            wanted = [w.begin(f"writer {i}", max_tokens=120) for i, w in enumerate(writers)]
            until(lambda: info(daemon).requests == 6, "all are there")
            person.call(SetSched(policy="rr", quantum=4))
        for writer, one in zip(writers, wanted, strict=True):
            writer.read_tokens(one, 1)  # by turns, as there are six on two slots
        for step in ("priority", "fifo", "rr"):
            sched = person.call(SetSched(policy=step, quantum=4))
            assert sched.policy == step and {"fifo", "rr", "priority"} <= set(sched.policies)
            running = [row for row in sched.rows if row.state == "R"]
            queued = sorted(row.place for row in sched.rows if row.state == "Q")
            assert len(running) <= 2 and queued == list(range(len(queued)))
        for options, words in (({"bost": 1.0}, "levels, boost"), ({"levels": 99.0}, "<= 32")):
            with pytest.raises(OSError, match=words):
                person.call(SetSched(options=options))
        tuned = person.call(SetSched(policy="fair", options={"credit": 7, "decode_cost": 0.5}))
        assert tuned.options == {"credit": 7, "period": 12, "prefill_cost": 1, "decode_cost": 0.5}
        assert person.call(SetSched(policy="mlfq")).options == {"levels": 8, "boost": 16384}
        person.call(SetSched(policy="rr"))
        with pytest.raises(OSError, match="fifo"):
            person.call(SetSched(policy="fifi"))
        assert person.call(GetSched()).policy == "rr"
        got = [w.finish(one).token_ids for w, one in zip(writers, wanted, strict=True)]
        assert got == solo
        assert person.call(GetSched()).preemptions > 0


def test_the_queues_show_what_the_caller_may_see(make: MakeDaemon) -> None:
    daemon = make(config(step_ms=1))
    with Writer(daemon, "a") as a, Writer(daemon, "b") as b, daemon.connect() as person:
        wanted = {w: w.begin(**LONG) for w in (a, b)}
        for writer, one in wanted.items():
            writer.read_tokens(one, 1)
        with Writer(daemon, credential=a.credential) as mine:
            assert {row.aid for row in mine.call(GetSched()).rows} == {a.aid}
        assert {row.aid for row in person.call(GetSched()).rows} == {a.aid, b.aid}
        for writer, one in wanted.items():
            writer.cancel(one)
            writer.finish(one)


def test_what_agents_get_beside_what_is_due(make: MakeDaemon) -> None:
    daemon = make(config(slots=1, sched='policy = "fair"\nquantum = 4', step_ms=1))
    with Writer(daemon, "a") as a, Writer(daemon, "b") as b, daemon.connect() as person:
        person.call(SetPriority(b.aid, 5))
        wanted = {w: w.submit(**LONG) for w in (a, b)}

        def even() -> bool:
            mine, other = person.call(ListAgents())  # at one moment
            assert (mine.aid, other.aid) == (a.aid, b.aid)
            assert mine.share + other.share <= 1.001
            return bool(abs(mine.share - 0.753) < 0.1 and abs(other.share - 0.247) < 0.1)

        until(even, "each has got its share")
        dues = [round(agent(person, w.aid).due, 3) for w in (a, b)]
        assert dues == [0.753, 0.247]
        for writer, one in wanted.items():
            writer.cancel(one)
            writer.finish(one)
        assert agent(person, a.aid).due == 0


def test_a_reload_changes_the_policy(make: MakeDaemon) -> None:
    daemon = make(config(sched='policy = "fifo"'))
    with Watcher(daemon, "kernel.reload") as watcher, daemon.connect() as person:
        assert person.call(GetSched()).policy == "fifo"
        daemon.configure(config(sched='policy = "priority"\nquantum = 5'))
        daemon.send_signal(signal.SIGHUP)
        watcher.await_event("kernel.reload")
        sched = person.call(GetSched())
        assert (sched.policy, sched.quantum) == ("priority", 5)
        shares = f'policy = "fair"\ngroups = {{lab = ["{os.getuid()}"]}}\nweights = {{lab = 2}}'
        daemon.configure(config(sched=shares + "\ncredit = 9"))
        daemon.send_signal(signal.SIGHUP)
        watcher.await_event("kernel.reload")
        assert person.call(GetSched()).options["credit"] == 9
        person.call(SetSched(quantum=7))
        assert person.call(GetSched()).options["credit"] == 9


def test_the_papers_figure_3(make: MakeDaemon) -> None:
    """Three agents, each asking again some time after its last answer: the paper's order."""
    daemon = make(config(slots=1, sched='policy = "fifo"', step_ms=10))
    # Who asks, and what has happened when it is done with its own work, as the picture has it.
    plan = [("A", ""), ("B", ""), ("C", ""), ("B", "start C1"), ("A", "submit B2"),
            ("A", "end A2"), ("C", "end A3"), ("C", "end C2")]  # fmt: skip
    with ExitStack() as stack:
        watcher = stack.enter_context(Watcher(daemon, "request."))
        writers = {name: stack.enter_context(Writer(daemon, name)) for name in "ABC"}
        names = {writer.aid: name for name, writer in writers.items()}
        happened: list[str] = []

        def see(what: str) -> None:
            """Read events until this one has come."""
            while what not in happened:
                event = answer(watcher.read(), Event)
                one = f"{event.kind.removeprefix('request.')} {names[event.aid]}"
                happened.append(f"{one}{1 + sum(each.startswith(one) for each in happened)}")

        asked = dict.fromkeys(writers, 0)
        for name, after in plan:
            if after:
                see(after)
            writers[name].submit(name, max_tokens=10)
            asked[name] += 1
            see(f"submit {name}{asked[name]}")
        see("end C3")
        begun = [each.removeprefix("start ") for each in happened if each.startswith("start ")]
        assert begun == ["A1", "B1", "C1", "B2", "A2", "A3", "C2", "C3"]


def test_an_urgent_request_waits_for_one_slice_and_two_steps_at_most(make: MakeDaemon) -> None:
    prefill, step = 0.040, 0.020
    daemon = make(
        config(slots=8, sched='policy = "priority"', prefill_ms=prefill * 1000, step_ms=step * 1000)
    )
    with ExitStack() as stack:
        person = stack.enter_context(daemon.connect())
        crowd = [stack.enter_context(Writer(daemon, f"w{i}")) for i in range(16)]
        urgent = stack.enter_context(Nice(daemon, -10))
        for writer in crowd:
            writer.begin("a long background prompt " * 60, max_tokens=400)
        until(lambda: core(daemon).running == 8, "the core is full")
        limit = prefill + 2 * step + 0.5 * step  # the half is the machine's, not the schedule's
        rounds: list[list[float]] = []
        while not rounds or rounds[-1][-3] > limit:  # a busy machine spoils some by itself
            assert len(rounds) < 10, rounds
            waits = [urgent.ask("now", max_tokens=2).timing.waiting_s for _ in range(8)]
            rounds.append(sorted(waits))
        assert core(daemon).queued >= 8
        for writer in crowd:
            person.call(Kill(writer.aid, "KILL"))


class Nice(Writer):
    """A writer with another nice value."""

    def __init__(self, daemon: Daemon, nice: int) -> None:
        super().__init__(daemon, "urgent")
        with daemon.connect() as person:
            person.call(SetPriority(self.aid, nice))
