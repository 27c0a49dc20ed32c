"""The soak's part about what agents keep: texts and objects, their own and those of a group.

Each keeper does one thing after the other, and knows what it was told. What must hold: what was
acknowledged is there, as it was acknowledged; what was not is there whole or not at all; bytes are
those of their checksum; nobody ever holds more than the limits; and in the end every text is found
by its words and by its meaning, and no bytes are left that nobody refers to.
"""

from __future__ import annotations

import errno
import hashlib
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aios.errors import ConnectionLost
from tests.daemon import PATIENCE

if TYPE_CHECKING:
    import aios

RECORDS: Final = 30
BYTES: Final = 40_000
OBJECTS: Final = 8
STORED: Final = 3_000_000
VERSIONS: Final = 3
WORKING: Final = 4000
LIMITS: Final = f"""
[memory]
embedder = "fake"
records = {RECORDS}
bytes = {BYTES}
[storage]
objects = {OBJECTS}
bytes = {STORED}
keep_versions = {VERSIONS}
sweep = "200ms"
"""
"""What keepers often come up against."""

POOL: Final = "club"
TOGETHER: Final = {
    "memory_records": 60,
    "memory_bytes": 80_000,
    "storage_objects": 18,
    "storage_bytes": 5_000_000,
}
"""What quotas allow keepers and pool together; of the pool they take the place of LIMITS."""
PART: Final = 200_000
NAMES: Final = 5

Versions = list[tuple[int, str]]
Rows = Callable[[str], list[tuple[Any, ...]]]


