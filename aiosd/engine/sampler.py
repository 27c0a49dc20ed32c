"""How a token is chosen from a row of logits: llama.cpp's samplers, and what is done before them.

`Samplers` belongs to a model and is shared; `Sampler` is one sequence's. In order: the logits are
changed (logit_bias, penalties, watermark, no end before min_tokens), filtered (top_k, top_p,
min_p), divided by the temperature, and one token is drawn. Where that one breaks a grammar, another
is drawn from those that don't: so the whole vocabulary, which takes milliseconds, is held against
the grammar only then, and each token's share is what it would be if it always were.

What must hold: a choice depends on the logits, the parameters, the tokens before it and its
position alone, so that a replay chooses the same; with nothing asked for, a greedy choice is one
`argmax`.
"""

from __future__ import annotations

import ctypes
import errno
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiosd.engine import watermark
from aiosd.engine.binding import L
from aiosd.engine.grammar import Grammar, Grammars
from aiosd.engine.protocol import Goal, Sampling
from aiosd.engine.runner import Draw, Drawn

UNSEEDED: Final = 0xFFFFFFFF  # llama.cpp takes this seed for "choose one at random"
CHAINS: Final = 64  # filters that are kept
LIKELY: Final = 128  # tokens that a greedy choice holds against a grammar before all others

Logits = npt.NDArray[np.float32]
Filters = tuple[float, float, int, float]  # temperature, top_p, top_k, min_p


@dataclass(slots=True, eq=False)
class Sampler:
    """One sequence's way of choosing. plain: the logits are taken as the model gave them."""

    how: Sampling
    first: int  # position of its first token, before 0 if that has left the window
    plain: bool
    grammar: Grammar | None

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        if self.grammar is not None:
            self.grammar.accept(token)


class Samplers:
    """All that choosing needs of a model: its vocabulary's size, and memory that is kept."""

    def __init__(
        self,
        n_vocab: int,
        ends: Sequence[int],
        grammars: Grammars | None = None,
        secret: bytes = b"",
    ) -> None:
        """ends: the tokens that end a generation. secret: the key of watermarks."""
        self._secret = secret
        self._grammars = grammars
        kinds = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        self._candidates = np.zeros(n_vocab, kinds)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._changed = np.zeros(n_vocab, np.float32)
        self._ends = np.array(ends, np.int32)
        self._array = L.llama_token_data_array()
        self._chains: dict[Filters, Any] = {}

    def open(self, goal: Goal, tokens: Sequence[int]) -> Sampler:
        """A sampler for a generation that has come as far as these tokens."""
        how = goal.sampling
        plain = not (how.logit_bias or how.min_tokens or how.watermark or _penalized(how))
        grammar = None
        if goal.grammar:
            assert self._grammars is not None
            grammar = self._grammars.open(goal.grammar)
            grammar.replay(goal.output(list(tokens)))
        return Sampler(how, goal.prompt_len - len(goal.said), plain, grammar)

    def draw(self, logits: Logits, draw: Draw) -> Drawn | OSError:
        """As choose; an error that says why there is nothing to choose."""
        try:
            return self.choose(logits, draw)
        except OSError as e:
            return e

    def choose(self, logits: Logits, draw: Draw) -> Drawn:
        """The token for a position from one row of logits, and its log-probability if asked for.

        Raises OSError(EINVAL) when the grammar leaves no token of this vocabulary.
        """
        sampler = draw.sampler
        assert isinstance(sampler, Sampler)
        changed = logits if sampler.plain else self._change(logits, sampler, draw.tokens)
        token = self._draw(changed, sampler.how, draw.position)
        if sampler.grammar is not None and not sampler.grammar.allows(token):
            token = self._draw_within(sampler.grammar, logits, changed, sampler.how, draw.position)
        how = sampler.how
        logprob = log_probability(logits, token) if how.logprobs else 0.0
        top = likeliest(logits, how.top_logprobs) if how.top_logprobs else ()
        return Drawn(token, logprob, top)

    def _change(self, logits: Logits, sampler: Sampler, tokens: Sequence[int]) -> Logits:
        """A changed copy of the logits, in memory that the next call uses again."""
        how, changed = sampler.how, self._changed
        np.copyto(changed, logits)
        if how.logit_bias:
            changed[list(how.logit_bias)] += np.fromiter(how.logit_bias.values(), np.float32)
        if _penalized(how):
            _penalize(changed, how, tokens)
        if how.watermark:
            seed = watermark.seed(self._secret, tokens[-1])
            changed[watermark.greens(seed, len(changed))] += watermark.DELTA
        if len(tokens) - sampler.first < how.min_tokens:
            changed[self._ends] = -np.inf
        return changed

    def _draw_within(
        self, grammar: Grammar, given: Logits, changed: Logits, how: Sampling, position: int
    ) -> int:
        """Choose among the tokens that a grammar allows.

        An end that min_tokens forbids is chosen all the same where nothing else may follow.
        """
        if how.temperature <= 0 and (best := _best_of_likely(grammar, changed)) >= 0:
            return best
        allowed = self._ids[grammar.allowed(self._ids)]
        if not len(allowed):
            raise OSError(
                errno.EINVAL, "grammar: no token of this model's vocabulary can go on from here"
            )
        possible = allowed[changed[allowed] > -np.inf]
        logits = changed if len(possible) else given
        return self._draw(logits, how, position, possible if len(possible) else allowed)

    def _draw(
        self,
        logits: Logits,
        how: Sampling,
        position: int,
        among: npt.NDArray[np.int32] | None = None,
    ) -> int:
        """Choose a token; among: of these, ascending, and with other dice than at first."""
        if among is not None:
            logits = logits[among]
        if how.temperature <= 0:
            best = int(logits.argmax())  # of equals the first, as llama.cpp's greedy sampler
            return best if among is None else int(among[best])
        chosen, ordered, top_p = self._ids if among is None else among, False, how.top_p
        if how.top_k <= 0 and top_p < 1:
            nucleus, ordered, top_p = _nucleus(logits, top_p), True, 1.0
            logits, chosen = logits[nucleus], chosen[nucleus]
        candidates, array = self._candidates[: len(chosen)], self._array
        candidates["id"], candidates["logit"] = chosen, logits
        array.data = ctypes.cast(candidates.ctypes.data, L.llama_token_data_p)
        array.size, array.selected, array.sorted = len(chosen), -1, ordered
        chain = self._chain((how.temperature, top_p, how.top_k, how.min_p))
        L.llama_sampler_apply(chain, ctypes.byref(array))
        seed = position_seed(how.seed if among is None else ~how.seed, position)
        dice = L.llama_sampler_init_dist(seed)
        L.llama_sampler_apply(dice, ctypes.byref(array))
        L.llama_sampler_free(dice)
        return int(array.data[array.selected].id)

    def _chain(self, filters: Filters) -> Any:
        """The filters before the random choice, in llama.cpp's usual order. They hold no state."""
        chain = self._chains.get(filters)
        if chain is None:
            if len(self._chains) >= CHAINS:
                L.llama_sampler_free(self._chains.pop(next(iter(self._chains))))
            chain = self._chains[filters] = _open_chain(*filters)
        return chain


