"""A runner without a model, for tests: the same rules as llama.cpp, checked more strictly.

Tokens are bytes, and a few control tokens. Each position of a slot's KV carries a digest of
everything that made it: the tokens before it and *how* each was computed, prefill chunk by chunk
or decoded. The next token follows from that digest (and, above temperature 0, from the sampling
parameters, the seed and the position), so any slip in grid, restore or replay changes the text,
as it would with a real model.

Options are a JSON object given as the model's name; see `Options`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Sequence
from ctypes import memmove, string_at
from typing import Any, Final

import msgspec

from aiosd.engine import callstyle, gbnf, runs, watermark
from aiosd.engine.matcher import Matcher
from aiosd.engine.prompt import common, outline, segments
from aiosd.engine.protocol import CoreSetup, Goal, Sampling, Tokenize
from aiosd.engine.runner import Chunk, Draw, Drawn, ModelInfo, Row, Sampler
from aiosd.engine.snapshot import Check, Record, SnapshotFiles

EOG: Final = 256
CONTROL: Final = {256: "<|end|>", 257: "<|system|>", 258: "<|user|>", 259: "<|assistant|>"}
WORDS: Final = list(CONTROL.values())
N_VOCAB: Final = 260
ENTRY: Final = 16  # bytes of a position's digest
LETTERS: Final = b"eeettaaooiinnshrrdlu    \n.,"
WIDE: Final = tuple(c.encode() for c in "éß世界😀")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fake model does.

    step_ms, prefill_ms: time of a decode step and of a full grid chunk. load_ms: time to open.
    eog: probability that a token ends the text. n_ctx_train: as the model would say.
    die_after: device calls after which the process kills itself (0: never). hang: device calls
    after which a call never returns (0: never). fail_load: the model can't be opened, and why.
    low, high: rows that a decode may have. rolls_back: whether a slot can be rolled back.
    shifts: whether it can be shifted. kv_bytes: what it says that a position takes; 0: the truth.
    tools: whether its chat template knows tools.
    """

    name: str = "fake"
    step_ms: float = 0.0
    prefill_ms: float = 0.0
    load_ms: float = 0.0
    eog: float = 0.01
    n_ctx_train: int = 8192
    die_after: int = 0
    hang: int = 0
    fail_load: str = ""
    low: int = 1
    high: int = 256
    rolls_back: bool = True
    shifts: bool = True
    kv_bytes: int = 0
    tools: bool = False


