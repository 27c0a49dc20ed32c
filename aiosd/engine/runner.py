"""The interface between a worker's loop and the device that computes: `Runner`.

Two things implement it: `llama.py` (llama.cpp) and `fake.py` (no model, same rules). The loop
decides what is computed and when; a runner only does it. Errors that concern one sequence are
OSError with an errno and a sentence; anything else is a broken invariant and ends the worker.

What must hold: rows of a decode sit in ascending consecutive slots, at most `info.high` of them;
fewer than `info.low` begin at slot 0 (the runner adds what is missing); a chunk of a prefill never
crosses a multiple of the grid; the chunks of one call are of different slots, in ascending order,
have `info.batch` tokens at most, and one length where `info.even`; prefill and decode never share a
call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aiosd.engine.protocol import CoreSetup, Goal, Tokenize
from aiosd.engine.snapshot import Check, Record


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `Loaded` tells the kernel about an open model; the fields mean what they mean there.

    low, high: rows that a decode may have so that its bits are always the same. batch: tokens that
    a prefill of several chunks may have; 0: one chunk a call. even: several chunks must be equally
    long, or their bits would depend on one another. shifts: whether KV can be shifted.
    """

    name: str
    fingerprint: str
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    chat_template: bool
    exact: bool | None
    setting: str
    low: int
    high: int
    batch: int
    even: bool
    verdict: str
    kv_bytes_per_token: int
    shifts: bool = False
    rolls_back: bool = True
    calls: str = ""


class Chunk(NamedTuple):
    """One sequence's share of a prefill: tokens from position `start`; want: the last's logits."""

    slot: int
    tokens: Sequence[int]
    start: int
    want: bool


class Row(NamedTuple):
    """One sequence's share of a decode: compute `token` at `position`; want: its logits too."""

    slot: int
    token: int
    position: int
    want: bool


class Sampler(Protocol):
    """One sequence's way of choosing tokens. What it remembers follows from the tokens it took."""

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


class Draw(NamedTuple):
    """Choose the token that goes to `position` from the logits of row `row` of the last call.

    tokens: all that the sequence has so far, its prompt too.
    """

    row: int
    sampler: Sampler
    position: int
    tokens: Sequence[int]


class Drawn(NamedTuple):
    """A token, and its log-probability as the model gave it; 0 when nobody asked for that.

    top: the likeliest tokens in its place, with theirs, as far as they were asked for.
    """

    token: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()


class Runner(Protocol):
    """A device with an open model and `slots` sequences' KV. One thread at a time."""

    info: ModelInfo

    @property
    def device_seconds(self) -> float:
        """Time the last prefill or decode spent inside the device."""
        ...

    def encode(self, request: Tokenize) -> list[int]:
        """Tokens of a request, through the model's chat template. Any thread may call it."""
        ...

    def outline(self, request: Tokenize, tokens: Sequence[int]) -> tuple[int, int]:
        """What `Tokens` calls head and lead of a request's tokens. Any thread may call it."""
        ...

    def compile(self, grammar: str) -> None:
        """Read a grammar (GBNF) and keep it ready; OSError(EINVAL). Any thread may call it."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens. Any thread may call it."""
        ...

    def is_eog(self, token: int) -> bool:
        """True when the token ends a generation."""
        ...

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Compute chunks; logits are kept under the chunk's index."""
        ...

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute one token for each row; logits are kept under the row's index."""
        ...

    def sampler(self, goal: Goal, tokens: Sequence[int]) -> Sampler:
        """How a sequence that has come as far as these tokens chooses the next ones.

        Raises OSError(EINVAL) when its grammar is none, or the tokens do not follow it.
        """
        ...

    def sample(self, draws: Sequence[Draw]) -> list[Drawn | OSError]:
        """Choose a token for each draw; an error for one that has none to choose."""
        ...

    def likeliest(self, rows: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """Of some rows of the last call: the tokens that are likeliest to come next, in order.

        With their log-probabilities; so many that `count` of them do not end the generation.
        """
        ...

    def copy(self, source: int, target: int) -> None:
        """Make a slot's KV a copy of another's."""
        ...

    def save_all(self, slots: Sequence[int], path: str, record: Record) -> int:
        """As `save`, for several slots in one file."""
        ...

    def restore_all(self, slots: Sequence[int], path: str, check: Check) -> int:
        """As `restore`, for a file that `save_all` wrote of as many slots."""
        ...

    def save(self, slot: int, path: str, record: Record) -> int:
        """Write the slot's KV, which `record` describes, to a file; returns its size in bytes."""
        ...

    def restore(self, slot: int, path: str, check: Check) -> int:
        """Fill an empty slot from a file whose record `check` accepts; returns its size in bytes.

        OSError names the file as its filename when the file is at fault.
        """
        ...

    def truncate(self, slot: int, kv: int) -> None:
        """Roll the slot back to its first kv positions; OSError(ESTALE) when that can't be."""
        ...

    def shift(self, slot: int, keep: int, gone: int) -> None:
        """Forget `gone` cells after the first `keep` and move up what follows; decode comes next.

        What the slot holds is not whole before that decode. OSError(ENOTSUP) when it can't be done.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Bring the KV of a slot to an empty one."""
        ...

    def swap(self, a: int, b: int) -> None:
        """Exchange the KV of two slots."""
        ...

    def clear(self, slot: int) -> None:
        """Forget the slot's KV."""
        ...


def open_runner(setup: CoreSetup, secret: bytes = b"") -> Runner:
    """Open the model that `setup` asks for; OSError says why it can't be.

    secret: the key of watermarks.
    """
    if setup.runner == "fake":
        from aiosd.engine.fake import FakeRunner

        return FakeRunner(setup, secret)
    from aiosd.engine.llama import LlamaRunner

    return LlamaRunner(setup, secret)