class Keeper:
    """One agent, what it was told, and in doubt: what the call that is under way may change.

    life: tells one kernel from the next.
    """

    def __init__(self, index: int, seed: int, life: Callable[[], int]) -> None:
        self.tag = f"keeper{index}"
        self.texts: dict[int, str] = {}
        self.objects: dict[tuple[str, str], Versions] = {}
        self.owner = ""
        self.done = 0
        self._new = ""  # a text that is being added
        self._text: tuple[int, str] = (0, "")  # a text that is changed into another, or deleted
        self._object: tuple[tuple[str, str], Versions] | None = None  # what it may become
        self._life = life
        self._rng = random.Random(seed)

    async def live(self, kernel: aios.AsyncKernel, over: Callable[[], bool]) -> None:
        """Do something of everything until it is over."""
        self.owner = str(kernel.aid)
        await kernel.mem_alloc(WORKING)
        deeds = {
            self._add: 8, self._update: 3, self._forget: 2, self._write: 8, self._write_in_parts: 3,
            self._delete: 2, self._roll_back: 3, self._read: 4, self._jot: 3,
        }  # fmt: skip
        while not over():
            deed: Callable[[aios.AsyncKernel], Coroutine[Any, Any, None]]
            [deed] = self._rng.choices(list(deeds), list(deeds.values()))
            try:
                await deed(kernel)
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
                await self._make_room(kernel)
            self._new, self._text, self._object = "", (0, ""), None
            self.done += 1

    # What is done.

    async def _add(self, kernel: aios.AsyncKernel) -> None:
        self._new = self._make_text()
        pool = self._rng.choice(["", POOL])
        record = await kernel.add_memory(self._new, pool=pool, metadata={"by": self.tag})
        assert record.id not in self.texts, "one record was made twice"
        self.texts[record.id] = self._new

    async def _update(self, kernel: aios.AsyncKernel) -> None:
        if self.texts:
            id = self._rng.choice(list(self.texts))
            self._text = (id, self._make_text())
            changed = await kernel.update_memory(id, text=self._text[1])
            assert changed.text == self._text[1]
            self.texts[id] = changed.text

    async def _forget(self, kernel: aios.AsyncKernel) -> None:
        if self.texts:
            id = self._rng.choice(list(self.texts))
            self._text = (id, "")
            await kernel.delete_memory(id)
            del self.texts[id]

    async def _write(self, kernel: aios.AsyncKernel) -> None:
        place, data = self._place(), self._rng.randbytes(self._rng.randrange(30_000))
        self._expect(place, _digest(data))
        stored = await kernel.sto_write(place[1], data, pool=place[0])
        self._written(place, stored, _digest(data))

    async def _write_in_parts(self, kernel: aios.AsyncKernel) -> None:
        place = self._place()
        data = self._rng.randbytes(self._rng.randrange(2 * PART, 4 * PART))
        self._expect(place, _digest(data))
        key = self._rng.randbytes(12).hex()
        while True:
            try:
                stored = await self._send(kernel, place, data, key)
                break
            except OSError as error:  # its kernel has died: what was sent is gone
                if error.errno not in (errno.EINVAL, errno.EAGAIN):
                    raise
        self._written(place, stored, _digest(data))

    async def _send(
        self, kernel: aios.AsyncKernel, place: tuple[str, str], data: bytes, key: str
    ) -> aios.StoredObject:
        for at in range(0, len(data), PART):
            last = at + PART >= len(data)
            stored = await kernel.sto_write(
                place[1], data[at : at + PART], offset=at, last=last, upload="u", pool=place[0],
                key=key if last else "",
            )  # fmt: skip
        return stored

    async def _delete(self, kernel: aios.AsyncKernel) -> None:
        if self.objects:
            place = self._rng.choice(list(self.objects))
            self._object = (place, [])
            await kernel.sto_delete(place[1], pool=place[0])
            del self.objects[place]

    async def _roll_back(self, kernel: aios.AsyncKernel) -> None:
        if self.objects:
            place = self._rng.choice(list(self.objects))
            version, digest = self._rng.choice(self.objects[place])
            self._expect(place, digest)
            stored = await kernel.sto_rollback(place[1], version, pool=place[0])
            self._written(place, stored, digest)

    async def _read(self, kernel: aios.AsyncKernel) -> None:
        if self.texts:
            id = self._rng.choice(list(self.texts))
            assert (await kernel.get_memory(id)).text == self.texts[id]
        if self.objects:
            place = self._rng.choice(list(self.objects))
            version, digest = self._rng.choice(self.objects[place])
            assert _digest(await _whole(kernel, place, version)) == digest

    async def _jot(self, kernel: aios.AsyncKernel) -> None:
        """Write to working memory: it is there until the kernel ends."""
        life, value = self._life(), self._rng.randbytes(self._rng.randrange(WORKING))
        try:
            space = await kernel.mem_write("note", value)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return
        assert space.used <= space.limit
        try:
            assert await kernel.mem_read("note") == value
        except FileNotFoundError:
            assert self._life() != life, "working memory is lost without a kernel's end"

    async def _make_room(self, kernel: aios.AsyncKernel) -> None:
        self._new, self._text, self._object = "", (0, ""), None
        for _ in range(3):
            await self._forget(kernel)
            await self._delete(kernel)
            self._text, self._object = (0, ""), None

    def _make_text(self) -> str:
        words = " ".join(f"w{self._rng.randrange(500)}" for _ in range(self._rng.randrange(400)))
        return f"{self.tag} number{self.done} {words}"

    def _place(self) -> tuple[str, str]:
        return self._rng.choice(["", POOL]), f"{self.tag}/{self._rng.randrange(NAMES)}"

    def _expect(self, place: tuple[str, str], digest: str) -> None:
        old = self.objects.get(place, [])
        version = old[-1][0] + 1 if old else 1
        self._object = (place, [*old, (version, digest)][-VERSIONS:])

    def _written(self, place: tuple[str, str], stored: aios.StoredObject, digest: str) -> None:
        assert self._object is not None
        assert (stored.version, stored.digest) == self._object[1][-1] == (stored.version, digest)
        self.objects[place] = self._object[1]

    # What must hold.

    def look(self, rows: Rows) -> None:
        """What was acknowledged is there, and what is in doubt is as before or as after."""
        texts: dict[int, str] = dict(
            rows(f"select id, text from memories where text like '{self.tag} %'")
        )
        for id, text in self.texts.items():
            before_or_after = (text, self._text[1]) if self._text[0] == id else (text,)
            assert texts.pop(id, "") in before_or_after, f"{self.tag}: record {id} is lost"
        texts.pop(self._text[0], "")
        assert list(texts.values()) in ([], [self._new]), f"{self.tag}: {texts} were never added"
        found: dict[tuple[str, str], Versions] = {}
        for kind, name, object, version, digest in rows(_VERSIONS % self.tag):
            assert kind == "pool" or name == self.owner
            found.setdefault((POOL if kind == "pool" else "", object), []).append((version, digest))
        for place in self.objects.keys() | found.keys():
            allowed = [self.objects.get(place, [])]
            if self._object is not None and self._object[0] == place:
                allowed.append(self._object[1])
            assert found.get(place, []) in allowed, f"{place}: {found.get(place)}, not {allowed}"

    async def count(self, kernel: aios.AsyncKernel) -> None:
        """Every text is found, by its words and by its meaning; every object is read."""
        for mode in ("keyword", "vector"):
            found = set()
            for pool in ("", POOL):
                hits = await kernel.search_memory(self.tag, k=5 * RECORDS, mode=mode, pool=pool)
                found |= {hit.id for hit in hits if hit.metadata["by"] == self.tag}
            assert found == set(self.texts), f"{mode}: {found ^ set(self.texts)}"
        for place, versions in self.objects.items():
            for version, digest in versions:
                assert _digest(await _whole(kernel, place, version)) == digest


