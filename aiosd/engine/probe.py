"""Which way of running a model is exact, and which of those is the fastest. Measured at load.

A setting is exact when a sequence's logits have the same bits whatever else is decoded beside it:
at every width from one row to all slots, with short and long neighbours, in a short and in a long
context. That depends on the model's weights and shape, the build and the CPU, so it is tried and
not assumed; the verdict is remembered by the kernel.

What is known of llama.cpp on a CPU: flash attention with K and V as f16 splits the KV range when
one row decodes alone over 512 or more padded cells, and then differs from wider batches; K as q8_0
avoids that path. Without flash attention a long context decodes at half the speed.

Several prompts in one prefill call were tried as well: with this model's weights the logits had
the same bits as alone (8 of 8 prompts of 20-60 tokens, each setting), but 313 tokens took 0.72 s
together and 0.71 s apart, so a prefill stays one sequence's chunk.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

LONG = 520  # tokens; above 512, and so in 768 padded cells
SHORT = 40
ENOUGH_S = 5.0  # once an exact setting is known, others are tried for no longer than this
ALL_WIDTHS = 8  # up to here every width is tried


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

    decode_rate: tokens/s with every slot decoding in a long context. threads: counts that give
    the same bits, so that one may be changed for another between two calls; most first.
    """

    key: str
    setting: Setting
    exact: bool
    decode_rate: float
    threads: list[int]


class Shape(msgspec.Struct, frozen=True):
    """What is probed. key names model, build and CPU; threads: the counts to try, most first."""

    key: str
    slots: int
    grid: int
    threads: list[int]


class Bench(Protocol):
    """A context opened with one setting, as far as a probe needs it."""

    def chunk(self, slot: int, tokens: Sequence[int], start: int) -> bytes:
        """Compute one chunk; the bytes of its last logits."""
        ...

    def adapt(self, counts: Sequence[int]) -> None:
        """Use these thread counts, the first of them to begin with."""
        ...

    def step(self, rows: Sequence[tuple[int, int, int]]) -> bytes:
        """Decode (slot, token, position) rows; the bytes of the first row's logits."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Make target's KV a copy of source's."""
        ...

    def truncate(self, slot: int, kv: int) -> None:
        """Roll back."""
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

    open_bench may raise OSError for a setting that the model can't have; when it does so for
    every setting, so does this function.
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
        if any(v.exact for v in found):
            break
    if not found:
        raise refused or OSError("no setting to try")
    return max(found, key=lambda v: (v.exact, v.decode_rate))


def examine(bench: Bench, setting: Setting, shape: Shape) -> Verdict:
    """Try one setting. The contexts are made-up tokens."""
    slots, most = shape.slots, shape.threads[0]
    bench.adapt([most])
    tokens = [10 + (i * 7919) % 241 for i in range(LONG)]
    for start in range(0, LONG, shape.grid):
        last = bench.chunk(0, tokens[start : start + shape.grid], start)
    bench.truncate(0, start)
    steady = [most]
    for count in shape.threads[1:]:
        bench.adapt([count])
        if bench.chunk(0, tokens[start:], start) == last:
            steady.append(count)
        bench.truncate(0, start)
    bench.adapt([most])
    bench.chunk(0, tokens[start:], start)
    for slot in range(1, slots):
        bench.copy(0, slot)
        bench.truncate(slot, _neighbour(slot))
    exact, rate = True, 0.0
    for length in (LONG, SHORT):
        bench.truncate(0, length)
        alike, best, same = _compare(bench, length, slots, steady)
        exact, rate, steady = exact and alike, max(rate, best), same
    return Verdict(shape.key, setting, exact, round(rate, 1), steady)


def _compare(
    bench: Bench, length: int, slots: int, threads: list[int]
) -> tuple[bool, float, list[int]]:
    """(the same bits at every width?, tokens/s at full width, thread counts with these bits)."""
    seen: set[bytes] = set()
    rate = 0.0
    for width in widths(slots):
        began = time.perf_counter()
        seen.add(_decode(bench, length, width))
        if width == slots:
            rate = slots / (time.perf_counter() - began)
    same = threads[:1]
    for count in threads[1:]:
        bench.adapt([count])
        if {_decode(bench, length, width) for width in {1, slots}} <= seen:
            same.append(count)
    bench.adapt(threads[:1])
    return len(seen) == 1, rate, same


def _decode(bench: Bench, length: int, width: int) -> bytes:
    """A digest of the first row's logits with width - 1 neighbours; leaves no trace."""
    rows = [(0, 99, length)] + [(s, 100 + s, _neighbour(s)) for s in range(1, width)]
    digest = hashlib.sha1(bench.step(rows)).digest()
    for slot, _, position in rows:
        bench.truncate(slot, position)
    return digest


def _neighbour(slot: int) -> int:
    """How long the context beside the one examined is: long and short ones in turn."""
    return LONG - 1 - (slot * 97) % (LONG - 2)


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
