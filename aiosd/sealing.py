"""Sealing: the bytes of stored objects encrypted at rest, on their way to the back end and back.

    seal = sealing.begin(owner, name)               # None: this owner's objects are not encrypted
    draft = SealedDraft(backend.draft(), seal)      # a Draft whose back end sees ciphertext alone
    seal = sealing.of(owner, name, blob.seal)       # of bytes that are there
    data = seal.open(piece, number, size)

An object is sealed in chunks of CHUNK bytes (PLAIN of them the object's own) by the vault, under
its owner's key. Each is bound to the owner, the object's name, a salt of this very write, its place
and whether it is the last: a chunk that was changed, moved, taken from elsewhere or left out is
noticed. What the back end has is named by the SHA-256 of the ciphertext, which is never twice the
same; that of the plain bytes is kept sealed, with the salt, in `blobs.seal`.

Blocks, and is called in threads. What must hold: no plain byte of a sealed object reaches a disk,
its digest and the words of a text among them; a byte that was not sealed here is never returned.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from aiosd.blobs import PIECE, Blob, Draft
from aiosd.owners import Owner
from aiosd.settings import Storage as Settings
from aiosd.vault import OVERHEAD, Vault

CHUNK: Final = 64 << 10
"""Bytes of a sealed chunk; PIECE is a multiple of it, so that each chunk lies in one piece."""
PLAIN: Final = CHUNK - OVERHEAD
"""Bytes of the object in it."""
CHUNKS: Final = PIECE // CHUNK
STEP: Final = CHUNKS * PLAIN
"""Bytes of the object in one piece of the blob."""
SALT: Final = 16


class Sealing:
    """Says what is sealed, and under whose key. settings: gives [storage] as it is now."""

    def __init__(self, vault: Vault, settings: Callable[[], Settings]) -> None:
        self._vault = vault
        self._settings = settings

    def begin(self, owner: Owner, name: str) -> Seal | None:
        """Return what seals a new object, None where it stays plain.

        Raises OSError(ENOKEY) when it can't be sealed.
        """
        wanted = self._settings().encrypt
        if wanted == "off":
            return None
        if wanted != "all" and not {owner.subject, f"uid:{owner.uid}"} & set(wanted):
            return None
        seal = Seal(self._vault, owner.subject, name, secrets.token_bytes(SALT))
        seal.close(b"", 0, last=True)  # before anything is written: is there a key?
        return seal

    def of(self, owner: Owner, name: str, kept: bytes) -> Seal:
        """Return what opens a sealed object. kept: `blobs.seal`."""
        return Seal(self._vault, owner.subject, name, kept[:SALT])


@dataclass(frozen=True)
class Seal:
    """What one object's bytes are bound to. owner: as grants name it."""

    vault: Vault
    owner: str
    name: str
    salt: bytes

    def close(self, data: bytes, number: int, *, last: bool) -> bytes:
        """Encrypt chunk `number`; raises OSError(ENOKEY) when there is no key to do it."""
        try:
            return self.vault.seal(self.owner, data, self._bound(number, last))
        except OSError as error:
            raise OSError(
                errno.ENOKEY,
                f"the object can't be encrypted ([storage] encrypt): {error.strerror or error}",
            ) from None

    def open(self, piece: bytes, number: int, size: int) -> bytes:
        """Decrypt piece `number` of a blob. size: of the object.

        Raises OSError: ENOKEY when its master key is not there, EBADMSG when it is not what was
        sealed.
        """
        first, last = number * CHUNKS, max(0, size - 1) // PLAIN
        parts = []
        for chunk in range(first, min(first + CHUNKS, last + 1)):  # those that must be there
            at = (chunk - first) * CHUNK
            parts.append(self._open(piece[at : at + CHUNK], chunk, last=chunk == last))
        return b"".join(parts)

    def keep(self, digest: bytes) -> bytes:
        """Return what is kept on record: the salt, and the digest of the plain bytes, sealed."""
        return self.salt + self.close(digest, -1, last=True)

    def digest(self, kept: bytes) -> str:
        """Return the digest of the plain bytes in hex; "" when there is no key to read it."""
        try:
            return self._open(kept[SALT:], -1, last=True).hex()
        except OSError:
            return ""

    def _open(self, sealed: bytes, number: int, *, last: bool) -> bytes:
        try:
            return self.vault.unseal(self.owner, sealed, self._bound(number, last))
        except OSError as error:
            if error.errno == errno.EBADMSG and self.vault.has_key(sealed):
                raise
            raise OSError(errno.ENOKEY, error.strerror or str(error)) from None

    def _bound(self, number: int, last: bool) -> bytes:
        """Return what a chunk is bound to beside its owner: all of fixed length but the name."""
        place = number.to_bytes(8, "little", signed=True)
        return b"sto" + self.salt + place + bytes([last]) + self.name.encode()


class SealedDraft:
    """A blob that is being written, encrypted before the back end's own draft has it.

    size: plain bytes so far. One chunk waits here, for only the end tells whether it is the last.
    """

    def __init__(self, draft: Draft, seal: Seal) -> None:
        self.size = 0
        self._draft = draft
        self._seal = seal
        self._digest = hashlib.sha256()
        self._chunk = bytearray()
        self._number = 0

    def write(self, data: bytes) -> None:
        """Append."""
        self._digest.update(data)
        view = memoryview(data)
        while view:
            if len(self._chunk) == PLAIN:
                self._put(last=False)
            part = view[: PLAIN - len(self._chunk)]
            self._chunk += part
            view = view[len(part) :]
        self.size += len(data)

    def _put(self, *, last: bool) -> None:
        self._draft.write(self._seal.close(bytes(self._chunk), self._number, last=last))
        self._number += 1
        self._chunk.clear()

    def finish(self) -> Blob:
        """Write the last chunk, and make all of it durable."""
        self._put(last=True)
        return replace(self._draft.finish(), seal=self._seal.keep(self._digest.digest()))

    def commit(self) -> str:
        """Put it in its place."""
        return self._draft.commit()

    def discard(self) -> None:
        """Remove it."""
        self._draft.discard()