def look(rows: Rows, blobs: Path) -> None:
    """Nobody holds more than the limits, and all bytes that are referred to are there and right."""
    most = {"agent": (RECORDS, BYTES, OBJECTS, STORED), "pool": tuple(TOGETHER.values())}
    for kind, count, size in rows(_REMEMBERED):
        assert count <= most[kind][0] and size <= most[kind][1], f"{count} records of {size} bytes"
    for kind, count, size in rows(_HELD):
        assert count <= most[kind][2] and size <= most[kind][3], f"{count} objects of {size} bytes"
    for digest, size in rows("select distinct digest, size from versions"):
        try:
            data = (blobs / digest[:2] / digest[2:]).read_bytes()
        except FileNotFoundError:  # deleted since, perhaps
            assert not rows(f"select 1 from versions where digest = '{digest}'"), "bytes are lost"
            continue
        assert (_digest(data), len(data)) == (digest, size)


def left_over(rows: Rows, blobs: Path) -> None:
    """Return when no bytes are left that nobody refers to."""
    deadline = time.monotonic() + PATIENCE
    while True:
        files = {file.parent.name + file.name for file in blobs.rglob("*") if file.is_file()}
        if files == {digest for (digest,) in rows("select distinct digest from versions")}:
            return
        assert time.monotonic() < deadline, f"bytes are left over: {files}"
        time.sleep(0.05)


async def _whole(kernel: aios.AsyncKernel, place: tuple[str, str], version: int) -> bytes:
    """Read an object; a stream that its kernel's end cuts off is begun again."""
    while True:
        try:
            stream = kernel.sto_read(place[1], version=version, pool=place[0])
            return b"".join([part async for part in stream])
        except ConnectionLost:
            continue


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_VERSIONS: Final = (
    "select w.kind, w.name, o.name, v.version, v.digest from versions as v"
    " join objects as o on o.id = v.object join owners as w on w.id = o.owner"
    " where o.name like '%s/%%' order by v.version"
)
_REMEMBERED: Final = (
    "select kind, count(*), sum(size) from memories join owners on owners.id = owner group by owner"
)
_HELD: Final = (
    "select kind, count(distinct object), sum(size) from versions"
    " join objects on objects.id = object join owners on owners.id = owner group by owner"
)
