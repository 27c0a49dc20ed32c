"""A runner on llama.cpp: a model's vocabulary, its device and its samplers, joined."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from aiosd.engine import gguf, probe
from aiosd.engine.binding import L, build, reason, silence
from aiosd.engine.device import KV_TYPES, Device, threads_of
from aiosd.engine.grammar import Grammars
from aiosd.engine.pace import choices
from aiosd.engine.protocol import CoreSetup
from aiosd.engine.runner import Chunk, Draw, Drawn, ModelInfo, Row
from aiosd.engine.sampler import Samplers, likeliest
from aiosd.engine.snapshot import Check, Record, SnapshotFiles
from aiosd.engine.vocabulary import Vocabulary
from aiosd.engine.weights import title


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
                message = f"{self._setup.model} can't be opened by llama.cpp: {reason()}"
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


def _choices(setup: CoreSetup) -> list[int]:
    """Thread counts to try. One that waits for a GPU looks as one on a crowded machine does."""
    return [threads_of(setup)] if setup.gpu_layers else choices(threads_of(setup))


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
    shape = f"{setup.slots} {threads_of(setup)} {setup.gpu_layers} {setup.grid}"
    digest = gguf.digest(setup.model)
    whole = f"{digest} {build()} {cpu} {shape} {setup.kv_k} {setup.kv_v}"
    return hashlib.sha256(whole.encode()).hexdigest()[:32]
