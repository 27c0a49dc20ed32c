"""The worker process on its fake device: what the protocol promises, through its own socket."""

from __future__ import annotations

import errno
import json
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import jsonschema
import msgspec
import pytest

from aiosd.engine import protocol as p
from aiosd.engine import schema
from aiosd.engine.snapshot import verify
from tests.engine.churn import Churn, alone, result
from tests.engine.conftest import Start
from tests.engine.kernel import GRID, Sequence, Worker, fake_setup
from tests.engine.schemas import PERSON

GREEDY = p.Sampling()
WARM = p.Sampling(0.8, 0.95, 40, 0.05, 11)
SHAPED = p.Sampling(
    frequency_penalty=0.4,
    repeat_penalty=1.2,
    penalty_window=30,
    logit_bias={101: 2.0},
    watermark=True,
)


def goal(prompt: list[int], most: int = 60, how: p.Sampling = GREEDY, *stop: str) -> p.Goal:
    return p.Goal(len(prompt), most, how, list(stop))


def prompt_of(length: int, salt: int = 0) -> list[int]:
    random = Random(length * 1000 + salt)
    return [random.randrange(97, 123) for _ in range(length)]


def sequence(cid: int, length: int, most: int = 60, how: p.Sampling = GREEDY) -> Sequence:
    prompt = prompt_of(length, cid)
    return Sequence(cid, prompt, goal(prompt, most, how))


def crowd(how: p.Sampling) -> list[Sequence]:
    lengths = (20, 1500, 63, 64, 65, 300, 128, 700, 33, 1000, 90, 511)
    return [sequence(cid, length, 90, how) for cid, length in enumerate(lengths)]


@pytest.mark.parametrize("how", [GREEDY, WARM, SHAPED], ids=["greedy", "warm", "shaped"])
@pytest.mark.parametrize("seed", range(2))
def test_nothing_that_happens_to_a_sequence_shows(
    start: Start, tmp_path: Path, how: p.Sampling, seed: int
) -> None:
    setup = fake_setup(slots=4, step_ms=4)  # slow enough to be disturbed
    solo = start(fake_setup(slots=4))
    expected = [alone(solo, s) for s in crowd(how)]
    churn = Churn(partial(start, setup), tmp_path, seed, kills=3)
    assert churn.run(crowd(how)) == expected
    assert churn.moves > 30
    assert len({finish for _, _, finish in expected}) == 2


@pytest.mark.parametrize(("low", "high"), [(2, 3), (3, 5)])
def test_batches_keep_to_the_widths_that_give_the_same_bits(
    start: Start, tmp_path: Path, low: int, high: int
) -> None:
    setup = fake_setup(slots=8, step_ms=1, low=low, high=high)
    solo = start(fake_setup(slots=8))
    expected = [alone(solo, s) for s in crowd(GREEDY)]
    assert Churn(partial(start, setup), tmp_path, 3, kills=2).run(crowd(GREEDY)) == expected


def test_a_slot_that_cant_be_rolled_back_is_computed_anew(start: Start) -> None:
    worker = start(fake_setup(eog=0.0, rolls_back=False))
    first = sequence(1, 30, most=20)
    worker.admit(first)
    worker.finish(first)
    shorter = sequence(1, 30, most=20)
    shorter.runs = first.runs[:1]
    worker.admit(shorter, 29)
    worker.finish(shorter)
    assert shorter.lost is not None and shorter.lost.errno == errno.ESTALE
    shorter.lost = None
    worker.admit(shorter)
    worker.finish(shorter)
    assert result(shorter) == result(first)


def test_how_a_range_was_computed_matters_to_the_fake(start: Start) -> None:
    """Or the test above would prove nothing."""
    worker = start()
    true, false = sequence(1, 100), sequence(1, 100)
    expected = alone(worker, true)
    false.planned = [p.Run(p.PREFILL, 0, 90), p.Run(p.PREFILL, 90, 100)]
    assert alone(worker, false) != expected
    warm, other = sequence(2, 30, how=WARM), sequence(2, 30, how=p.Sampling(0.8, seed=12))
    assert alone(worker, warm) != alone(worker, other)


def test_text_is_the_tokens_text(start: Start) -> None:
    worker = start(fake_setup(eog=0.0))
    ran = sequence(1, 50, most=400)
    tokens, text, finish = alone(worker, ran)
    assert text == bytes(tokens[50:]).decode("utf-8", "replace")
    assert any(len(c.encode()) > 2 for c in text)
    assert finish == "length"
    assert len(tokens) == 450


