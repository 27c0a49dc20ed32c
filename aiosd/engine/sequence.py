"""One sequence inside a worker: its tokens, how far they are computed, and how the rest will be.

Pure state. The loop asks `chunk` or `row` for what to compute next, reports it with `advance`, and
gives what was drawn to `accept`. `tokens[:kv]` is computed; the runs of `work` cover the rest; a
sampled token becomes one more DECODE position, or a SHIFT where the window is full.

`kv` counts positions; `cells` is how many of them are in the slot, fewer once it has shifted.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from aiosd.engine import runs
from aiosd.engine.beams import Tree
from aiosd.engine.protocol import DECODE, PREFILL, SHIFT, Admit, Run, Slide, Token
from aiosd.engine.runner import Drawn, Sampler
from aiosd.engine.snapshot import Record
from aiosd.engine.text import TextStream


class Sequence:
    """A resident sequence. `running` is False while it is parked.

    history is the record of how tokens[:kv] were computed, as the kernel keeps it.
    """

    def __init__(
        self,
        admit: Admit,
        order: int,
        slot: int,
        piece: Callable[[int], bytes],
        sampler: Sampler,
    ) -> None:
        """order: number of its admission; piece: bytes of a token, to rebuild the text's state."""
        self.cid = admit.cid
        self.tokens = admit.tokens
        self.kv = admit.kv
        self.history = list(admit.history)
        self.goal = admit.goal
        self.sampler = sampler
        self.rank = admit.rank
        self.order = order
        self.slot = slot
        self.running = True
        self.decoded = False  # since it was admitted
        self.shifted: Slide | None = None  # a shift that waits for the decode that completes it
        self._gone = runs.gone(admit.history)
        self._work = deque(run for run in admit.work if run.end > run.start)
        self._text = TextStream(admit.goal.stop)
        for count, token in enumerate(admit.goal.output(admit.tokens), 1):
            self._feed(piece(token), count)

    def described(self, now: float, tree: Tree | None = None) -> Record:
        """What a snapshot taken now would hold; now: Unix seconds. tree: of a beam search."""
        accepted = max(0, len(self.tokens) - self.goal.prompt_len)
        tokens = self.tokens[: self.kv]
        return Record(self.cid, tokens, self.history, self.goal, accepted, now, tree)

    def caught_up(self, history: list[Run]) -> None:
        """All its tokens are computed, as these runs say."""
        self.kv, self.history, self._gone = len(self.tokens), list(history), runs.gone(history)
        self._work.clear()

    def forget(self) -> None:
        """Its slot is empty now."""
        self.kv, self.history, self._gone = 0, [], 0

    @property
    def cells(self) -> int:
        """Cells of its slot that are taken."""
        return self.kv - self._gone

    @property
    def prefilling(self) -> bool:
        """True while its next positions are computed in grid chunks."""
        return bool(self._work) and self._work[0].kind == PREFILL

    @property
    def complete(self) -> bool:
        """True when everything known is computed: the next token can be sampled."""
        return self.kv == len(self.tokens)

    def chunk(self, grid: int) -> int:
        """The end of the next prefill chunk: cut at multiples of the grid and at the run's end."""
        return min(self._work[0].end, (self.kv // grid + 1) * grid)

    def shift(self) -> Slide | None:
        """The shift to be made before the next position is decoded, if any; made only once."""
        if self.shifted is None:
            self.shifted = self._due()
            if self.shifted is not None:
                self._gone += self.shifted.gone
                return self.shifted
        return None

    def _due(self) -> Slide | None:
        slide = self.goal.slide
        if self._work:
            run = self._work[0]
            return Slide(run.keep, run.gone, 0, 0) if run.kind == SHIFT else None
        return slide if slide is not None and self.cells >= slide.window else None

    def advance(self, end: int, grid: int) -> int:
        """Positions up to `end` have been computed, as the first run of its work says.

        Returns how: the kind of run.
        """
        kind = SHIFT if self.shifted else PREFILL if self.prefilling else DECODE
        runs.extend(self.history, kind, self.kv, end, grid, self.shifted)
        self.kv, self.shifted = end, None
        while self._work and self._work[0].end <= end:
            self._work.popleft()
        return kind

    def skip(self, kv: int) -> None:
        """The slot holds the first `kv` positions, prefilled, without this one having computed."""
        self.history, self.kv = [Run(PREFILL, 0, kv)], kv
        while self._work and self._work[0].end <= kv:
            self._work.popleft()

    def accept(self, drawn: Drawn, eog: bool, piece: Callable[[int], bytes], n_ctx: int) -> Token:
        """Take a sampled token; returns the event that reports it. Ends the run when it must."""
        index, (token, logprob, likely) = len(self.tokens), drawn
        top = [(other, share, piece(other)) for other, share in likely]
        if eog:
            self.running = False
            text = self._text.finish()
            return Token(self.cid, index, token, text, "stop", False, logprob, "", top)
        self.tokens.append(token)
        self.sampler.accept(token)
        count = len(self.goal.said) + len(self.tokens) - self.goal.prompt_len
        text, finish, tail = self._feed(piece(token), count), "", ""
        if self._text.stopped:
            finish = "stop"
        elif count >= self.goal.max_tokens:
            finish, text = "length", text + self._text.finish()
        elif self._full(n_ctx):
            finish, tail = "window", self._text.finish()
        self.running = not finish
        return Token(self.cid, index, token, text, finish, True, logprob, tail, top)

    def _feed(self, piece: bytes, count: int) -> str:
        """Add the bytes of the token that is number `count` of the output; returns final text."""
        return self._text.feed(piece, armed=count >= self.goal.sampling.min_tokens)

    def _full(self, n_ctx: int) -> bool:
        """Whether the window has no cell left for what would come next, and can't be shifted."""
        slide = self.goal.slide
        if len(self.tokens) - self._gone < n_ctx:
            return False
        return slide is None or len(self.tokens) >= slide.limit


def check(admit: Admit, n_vocab: int, n_ctx: int) -> None:
    """Raise OSError(EINVAL or E2BIG) for an admission that the protocol does not allow."""
    known, goal = len(admit.tokens), admit.goal
    cells = known - runs.gone(admit.history) - runs.gone(admit.work)
    if cells > n_ctx:
        raise OSError(errno.E2BIG, f"tokens: {cells}; a slot holds {n_ctx}, shorten the context")
    if not all(0 <= token < n_vocab for token in admit.tokens):
        raise _invalid(f"tokens: all must lie in 0..{n_vocab - 1}; was this core's model changed?")
    if not 0 <= admit.kv < known:
        raise _invalid(f"kv: {admit.kv} of {known} tokens; at least one must be left to compute")
    if not runs.covers(admit.history, admit.kv):
        raise _invalid(f"history: it must cover 0..{admit.kv} without gaps")
    if admit.held and (admit.held < admit.kv or not admit.path):
        raise _invalid(f"held: {admit.held} positions in the file, {admit.kv} wanted of it")
    if not 0 <= goal.prompt_len <= known:
        raise _invalid(f"prompt_len: {goal.prompt_len} of {known} tokens; give at most that many")
    if len(goal.said) + known - goal.prompt_len >= goal.max_tokens:
        raise _invalid(f"max_tokens: {goal.max_tokens} are already there; nothing is left to do")
    if not all(0 <= token < n_vocab for token in goal.sampling.logit_bias):
        raise _invalid(f"logit_bias: this model's tokens are 0..{n_vocab - 1}")
    at = admit.kv
    for run in admit.work:
        if run.start != at or run.end < run.start or run.kind not in (PREFILL, DECODE, SHIFT):
            raise _invalid(f"work: {_shown(run)} must start at {at} and be of a known kind")
        at = run.end
    if at != known:
        raise _invalid(f"work: covers {admit.kv}..{at}, but {known} tokens are known")


def _shown(run: Run) -> str:
    return f"run {run.kind} of {run.start}..{run.end}"


def _invalid(message: str) -> OSError:
    return OSError(errno.EINVAL, message)