class FakeRunner:
    """See the head of this file."""

    def __init__(self, setup: CoreSetup, secret: bytes = b"") -> None:
        """Raises OSError(EINVAL) for unknown options, and ENOEXEC when told to fail."""
        try:
            self._options = msgspec.json.decode(setup.model or "{}", type=Options)
        except msgspec.MsgspecError as e:
            raise OSError(errno.EINVAL, f"model: options of the fake runner: {e}") from e
        time.sleep(self._options.load_ms / 1e3)
        if self._options.fail_load:
            raise OSError(errno.ENOEXEC, self._options.fail_load)
        self._template = _knowing if self._options.tools else _template
        self._grid = setup.grid
        self._secret = secret
        self._slots: list[list[tuple[int, bytes]]] = [[] for _ in range(setup.slots)]
        self._last: list[list[tuple[int, bytes]]] = []
        self._shifted: set[int] = set()  # slots that are not whole before their next decode
        self._calls = 0
        self.device_seconds = 0.0
        fingerprint = f"fake-{self._options.name}-{setup.grid}{'-yarn' * setup.yarn}"
        self._origin = b"yarn" if setup.yarn else b""
        self._files = SnapshotFiles(fingerprint, 2 * setup.slots)
        self.info = ModelInfo(
            name=self._options.name,
            fingerprint=fingerprint,
            n_vocab=N_VOCAB,
            n_ctx=setup.n_ctx,
            n_ctx_train=self._options.n_ctx_train,
            chat_template=True,
            exact=True if setup.exact else None,
            setting="fake",
            low=self._options.low,
            high=min(self._options.high, setup.slots),
            batch=4 * setup.grid,
            even=setup.exact,
            verdict=setup.verdict or json.dumps({"fake": True}),
            kv_bytes_per_token=self._options.kv_bytes or ENTRY + 2,
            shifts=self._options.shifts,
            rolls_back=self._options.rolls_back,
            calls=self._calls_written(),
        )

    def encode(self, request: Tokenize) -> list[int]:
        """Bytes as tokens; control words count in the template's own text only."""
        tokens: list[int] = []
        for segment in segments(request, self._template, WORDS):
            tokens += _parse(segment.text) if segment.control else segment.text.encode()
        return tokens

    def _calls_written(self) -> str:
        style = callstyle.derive(self._template, WORDS)
        return "" if style is None else msgspec.json.encode(style).decode()

    def outline(self, request: Tokenize, tokens: Sequence[int]) -> tuple[int, int]:
        """As the template has it."""
        head, lead = outline(request, self._template, WORDS)
        return common(_parse(head), tokens), len(_parse(lead))

    def piece(self, token: int) -> bytes:
        """The byte itself, or nothing for a control token."""
        return bytes([token]) if token < 256 else b""

    def is_eog(self, token: int) -> bool:
        """True for <|end|>."""
        return token == EOG

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Compute chunks; ValueError when one leaves the grid or a gap, or they are too many."""
        total = sum(len(chunk.tokens) for chunk in chunks)
        slots = [chunk.slot for chunk in chunks]
        if slots != sorted(set(slots)):
            raise ValueError(f"chunks of slots {slots}: not ascending")
        if len(chunks) > 1 and total > self.info.batch:
            raise ValueError(
                f"{len(chunks)} chunks of {total} tokens: more than a prefill may have"
            )
        if self.info.even and len({len(chunk.tokens) for chunk in chunks}) > 1:
            raise ValueError("chunks of several lengths: their bits depend on one another")
        self._work(self._options.prefill_ms * total / self._grid)
        for chunk in chunks:
            self._extend(chunk)
        self._last = [self._slots[chunk.slot] if chunk.want else [] for chunk in chunks]

    def _extend(self, chunk: Chunk) -> None:
        start, end = chunk.start, chunk.start + len(chunk.tokens)
        self._whole(chunk.slot)
        if not chunk.tokens or start // self._grid != (end - 1) // self._grid:
            raise ValueError(f"chunk {start}..{end} is off the grid of {self._grid}")
        for position, token in enumerate(chunk.tokens, start):
            self._append(chunk.slot, position, token, b"chunk %d %d" % (start, end))

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute a step; ValueError when the slots are not consecutive and ascending."""
        taken = [row.slot for row in rows]
        if taken != list(range(taken[0], taken[0] + len(taken))):
            raise ValueError(f"slots {taken} are not consecutive and ascending")
        if len(taken) > self.info.high or (len(taken) < self.info.low and taken[0] != 0):
            raise ValueError(f"slots {taken}: a batch of another width is needed")
        self._work(self._options.step_ms)
        for row in rows:
            self._append(row.slot, row.position, row.token, b"step")
            self._shifted.discard(row.slot)
        self._last = [self._slots[row.slot] if row.want else [] for row in rows]

    def sampler(self, goal: Goal, tokens: Sequence[int]) -> Sampler:
        """All that the choice depends on beside the KV."""
        return FakeSampler(goal, tokens)

    def compile(self, grammar: str) -> None:
        """Refuse what is no grammar."""
        gbnf.parse(grammar)

    def sample(self, draws: Sequence[Draw]) -> list[Drawn | OSError]:
        """The token that follows from each row's KV."""
        return [self._draw(draw) for draw in draws]

    def likeliest(self, rows: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
        """What may come next, from a distribution that follows from each row's KV."""
        return [distribution(self._last[row])[: count + 1] for row in rows]

    def copy(self, source: int, target: int) -> None:
        """Make a slot's KV a copy of another's."""
        self._slots[target] = list(self._slots[source])

    def save_all(self, slots: Sequence[int], path: str, record: Record) -> int:
        """Write several slots' KV, each after its length."""
        parts = [_packed(self._slots[slot]) for slot in slots]
        data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)

        def fill(address: int, size: int) -> int:
            memmove(address, data, size)
            return size

        return self._files.write(path, record, len(data), fill)

    def restore_all(self, slots: Sequence[int], path: str, check: Check) -> int:
        """Read them back."""

        def take(address: int, size: int) -> int:
            data = string_at(address, size)
            for slot in slots:
                length = int.from_bytes(data[:8], "little")
                self._slots[slot] = _unpacked(data[8 : 8 + length])
                data = data[8 + length :]
            return size

        return self._files.read(path, check, take)

    def save(self, slot: int, path: str, record: Record) -> int:
        """Write a real file; ValueError when the slot does not hold what the record says."""
        held = self._slots[slot]
        self._whole(slot)
        kept = runs.window(record.tokens, record.runs)
        if [token for token, _ in held] != [record.tokens[at] for at in kept]:
            raise ValueError(f"slot {slot}: its {len(held)} cells are not those on record")
        data = _packed(held)

        def fill(address: int, size: int) -> int:
            memmove(address, data, size)
            return size

        return self._files.write(path, record, len(data), fill)

    def restore(self, slot: int, path: str, check: Check) -> int:
        """Read it back."""

        def take(address: int, size: int) -> int:
            self._slots[slot] = _unpacked(string_at(address, size))
            return size

        return self._files.read(path, check, take)

    def truncate(self, slot: int, kv: int) -> None:
        """Roll back; OSError(ESTALE) when told that it can't."""
        if not self._options.rolls_back and len(self._slots[slot]) > kv:
            raise OSError(errno.ESTALE, "this model's memory can't be rolled back")
        self._whole(slot)
        del self._slots[slot][kv:]

    def shift(self, slot: int, keep: int, gone: int) -> None:
        """What follows the gap is another KV from now on; ValueError off the grid."""
        if not self._options.shifts:
            raise OSError(errno.ENOTSUP, "this model's memory can't be shifted")
        held = self._slots[slot]
        if gone % self._grid or not 0 < gone <= len(held) - keep:
            raise ValueError(f"slot {slot}: {gone} of {len(held)} cells can't go after {keep}")
        moved = [(t, _digest(d, b"shift %d" % gone)) for t, d in held[keep + gone :]]
        self._slots[slot] = held[:keep] + moved
        self._shifted.add(slot)

    def _whole(self, *slots: int) -> None:
        if broken := self._shifted.intersection(slots):
            raise ValueError(f"slots {broken} have shifted and not been decoded since")

    def move(self, source: int, target: int) -> None:
        """ValueError when the target holds something."""
        if self._slots[target] or source == target:
            raise ValueError(f"slot {target} is not empty")
        self.swap(source, target)

    def swap(self, a: int, b: int) -> None:
        """Exchange two slots."""
        self._whole(a, b)
        self._slots[a], self._slots[b] = self._slots[b], self._slots[a]

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._shifted.discard(slot)
        self._slots[slot] = []

    def _append(self, slot: int, position: int, token: int, how: bytes) -> None:
        held = self._slots[slot]
        if len(held) != position:
            raise ValueError(f"slot {slot}: position {position} after {len(held)}")
        if position >= self.info.n_ctx:
            raise ValueError(f"slot {slot}: position {position} of {self.info.n_ctx}")
        before = held[-1][1] if held else self._origin
        digest = _digest(before, token.to_bytes(2, "little"), how)
        held.append((token, digest))

    def _work(self, milliseconds: float) -> None:
        self._calls += 1
        if self._calls == self._options.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        while self._calls == self._options.hang:
            time.sleep(3600)
        began = time.perf_counter()
        if milliseconds:
            time.sleep(milliseconds / 1e3)
        self.device_seconds = time.perf_counter() - began

    def _draw(self, draw: Draw) -> Drawn | OSError:
        assert isinstance(draw.sampler, FakeSampler)
        goal, held = draw.sampler.goal, self._last[draw.row]
        said = len(goal.said) + len(draw.tokens) - goal.prompt_len
        ends = said >= goal.sampling.min_tokens
        dice = _digest(held[-1][1], _salt(goal.sampling, draw))
        seed = watermark.seed(self._secret, draw.tokens[-1]) if goal.sampling.watermark else None
        for _ in range(4 if seed else 1):  # marked: another try for a token that is not green
            if draw.sampler.matcher is not None:
                token = _within(draw.sampler.matcher, dice, ends)
            else:
                token = self._choose(held, dice, ends)
            if seed is None or watermark.green(seed, token):
                break
            dice = _digest(dice)
        if token < 0:
            return OSError(errno.EINVAL, "grammar: no byte can go on from here")
        how, logprob = goal.sampling, -(1 + dice[6]) / 64
        others = range(how.top_logprobs)
        top = [((token + other) % (EOG + 1), logprob - other) for other in others]
        return Drawn(token, logprob if how.logprobs else 0.0, top)

    def _choose(self, held: list[tuple[int, bytes]], dice: bytes, ends: bool) -> int:
        number = int.from_bytes(dice[:4], "little")
        following = _following([token for token, _ in held[-3:]])
        if following:
            return following[number % len(following)]
        if ends and number < self._options.eog * 2**32:
            return EOG
        if dice[4] < 32:
            return WIDE[dice[5] % len(WIDE)][0]
        return LETTERS[dice[5] % len(LETTERS)]