def test_a_stop_string_ends_the_text_before_it(start: Start) -> None:
    worker = start(fake_setup(eog=0.0))
    _, whole, _ = alone(worker, sequence(1, 50, most=200))
    stop = whole[40:43]
    at = whole.index(stop)
    prompt = prompt_of(50, 1)
    ran = Sequence(1, prompt, goal(prompt, 200, GREEDY, "never", stop))
    tokens, text, finish = alone(worker, ran)
    assert (text, finish) == (whole[:at], "stop")
    assert bytes(tokens[50:]).decode() == whole[: at + 3]


def test_a_held_stop_string_survives_a_move(start: Start, tmp_path: Path) -> None:
    worker = start(fake_setup(eog=0.0, step_ms=2))
    _, whole, _ = alone(worker, sequence(1, 50, most=120))
    prompt = prompt_of(50, 1)
    ran = Sequence(1, prompt, goal(prompt, 120, GREEDY, whole[60:66]))
    worker.admit(ran)
    while not ran.finish:
        worker.park(1)
        if not ran.finish:
            kv = worker.evict(1, str(tmp_path / "kv")).kv
            worker.admit(ran, kv, str(tmp_path / "kv") if kv else "")
            worker.wait(p.Step)
    assert ran.text == whole[: whole.index(whole[60:66])]


def test_an_end_of_text_token_is_reported_but_not_kept(start: Start) -> None:
    worker = start(fake_setup(eog=0.2))
    tokens, _, finish = alone(worker, sequence(1, 10, most=500))
    last = [e for e in worker.events if isinstance(e, p.Step) and e.tokens][-1].tokens[-1]
    assert (finish, last.kept, last.token) == ("stop", False, 256)
    assert last.index == len(tokens)


def test_the_context_ends_a_generation(start: Start) -> None:
    worker = start(fake_setup(n_ctx=128, eog=0.0))
    tokens, _, finish = alone(worker, sequence(1, 100, most=500))
    assert (len(tokens), finish) == (128, "window")


def test_a_following_turn_continues_in_its_slot_or_from_its_file(
    start: Start, tmp_path: Path
) -> None:
    results = []
    for path in ("", str(tmp_path / "kv")):
        worker = start()
        first = sequence(1, 70)
        worker.admit(first)
        worker.finish(first)
        worker.send(p.Tokenize(5, "and then?", "", False, True))
        more = worker.wait(p.Tokens).tokens
        assert more[0] == 256
        turn = first.follow(more, p.Goal(len(first.tokens) + len(more), 30, GREEDY, []))
        kv = worker.evict(1, path).kv if path else turn.kv
        worker.admit(turn, kv, path)
        worker.finish(turn)
        results.append(result(turn))
    assert results[0] == results[1]


def test_a_resident_sequence_is_rolled_back(start: Start) -> None:
    worker = start()
    whole = sequence(1, 70)
    worker.admit(whole)
    worker.finish(whole)
    again = Sequence(1, prompt_of(70, 1), whole.goal)
    again.runs = [p.Run(p.PREFILL, 0, 64)]
    worker.admit(again, 64)
    worker.finish(again)
    assert result(again) == result(whole)


def test_a_file_that_holds_more_than_wanted_is_rolled_back(start: Start, tmp_path: Path) -> None:
    worker, path = start(), str(tmp_path / "kv")
    whole = sequence(1, 70)
    worker.admit(whole)
    worker.finish(whole)
    held = worker.evict(1, path).kv
    again = Sequence(1, prompt_of(70, 1), whole.goal)
    again.runs = [p.Run(p.PREFILL, 0, 64)]
    worker.sequences[1] = again
    worker.send(msgspec.structs.replace(again.admit(64, path), held=held))
    worker.finish(again)
    assert result(again) == result(whole)
    assert again.runs == whole.runs


def test_a_snapshot_that_does_not_hold_what_it_is_taken_for(start: Start, tmp_path: Path) -> None:
    worker, path = start(), tmp_path / "a.kv"
    whole = sequence(1, 70)
    worker.admit(whole)
    worker.finish(whole)
    held = worker.evict(1, str(path)).kv
    record = verify(path).header.record
    assert (record.cid, record.tokens, record.runs) == (1, whole.tokens[:held], whole.runs)
    assert (record.goal, record.accepted) == (whole.goal, len(whole.tokens) - 70)
    other, anew = sequence(2, 70), sequence(1, 70)
    other.runs = whole.runs[:1]
    anew.runs = [p.Run(p.PREFILL, 0, 40), p.Run(p.PREFILL, 40, 64)]
    for wrong in (other, anew):
        admit = msgspec.structs.replace(wrong.admit(64, str(path)), held=held)
        worker.send(admit)
        refused = worker.wait(p.Lost)
        assert (refused.errno, refused.path) == (errno.ESTALE, str(path))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    right = sequence(1, 70)
    right.runs = whole.runs[:1]
    worker.send(msgspec.structs.replace(right.admit(64, str(path)), held=held))
    assert worker.wait(p.Lost).errno == errno.EIO