def _open_chain(temperature: float, top_p: float, top_k: int, min_p: float) -> Any:
    chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    if top_k > 0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_k(top_k))
    if top_p < 1:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_top_p(top_p, 1))
    if min_p > 0:
        L.llama_sampler_chain_add(chain, L.llama_sampler_init_min_p(min_p, 1))
    L.llama_sampler_chain_add(chain, L.llama_sampler_init_temp(temperature))
    return chain


def _penalized(how: Sampling) -> bool:
    return bool(how.frequency_penalty or how.presence_penalty or how.repeat_penalty != 1)


def _penalize(logits: Logits, how: Sampling, tokens: Sequence[int]) -> None:
    """Make what stands in the window less likely, as llama.cpp's penalties do."""
    window = tokens[-how.penalty_window :] if how.penalty_window else tokens
    seen, counts = np.unique(np.array(window, np.int32), return_counts=True)
    some = logits[seen]
    some = np.where(some > 0, some / np.float32(how.repeat_penalty), some * how.repeat_penalty)
    logits[seen] = some - counts * how.frequency_penalty - how.presence_penalty


def _best_of_likely(grammar: Grammar, logits: Logits) -> int:
    """The likeliest token that a grammar allows, if it is among the LIKELY first; else -1."""
    if len(logits) <= LIKELY:
        return -1
    likely = np.sort(np.argpartition(logits, -LIKELY)[-LIKELY:])
    found = likely[grammar.allowed(likely)]
    if not len(found):
        return -1
    best = int(found[logits[found].argmax()])
    return best if logits[best] > -np.inf else -1


def likeliest(logits: Logits, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens and their log-probabilities, in order; of equals the first."""
    some = np.sort(np.argpartition(logits, -count)[-count:])
    some = some[np.argsort(-logits[some], kind="stable")]
    whole = _log_total(logits)
    return [(int(token), float(logits[token]) - whole) for token in some]


def log_probability(logits: Logits, token: int) -> float:
    """The natural logarithm of a token's share in the distribution that the logits describe."""
    return float(logits[token]) - _log_total(logits)


def _log_total(logits: Logits) -> float:
    most = logits.max()
    return float(most) + math.log(float(np.exp(logits - most).sum(dtype=np.float64)))


def _nucleus(logits: npt.NDArray[np.float32], top_p: float) -> npt.NDArray[np.int32]:
    """The most likely tokens that together reach top_p, in order.

    What llama.cpp's own top-p keeps when it looks at a whole vocabulary, but sooner: that one takes
    0.4 ms a row, and 3.7 ms where the distribution is flat. The tokens that are not even sorted
    here are too unlikely to count: all of them together can't make up what the nucleus may lack.
    """
    weights = np.exp(logits - logits.max())
    total = float(weights.sum(dtype=np.float64))
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    likely = likely[np.argsort(-weights[likely])]
    reached = np.cumsum(weights[likely], dtype=np.float64)
    enough = int(np.searchsorted(reached, top_p * total)) + 1
    return likely[:enough].astype(np.int32)


def position_seed(seed: int, position: int) -> int:
    """A 32-bit seed that depends on (seed, position) alone, well mixed (splitmix64)."""
    mask = (1 << 64) - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    folded = (z ^ (z >> 31)) >> 32
    return folded if folded != UNSEEDED else 0
