"""Models of several architectures: each is found exact in some way, and then is, whatever happens.

Their weights are random and tiny. Those with F16 and F32 weights give other bits for one row than
for more; the recurrent one can't be rolled back, and the one with a sliding window may not be.
"""

from __future__ import annotations

import errno
import importlib.util
import json
from functools import partial
from pathlib import Path
from random import Random

import pytest

from aiosd.engine import protocol as p
from tests.engine.churn import Churn, Result, alone
from tests.engine.conftest import Start
from tests.engine.kernel import GRID, Sequence, Worker

if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
    pytest.skip("needs the packages llama-cpp-python and gguf", allow_module_level=True)

from tests.engine import tiny

pytestmark = pytest.mark.model

MODELS = {
    "llama": ("llama", False),
    "llama-f16": ("llama", True),
    "gemma2": ("gemma2", False),
    "mamba": ("mamba", False),
}
WARM = p.Sampling(0.9, 0.95, 40, 0.05, 7)
SHAPED = p.Sampling(
    frequency_penalty=0.4,
    repeat_penalty=1.2,
    penalty_window=30,
    logit_bias={101: 2.0},
    watermark=True,
)
HOW = (p.Sampling(), WARM, SHAPED)
LENGTHS = (1, 7, 64, 65, 130, 300, 20, 600)


def setup(path: str, slots: int = 4, verdict: str = "") -> p.CoreSetup:
    return p.CoreSetup("llama", path, slots, 1024, GRID, 2, 0, "auto", "auto", True, verdict)


def crowd() -> list[Sequence]:
    random = Random(4)
    prompts = [[random.randrange(3, tiny.VOCABULARY) for _ in range(n)] for n in LENGTHS]
    return [
        Sequence(cid, prompt, p.Goal(len(prompt), 60, HOW[cid % len(HOW)], []))
        for cid, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module", params=list(MODELS))
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> p.CoreSetup:
    """A probed setup of a model."""
    arch, half = MODELS[request.param]
    path = tiny.write(tmp_path_factory.mktemp("models") / "m.gguf", arch, half)
    worker = Worker(setup(path))
    assert worker.end() == 0
    assert worker.loaded.exact is True
    return setup(path, verdict=worker.loaded.verdict)


@pytest.fixture(scope="module")
def solo(core: p.CoreSetup) -> list[Result]:
    worker = Worker(core)
    results = [alone(worker, sequence) for sequence in crowd()]
    assert worker.end() == 0
    assert len({result[1] for result in results}) > 4
    return results


def test_what_is_exact_alone_is_exact_in_a_crowd(
    core: p.CoreSetup, solo: list[Result], start: Start, tmp_path: Path
) -> None:
    churn = Churn(partial(start, core), tmp_path, seed=5, kills=2)
    assert churn.run(crowd()) == solo
    assert churn.moves > 40


def test_a_cancelled_tail_is_taken_back_or_computed_anew(
    core: p.CoreSetup, solo: list[Result], start: Start
) -> None:
    worker = start(core)
    for sequence in crowd()[2:5]:
        prompt = sequence.goal.prompt_len
        worker.admit(sequence)
        while len(sequence.tokens) < prompt + 20:
            worker.wait(p.Step)
        assert worker.park(sequence.cid).kv > prompt + 9
        kept = Sequence(sequence.cid, sequence.tokens[: prompt + 10], sequence.goal)
        kept.runs = [r for r in sequence.runs if r.end <= prompt]
        kept.runs.append(p.Run(p.DECODE, prompt, prompt + 9))
        worker.admit(kept, prompt + 9)
        worker.finish(kept)
        if kept.lost is not None:
            assert kept.lost.errno == errno.ESTALE
            assert json.loads(core.verdict)["rolls_back"] is False
            kept.lost = None
            worker.admit(kept)
            worker.finish(kept)
        assert kept.tokens == solo[kept.cid][0]
        worker.evict(kept.cid)


def test_slots_that_are_full_and_far_apart(
    core: p.CoreSetup, solo: list[Result], start: Start
) -> None:
    worker = start(core)
    sequences = crowd()[:4]
    for sequence in sequences:
        worker.admit(sequence)
    for _ in range(12):
        worker.wait(p.Step)
    stopped = [s for s in sequences if not s.finish][1:]
    held = {s.cid: worker.park(s.cid).kv for s in stopped}
    worker.finish(*[s for s in sequences if s not in stopped])
    for sequence in reversed(stopped):  # one by one, each alone in its batches
        worker.admit(sequence, held[sequence.cid])
        worker.finish(sequence)
    assert [s.tokens for s in sequences] == [tokens for tokens, _, _ in solo[:4]]