def test_a_slot_that_was_computed_in_another_way_is_not_taken_over(start: Start) -> None:
    worker = start()
    first = sequence(1, 70)
    worker.admit(first)
    worker.finish(first)
    other = sequence(1, 70)
    other.runs = [p.Run(p.PREFILL, 0, 40), p.Run(p.PREFILL, 40, 64)]
    assert lost(worker, other.admit(64)) == errno.ESTALE


def test_prefill_is_sliced_and_takes_turns_with_decode(start: Start) -> None:
    worker = start(fake_setup(eog=0.0, step_ms=1))
    talking = sequence(1, 10, most=400)
    with worker.held():
        worker.admit(talking)
        worker.admit(sequence(2, 1000, most=1))
        worker.admit(sequence(3, 200, most=1))
    worker.wait(p.Step, lambda e: any(kind == p.DECODE for _, kind, *_ in e.computed))
    worker.events.clear()
    worker.finish(*worker.sequences.values())
    steps = [e.computed for e in worker.events if isinstance(e, p.Step)]
    slices = [c[0] for c in steps if c[0][1] == p.PREFILL]
    assert all(end - begin <= GRID and begin % GRID == 0 for _, _, begin, end in slices)
    for (_, before, *_), (_, kind, _, end) in pairwise(c[0] for c in steps):
        # Only a chunk that completes its prompt follows another chunk at once.
        assert (before, kind) != (p.PREFILL, p.PREFILL) or end in (1000, 200)


@pytest.mark.parametrize(
    ("exact", "lengths"), [(True, [[30, 30], [20, 20]]), (False, [[20, 20, 30, 30]])]
)
def test_the_ends_of_prompts_share_a_call(
    start: Start, exact: bool, lengths: list[list[int]]
) -> None:
    """Where bits matter, those of one length only."""
    worker = start(msgspec.structs.replace(fake_setup(slots=5), exact=exact))
    with worker.held():
        worker.admit(sequence(0, 4 * GRID, most=1))
        for cid, length in enumerate((30, 20, 30, 20), 1):
            worker.admit(sequence(cid, length, most=1))
    worker.finish(*worker.sequences.values())
    calls = [e.computed for e in worker.events if isinstance(e, p.Step)]
    ends = [sorted(end for cid, _, _, end in call if cid) for call in calls]
    assert [each for each in ends if each] == lengths


def test_the_lowest_rank_is_prefilled_first(start: Start) -> None:
    worker = start(fake_setup(prefill_ms=5))
    with worker.held():
        for cid, rank in ((1, 7), (2, 5), (3, 5), (4, 1)):
            late = sequence(cid, 400, most=1)
            late.rank = rank
            worker.admit(late)
        worker.send(p.Rank(3, 0))
    worker.finish(*worker.sequences.values())
    order = [t.cid for e in worker.events if isinstance(e, p.Step) for t in e.tokens if t.finish]
    assert order == [3, 4, 2, 1]


def test_parked_sequences_keep_their_slots_while_others_close_ranks(start: Start) -> None:
    """The fake refuses a decode over slots that are not consecutive."""
    worker = start(fake_setup(slots=5, eog=0.0, step_ms=1))
    with worker.held():
        for cid in range(5):
            worker.admit(sequence(cid, 20, most=600))
    worker.wait(p.Step, lambda e: len(e.computed) == 5)
    assert worker.park(1).kv == worker.sequences[1].kv
    worker.park(3)
    worker.wait(p.Step, lambda e: len(e.computed) == 3)
    taken = dict(worker.placed)
    assert sorted(taken) == [0, 1, 2, 3, 4]
    running = sorted(taken[cid] for cid in (0, 2, 4))
    assert running == list(range(running[0], running[0] + 3))
    for cid in (1, 3):
        worker.admit(worker.sequences[cid], worker.sequences[cid].kv)
    worker.finish(*worker.sequences.values())
    solo = start(fake_setup(slots=5, eog=0.0))
    for cid in range(5):
        assert result(worker.sequences[cid]) == alone(solo, sequence(cid, 20, most=600))


