"""The vault: encrypts what belongs to somebody, under keys that nobody but the kernel has.

    vault = Vault(lambda: load_keys(path, os.environ))
    sealed = vault.seal("agent:5", data, b"sto/notes/3")     # also from another thread
    data = vault.unseal("agent:5", sealed, b"sto/notes/3")   # OSError(EBADMSG) when it is not that

Every owner has a key of its own, derived (HKDF-SHA256) from a master key; data is encrypted and
authenticated with AES-256-GCM, bound to its owner and to a context that the caller gives (what it
is, so that one ciphertext can't be put in another's place).

Master keys come from the first of these that there is: the variable AIOS_MASTER_KEY, the systemd
credential `aios-master-key`, the file (0600, made with a fresh key at first use). Each is a list of
keys, 32 bytes in base64 each; the last one encrypts, all decrypt. `rotate` appends a fresh one to
the file; what was encrypted under older ones can be read for as long as they stay in the list.

What must hold: no key is ever logged, shown or passed on; a key file that others could read, or
that is not a plain file of ours, is refused; sealed data that was changed is never returned.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from aiosd.abi.accounts import DecryptData, EncryptData
from aiosd.access import Caller
from aiosd.directory import sync_directory

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VARIABLE: Final = "AIOS_MASTER_KEY"
CREDENTIAL: Final = "aios-master-key"
KEY: Final = 32
NONCE: Final = 12
VERSION: Final = b"\x01"
HEAD: Final = len(VERSION) + 4
OVERHEAD: Final = HEAD + NONCE + 16
"""Bytes that sealed data has beyond the plain: version, key id, nonce, tag."""
OWNERS: Final = 1024
"""Owners whose keys are kept derived."""
INLINE: Final = 64 << 10
"""Bytes up to which it is quicker to encrypt than to ask a thread to."""
FILE_MAX: Final = 64 << 10


class Vault:
    """Seals and unseals. load: reads the master keys, oldest first; called at the first use."""

    def __init__(self, load: Callable[[], list[bytes]]) -> None:
        self._load = load
        self._lock = threading.Lock()  # guards what follows: it is used from several threads
        self._masters: dict[bytes, bytes] = {}
        self._current = b""
        self._ciphers: dict[tuple[bytes, str], AESGCM] = {}

    def reload(self) -> None:
        """Read the master keys again when they are next needed."""
        with self._lock:
            self._masters, self._current = {}, b""
            self._ciphers.clear()

    def seal(self, owner: str, data: bytes, context: bytes = b"") -> bytes:
        """Encrypt an owner's data; OSError when there is no master key or no library."""
        id, cipher = self._cipher(owner)
        nonce = secrets.token_bytes(NONCE)
        head = VERSION + id
        return head + nonce + cipher.encrypt(nonce, data, _bound(head, owner, context))

    def unseal(self, owner: str, sealed: bytes, context: bytes = b"") -> bytes:
        """Decrypt an owner's data.

        Raises OSError(EBADMSG) when it was changed, is another owner's, belongs to another
        context, or was encrypted under a master key that is no longer there.
        """
        head, nonce = sealed[:HEAD], sealed[HEAD : HEAD + NONCE]
        if len(sealed) < OVERHEAD or not head.startswith(VERSION):
            raise OSError(errno.EBADMSG, "this was not encrypted here, or its beginning is missing")
        _, cipher = self._cipher(owner, head[1:])
        from cryptography.exceptions import InvalidTag

        try:
            return cipher.decrypt(nonce, sealed[HEAD + NONCE :], _bound(head, owner, context))
        except InvalidTag:
            raise OSError(
                errno.EBADMSG, "this was changed, or it was encrypted for somebody else"
            ) from None

    def has_key(self, sealed: bytes) -> bool:
        """Whether the master key is there that data says it was sealed under."""
        with self._lock:
            return sealed[len(VERSION) : HEAD] in self._masters or len(sealed) < OVERHEAD

    def _cipher(self, owner: str, id: bytes = b"") -> tuple[bytes, AESGCM]:
        """Return an owner's cipher under the current master key, or under the one named."""
        with self._lock:
            if not self._masters:
                self._masters = {_id(key): key for key in self._load()}
                self._current = list(self._masters)[-1]
            id = id or self._current
            master = self._masters.get(id)
            if master is None:
                raise OSError(
                    errno.EBADMSG,
                    f"this was encrypted under master key {id.hex()}, which is not there: "
                    "put it back before the newer ones",
                )
            cipher = self._ciphers.get((id, owner))
            if cipher is None:
                if len(self._ciphers) >= OWNERS:
                    self._ciphers.clear()
                cipher = self._ciphers[id, owner] = _derive(master, owner)
            return id, cipher

    # -- the calls ------------------------------------------------------------------------------

    async def sys_encrypt_data(self, caller: Caller, args: EncryptData) -> bytes:
        """Encrypt bytes under the caller's key: the agent's, or the person's."""
        return await _aside(len(args.data), lambda: self.seal(caller.subject, args.data, b"data"))

    async def sys_decrypt_data(self, caller: Caller, args: DecryptData) -> bytes:
        """Decrypt what encrypt_data gave this caller; EBADMSG for anything else."""
        return await _aside(len(args.data), lambda: self.unseal(caller.subject, args.data, b"data"))


