"""Which way of running a model is exact, and which of those is the fastest. Measured at load.

A setting is exact for a range of batch widths when a sequence's logits have the same bits at each
of them, in whichever row it sits, beside long and short neighbours, in a short and in a long
context, and after its KV was copied out and in. That depends on the model's weights and shape, the
build and the CPU, so it is tried and not assumed; the verdict is remembered by the kernel. Widths
that differ from the rest are kept out of use: a batch of fewer rows than `low` is padded, one of
more than `high` is computed in parts.

What is known of llama.cpp on a CPU: flash attention with K and V as f16 splits the KV range when
one row decodes alone over 512 or more padded cells, and then differs from wider batches; K as q8_0
avoids that path. F16 and F32 weights differ between one row and more. Without flash attention a
long context decodes at half the speed.

Several prompts in one prefill call: chunks of one length take 7 to 9 % less time so, chunks of
different lengths none (313 tokens took 0.72 s together and 0.71 s apart), because llama.cpp cuts
such a batch where one of them ends. Where it cuts depends on the neighbours, and bits depend on
where it cuts; chunks of one length are not cut. So an exact core lets those of one length share a
call, once it has seen that they come out as each does alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

LENGTHS = (520, 40, 440)  # of the contexts tried; above 512 is in 768 padded cells
WINDOW = max(LENGTHS) + 56  # tokens that a bench must hold
TOKENS = [10 + (i * 7919) % 241 for i in range(max(LENGTHS))]
ENOUGH_S = 2.0  # once an exact setting is known, others are tried for no longer than this
ALL_WIDTHS = 8  # up to here every width is tried
TOGETHER = 4  # whole grid chunks that may share a prefill, at most
CHUNKS = (1, 5, 48, 24)  # lengths of chunks tried together; the last with every thread count

Bits = dict[int, bytes]
"""A digest of the logits of each context tried, by its length."""


class Setting(msgspec.Struct, frozen=True):
    """How llama.cpp is opened. extra: its repacked weight buffers (use_extra_bufts)."""

    flash: bool
    kv_k: str
    kv_v: str
    extra: bool

    def __str__(self) -> str:
        flash = "flash" if self.flash else "no flash"
        return f"{flash}, {self.kv_k}/{self.kv_v}{'' if self.extra else ', no repack'}"


class Verdict(msgspec.Struct, frozen=True):
    """What a probe found, for the model, build, CPU and slots that `key` names.

    low, high: rows of a decode among which all widths give the same bits. decode_rate, lone_rate:
    tokens/s with every slot decoding, and with one. threads: counts that give the same bits, so
    that one may be changed for another between two calls; most first. rolls_back: whether a tail
    of the model's KV can be removed and computed again with the same bits. together: whether
    prefill chunks of one length give the same bits in one call as in calls of their own.
    """

    key: str
    setting: Setting
    exact: bool
    low: int
    high: int
    decode_rate: float
    lone_rate: float
    threads: list[int]
    rolls_back: bool
    together: bool

    @property
    def rank(self) -> tuple[bool, float]:
        """The greater the better; speed alone counts as much as speed in a crowd."""
        return self.exact, self.decode_rate * self.lone_rate


class Shape(msgspec.Struct, frozen=True):
    """What is probed. key names model, build and CPU; threads: the counts to try, most first."""

    key: str
    slots: int
    grid: int
    threads: list[int]


class Bench(Protocol):
    """A context opened with one setting, as far as a probe needs it."""

    def chunks(self, chunks: Sequence[tuple[int, Sequence[int], int]]) -> list[bytes]:
        """Compute (slot, tokens, start) chunks in one call; the bytes of each one's last logits."""
        ...

    def adapt(self, counts: Sequence[int]) -> None:
        """Use these thread counts, the first of them to begin with."""
        ...

    def step(self, rows: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Decode (slot, token, position) rows; the bytes of each row's logits."""
        ...

    def state(self, slot: int) -> bytes:
        """A copy of the slot's KV."""
        ...

    def set_state(self, slot: int, state: bytes) -> None:
        """Make the slot's KV that copy."""
        ...

    def truncate(self, slot: int, kv: int) -> None:
        """Roll back; OSError when the model's memory can't."""
        ...

    def close(self) -> None:
        """Free the context."""
        ...


Opener = Callable[[Setting], Bench]


def groups(kv_k: str, kv_v: str) -> Iterator[list[Setting]]:
    """Settings to try, the groups expected to be fastest first.

    kv_k, kv_v: ggml type names, or "auto" for those known to do well.
    """
    fast = _types(kv_k, kv_v, (("q8_0", "f16"), ("f16", "f16")))
    plain = _types(kv_k, kv_v, (("f16", "f16"),))
    for extra in (True, False):
        yield [Setting(True, k, v, extra) for k, v in fast]
    for extra in (True, False):
        # A quantized V needs flash attention.
        yield [Setting(False, k, v, extra) for k, v in plain if v in ("f16", "f32", "bf16")]


def fastest(kv_k: str, kv_v: str) -> Setting:
    """The setting for a core that does not ask for exactness."""
    return Setting(True, *_types(kv_k, kv_v, (("f16", "f16"),))[0], extra=True)


def recall(verdict: str, key: str) -> Verdict | None:
    """An earlier verdict (JSON), or None when there is none for this key."""
    try:
        found = msgspec.json.decode(verdict, type=Verdict)
    except msgspec.MsgspecError:
        return None
    return found if found.key == key else None


def probe(open_bench: Opener, kv: tuple[str, str], shape: Shape) -> Verdict:
    """Try settings and return the fastest exact one, or the fastest when none is exact.

    Ends with the first group that holds one which is exact up to all slots. open_bench may raise
    OSError for a setting that the model can't have; when it does so for every setting, so does
    this function.
    """
    began = time.perf_counter()
    found: list[Verdict] = []
    refused: OSError | None = None
    for group in groups(*kv):
        for setting in group:
            if any(v.exact for v in found) and time.perf_counter() - began > ENOUGH_S:
                break
            try:
                bench = open_bench(setting)
            except OSError as e:
                refused = e
                continue
            found.append(examine(bench, setting, shape))
            bench.close()
        if any(v.exact and v.high == shape.slots for v in found):
            break
    if not found:
        raise refused or OSError("no setting to try")
    return max(found, key=lambda v: v.rank)


def examine(bench: Bench, setting: Setting, shape: Shape) -> Verdict:
    """Try one setting. The contexts are made-up tokens."""
    slots, most = shape.slots, shape.threads[0]
    bench.adapt([most])
    states = _contexts(bench, shape.grid)
    direct = _digest(bench.step([_row(0, max(LENGTHS))])[0])
    rolls_back = _rolls_back(bench, states, shape.grid)
    threads = [n for n in shape.threads if _prefills_alike(bench, states, shape.grid, n)]
    bench.adapt([most])
    bits: dict[int, Bits] = {}
    seconds: dict[int, float] = {}
    for width in widths(slots):
        bits[width], seconds[width] = _decode(bench, states, width)
    restores = most in threads and bits[1].get(max(LENGTHS)) == direct
    chosen = choose(bits, slots) if restores else None
    low, high = chosen or (1, slots)
    threads = _decode_alike(bench, states, (low, high, bits[high]), threads) if chosen else [most]
    together = chosen is not None and _together(bench, states, slots, threads)
    crowd, lone = high / seconds[high], 1 / seconds[low]
    return Verdict(
        key=shape.key,
        setting=setting,
        exact=chosen is not None,
        low=low,
        high=high,
        decode_rate=round(crowd, 1),
        lone_rate=round(lone, 1),
        threads=threads,
        rolls_back=rolls_back,
        together=together,
    )


def choose(bits: dict[int, Bits], slots: int) -> tuple[int, int] | None:
    """The cheapest range (low, high) of widths that agree, by the bits of each width tried.

    None when there is none. A range must let any number of sequences be split into parts of low to
    high rows, or reach up to all slots. What the widths cost here and now does not count: on a
    busy machine that is chance, and another range means other bits.
    """
    ranges = []
    for found, group in itertools.groupby(sorted(bits), key=bits.__getitem__):
        alike = list(group)
        low, high = alike[0], alike[-1]
        if found and (high == slots or high >= 2 * low - 1):
            ranges.append((low, high))
    return min(ranges, key=lambda r: _cost(slots, r[1]) * _cost(r[0], r[1]), default=None)


def _cost(rows: int, high: int) -> float:
    """What decoding so many rows costs in parts of `high` rows at most.

    A step of n rows takes as long as 7 + 3 n: the weights are read once, whatever n.
    """
    return 7 * -(-rows // high) + 3 * rows


def _contexts(bench: Bench, grid: int) -> dict[int, bytes]:
    """KV of each length, prefilled in slot 0; the longest stays there."""
    states: dict[int, bytes] = {}
    for start, end in _chunks(0, grid):
        bench.chunks([(0, TOKENS[start:end], start)])
        if end in LENGTHS:
            states[end] = bench.state(0)
    return states


def _chunks(start: int, grid: int) -> list[tuple[int, int]]:
    """Chunks from `start` to the longest context, cut at the grid and at each context's end."""
    longest = max(LENGTHS)
    cuts = {start, *range(0, longest, grid), *LENGTHS}
    ordered = sorted(cut for cut in cuts if cut >= start)
    return list(itertools.pairwise(ordered))


def _prefills_alike(bench: Bench, states: dict[int, bytes], grid: int, threads: int) -> bool:
    """Whether the last chunks, after a restore and with so many threads, give the same KV."""
    bench.adapt([threads])
    start = sorted(LENGTHS)[-2]
    bench.set_state(0, states[start])
    return _finish(bench, states, grid, start)


def _rolls_back(bench: Bench, states: dict[int, bytes], grid: int) -> bool:
    """Whether the longest context in slot 0, cut back, gives the same KV again."""
    start = sorted(LENGTHS)[-2]
    try:
        bench.truncate(0, start)
    except OSError:
        return False
    return _finish(bench, states, grid, start)


def _finish(bench: Bench, states: dict[int, bytes], grid: int, start: int) -> bool:
    for begin, end in _chunks(start, grid):
        bench.chunks([(0, TOKENS[begin:end], begin)])
    return bench.state(0) == states[max(LENGTHS)]


def _together(bench: Bench, states: dict[int, bytes], slots: int, threads: Sequence[int]) -> bool:
    """Whether chunks of one length give the same logits and KV in one call as one by one."""
    width = min(slots, TOGETHER)
    if width == 1:
        return False
    tries = [(threads[0], size) for size in CHUNKS] + [(n, CHUNKS[-1]) for n in threads[1:]]
    alike = True
    for count, size in tries:
        bench.adapt([count])
        apart = _prefill(bench, states, size, [[slot] for slot in range(width)])
        alike = alike and _prefill(bench, states, size, [list(range(width))]) == apart
    bench.adapt(threads[:1])
    return alike


def _prefill(
    bench: Bench, states: dict[int, bytes], size: int, calls: list[list[int]]
) -> list[tuple[bytes, bytes]]:
    """Go on by `size` tokens in each slot; digests of its logits and its KV. calls: slots each."""
    found = []
    for slots in calls:
        chunks = []
        for slot in slots:
            start = LENGTHS[slot % len(LENGTHS)]
            bench.set_state(slot, states[start])
            chunks.append((slot, TOKENS[slot : slot + size], start))
        logits = bench.chunks(chunks)
        states_now = [bench.state(slot) for slot in slots]
        found += [(_digest(a), _digest(b)) for a, b in zip(logits, states_now, strict=True)]
    return found


def _decode_alike(
    bench: Bench, states: dict[int, bytes], found: tuple[int, int, Bits], threads: list[int]
) -> list[int]:
    """The thread counts that decode the same bits; found: low, high and the bits to compare."""
    low, high, bits = found
    same = threads[:1]
    for count in threads[1:]:
        bench.adapt([count])
        some = {low, min(low + 1, high), high}
        if all(_decode(bench, states, width)[0] == bits for width in some):
            same.append(count)
    bench.adapt(threads[:1])
    return same


def _decode(bench: Bench, states: dict[int, bytes], width: int) -> tuple[Bits, float]:
    """(bits of each context, none when they depend on the row it sits in; the least seconds)."""
    bits: Bits = {}
    seconds = []
    for shift in range(len(LENGTHS)):
        lengths = [LENGTHS[(row + shift) % len(LENGTHS)] for row in range(width)]
        for slot, length in enumerate(lengths):
            bench.set_state(slot, states[length])
        began = time.perf_counter()
        logits = bench.step([_row(slot, length) for slot, length in enumerate(lengths)])
        seconds.append(time.perf_counter() - began)
        for length, row in zip(lengths, logits, strict=True):
            if bits.setdefault(length, digest := _digest(row)) != digest:
                return {}, min(seconds)
    return bits, min(seconds)


def _row(slot: int, length: int) -> tuple[int, int, int]:
    return slot, 11 + length % 89, length


def _digest(logits: bytes) -> bytes:
    return hashlib.sha1(logits).digest()


def widths(slots: int) -> list[int]:
    """The batch widths to try, ascending; always 1 and `slots`."""
    some = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64)
    few = {w for w in some if w < slots} | {slots}
    return sorted(few) if slots > ALL_WIDTHS else list(range(1, slots + 1))


def dump(verdict: Verdict) -> str:
    """The verdict as JSON."""
    return json.dumps(msgspec.to_builtins(verdict), sort_keys=True)


def _types(kv_k: str, kv_v: str, auto: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (K, V) types to try: those given, with "auto" filled in; each once."""
    pairs = [(k if kv_k == "auto" else kv_k, v if kv_v == "auto" else kv_v) for k, v in auto]
    return list(dict.fromkeys(pairs))