class FakeSampler:
    """A sequence's sampler: it remembers where it is in its grammar."""

    def __init__(self, goal: Goal, tokens: Sequence[int]) -> None:
        self.goal = goal
        self.matcher = Matcher(gbnf.parse(goal.grammar)) if goal.grammar else None
        for token in goal.output(list(tokens)):
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        if self.matcher is not None and token != EOG:
            try:
                self.matcher.take(token)
            except ValueError as e:
                raise OSError(errno.EINVAL, f"grammar: what was generated breaks it: {e}") from e


def _within(matcher: Matcher, dice: bytes, ends: bool) -> int:
    """A token that a grammar allows, with a liking for what closes things; -1 when there is none.

    An end that min_tokens forbids is chosen all the same where nothing else may follow.
    """
    allowed = [byte for byte in range(256) if matcher.allows(byte)]
    if matcher.complete and (not allowed or (ends and dice[7] < 64)):
        return EOG
    closing = [byte for byte in b'"}],:' if byte in allowed] if dice[8] < 96 else []
    plain = [byte for byte in allowed if 32 <= byte < 127] if dice[9] < 240 else []
    some = closing or plain or allowed
    return some[int.from_bytes(dice[:4], "little") % len(some)] if some else -1


def _salt(how: Sampling, draw: Draw) -> bytes:
    """What a choice depends on beside the KV; nothing when it is greedy and plain."""
    parts: list[object] = []
    if how.temperature > 0:
        parts += [how.temperature, how.top_p, how.top_k, how.min_p, how.seed, draw.position]
    if how.logit_bias:
        parts.append(sorted(how.logit_bias.items()))
    if how.frequency_penalty or how.presence_penalty or how.repeat_penalty != 1:
        parts += [how.frequency_penalty, how.presence_penalty, how.repeat_penalty]
        parts.append(draw.tokens[-how.penalty_window :])
    return msgspec.msgpack.encode(parts) if parts else b""


