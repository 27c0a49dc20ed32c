"""A runner on llama.cpp; with `sampler.py` the only file that imports llama_cpp.

Three parts: `Vocabulary` (tokens and chat template; used from any thread), `Device` (one
llama_context and its batch; the probe uses it too) and `LlamaRunner`, which joins them.

What was measured and must hold: kv_unified stays False, or neighbours change a sequence's bits;
KV moves between slots by copying its state out and in, which is quicker than seq_cp.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

# How long OpenMP's threads spin before they sleep; read when the library loads. So an undisturbed
# step is as fast as with its own, sixty times longer, default, and a disturbed one, before `Pace`
# notices, takes 150 ms and not 1,600.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import llama_cpp
import llama_cpp.llama_chat_format

from aiosd.engine import callstyle, gguf, probe
from aiosd.engine.grammar import Grammars
from aiosd.engine.idle import Idle
from aiosd.engine.pace import Pace, choices
from aiosd.engine.prompt import Template, common, outline, segments
from aiosd.engine.protocol import CoreSetup, Tokenize
from aiosd.engine.runner import Chunk, Draw, Drawn, ModelInfo, Row
from aiosd.engine.sampler import Samplers, likeliest
from aiosd.engine.snapshot import Check, Record, SnapshotFiles
from aiosd.engine.weights import title

L: Any = llama_cpp  # ctypes bindings without types

KV_TYPES: Final = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip
LOG_ERROR: Final = 4

_errors: deque[str] = deque(maxlen=4)


def _on_log(level: int, text: bytes, user: Any) -> None:
    if level == LOG_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


_log_callback = L.llama_log_callback(_on_log)  # kept: llama.cpp holds no reference of its own


def _reason() -> str:
    return "; ".join(_errors) or "llama.cpp gave no reason"


class Vocabulary:
    """A model's tokens. Reads only what never changes: any thread may use it."""

    def __init__(self, model: Any) -> None:
        self.handle = L.llama_model_get_vocab(model)
        self.size = int(L.llama_vocab_n_tokens(self.handle))
        self._pieces: dict[int, bytes] = {}
        self._controls = self._control_words()
        self.ends = [t for t in range(self.size) if L.llama_vocab_is_eog(self.handle, t)]
        self._eog = set(self.ends)
        self._bos = int(L.llama_vocab_bos(self.handle))
        self._adds_bos = bool(L.llama_vocab_get_add_bos(self.handle)) and self._bos >= 0
        template = L.llama_model_chat_template(model, None)
        self._template = self._open_template(template) if template else None

    @property
    def has_template(self) -> bool:
        """True when the model carries a chat template."""
        return self._template is not None

    @property
    def calls(self) -> str:
        """How the chat template writes calls, see `protocol.Loaded`."""
        style = callstyle.derive(self._template, self._controls) if self._template else None
        return "" if style is None else msgspec.json.encode(style).decode()

    def encode(self, request: Tokenize) -> list[int]:
        """Tokens of a request; OSError(EINVAL) when the template refuses it."""
        tokens: list[int] = []
        for segment in segments(request, self._template, self._controls):
            tokens += self.tokens(segment.text, segment.control)
        if self._adds_bos and not request.follow and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def outline(self, request: Tokenize, tokens: Sequence[int]) -> tuple[int, int]:
        """Head and lead of a request's tokens, see `protocol.Tokens`."""
        texts = outline(request, self._template, self._controls)
        head, lead = (self.tokens(text, True) for text in texts)
        if self._adds_bos and tokens[:1] == [self._bos] != head[:1]:
            head.insert(0, self._bos)
        return common(head, tokens), len(lead)

    def tokens(self, text: str, control: bool) -> list[int]:
        """Tokens of a text; control: control tokens in it mean what they say."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = L.llama_tokenize(self.handle, data, len(data), buffer, room, False, control)
        if count < 0:
            raise OSError(errno.EINVAL, "the prompt can't be tokenized")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._read_piece(token, False)
        return found

    def is_eog(self, token: int) -> bool:
        """True when the token ends a generation."""
        return token in self._eog

    def _read_piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = L.llama_token_to_piece(self.handle, token, buffer, 256, 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = L.llama_token_to_piece(self.handle, token, buffer, -size, 0, special)
        return buffer.raw[:size]

    def _control_words(self) -> list[str]:
        marked = (t for t in range(self.size) if L.llama_vocab_is_control(self.handle, t))
        words = (self._read_piece(t, True).decode("utf-8", "replace") for t in marked)
        return sorted({w for w in words if w}, key=len, reverse=True)

    def _open_template(self, template: bytes) -> Template:
        words = [
            self._read_piece(t, True).decode("utf-8", "replace") if t >= 0 else ""
            for t in (L.llama_vocab_eos(self.handle), L.llama_vocab_bos(self.handle))
        ]
        formatter: Any = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
            template.decode("utf-8", "replace"), words[0], words[1]
        )

        def render(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
            try:
                return str(formatter(messages=messages, tools=tools).prompt)
            except Exception as e:  # the template is the model's program and may raise anything
                raise ValueError(str(e)) from e

        return render


class Device:
    """One llama_context with `slots` KV streams, and the batch that feeds it.

    low: rows that a decode must have; missing ones are computed in streams of their own, which lie
    before slot 0, and forgotten. So fewer rows than that must begin at slot 0.
    """

    def __init__(self, model: Any, setup: CoreSetup, setting: probe.Setting, low: int = 1) -> None:
        """Raises OSError(ENOMEM) when llama.cpp can't open a context of that kind."""
        threads = _threads(setup)
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
            raise OSError(errno.ENOMEM, f"no context of {setting} could be opened: {_reason()}")
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
            raise OSError(errno.EIO, f"llama.cpp refused the batch ({result}): {_reason()}")

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


