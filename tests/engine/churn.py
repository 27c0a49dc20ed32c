"""A cruel kernel: sequences are parked, moved, saved, dropped and killed at random.

`churn` runs them all to their end on a core with fewer slots than sequences; `alone` runs each by
itself on a worker that has seen nothing else. What they produce must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from aiosd.engine import protocol as p
from tests.engine.kernel import Sequence, Worker

Open = Callable[[], Worker]
Result = tuple[list[int], str, str]


def result(sequence: Sequence) -> Result:
    assert sequence.lost is None
    return sequence.tokens, sequence.text, sequence.finish


def alone(worker: Worker, sequence: Sequence) -> Result:
    """Run one sequence on a worker that holds no other."""
    worker.admit(sequence)
    worker.finish(sequence)
    worker.evict(sequence.cid)
    return result(sequence)


class Churn:
    """Runs sequences on a core with too few slots; `kills` times the worker is killed."""

    def __init__(self, open_worker: Open, files: Path, seed: int, kills: int = 0) -> None:
        self._open = open_worker
        self._files = files
        self._random = Random(seed)
        self._kills = kills
        self._worker = open_worker()
        self._resident: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []
        self._saved: dict[int, int] = {}
        self.moves = 0

    def run(self, sequences: list[Sequence]) -> list[Result]:
        """Results in the order given."""
        self._waiting = list(sequences)
        while not all(s.finish for s in sequences):
            self._fill()
            for _ in range(self._random.randint(1, 4)):
                if any(not s.finish for s in self._resident.values()):
                    self._worker.wait(p.Step)
            for sequence in [s for s in self._resident.values() if s.finish]:
                self._worker.evict(sequence.cid)
                del self._resident[sequence.cid]
            self._disturb()
        return [result(s) for s in sequences]

    def _fill(self) -> None:
        slots = self._worker.loaded.slots
        while self._waiting and len(self._resident) < slots:
            sequence = self._waiting.pop(self._random.randrange(len(self._waiting)))
            kv = self._saved.get(sequence.cid, 0)
            self._worker.admit(sequence, kv, self._path(sequence) if kv else "")
            self._resident[sequence.cid] = sequence

    def _disturb(self) -> None:
        """Do one thing to one running sequence, or kill the worker."""
        running = [s for s in self._resident.values() if not s.finish]
        if not running:
            return
        sequence = self._random.choice(running)
        if self._kills and self._random.random() < 0.1:
            self._kill()
        else:
            kv = self._worker.park(sequence.cid).kv  # less than was once computed, in a replay
            if not sequence.finish:
                act = self._random.choice([self._resume, self._save, self._swap, self._drop])
                act(sequence, kv)
        self.moves += 1

    def _resume(self, sequence: Sequence, kv: int) -> None:
        self._worker.admit(sequence, kv)

    def _save(self, sequence: Sequence, kv: int) -> None:
        self._worker.send(p.Save(sequence.cid, self._path(sequence)))
        saved = self._worker.wait(p.Saved)
        assert saved.kv == kv
        self._saved[sequence.cid] = kv
        self._resume(sequence, kv)

    def _swap(self, sequence: Sequence, kv: int) -> None:
        evicted = self._worker.evict(sequence.cid, self._path(sequence))
        assert evicted.kv == kv
        self._saved[sequence.cid] = kv
        self._waiting.append(self._resident.pop(sequence.cid))

    def _drop(self, sequence: Sequence, kv: int) -> None:
        self._worker.evict(sequence.cid)
        self._waiting.append(self._resident.pop(sequence.cid))

    def _kill(self) -> None:
        self._kills -= 1
        self._worker.kill()
        self._waiting += [s for s in self._resident.values() if not s.finish]
        self._resident.clear()
        self._worker = self._open()

    def _path(self, sequence: Sequence) -> str:
        return str(self._files / str(sequence.cid))
