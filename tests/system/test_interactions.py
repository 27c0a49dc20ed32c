"""What agents asked and were answered: kept once, found again, bounded, and for few to see."""

from __future__ import annotations

import errno
import hashlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.inference import Generation, LlmGenerate, Turn
from aiosd.abi.process import Happening, Kill, LogEvent, QueryHistory, Wait
from aiosd.redaction import BEYOND, WITHHELD, Redaction
from tests.daemon import PATIENCE, Client, Daemon
from tests.system.agents import until
from tests.system.parties import audit, child, grant, register
from tests.system.writer import Writer

CORE = """
[[cores]]
name = "%s"
driver = "fake"
slots = 4
n_ctx = 8192
options = {eog = 0.0, step_ms = 1}
"""
SLOW = (CORE % "d").replace("step_ms = 1", "step_ms = 50")
HISTORY = "[history]\n%s\n"

Start = Callable[..., Daemon]


@pytest.fixture
def start(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Start]:
    """Give a way to start daemons on one state directory; each ends before the next one."""
    running: list[Daemon] = []

    def start(history: str = "", cores: str = CORE % "c") -> Daemon:
        if running and running[-1].process.poll() is None:
            running[-1].stop()
        running.append(Daemon(state_dir, runtime_dir, kv_dir, config=HISTORY % history + cores))
        return running[-1].start()

    yield start
    for daemon in running:
        daemon.__exit__()


def history(client: Client, **filters: Any) -> list[Happening]:
    """Return interactions; each is one."""
    found = client.call(QueryHistory(**{"kind": "interaction", **filters}))
    assert all(row.kind == "interaction" for row in found)
    return list(found)


def requests(client: Client, **filters: Any) -> list[int]:
    """Return the numbers of the requests that are found."""
    return [row.data["request"] for row in history(client, **filters)]


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """Look into the database beside the kernel."""
    with closing(sqlite3.connect(daemon.state_dir / "aios.db", timeout=PATIENCE)) as db:
        return db.execute(query).fetchall()


def test_requests_and_replies_are_kept(start: Start) -> None:
    daemon = start()
    began = time.time()
    with Writer(daemon) as a, daemon.connect() as person:
        first = a.ask("Once upon a time", max_tokens=5)
        turns = [Turn("system", "Be brief."), Turn("user", "Grüße\nan alle")]
        a.submit("", messages=turns, context=first.context, max_tokens=3, raw=False)
        second = a.finish(a.next_id - 1)
        one, two = history(person)
        assert (one.aid, one.data["request"]) == (a.aid, first.request)
        assert began <= one.data["submitted"] <= one.t <= two.t <= time.time()
        assert (one.data["prompt"], one.data["reply"]) == ("Once upon a time", first.text)
        assert (one.data["core"], one.data["context"]) == ("c", first.context)
        assert (one.data["finish_reason"], one.data["completion_tokens"]) == ("length", 5)
        assert two.data["messages"] == [{"role": t.role, "content": t.content} for t in turns]
        assert two.data["reply"] == second.text and "prompt" not in two.data
        assert history(a) == [one, two]  # an agent sees its own
        kinds = {row.kind for row in person.call(QueryHistory())}
        assert "request.end" in kinds and "interaction" not in kinds


def test_what_is_found(start: Start) -> None:
    daemon = start(cores=CORE % "c" + SLOW)
    with Writer(daemon) as a, Writer(daemon, "b") as b, daemon.connect() as person:
        fox = a.ask("the quick brown fox", max_tokens=2)
        dog = a.ask("the lazy dog", core="d", max_tokens=2)
        wanted = b.begin("a Fox again", core="d", max_tokens=4000)
        b.read_tokens(wanted, 1)
        b.cancel(wanted)
        again = b.finish(wanted)
        three = [fox.request, dog.request, again.request]
        assert requests(person) == three
        assert requests(person, text="fox") == [three[0], three[2]]
        assert requests(person, kind="", text="FOX the") == [three[0]]
        assert requests(person, aid=b.aid) == [three[2]]
        assert requests(person, aid=b.aid, text="the") == []
        assert requests(person, cid=dog.context) == [three[1]]
        assert requests(person, core="d") == three[1:]
        assert requests(person, finish="cancelled") == [three[2]]
        assert requests(person, request=three[1]) == [three[1]]
        first, second, third = history(person)
        assert requests(person, since=second.t) == three[1:]
        assert requests(person, until=second.t) == three[:2]
        assert requests(person, limit=1) == three[2:]
        assert requests(person, limit=1, before=third.id) == three[1:2]
        assert requests(person, before=first.id) == []
        with pytest.raises(OSError, match="of interactions") as caught:
            person.call(QueryHistory(kind="agent.exit", text="fox"))
        assert caught.value.errno == errno.EINVAL
        events = person.call(QueryHistory())
        assert person.call(QueryHistory(before=events[-1].id, limit=3)) == events[-4:-1]
        assert person.call(QueryHistory(until=events[1].t)) == events[:2]


