"""Beam search: the same as brute force finds, alone, in a crowd, parked, evicted and restored."""

from __future__ import annotations

import errno
from itertools import count
from pathlib import Path
from random import Random

import pytest

from aiosd.engine import protocol as p
from aiosd.engine.beams import Branch, Search
from aiosd.engine.fake import EOG, FakeRunner, _digest, distribution
from aiosd.engine.runner import Chunk
from aiosd.engine.snapshot import read_layout
from tests.engine.churn import alone, result
from tests.engine.conftest import Start
from tests.engine.kernel import GRID, Sequence, Worker, fake_setup
from tests.engine.test_worker import GREEDY, prompt_of, sequence

Held = list[tuple[int, bytes]]


def held_after(prompt: list[int]) -> Held:
    """The KV of a prompt, computed by a runner of its own."""
    runner = FakeRunner(fake_setup(slots=1))
    for start in range(0, len(prompt), GRID):
        part = prompt[start : start + GRID]
        runner.prefill([Chunk(0, part, start, True)])
    return runner._slots[0]


def after(held: Held, token: int) -> Held:
    return [*held[-3:], (token, _digest(held[-1][1], token.to_bytes(2, "little"), b"step"))]


def naive(prompt: list[int], width: int, most: int) -> list[tuple[list[int], float]]:
    """A beam search by the book, with all log-probabilities of every branch at hand."""
    live: list[tuple[float, list[int], Held]] = [(0.0, [], held_after(prompt))]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(most):
        options = [
            (score + logprob, place, token)
            for place, (score, _, held) in enumerate(live)
            for token, logprob in distribution(held)
        ]
        options.sort(key=lambda option: (-option[0], option[1], option[2]))
        grown: list[tuple[float, list[int], Held]] = []
        for score, place, token in options:
            if len(grown) == width:
                break
            _, tokens, held = live[place]
            if token == EOG:
                ended.append((score, tokens))
            else:
                grown.append((score, [*tokens, token], after(held, token)))
        live = grown
    everything = [*ended, *((score, tokens) for score, tokens, _ in live)]
    everything.sort(key=lambda one: (-one[0], one[1]))
    return [(tokens, score) for score, tokens in everything[:width]]


def everything(prompt: list[int], most: int) -> list[tuple[float, list[int]]]:
    """All texts of up to so many tokens and their scores, the best first."""
    found: list[tuple[float, list[int]]] = []

    def walk(score: float, tokens: list[int], held: Held) -> None:
        if len(tokens) == most:
            found.append((score, tokens))
            return
        for token, logprob in distribution(held):
            if token == EOG:
                found.append((score + logprob, tokens))
            else:
                walk(score + logprob, [*tokens, token], after(held, token))

    walk(0.0, [], held_after(prompt))
    return sorted(found, key=lambda one: (-one[0], one[1]))


def searching(cid: int, length: int, beams: int = 4, most: int = 30) -> Sequence:
    prompt = prompt_of(length, cid)
    return Sequence(cid, prompt, p.Goal(length, most, GREEDY, [], beams=beams))


def found(worker: Worker, cid: int) -> list[p.Beam]:
    return worker.wait(p.Found, lambda e: e.cid == cid).beams


def solo(worker: Worker, *wanted: Sequence) -> list[list[p.Beam]]:
    results = []
    for one in wanted:
        worker.admit(one)
        results.append(found(worker, one.cid))
        worker.evict(one.cid)
    return results


def test_a_search_as_wide_as_the_alphabet_is_exhaustive(start: Start) -> None:
    worker = start(fake_setup(slots=24))
    for cid in (1, 2, 3):
        [beams] = solo(worker, searching(cid, 40 + cid, beams=24, most=2))
        best = everything(prompt_of(40 + cid, cid), 2)[:24]
        assert [beam.tokens for beam in beams] == [tokens for _, tokens in best]
        assert [beam.score for beam in beams] == pytest.approx([score for score, _ in best])


