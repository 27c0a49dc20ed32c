"""How a token is chosen: what the parameters do to a row of logits, and that nothing is hidden."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from aiosd.engine.protocol import Goal, Sampling
from aiosd.engine.runner import Draw, Drawn

if importlib.util.find_spec("llama_cpp") is None:
    pytest.skip("needs the package llama-cpp-python", allow_module_level=True)

from aiosd.engine.sampler import Samplers, log_probability

SIZE = 1000
END = 3
LOGITS = np.random.default_rng(1).normal(0, 3, SIZE).astype(np.float32)
BEST = int(LOGITS.argmax())
PROMPT = [5, 6]


def choose(how: Sampling, tokens: list[int] | None = None) -> Drawn:
    samplers = Samplers(SIZE, [END])
    given = PROMPT if tokens is None else tokens
    sampler = samplers.open(Goal(len(PROMPT), 99, how, []), given)
    return samplers.choose(LOGITS.copy(), Draw(0, sampler, len(given), given))


def test_a_plain_greedy_choice_is_the_first_of_the_best() -> None:
    assert choose(Sampling()) == Drawn(BEST, 0.0)


def test_a_log_probability_is_of_the_models_own_distribution() -> None:
    shares = np.exp(LOGITS.astype(np.float64))
    expected = math.log(shares[BEST] / shares.sum())
    assert log_probability(LOGITS, BEST) == pytest.approx(expected, abs=1e-4)
    token, logprob, _ = choose(Sampling(2.0, seed=3, logprobs=True, logit_bias={BEST: -9.0}))
    assert token != BEST
    assert logprob == pytest.approx(math.log(shares[token] / shares.sum()), abs=1e-4)


def test_the_likeliest_are_of_the_models_own_distribution() -> None:
    bias = {BEST: -9.0}
    token, _, top = choose(Sampling(2.0, seed=3, logprobs=True, top_logprobs=4, logit_bias=bias))
    assert token != BEST
    assert [each for each, _ in top] == np.argsort(-LOGITS, kind="stable")[:4].tolist()
    assert all(share == pytest.approx(log_probability(LOGITS, each)) for each, share in top)


def test_a_bias_decides() -> None:
    assert choose(Sampling(logit_bias={17: 100.0}))[0] == 17
    assert choose(Sampling(logit_bias={BEST: -100.0}))[0] != BEST


def test_no_end_before_min_tokens() -> None:
    how = Sampling(logit_bias={END: 100.0}, min_tokens=2)
    assert choose(how)[0] == BEST
    assert choose(how, [*PROMPT, 8])[0] == BEST
    assert choose(how, [*PROMPT, 8, 9])[0] == END


@pytest.mark.parametrize(
    "how",
    [
        Sampling(frequency_penalty=2.0),
        Sampling(presence_penalty=2.0),
        Sampling(repeat_penalty=3.0),
        Sampling(frequency_penalty=0.5, presence_penalty=0.5, repeat_penalty=1.3),
    ],
)
def test_penalties_are_llama_cpps(how: Sampling) -> None:
    import ctypes

    from aiosd.engine.binding import L
    from aiosd.engine.sampler import _penalize

    tokens = [BEST, 7, BEST, 9, 7, BEST]
    ours = LOGITS.copy()
    _penalize(ours, how, tokens)
    theirs = np.zeros(SIZE, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    theirs["id"], theirs["logit"] = np.arange(SIZE), LOGITS
    array = L.llama_token_data_array()
    array.data = ctypes.cast(theirs.ctypes.data, L.llama_token_data_p)
    array.size, array.selected = SIZE, -1
    sampler = L.llama_sampler_init_penalties(
        SIZE, 64, how.repeat_penalty, how.frequency_penalty, how.presence_penalty
    )
    for token in tokens:
        L.llama_sampler_accept(sampler, token)
    L.llama_sampler_apply(sampler, ctypes.byref(array))
    L.llama_sampler_free(sampler)
    assert ours == pytest.approx(theirs["logit"], abs=1e-4)
    assert (ours != LOGITS).sum() == 3


def test_penalties_look_back_no_further_than_their_window() -> None:
    hard = Sampling(presence_penalty=2.0, repeat_penalty=9.0, penalty_window=2)
    assert choose(hard, [BEST, 8])[0] != BEST
    assert choose(hard, [BEST, 8, 9])[0] == BEST
    wide = Sampling(presence_penalty=2.0, repeat_penalty=9.0, penalty_window=0)
    assert choose(wide, [BEST, *range(100, 400)])[0] != BEST