SYNTAX = [
    '"', "' or 1=1 --", "aid : 1", "asked : *", "NEAR(a b)", "a AND", "-a", "^a", "{aid} : x", "*",
    '") OR aid : ("1" OR "2', "\x00", "reply\\", "(" * 900, "x " * 2000,
]  # fmt: skip


def test_only_who_may_look_at_an_agent_finds_what_it_asked(start: Start) -> None:
    """The owner and root, forebears, those of its group, and whoever was granted `observe`."""
    daemon = start()
    with ExitStack() as open, Writer(daemon, "victim") as victim, daemon.connect() as owner:
        secret = victim.ask("my secret word", max_tokens=2)
        mallory, m = register(daemon, "mallory")
        open.enter_context(mallory)
        last = audit(owner)[-1].id
        for filters in ({}, {"text": "secret"}, {"cid": secret.context}):
            with pytest.raises(PermissionError):
                history(mallory, aid=victim.aid, **filters)
        (record, *_) = audit(owner, since=last, kind="access.deny")
        assert (record.aid, record.data["call"]) == (m, "query_history")
        for filters in ({}, {"request": secret.request}, {"cid": secret.context}, {"core": "c"}):
            assert history(mallory, **filters) == []
        for text in ("secret", *SYNTAX):
            assert history(mallory, text=text) == []
            history(owner, text=text)  # whatever it means, it is no error
        with pytest.raises(ProcessLookupError):
            history(mallory, aid=2**30)
        young, y = child(daemon, mallory, m)
        open.enter_context(young)
        right = grant(owner, f"agent:{m}", "observe", f"agent:{victim.aid}")
        assert requests(mallory, aid=victim.aid, text="secret") == [secret.request]
        with pytest.raises(PermissionError):
            history(young, aid=victim.aid)  # by a grant it is the agent's alone
        owner.call(Kill(m, "KILL"))
        for name in ("one", "two"):
            client, aid = register(daemon, name)
            open.enter_context(client)
            grant(owner, f"agent:{aid}", "member", "group:team")
            with pytest.raises(PermissionError):
                history(client, aid=victim.aid)
        grant(owner, f"agent:{victim.aid}", "member", "group:team")
        assert requests(client, text="secret") == [secret.request]
        assert right.capability == "observe" and y > m


def test_patterns_are_struck_out_before_anything_is_written(start: Start) -> None:
    daemon = start("redact = ['sk-[A-Za-z0-9]{8,}', '(?i)password: *[^ ]+']")
    with Writer(daemon) as a:
        a.ask("use sk-abcdefgh12345 and Password: hunter2!", max_tokens=2)
        turns = [Turn("user", "sk-ZYXWVUTS0987"), Turn("user", "b")]
        a.submit("", messages=turns, raw=False, max_tokens=2)
        a.finish(a.next_id - 1)
        one, two = history(a)
        assert one.data["prompt"] == "use [redacted] and [redacted]"
        assert [turn["content"] for turn in two.data["messages"]] == ["[redacted]", "b"]
        assert history(a, text="hunter2") == []
    kept = "select asked || reply from interaction_texts"
    assert not any("hunter2" in text or "sk-" in text for (text,) in rows(daemon, kept))
    words = rows(daemon, "select block from interaction_words_data")
    assert not any(b"hunter2" in block or b"abcdefgh" in block for (block,) in words)


def test_digests_alone_and_nothing_at_all(start: Start) -> None:
    daemon = start('interactions = "digests"')
    with Writer(daemon) as a, daemon.connect() as person:
        first = a.ask("a private matter", max_tokens=2)
        [row] = history(person)
        assert row.data["asked_digest"] == hashlib.sha256(b"a private matter").hexdigest()
        assert row.data["reply_digest"] == hashlib.sha256(first.text.encode()).hexdigest()
        assert (row.data["prompt"], row.data["reply"]) == ("", "")
        assert history(person, text="private") == []
    assert rows(daemon, "select asked, reply from interaction_texts") == [("", "")]
    daemon = start('interactions = "none"')
    with Writer(daemon) as a, daemon.connect() as person:
        a.ask("a private matter", max_tokens=2)
        until(lambda: history(person) == [], "what was kept before is gone as well")


def test_retention_by_count_bytes_and_age(start: Start) -> None:
    daemon = start("keep_interactions = 3")
    with Writer(daemon) as a:
        told = [a.ask(f"count {i}", max_tokens=1).request for i in range(5)]
        assert requests(a) == told[2:]
        assert requests(a, text="count") == told[2:]
    held = "select count, bytes from interactions_held"
    size = "select count(*), sum(size) from interactions"
    assert rows(daemon, held) == rows(daemon, size)
    daemon = start("keep_bytes = 2500")
    with Writer(daemon) as a, daemon.connect() as person:
        until(lambda: len(history(person)) == 3, "the old ones fit")
        told += [a.ask("x" * 1000, max_tokens=1).request for _ in range(3)]
        assert requests(person) == told[-2:]
    assert rows(daemon, held) == rows(daemon, size)
    daemon = start("keep_for = 0")
    with daemon.connect() as person:
        assert history(person) == []  # not shown, deleted or not yet
        until(lambda: rows(daemon, held) == [(0, 0)], "they are deleted")