@pytest.mark.parametrize(("beams", "most"), [(2, 12), (4, 30), (7, 9), (3, 1)])
def test_a_narrow_search_is_the_one_by_the_book(start: Start, beams: int, most: int) -> None:
    worker = start(fake_setup(slots=8))
    finishes = set()
    for cid in range(1, 6):
        [got] = solo(worker, searching(cid, 60 * cid, beams=beams, most=most))
        expected = naive(prompt_of(60 * cid, cid), beams, most)
        assert [beam.tokens for beam in got] == [tokens for tokens, _ in expected]
        assert [beam.score for beam in got] == pytest.approx([score for _, score in expected])
        for beam in got:
            assert sum(beam.logprobs) == pytest.approx(beam.score)
            assert len(beam.logprobs) == len(beam.tokens) + (beam.finish == "stop")
            assert beam.text == bytes(beam.tokens).decode("utf-8", "replace")
        finishes |= {beam.finish for beam in got}
    assert finishes <= {"stop", "length"} and ("stop" in finishes or most < 10)


def test_the_likeliest_first_tokens_need_not_begin_the_best_text() -> None:
    search = Search(2, 3)
    table = {0: [(7, -0.1), (8, -2.4)], 7: [(1, -3.0), (2, -3.1)], 8: [(1, -0.1), (9, -0.2)]}
    assert search.grow([table[0]], lambda token: token == 9) == [0, 0]
    assert search.grow([table[7], table[8]], lambda token: token == 9) == [1, 0]
    assert [branch.tokens for branch in search.best()] == [[8, 1], [8]]
    assert search.best()[1] == Branch([8], [-2.4, -0.2], -2.6, "stop")
    again = Search(2, 3, search.tree)
    assert again.best() == search.best() and again.done == search.done


def disturbed(worker: Worker, one: Sequence, files: Path, random: Random) -> list[p.Beam]:
    """Park and evict a search after every few steps; restore it or take it up where it is."""
    moved = 0
    for number in count():
        for _ in range(random.randint(1, 4)):
            event = worker.receive()
            if isinstance(event, p.Found):
                assert moved > 3
                return event.beams
        worker.send(p.Park(one.cid))
        while not isinstance(event := worker.receive(), p.Parked):
            if isinstance(event, p.Found):
                return event.beams
        kv = min(event.kv, len(one.tokens) - 1)
        if random.random() < 0.5:
            worker.admit(one, kv)
            continue
        path = str(files / f"{number}.kv")
        evicted = worker.evict(one.cid, path)
        if evicted.path:
            moved += read_layout(path).header.record.tree is not None
        worker.admit(one, min(evicted.kv, len(one.tokens) - 1), evicted.path)
    raise AssertionError


@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_is_parked_and_evicted_goes_on_with_its_whole_tree(
    start: Start, tmp_path: Path, seed: int
) -> None:
    worker = start(fake_setup(slots=5, step_ms=1))
    expected = solo(worker, searching(1, 150))
    one = searching(1, 150)
    worker.admit(one)
    worker.wait(p.Step)
    before = sum(s[1] for e in worker.events if isinstance(e, p.Step) for s in e.searched)
    assert [disturbed(worker, one, tmp_path, Random(seed))] == expected
    rows = sum(s[1] for e in worker.events if isinstance(e, p.Step) for s in e.searched) - before
    assert rows <= 4 * 30  # nothing was searched twice