def _packed(held: list[tuple[int, bytes]]) -> bytes:
    return b"".join(token.to_bytes(2, "little") + digest for token, digest in held)


def _unpacked(data: bytes) -> list[tuple[int, bytes]]:
    width = ENTRY + 2
    return [
        (int.from_bytes(data[at : at + 2], "little"), data[at + 2 : at + width])
        for at in range(0, len(data), width)
    ]


def distribution(held: list[tuple[int, bytes]]) -> list[tuple[int, float]]:
    """What a beam search sees: tokens and their log-probabilities, the likeliest first."""
    dice = _digest(held[-1][1], b"distribution")
    following = _following([token for token, _ in held[-3:]])
    tokens = following or [EOG, *sorted(set(LETTERS))]
    weights = [math.exp(dice[i % ENTRY] / 64) for i in range(len(tokens))]
    if not following:  # an end is likely now and then, and else is not
        weights[0] = 100.0 if dice[-1] < 20 else 0.1
    total = sum(weights)
    found = [(t, math.log(w / total)) for t, w in zip(tokens, weights, strict=True)]
    return sorted(found, key=lambda option: (-option[1], option[0]))


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=ENTRY).digest()


def _following(tail: list[int]) -> list[int]:
    """The bytes that can complete a wide character which the tail has begun."""
    for n in range(len(tail), 0, -1):
        begun = tuple(tail[-n:])
        found = [c[n] for c in WIDE if len(c) > n and tuple(c[:n]) == begun]
        if found:
            return found
    return []


def _knowing(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    """A template that knows tools: it has a turn for them, and writes calls in angle brackets."""
    turns = [{"role": "system", "content": f"tools: {json.dumps(tools)}"}] if tools else []
    for message in messages:
        calls = (one["function"] for one in message.get("tool_calls", ()))
        written = [
            f'<call>{{"name": "{one["name"]}", "arguments": {json.dumps(one["arguments"])}}}</call>'
            for one in calls
        ]
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<result>{content}</result>"
        turns.append({"role": role, "content": "\n".join([*[content][: bool(content)], *written])})
    return _template(turns)


def _template(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    turns = (f"<|{m['role']}|>{m['content']}<|end|>\n" for m in messages)
    if any(m["role"] not in ("system", "user", "assistant") for m in messages):
        raise ValueError("roles are system, user and assistant")
    return "".join(turns) + "<|assistant|>"


def _parse(text: str) -> list[int]:
    tokens: list[int] = []
    while text:
        token = next((t for t, word in CONTROL.items() if text.startswith(word)), None)
        if token is None:
            tokens += text[0].encode()
            text = text[1:]
        else:
            tokens.append(token)
            text = text[len(CONTROL[token]) :]
    return tokens