def lost(worker: Worker, admit: p.Admit) -> int:
    worker.send(admit)
    return worker.wait(p.Lost, lambda e: e.cid == admit.cid).errno


def test_one_sequences_error_hurts_no_other(start: Start, tmp_path: Path) -> None:
    worker = start(fake_setup(eog=0.0, step_ms=1))
    good = sequence(1, 40, most=80)
    worker.admit(good)
    bad = sequence(9, 40)
    (tmp_path / "no").write_bytes(b"not a snapshot" * 100)
    right = bad.admit()
    runs = [p.Run(p.PREFILL, 0, 20), p.Run(p.PREFILL, 21, 40)]
    known, rest = runs[:1], [p.Run(p.PREFILL, 20, 40)]
    no, work = str(tmp_path / "no"), bad.work(20)
    for admit, number in (
        (p.Admit(9, bad.tokens, 20, "/nowhere/kv", work, bad.goal, 0, known), errno.ENOENT),
        (p.Admit(9, bad.tokens, 20, no, work, bad.goal, 0, known), errno.ESTALE),
        (p.Admit(9, bad.tokens, 20, "", work, bad.goal, 0, known), errno.ESTALE),
        (p.Admit(9, bad.tokens, 20, "", rest, bad.goal, 0), errno.EINVAL),
        (p.Admit(9, bad.tokens, 20, no, rest, bad.goal, 0, known, 19), errno.EINVAL),
        (p.Admit(9, bad.tokens, 20, "", rest, bad.goal, 0, known, 21), errno.EINVAL),
        (p.Admit(9, bad.tokens, 40, "", [], bad.goal, 0), errno.EINVAL),
        (p.Admit(9, bad.tokens, 0, "", runs, bad.goal, 0), errno.EINVAL),
        (p.Admit(9, bad.tokens, 0, "", [], bad.goal, 0), errno.EINVAL),
        (p.Admit(9, [9999], 0, "", [p.Run(0, 0, 1)], p.Goal(1, 5, GREEDY, []), 0), errno.EINVAL),
        (p.Admit(9, bad.tokens, 0, "", right.work, p.Goal(40, 0, GREEDY, []), 0), errno.EINVAL),
        (sequence(9, 2049).admit(), errno.E2BIG),
    ):
        assert lost(worker, admit) == number
    for command in (p.Park(9), p.Evict(9, ""), p.Save(9, ""), p.Rank(9, 1)):
        worker.send(command)
        assert worker.wait(p.Lost).errno == errno.ESRCH
    worker.finish(good)
    assert result(good) == alone(start(fake_setup(eog=0.0)), sequence(1, 40, most=80))
    assert worker.placed == [(1, good.cid - 1)]


def test_a_snapshot_that_cant_be_written(start: Start, tmp_path: Path) -> None:
    worker = start(fake_setup(eog=0.0, step_ms=1))
    worker.admit(sequence(1, 40, most=2000))
    worker.wait(p.Step)
    worker.send(p.Save(1, str(tmp_path / "none" / "kv")))
    assert (worker.wait(p.Saved).path, worker.sequences[1].lost) == ("", None)
    worker.send(p.Evict(1, str(tmp_path / "none" / "kv")))
    kept = worker.wait(p.Kept)
    assert (kept.errno, kept.kv) == (errno.ENOENT, worker.sequences[1].kv)
    worker.admit(worker.sequences[1], kept.kv)  # it stands in its slot as if it had been parked
    worker.wait(p.Step)


def test_more_sequences_than_slots_are_refused(start: Start) -> None:
    worker = start(fake_setup(slots=2, step_ms=1))
    worker.admit(sequence(1, 10, most=500))
    worker.admit(sequence(2, 10, most=500))
    assert lost(worker, sequence(3, 10).admit()) == errno.EBUSY


def test_requests_are_tokenized_while_the_device_is_busy(start: Start) -> None:
    worker = start(fake_setup(step_ms=400, eog=0.0))
    worker.admit(sequence(1, 10, most=3))
    worker.wait(p.Begun)
    worker.send(p.Tokenize(1, "hi", "", False, False))
    worker.send(p.Tokenize(2, "", "[]", False, False))
    first = worker.receive()
    assert isinstance(first, p.Tokens)
    assert first.tokens == [258, *b"hi", 256, 10, 259]
    second = worker.receive()
    assert isinstance(second, p.Refused)
    assert (second.ticket, second.errno) == (2, errno.EINVAL)