def test_a_long_text_is_cut_and_says_so(start: Start) -> None:
    daemon = start("text_limit = 300")
    with Writer(daemon) as a:
        a.ask("ä" * 500, max_tokens=1)
        turns = [Turn("user", f"turn {i} " + "y" * 90) for i in range(20)]
        a.submit("", messages=turns, max_tokens=1, raw=False)
        a.finish(a.next_id - 1)
        one, two = history(a)
        assert one.data["prompt"] == "ä" * 150 + "\n[cut: 150 of 500 characters are kept]"
        cut, *kept = two.data["messages"]
        assert cut == {"role": "cut", "content": "[cut: 17 earlier turns are not kept]"}
        assert [turn["content"][:7] for turn in kept] == ["turn 17", "turn 18", "turn 19"]


def test_an_answer_is_bounded_and_goes_on_before_its_first(start: Start) -> None:
    daemon = start("text_limit = '1MiB'")
    with Writer(daemon) as a:
        for _ in range(6):  # more than the window holds: what failed is kept as well
            with pytest.raises(OSError, match="window"):
                a.ask("z" * (400 << 10))
        found = history(a)
        assert 0 < len(found) < 6 and "window" in found[0].data["reason"]
        while more := history(a, before=found[0].id):
            found = more + found
        assert len({row.data["request"] for row in found}) == len(found) == 6


@pytest.mark.parametrize("point", ["interactions.row", "journal.end", "db.committed"])
def test_after_a_kill_each_answered_request_is_there_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    mark = tmp_path / "died"
    monkeypatch.setenv("AIOS_KILL_AT", f"{point}:{9 if point == 'db.committed' else 3}:{mark}")
    daemon = start()
    answered: list[Generation] = []
    with Writer(daemon) as a:
        credential = a.credential
        with suppress(EOFError, OSError):
            while len(answered) < 50:
                i = len(answered)
                answered.append(a.ask(f"tell {i}", max_tokens=9, key=f"k{i}"))
    assert daemon.process.wait(PATIENCE) == -signal.SIGKILL and mark.exists()
    daemon = start()
    with Writer(daemon, credential=credential) as a:
        more = range(len(answered), max(5, len(answered) + 1))  # the one under way is asked again
        answered += [a.ask(f"tell {i}", max_tokens=9, key=f"k{i}") for i in more]
        kept = history(a)
        assert [row.data["request"] for row in kept] == [one.request for one in answered]
        assert [row.data["reply"] for row in kept] == [one.text for one in answered]
        assert a.ask("tell 0", max_tokens=9, key="k0") == answered[0]  # told again, not kept again
        assert len(history(a)) == len(kept)


def test_a_damaged_index_of_words_costs_no_answer(start: Start) -> None:
    daemon = start()
    with Writer(daemon) as a:
        first = a.ask("kept before", max_tokens=1)
    daemon.stop()
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        db.execute("update interaction_words_data set block = x'00ff00ff' where id > 10")
    daemon = start()
    with Writer(daemon) as a, daemon.connect() as person:
        second = a.ask("kept after", max_tokens=1)
        assert requests(person, text="kept") == [first.request, second.request]


def test_an_agents_own_history_outlives_it(start: Start) -> None:
    daemon = start()
    with Writer(daemon) as a, daemon.connect() as person:
        told = a.ask("last words", max_tokens=1)
        person.call(Kill(a.aid, "KILL"))
        person.call(Wait(a.aid))
        assert requests(person, aid=a.aid) == [told.request]


def test_an_agent_can_not_pretend_to_have_asked(start: Start) -> None:
    daemon = start()
    with Writer(daemon) as a:
        a.call(LogEvent("interaction", {"prompt": "never said"}))
        assert history(a) == []
        wanted = a.send(LlmGenerate())
        assert a.read().errno == errno.EINVAL and wanted  # refused: nothing was asked
        assert history(a) == []


def test_redaction() -> None:
    redaction = Redaction(["secret-[0-9]+"])
    assert redaction.kept("a secret-12 b", 99) == "a [redacted] b"
    assert redaction.kept("short", 5) == "short"
    assert redaction.kept("abcdef", 5) == "abcde\n[cut: 5 of 6 characters are kept]"
    # What the cut, or the end of what was looked at, would leave half of is struck out whole.
    for where in (95, 100 + BEYOND - 5):
        text = "x" * where + "secret-123456789" + "y" * BEYOND
        assert "secret" not in redaction.kept(text, 100)
    hidden = "secret-1 " * 5000 + "secret-123456789"  # struck out, it gets shorter
    assert "secret-" not in redaction.kept(hidden, 9 * 5000 - BEYOND + 12)
    with pytest.raises(ValueError, match="no regular expression"):
        Redaction(["("])


def test_patterns_that_take_for_ever_withhold_the_text() -> None:
    assert Redaction([r"(a|aa)+$"]).kept("a" * 4000 + "!", 64 << 10) == WITHHELD