@pytest.mark.parametrize(("low", "high"), [(1, 8), (2, 3), (3, 5)])
def test_searches_and_others_do_not_see_each_other(
    start: Start, tmp_path: Path, low: int, high: int
) -> None:
    calm = start(fake_setup(slots=8))
    searches = [searching(cid, 90 + 33 * cid, beams=beams) for cid, beams in ((1, 3), (2, 2))]
    plain = [sequence(cid, 20 + 77 * cid, 60) for cid in (3, 4, 5)]
    expected = solo(calm, *searches)
    said = [alone(calm, s) for s in [sequence(cid, 20 + 77 * cid, 60) for cid in (3, 4, 5)]]
    worker = start(fake_setup(slots=8, step_ms=1, low=low, high=high))
    for one in [*plain, *searches]:
        worker.admit(one)
    got: dict[int, list[p.Beam]] = {}
    while len(got) < 2 or not all(s.finish for s in plain):
        event = worker.receive()
        assert event is not None and not isinstance(event, p.Lost), event
        if isinstance(event, p.Found):
            got[event.cid] = event.beams
    assert [got[1], got[2]] == expected
    assert [result(s) for s in plain] == said


def test_a_context_goes_on_after_its_search(start: Start) -> None:
    for disturb in (False, True):
        worker = start(fake_setup(slots=4))
        one = searching(1, 70)
        worker.admit(one)
        event = worker.wait(p.Found)
        assert event.kv == 70
        best = event.beams[0].tokens
        more = [*best, *prompt_of(9)]
        turn = one.follow(more, p.Goal(70 + len(more), 20, GREEDY, []))
        kv = 70
        if disturb:
            worker.evict(1)
            kv = 0
        worker.admit(turn, kv)
        worker.finish(turn)
        assert turn.finish
        if not disturb:
            expected = result(turn)
    assert result(turn) == expected


def test_a_search_that_is_given_up_leaves_its_slots(start: Start) -> None:
    worker = start(fake_setup(slots=4, step_ms=1))
    one = searching(1, 70, beams=4, most=200)
    worker.admit(one)
    worker.wait(p.Step, lambda e: bool(e.searched))
    worker.park(1)
    plain = Sequence(1, one.tokens, p.Goal(70, 20, GREEDY, []))
    plain.runs = list(one.runs)
    worker.admit(plain, 69)  # the same context, another goal
    others = [sequence(cid, 30, 20) for cid in (2, 3, 4)]
    for other in others:
        worker.admit(other)
    worker.finish(plain, *others)
    fresh = start(fake_setup(slots=4))
    again = Sequence(1, prompt_of(70, 1), p.Goal(70, 20, GREEDY, []))
    again.planned = [p.Run(p.PREFILL, 0, 70)]
    assert result(plain)[2] and alone(fresh, again)[2]
    assert not any(s.lost for s in worker.sequences.values())


def test_more_beams_than_slots_are_refused(start: Start) -> None:
    worker = start(fake_setup(slots=4, step_ms=20))
    one = searching(1, 30, beams=5)
    worker.admit(one)
    worker.finish(one)
    assert one.lost is not None and one.lost.errno == errno.EINVAL
    two, three = searching(2, 30, beams=3), searching(3, 30, beams=2, most=400)
    worker.admit(two)
    worker.admit(three)
    worker.finish(three)
    assert three.lost is not None and three.lost.errno == errno.EBUSY
    if not any(isinstance(event, p.Found) for event in worker.events):
        assert found(worker, 2)


def test_a_file_of_a_search_is_of_no_use_to_another_goal(start: Start, tmp_path: Path) -> None:
    worker = start(fake_setup(slots=4, step_ms=1))
    one = searching(1, 70, most=200)
    worker.admit(one)
    worker.wait(p.Step, lambda e: bool(e.searched))
    worker.park(1)
    path = str(tmp_path / "a.kv")
    evicted = worker.evict(1, path)
    assert evicted.kv == 70 and read_layout(path).header.record.tree is not None
    for goal in (p.Goal(70, 20, GREEDY, []), p.Goal(70, 21, GREEDY, [], beams=4)):
        other = Sequence(1, one.tokens, goal)
        other.runs = list(one.runs)
        worker.sequences[1] = other
        worker.send(other.admit(69, path))
        worker.finish(other)
        assert other.lost is not None and other.lost.errno == errno.ESTALE and not other.lost.path