class LlamaRunner:
    """A GGUF model, its slots and its samplers. See `runner.Runner`."""

    def __init__(self, setup: CoreSetup, secret: bytes = b"") -> None:
        """Raises OSError: the model is missing, unreadable, foreign, truncated or too large."""
        for name in (setup.kv_k, setup.kv_v):
            if name not in KV_TYPES and name != "auto":
                known = ", ".join(KV_TYPES)
                raise OSError(errno.EINVAL, f"KV type {name} is unknown; give auto or {known}")
        gguf.check(setup.model)
        silence()
        self._setup = setup
        self._models: dict[bool, Any] = {}
        key = _fingerprint(setup)
        verdict, setting = self._decide(key)
        for extra in [e for e in self._models if e != setting.extra]:
            L.llama_model_free(self._models.pop(extra))
        model = self._model(setting.extra)
        low, high = (verdict.low, verdict.high) if verdict else (1, setup.slots)
        self._device = Device(model, setup, setting, low)
        self._device.adapt(verdict.threads if verdict else _choices(setup))
        self._device.rolls_back = verdict is None or verdict.rolls_back
        self._vocabulary = Vocabulary(model)
        grammars = Grammars(self._vocabulary.handle, self._vocabulary.piece)
        size, ends = self._vocabulary.size, self._vocabulary.ends
        self._samplers = Samplers(size, ends, grammars, secret)
        self.sampler, self.compile = self._samplers.open, grammars.compile
        self._rows: list[int] = []
        yarn = f" yarn {setup.n_ctx}" if setup.yarn else ""
        fingerprint = hashlib.sha256(f"{key} {setting} {low}{yarn}".encode()).hexdigest()[:32]
        types = (setting.kv_k, setting.kv_v)
        self._files = SnapshotFiles(fingerprint, 2 * setup.slots + 8, types)
        self.encode, self.piece = self._vocabulary.encode, self._vocabulary.piece
        self.outline = self._vocabulary.outline
        self.is_eog = self._vocabulary.is_eog
        self.truncate, self.clear = self._device.truncate, self._device.clear
        self.swap, self.shift = self._device.swap, self._device.shift
        self.copy = self._device.copy
        self.info = ModelInfo(
            name=_text(L.llama_model_meta_val_str, model, b"general.name") or title(setup),
            fingerprint=fingerprint,
            n_vocab=self._vocabulary.size,
            n_ctx=setup.n_ctx,
            n_ctx_train=int(L.llama_model_n_ctx_train(model)),
            chat_template=self._vocabulary.has_template,
            exact=verdict.exact if verdict else None,
            setting=f"{_weights(setup)}{setting}{_rows(low, high, setup.slots)}",
            low=low,
            high=high,
            batch=probe.TOGETHER * setup.grid if not verdict or verdict.together else 0,
            even=setup.exact,
            verdict=probe.dump(verdict) if verdict else "",
            kv_bytes_per_token=self._warm_up(),
            shifts=self._device.shifts,
            rolls_back=self._device.rolls_back,
            calls=self._vocabulary.calls,
        )

    def _decide(self, key: str) -> tuple[probe.Verdict | None, probe.Setting]:
        setup = self._setup
        if not setup.exact:
            return None, probe.fastest(setup.kv_k, setup.kv_v)
        verdict = probe.recall(setup.verdict, key)
        if verdict is None:
            kv = (setup.kv_k, setup.kv_v)
            shape = probe.Shape(key, setup.slots, setup.grid, _choices(setup))
            verdict = probe.probe(self._open_bench, kv, shape)
        return verdict, verdict.setting

    def _open_bench(self, setting: probe.Setting) -> probe.Bench:
        """A context for the probe: it tries long sequences, however short the core's are."""
        setup = msgspec.structs.replace(
            self._setup, n_ctx=max(self._setup.n_ctx, probe.WINDOW), yarn=False
        )
        return Device(self._model(setting.extra), setup, setting)

    def _model(self, extra: bool) -> Any:
        if extra not in self._models:
            params = L.llama_model_default_params()
            params.use_extra_bufts, params.n_gpu_layers = extra, self._setup.gpu_layers
            path = os.fsencode(self._setup.model)
            model = L.llama_model_load_from_file(path, params)
            if not model:
                message = f"{self._setup.model} can't be opened by llama.cpp: {_reason()}"
                raise OSError(errno.ENOEXEC, message)
            self._models[extra] = model
        return self._models[extra]

    def _warm_up(self) -> int:
        """Touch the weights and the buffers once; returns what a position adds to a snapshot.

        A recurrent state is as large after one position as after a thousand: what counts is how
        the second half of the positions is added, not that there are any.
        """
        device, half = self._device, min(16, self._setup.grid // 2)
        tokens = [10 + i for i in range(2 * half)]
        device.prefill([Chunk(0, tokens[:half], 0, True)])
        begun = device.state_size(0)
        device.prefill([Chunk(0, tokens[half:], half, True)])
        added = device.state_size(0) - begun
        device.clear(0)
        return added // half

    @property
    def device_seconds(self) -> float:
        """Time inside the last llama_decode."""
        return self._device.seconds

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Compute chunks."""
        self._rows = self._device.prefill(chunks)

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute one step."""
        self._rows = self._device.decode(rows)

    def sample(self, draws: Sequence[Draw]) -> list[Drawn | OSError]:
        """Choose a token for each draw."""
        logits = self._device.logits(len(self._rows))
        kept = {row: i for i, row in enumerate(self._rows)}
        return [self._samplers.draw(logits[kept[draw.row]], draw) for draw in draws]

    def likeliest(self, rows: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """The tokens that are likeliest to come next."""
        logits = self._device.logits(len(self._rows))
        kept = {row: i for i, row in enumerate(self._rows)}
        most = min(count + len(self._vocabulary.ends), self._vocabulary.size)
        return [likeliest(logits[kept[row]], most) for row in rows]

    def save_all(self, slots: Sequence[int], path: str, record: Record) -> int:
        """Write several slots' KV to a file."""
        device = self._device

        def fill(address: int, size: int) -> int:
            used = 0
            for slot in slots:
                written = device.take_out(slot, address + used, size - used)
                if not written:
                    return 0
                used += written
            return used

        return self._files.write(path, record, sum(map(device.state_size, slots)), fill)

    def restore_all(self, slots: Sequence[int], path: str, check: Check) -> int:
        """Read a file into several empty slots."""
        device = self._device

        def take(address: int, size: int) -> int:
            used = 0
            for slot in slots:
                read = device.put_in(slot, address + used, size - used)
                if not read:
                    return 0
                used += read
            return used

        return self._files.read(path, check, take)

    def save(self, slot: int, path: str, record: Record) -> int:
        """Write the slot's KV to a file."""
        device = self._device

        def fill(address: int, size: int) -> int:
            return device.take_out(slot, address, size)

        return self._files.write(path, record, device.state_size(slot), fill)

    def restore(self, slot: int, path: str, check: Check) -> int:
        """Read a file into an empty slot."""
        device = self._device

        def take(address: int, size: int) -> int:
            return device.put_in(slot, address, size)

        return self._files.read(path, check, take)

    def move(self, source: int, target: int) -> None:
        """Bring a slot's KV to an empty one."""
        self._device.copy(source, target)
        self._device.clear(source)


def silence() -> None:
    """Keep llama.cpp from writing to standard error, and have its back ends ready."""
    L.llama_log_set(_log_callback, ctypes.c_void_p(0))
    L.llama_backend_init()


def _threads(setup: CoreSetup) -> int:
    return setup.threads or len(os.sched_getaffinity(0))


def _choices(setup: CoreSetup) -> list[int]:
    """Thread counts to try. One that waits for a GPU looks as one on a crowded machine does."""
    return [_threads(setup)] if setup.gpu_layers else choices(_threads(setup))


def _rows(low: int, high: int, slots: int) -> str:
    """What a setting says of its batches: nothing when any will do."""
    return "" if (low, high) == (1, slots) else f", rows {low}-{high}"


def _weights(setup: CoreSetup) -> str:
    """What a setting says of weights that are not as in the model's own file."""
    return f"weights {setup.quantize}, " if setup.quantize else ""


def _text(read: Any, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    read(*arguments, buffer, 256)
    return buffer.value.decode("utf-8", "replace")


def _fingerprint(setup: CoreSetup) -> str:
    """What bits depend on beside the setting: the model file, the build, the CPU, the shape."""
    cpu = L.llama_print_system_info().decode()
    shape = f"{setup.slots} {_threads(setup)} {setup.gpu_layers} {setup.grid}"
    digest = file_digest(setup.model)
    whole = f"{digest} {build()} {cpu} {shape} {setup.kv_k} {setup.kv_v}"
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def build() -> str:
    """Name this build of llama.cpp."""
    library = Path(llama_cpp.__file__).parent / "lib"
    sizes = sorted((f.name, f.stat().st_size) for f in library.glob("*.so"))
    return f"{llama_cpp.__version__} {sizes}"


def file_digest(path: str) -> str:
    """Digest of a model file: its size, its head, and blocks all over it (not every byte)."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        digest.update(f"{size}".encode())
        digest.update(f.read(1 << 20))
        for i in range(64):
            f.seek(max(0, size - (1 << 16)) * i // 63)
            digest.update(f.read(1 << 16))
    return digest.hexdigest()
