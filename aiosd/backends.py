"""The back ends of storage, by name: the one that new blobs go to, and those that have older ones.

    backends = Backends(settings)                       # raises OSError: what is wrong, what to do
    key = draft.commit(); place = backends.place(key)   # NAME:KEY, as the database has it
    backends.open(place); backends.delete(place)

Another back end is a class with the methods of `blobs.Backend`, entered in BACKENDS; one beyond a
network needs no more than the five methods of `remote.Shelf`. Its library is imported only where
the settings name it.

What must hold: a blob is looked for where it was put, whatever the settings say now; one store
never touches what is another's (`store` names this database, and begins every name outside).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from aiosd.blobdir import Directory
from aiosd.blobs import Backend, Draft, Reader
from aiosd.remote import Remote
from aiosd.settings import Storage

if TYPE_CHECKING:
    from aiosd.remote import Shelf

LOCAL: Final = "directory"


def _s3(settings: Storage) -> Shelf:
    from aiosd import s3

    return s3.Bucket(settings.s3, os.environ)


def _postgres(settings: Storage) -> Shelf:
    from aiosd import postgres

    return postgres.Table(settings.postgres, os.environ)


SHELVES: Final[dict[str, Callable[[Storage], Shelf]]] = {"s3": _s3, "postgres": _postgres}
BACKENDS: Final = (LOCAL, *SHELVES)
NEEDS: Final = {"obstore": "s3", "asyncpg": "postgres"}
"""Libraries, and the extra that brings each."""


class Backends:
    """All back ends in use. name: of the one that new blobs go to."""

    def __init__(self, settings: Storage) -> None:
        self._settings = settings
        self._store = ""
        self._lock = threading.Lock()
        self.local = Directory(settings)
        self._made: dict[str, Backend] = {LOCAL: self.local}
        self.name = settings.backend
        self._current = self._make(settings.backend)

    def prepare(self, store: str) -> None:
        """Make ready at boot; remove drafts that an earlier kernel left. Asks no server.

        store: a word that no other database of objects has.
        """
        self._store = store
        self.local.prepare()

    def draft(self) -> Draft:
        """Begin a blob."""
        return self._current.draft()

    def place(self, key: str) -> str:
        """Return what the database calls a key of the current back end."""
        return f"{self.name}:{key}"

    def open(self, place: str) -> Reader:
        """Open a blob, wherever it is."""
        backend, key = self._find(place)
        return backend.open(key)

    def delete(self, place: str) -> None:
        """Remove a blob."""
        backend, key = self._find(place)
        backend.delete(key)

    def places(self) -> Iterator[str]:
        """Yield all that is in the back ends that are in use."""
        for name, backend in list(self._made.items()):
            for key in backend.all():
                yield f"{name}:{key}"

    def free(self) -> int:
        """Return how many bytes there is room for."""
        return self._current.free()

    def use(self, name: str) -> None:
        """Make ready a back end that has older blobs; raises OSError."""
        with self._lock:
            if name not in self._made:
                self._make(name)

    def close(self) -> None:
        """Let go of all."""
        for backend in self._made.values():
            backend.close()

    def _find(self, place: str) -> tuple[Backend, str]:
        name, _, key = place.partition(":")
        if name not in self._made:
            self.use(name)
        return self._made[name], key

    def _make(self, name: str) -> Backend:
        if name not in self._made:
            self._made[name] = self._reach(name)
        return self._made[name]

    def _reach(self, name: str) -> Backend:
        if name not in SHELVES:
            known = ", ".join(BACKENDS)
            raise OSError(errno.EINVAL, f"storage.backend: {name!r}; there are {known}")
        try:
            shelf = SHELVES[name](self._settings)
        except ModuleNotFoundError as error:
            if error.name not in NEEDS:
                raise
            raise OSError(
                errno.ENOSYS,
                f"storage.backend {name!r} needs the package {error.name}: "
                f"pip install 'aios[{NEEDS[error.name]}]'",
            ) from None
        return Remote(name, shelf, self.local, lambda: self._store, self._settings.timeout)
