"""An index: one space's vectors in memory, and its file.

    index = open_index(directory, space, dim)    # as it was kept, or empty
    index.put(ids, revs, vectors); index.remove(ids)
    ids, scores = index.search(vector, k, allowed)
    index.keep()

By hnswlib where it is installed, else (and always for little) every vector is compared. What must
hold: a file is used only when its checksum, its space and its dimension are right, for hnswlib
trusts what it reads; whatever is wrong with it, the index begins empty and is filled anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

try:
    import hnswlib
except ImportError:  # every vector is compared then
    hnswlib = None

Ids = NDArray[np.int64]
Revs = NDArray[np.int32]
Vectors = NDArray[np.float32]

log = logging.getLogger(__name__)

FEW: Final = 2000
"""Vectors up to which comparing all of them is as quick as any index, and exact."""
M: Final = 16
EF_CONSTRUCTION: Final = 200
EF: Final = 200
"""Candidates that a search looks at, at least; more find more of the true neighbours, slower."""
VERSION: Final = 1


class Index:
    """The vectors of one space. changed: what the file lacks."""

    def __init__(self, path: Path, space: str, dim: int) -> None:
        self.path = path
        self.space = space
        self.dim = dim
        self.changed = 0
        self.revs: dict[int, int] = {}
        self._graph: Any = None  # hnswlib's, beyond FEW vectors
        self._labels: set[int] = set()  # what it holds, deleted ones too
        self._dead = 0  # labels in the graph that are deleted
        self._rows: dict[int, int] = {}  # id -> row of _flat, while there is no graph
        self._flat = np.zeros((0, dim), dtype=np.float32)
        self._ids = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.revs)

    def put(self, ids: Ids, revs: Revs, vectors: Vectors) -> None:
        """Add vectors, or replace those of the same ids.

        Raises OSError(EINVAL) for vectors of another length, or that are not finite.
        """
        if vectors.shape != (len(ids), self.dim) or len(revs) != len(ids):
            raise OSError(errno.EINVAL, f"{len(ids)} vectors of {self.dim} numbers were expected")
        if not np.isfinite(vectors).all():
            raise OSError(errno.EINVAL, "a vector is not finite")
        if self._graph is None and hnswlib is not None and len(self) + len(ids) > FEW:
            self._build()
        if self._graph is not None:
            self._grow(len(ids))
            for id in ids.tolist():
                if id in self.revs:
                    continue
                if id in self._labels:
                    self._graph.unmark_deleted(id)
                    self._dead -= 1
            self._graph.add_items(vectors, ids)
            self._labels.update(ids.tolist())
        else:
            self._append(ids, vectors)
        self.revs.update(zip(ids.tolist(), revs.tolist(), strict=True))
        self.changed += len(ids)

    def remove(self, ids: list[int]) -> None:
        """Take ids out, those that are there."""
        for id in ids:
            if self.revs.pop(id, None) is None:
                continue
            self.changed += 1
            if self._graph is not None:
                self._graph.mark_deleted(id)
                self._dead += 1
            else:
                self._drop(id)

    @property
    def worn(self) -> bool:
        """Whether so much was deleted that it should be filled anew."""
        return self._dead > FEW and self._dead > len(self)

    def search(self, vector: Vectors, k: int, allowed: Ids | None) -> tuple[Ids, Vectors]:
        """Return the k nearest ids, the nearest first, and their cosine similarity."""
        if allowed is not None:
            allowed = allowed[[id in self.revs for id in allowed.tolist()]]
            k = min(k, len(allowed))
        k = min(k, len(self))
        if not k:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if self._graph is None:
            return self._compare(vector, k, allowed)
        if allowed is not None and len(allowed) < len(self):
            return self._among(vector, k, allowed)
        self._graph.set_ef(max(EF, 2 * k))
        labels, distances = self._graph.knn_query(vector[None], k=k, num_threads=1)
        return labels[0].astype(np.int64), (1.0 - distances[0]).astype(np.float32)

    # The file.

    def keep(self) -> None:
        """Write the file: to another name, synced, renamed. Little is not worth one."""
        self.changed = 0
        if self._graph is None:
            self.path.unlink(missing_ok=True)
            return
        partial = self.path.with_suffix(".part")
        self._graph.save_index(str(partial))
        ids = np.fromiter(self.revs, dtype=np.int64, count=len(self.revs))
        revs = np.fromiter(self.revs.values(), dtype=np.int32, count=len(self.revs))
        facts = {"version": VERSION, "space": self.space, "dim": self.dim, "count": len(ids)}
        head = json.dumps(facts | {"sum": _sum(partial)}).encode()
        tail = head + ids.tobytes() + revs.tobytes()
        with self.path.with_suffix(".ids.part").open("wb") as file:
            file.write(xxhash.xxh3_64_digest(tail) + len(head).to_bytes(8, "little") + tail)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        os.replace(partial, self.path)
        os.replace(self.path.with_suffix(".ids.part"), self.path.with_suffix(".ids"))

    def load(self) -> None:
        """Take up the file. Raises OSError or ValueError when it can't be used."""
        raw = self.path.with_suffix(".ids").read_bytes()
        size = int.from_bytes(raw[8:16], "little")
        if xxhash.xxh3_64_digest(raw[16:]) != raw[:8]:
            raise ValueError("its checksum is wrong")
        facts = json.loads(raw[16 : 16 + size])
        count = facts["count"]
        found = (facts["version"], facts["space"], facts["dim"], facts["sum"])
        if found != (VERSION, self.space, self.dim, _sum(self.path)) or hnswlib is None:
            raise ValueError("it belongs to another index")
        ids = np.frombuffer(raw, dtype="<i8", count=count, offset=16 + size)
        revs = np.frombuffer(raw, dtype="<i4", count=count, offset=16 + size + 8 * count)
        graph = hnswlib.Index(space="ip", dim=self.dim)
        graph.load_index(str(self.path), max_elements=0)
        self._graph = graph
        self._labels = set(graph.get_ids_list())
        self.revs = dict(zip(ids.tolist(), revs.tolist(), strict=True))
        self._dead = len(self._labels) - len(self.revs)

    # Inside: few vectors, all compared.

    def _append(self, ids: Ids, vectors: Vectors) -> None:
        for id, vector in zip(ids.tolist(), vectors, strict=True):
            row = self._rows.get(id)
            if row is None:
                row = self._rows[id] = len(self._rows)
                if row == len(self._flat):
                    more = max(16, row)
                    self._flat = np.concatenate(
                        [self._flat, np.zeros((more, self.dim), dtype=np.float32)]
                    )
                    self._ids = np.concatenate([self._ids, np.zeros(more, dtype=np.int64)])
            self._flat[row] = vector
            self._ids[row] = id

    def _drop(self, id: int) -> None:
        row, last = self._rows.pop(id), len(self._rows)
        if row != last:
            self._flat[row] = self._flat[last]
            self._ids[row] = self._ids[last]
            self._rows[int(self._ids[last])] = row

    def _compare(self, vector: Vectors, k: int, allowed: Ids | None) -> tuple[Ids, Vectors]:
        count = len(self._rows)
        flat, ids = self._flat[:count], self._ids[:count]
        if allowed is not None:
            rows = [self._rows[id] for id in allowed.tolist()]
            flat, ids = flat[rows], ids[rows]
        return _best(flat @ vector, ids, k)

    # Inside: many, in a graph.

    def _build(self) -> None:
        self._graph = hnswlib.Index(space="ip", dim=self.dim)
        self._graph.init_index(
            max_elements=2 * FEW, M=M, ef_construction=EF_CONSTRUCTION, random_seed=1
        )
        self._labels = set()
        count = len(self._rows)
        if count:
            self._grow(count)
            self._graph.add_items(self._flat[:count], self._ids[:count])
            self._labels.update(self._ids[:count].tolist())
        self._rows.clear()
        self._flat, self._ids = self._flat[:0], self._ids[:0]

    def _grow(self, more: int) -> None:
        needed = self._graph.get_current_count() + more
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))

    def _among(self, vector: Vectors, k: int, allowed: Ids) -> tuple[Ids, Vectors]:
        """Search only some: few are all compared, many filter the graph's walk."""
        if len(allowed) > 10 * FEW:
            known = set(allowed.tolist())
            self._graph.set_ef(max(EF, 2 * k))
            try:
                labels, distances = self._graph.knn_query(
                    vector[None], k=k, num_threads=1, filter=known.__contains__
                )
                return labels[0].astype(np.int64), (1.0 - distances[0]).astype(np.float32)
            except RuntimeError:  # the walk met too few of them
                pass
        flat = np.asarray(self._graph.get_items(allowed), dtype=np.float32)
        return _best(flat @ vector, allowed, k)


def open_index(directory: str, space: str, dim: int) -> Index:
    """Return a space's index as it was kept, or an empty one."""
    name = hashlib.blake2b(f"{space}\0{dim}".encode(), digest_size=12).hexdigest()
    path = Path(directory) / f"{name}.index"
    index = Index(path, space, dim)
    try:
        index.load()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        log.warning("index %s is made anew: %s", space, error)
        index = Index(path, space, dim)
    return index


def _best(scores: Vectors, ids: Ids, k: int) -> tuple[Ids, Vectors]:
    some = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    order = some[np.lexsort((ids[some], -scores[some]))]
    return ids[order], scores[order].astype(np.float32)


def _sum(path: Path) -> str:
    """Return a file's xxh3 in hex."""
    found = xxhash.xxh3_64()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