def test_the_end_of_the_socket_ends_the_worker(start: Start) -> None:
    assert start().end() == 0
    busy = start(fake_setup(step_ms=60_000))
    busy.admit(sequence(1, 10))
    busy.wait(p.Step)
    assert busy.end() == 0


def test_quit_is_obeyed_at_once(start: Start) -> None:
    worker = start(fake_setup(hang=1))
    worker.admit(sequence(1, 10))
    worker.wait(p.Placed)
    worker.send(p.Quit())
    assert worker.receive() is None
    assert worker.end() == 0


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x05\0\0\0\xc1\xc1\xc1\xc1\xc1",
        b"\x08\0\0\0" + b"\x92\xa5admit\x01",
        b"\x00\0\0\0",
    ],
    ids=["oversized", "not msgpack", "short admit", "empty"],
)
def test_a_malformed_frame_ends_the_worker(start: Start, frame: bytes) -> None:
    worker = start()
    worker.socket.sendall(frame)
    assert worker.receive() is None
    assert worker.end() == 76


def test_a_half_frame_is_the_end_of_the_socket(start: Start) -> None:
    worker = start()
    worker.socket.sendall(b"\x40\0\0\0half")
    assert worker.end() == 0


def test_a_model_that_cant_be_opened(start: Start) -> None:
    for options, number in (({"fail_load": "no such luck"}, errno.ENOEXEC), ({"x": 1}, 22)):
        worker = start(fake_setup(**options), load=False)
        failed = worker.receive()
        assert isinstance(failed, p.Failed)
        assert failed.errno == number
        assert worker.receive() is None
        assert worker.end() == 1


def test_a_worker_dies_when_told(start: Start) -> None:
    worker = start(fake_setup(die_after=5, eog=0.0))
    worker.admit(sequence(1, 10))
    with pytest.raises(AssertionError, match="ended"):
        worker.wait(p.Parked)
    assert worker.end() == -signal.SIGKILL


def test_nothing_that_happens_shows_under_a_grammar(start: Start, tmp_path: Path) -> None:
    text = schema.grammar(json.dumps(PERSON))
    wanted = [sequence(cid, 20 + 40 * cid, 200, WARM if cid % 2 else GREEDY) for cid in range(8)]

    def crowd_within() -> list[Sequence]:
        return [
            Sequence(s.cid, s.tokens, msgspec.structs.replace(s.goal, grammar=text)) for s in wanted
        ]

    solo = start(fake_setup(slots=4))
    expected = [alone(solo, s) for s in crowd_within()]
    churn = Churn(partial(start, fake_setup(slots=4, step_ms=1)), tmp_path, 2, kills=2)
    assert churn.run(crowd_within()) == expected
    ended = [json.loads(said) for _, said, finish in expected if finish == "stop"]
    assert len(ended) > 3
    for value in ended:
        jsonschema.validate(value, PERSON)


def test_a_grammar_is_checked_when_it_is_asked_for(start: Start) -> None:
    worker = start()
    worker.send(p.Compile(7, "", '{"type": "integer", "maximum": 5}'))
    assert "root ::=" in worker.wait(p.Compiled).grammar
    for ticket, (grammar, wanted) in enumerate([("root ::= x", ""), ("", '{"not": {}}')]):
        worker.send(p.Compile(ticket, grammar, wanted))
        refused = worker.wait(p.Refused)
        assert (refused.ticket, refused.errno) == (ticket, errno.EINVAL)


def test_a_grammar_with_no_way_on_ends_its_sequence_alone(start: Start) -> None:
    worker = start(fake_setup(eog=0.0))
    other = sequence(1, 20)
    worker.admit(other)
    for cid, grammar in (
        (2, 'root ::= "a" x\nx ::= "b" x'),
        (3, "root ::= y"),
        (4, 'root ::= "a"'),
    ):
        prompt = prompt_of(20)
        lost = Sequence(cid, prompt, p.Goal(20, 60, GREEDY, [], grammar=grammar))
        if cid == 4:
            lost.tokens = [*prompt, 98]  # which its grammar does not know
        worker.admit(lost)
    worker.finish(*worker.sequences.values())
    assert worker.sequences[2].finish == "length" and worker.sequences[2].text == "a" + "b" * 59
    for cid in (3, 4):
        gone = worker.sequences[cid].lost
        assert gone is not None and gone.errno == errno.EINVAL
    assert other.finish
