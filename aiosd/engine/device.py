"""One llama_context: what is computed in its slots, and their KV as it is copied about.

What was measured and must hold: kv_unified stays False, or neighbours change a sequence's bits;
KV moves between slots by copying its state out and in, which is quicker than seq_cp.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiosd.engine import probe
from aiosd.engine.binding import L, reason
from aiosd.engine.idle import Idle
from aiosd.engine.pace import Pace
from aiosd.engine.protocol import CoreSetup
from aiosd.engine.runner import Chunk, Row

KV_TYPES: Final = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip


class Device:
    """One llama_context with `slots` KV streams, and the batch that feeds it.

    low: rows that a decode must have; missing ones are computed in streams of their own, which lie
    before slot 0, and forgotten. So fewer rows than that must begin at slot 0.
    """

    def __init__(self, model: Any, setup: CoreSetup, setting: probe.Setting, low: int = 1) -> None:
        """Raises OSError(ENOMEM) when llama.cpp can't open a context of that kind."""
        threads = threads_of(setup)
        self._pads = low - 1
        streams = setup.slots + self._pads
        params = L.llama_context_default_params()
        params.n_ctx = streams * setup.n_ctx
        params.n_batch = params.n_ubatch = max(probe.TOGETHER * setup.grid, streams)
        params.n_seq_max, params.kv_unified = streams, False
        params.swa_full = True  # or what left the window would be missing after a roll-back
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(setting.flash)
        params.type_k, params.type_v = KV_TYPES[setting.kv_k], KV_TYPES[setting.kv_v]
        params.no_perf = True
        if setup.yarn:
            trained = int(L.llama_model_n_ctx_train(model))
            params.rope_scaling_type = L.LLAMA_ROPE_SCALING_TYPE_YARN
            params.rope_freq_scale = min(1.0, trained / setup.n_ctx)
            params.yarn_orig_ctx = trained
        self._ctx = L.llama_init_from_model(model, params)
        if not self._ctx:
            raise OSError(errno.ENOMEM, f"no context of {setting} could be opened: {reason()}")
        self._memory = L.llama_get_memory(self._ctx)
        self._n_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(model)))
        self._scratch = [_Scratch(), _Scratch()]
        self._open_batch(params.n_batch)
        self._pace = Pace([threads])
        self._idle = Idle()
        self.seconds = 0.0
        self.rolls_back = True

    def adapt(self, counts: Sequence[int]) -> None:
        """Use any of these thread counts, as the machine's load allows; the first to begin with."""
        self._pace = Pace(counts)
        self._set_threads(self._pace.threads)

    def _set_threads(self, count: int) -> None:
        L.llama_set_n_threads(self._ctx, count, count)

    def _open_batch(self, size: int) -> None:
        """A batch whose fields are numpy arrays of ours, so that filling it is a few stores."""
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._slots = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._slot_pointers = self._slots.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        self._offsets = np.arange(size, dtype=np.int32)
        self._batch = L.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._slot_pointers),
            ("logits", self._wanted),
        ):
            kind = dict(L.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))

    def prefill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Compute chunks; returns those whose last token's logits are kept, in order."""
        n = 0
        for slot, tokens, start, want in chunks:
            end = n + len(tokens)
            self._tokens[n:end] = tokens
            self._positions[n:end] = self._offsets[: end - n] + start
            self._slots[n:end] = slot + self._pads
            self._wanted[n:end] = 0
            self._wanted[end - 1] = want
            n = end
        self._decode(n)
        return [i for i, chunk in enumerate(chunks) if chunk.want]

    def decode(self, rows: Sequence[Row]) -> list[int]:
        """Compute one token of each row; returns the rows whose logits are kept, in order."""
        table = np.array(rows, np.int32)
        if self._pads:
            return self._decode_padded(table)
        n = len(rows)
        self._slots[:n], self._tokens[:n] = table[:, 0], table[:, 1]
        self._positions[:n], self._wanted[:n] = table[:, 2], table[:, 3]
        self._decode(n)
        return [i for i, row in enumerate(rows) if row.want]

    def _decode_padded(self, table: npt.NDArray[np.int32]) -> list[int]:
        """Decode with the rows that are missing. The padding's logits have negative numbers.

        All logits are kept, wanted or not: what is not kept is not computed either, and the last
        layers would see fewer rows.
        """
        missing = max(0, self._pads + 1 - len(table))
        if missing and table[0, 0] != 0:
            raise ValueError(f"{len(table)} rows from slot {table[0, 0]} can't be padded")
        n = missing + len(table)
        self._slots[:n] = self._offsets[:n] + (self._pads - missing)
        self._tokens[:missing] = self._positions[:missing] = 0
        self._slots[missing:n] = table[:, 0] + self._pads
        self._tokens[missing:n], self._positions[missing:n] = table[:, 1], table[:, 2]
        self._wanted[:n] = 1
        try:
            self._decode(n)
        finally:
            for stream in range(self._pads - missing, self._pads):
                L.llama_memory_seq_rm(self._memory, stream, -1, -1)
        return list(range(-missing, len(table)))

    def _decode(self, n: int) -> None:
        self._batch.n_tokens = n
        began, cpu, threads = perf_counter(), process_time(), self._pace.threads
        result = L.llama_decode(self._ctx, self._batch)
        now = perf_counter()
        self.seconds = now - began
        if self._pace.resting and (idle := self._idle.cores(now)) is not None:
            self._pace.room(idle)
        if self._pace.after(self.seconds, process_time() - cpu, now) != threads:
            self._set_threads(self._pace.threads)
        if result:
            raise OSError(errno.EIO, f"llama.cpp refused the batch ({result}): {reason()}")

    def logits(self, count: int) -> npt.NDArray[np.float32]:
        """The last call's wanted logits, `count` rows in order; valid until the next call."""
        pointer = L.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(pointer, (count, self._n_vocab))

    def chunks(self, chunks: Sequence[tuple[int, Sequence[int], int]]) -> list[bytes]:
        """For the probe: compute (slot, tokens, start) chunks; the bytes of their last logits."""
        self.prefill([Chunk(*chunk, True) for chunk in chunks])
        return [row.tobytes() for row in self.logits(len(chunks))]

    def step(self, rows: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """For the probe: decode (slot, token, position) rows; the bytes of each row's logits."""
        self.decode([Row(*row, True) for row in rows])
        return [row.tobytes() for row in self.logits(len(rows))]

    def state(self, slot: int) -> bytes:
        """For the probe: a copy of the slot's KV."""
        self._copy_out(slot, self._scratch[0])
        return ctypes.string_at(self._scratch[0].address, self._scratch[0].used)

    def set_state(self, slot: int, state: bytes) -> None:
        """For the probe: make the slot's KV that copy."""
        self._scratch[0].fill(state)
        self._copy_in(slot, self._scratch[0])

    def state_size(self, slot: int) -> int:
        """Bytes that a snapshot of the slot takes."""
        return int(L.llama_state_seq_get_size(self._ctx, slot + self._pads))

    def take_out(self, slot: int, address: int, size: int) -> int:
        """Copy the slot's state to memory; the bytes written, 0 on failure."""
        target = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        return int(L.llama_state_seq_get_data(self._ctx, target, size, slot + self._pads))

    def put_in(self, slot: int, address: int, size: int) -> int:
        """Make the slot's state that in memory; the bytes read, 0 on failure."""
        source = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        return int(L.llama_state_seq_set_data(self._ctx, source, size, slot + self._pads))

    def copy(self, source: int, target: int) -> None:
        """Make target's KV a copy of source's."""
        self._copy_out(source, self._scratch[0])
        self._copy_in(target, self._scratch[0])

    def swap(self, a: int, b: int) -> None:
        """Exchange the KV of two slots."""
        for slot, scratch in zip((a, b), self._scratch, strict=True):
            self._copy_out(slot, scratch)
        for slot, scratch in zip((b, a), self._scratch, strict=True):
            self._copy_in(slot, scratch)

    def _copy_out(self, slot: int, scratch: _Scratch) -> None:
        scratch.reserve(self.state_size(slot))
        scratch.used = self.take_out(slot, scratch.address, scratch.size)
        if not scratch.used:
            raise RuntimeError(f"slot {slot}: its state could not be copied out")

    def _copy_in(self, slot: int, scratch: _Scratch) -> None:
        self.clear(slot)
        if not self.put_in(slot, scratch.address, scratch.used):
            raise RuntimeError(f"slot {slot}: its state could not be copied in")

    def truncate(self, slot: int, kv: int) -> None:
        """Roll back to kv positions; OSError(ESTALE) when the model's memory can't."""
        stream, end = slot + self._pads, L.llama_memory_seq_pos_max(self._memory, slot + self._pads)
        if end < kv:
            return
        if not self.rolls_back or not L.llama_memory_seq_rm(self._memory, stream, kv, -1):
            raise OSError(errno.ESTALE, "this model's memory can't be rolled back; start from none")

    @property
    def shifts(self) -> bool:
        """Whether KV can be shifted."""
        return bool(L.llama_memory_can_shift(self._memory)) and self.rolls_back

    def shift(self, slot: int, keep: int, gone: int) -> None:
        """Forget `gone` cells after the first `keep` and move up what follows, at the next decode.

        Copying the slot out and in closes the gap: cells then lie in the order of their positions,
        as they do after a snapshot, and a sequence's bits don't depend on whether it had one.
        """
        stream = slot + self._pads
        if not self.shifts or not L.llama_memory_seq_rm(self._memory, stream, keep, keep + gone):
            raise OSError(errno.ENOTSUP, "this model's memory can't be shifted")
        self._copy_out(slot, self._scratch[0])
        self._copy_in(slot, self._scratch[0])
        L.llama_memory_seq_add(self._memory, stream, keep + gone, -1, -gone)

    def clear(self, slot: int) -> None:
        """Forget the slot's KV."""
        L.llama_memory_seq_rm(self._memory, slot + self._pads, -1, -1)

    def close(self) -> None:
        """Free the context."""
        L.llama_free(self._ctx)


class _Scratch:
    """Memory that is kept: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self.size = self.used = self.address = 0
        self._memory: mmap.mmap | None = None

    def reserve(self, size: int) -> None:
        """Make room for size bytes; what was in it is lost."""
        if size <= self.size:
            return
        self.size = size + size // 4
        self._memory = mmap.mmap(-1, self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def fill(self, data: bytes) -> None:
        """Hold this data."""
        self.reserve(len(data))
        ctypes.memmove(self.address, data, len(data))
        self.used = len(data)


def threads_of(setup: CoreSetup) -> int:
    """Return how many threads a core computes with where it has the machine."""
    return setup.threads or len(os.sched_getaffinity(0))