async def _aside(size: int, deed: Callable[[], bytes]) -> bytes:
    return deed() if size <= INLINE else await asyncio.to_thread(deed)


def _bound(head: bytes, owner: str, context: bytes) -> bytes:
    """Return what is authenticated with the data: lengths keep one part from being another's."""
    who = owner.encode()
    return head + len(who).to_bytes(2, "little") + who + context


def _id(master: bytes) -> bytes:
    return hashlib.sha256(b"aios master key id\0" + master).digest()[:4]


def _derive(master: bytes, owner: str) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise OSError(
            errno.ENOSYS, "the package cryptography is missing: pip install 'aios[daemon]'"
        ) from None
    info = b"aios owner key\0" + owner.encode()
    return AESGCM(HKDF(SHA256(), KEY, None, info).derive(master))


# Where master keys are.


def load_keys(path: str, environ: Mapping[str, str]) -> list[bytes]:
    """Return the master keys, oldest first; makes the file when there is nothing else.

    Raises PermissionError for a file that is not ours alone, OSError(EINVAL) for what is no key.
    """
    if text := environ.get(VARIABLE, ""):
        return _parse(text, VARIABLE)
    if directory := environ.get("CREDENTIALS_DIRECTORY", ""):
        credential = os.path.join(directory, CREDENTIAL)
        with contextlib.suppress(FileNotFoundError), open(credential, encoding="ascii") as file:
            return _parse(file.read(FILE_MAX), credential)
    try:
        return _parse(_read(path), path)
    except FileNotFoundError:
        _replace(path, [secrets.token_bytes(KEY)])
        return _parse(_read(path), path)


def rotate(path: str, environ: Mapping[str, str]) -> str:
    """Append a fresh master key to the file; return its id in hex.

    Raises OSError(EINVAL) where the keys don't come from the file.
    """
    if environ.get(VARIABLE):
        raise OSError(errno.EINVAL, f"the master keys come from {VARIABLE}: append a new one there")
    keys = [*load_keys(path, {}), secrets.token_bytes(KEY)]
    _replace(path, keys)
    return _id(keys[-1]).hex()


def _parse(text: str, source: str) -> list[bytes]:
    keys = []
    for line in text.splitlines():
        for word in line.partition("#")[0].split():
            try:
                key = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != KEY:
                raise OSError(errno.EINVAL, f"{source}: a key is {KEY} bytes in base64, one is not")
            keys.append(key)
    if not keys:
        raise OSError(errno.EINVAL, f"{source}: has no master key in it")
    return keys


def _read(path: str) -> str:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(file)
        alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if not alone or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(
                errno.EPERM, "the master key file must be ours alone: a plain file, mode 0600", path
            )
        return os.read(file, FILE_MAX).decode("ascii", "replace")
    finally:
        os.close(file)


def _replace(path: str, keys: list[bytes]) -> None:
    """Write the file anew: it is there with all keys, or as it was."""
    head = "# AIOS master keys, oldest first; the last one encrypts. Lost keys are lost data.\n"
    text = "".join(base64.urlsafe_b64encode(key).decode() + "\n" for key in keys)
    beside = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(beside, flags, 0o600)
    try:
        os.write(file, (head + text).encode())
        os.fsync(file)
    finally:
        os.close(file)
    os.rename(beside, path)
    sync_directory(os.path.dirname(path) or ".")
