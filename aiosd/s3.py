"""Chunks of blobs as objects of an S3-compatible store, through obstore (`pip install 'aios[s3]'`).

    shelf = Bucket(settings, os.environ)

One object a chunk, written by one PUT: it is there whole or not at all, and no unfinished multipart
upload is ever left behind. The object's SHA-256 goes with it, so that the store refuses what has
changed on the way.

Keys come from the first of these that there is: AIOS_S3_KEYS, the systemd credential aios-s3-keys,
the file `key_file` (0600): the access key's id and the secret, with a blank or a line between.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from aiosd import credential
from aiosd.remote import line, unreachable
from aiosd.settings import S3

CHUNK: Final = 8 << 20
AT_ONCE: Final = 16


class Bucket:
    """A bucket, below a prefix. Raises OSError for settings or keys that are no good."""

    chunk = CHUNK

    def __init__(self, settings: S3, environ: Mapping[str, str]) -> None:
        if not settings.bucket:
            raise OSError(errno.EINVAL, "storage.s3.bucket: name the bucket, an existing one")
        text = credential.load("AIOS_S3_KEYS", "aios-s3-keys", settings.key_file, environ)
        words = text.split()
        if len(words) != 2:
            raise OSError(
                errno.EINVAL,
                "the keys of the S3 store (AIOS_S3_KEYS, the credential aios-s3-keys, or "
                "storage.s3.key_file) are two words: the access key's id and the secret",
            )
        self._secret = words
        self._what = f"the S3 store at {settings.endpoint or settings.region}"
        self._prefix = settings.prefix.strip("/") + "/" if settings.prefix.strip("/") else ""
        self._gate = asyncio.Semaphore(AT_ONCE)
        hour = timedelta(hours=1)  # the time of each request is remote.py's business
        self._store = S3Store(
            settings.bucket,
            endpoint=settings.endpoint or None,
            region=settings.region,
            access_key_id=words[0],
            secret_access_key=words[1],
            virtual_hosted_style_request=False,
            checksum_algorithm="SHA256",
            disable_bulk_delete=True,  # not every store has it
            client_options={
                "allow_http": settings.endpoint.startswith("http://"),
                "timeout": hour,
                "connect_timeout": hour,
            },
            retry_config={"max_retries": 0, "retry_timeout": hour},
        )

    async def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        async with self._gate:
            try:
                await obstore.put_async(self._store, self._prefix + name, data, use_multipart=False)
            except (BaseError, OSError) as error:
                raise self._told(error) from None

    async def get(self, name: str, start: int, size: int) -> bytes:
        """Read a range of an object."""
        async with self._gate:
            try:
                got = await obstore.get_range_async(
                    self._store, self._prefix + name, start=start, length=size
                )
            except (BaseError, OSError) as error:
                raise self._told(error) from None
        return bytes(got)

    async def delete(self, prefix: str) -> None:
        """Delete objects."""
        try:
            async for rows in obstore.list(self._store, prefix=self._prefix + prefix):
                for row in rows:
                    await obstore.delete_async(self._store, row["path"])
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._told(error) from None

    async def names(self, prefix: str) -> list[str]:
        """List what is below a prefix."""
        try:
            found = await obstore.list_with_delimiter_async(self._store, self._prefix + prefix)
        except (BaseError, OSError) as error:
            raise self._told(error) from None
        return [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    async def close(self) -> None:
        """Nothing is held."""

    def _told(self, error: Exception) -> OSError:
        if isinstance(error, NotFoundError | FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, f"{self._what} has no such object")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return PermissionError(
                errno.EACCES,
                f"{self._what} refuses our keys, or what they may do in the bucket: "
                + line(error, *self._secret),
            )
        return unreachable(self._what, error, *self._secret)
