"""Commands about stored objects: store put, get, ls, rm, history, rollback, search.

What a person stores is his own; --pool names a group's shared pool instead. Objects pass through in
parts: neither the command nor the kernel ever holds a whole one.
"""

from __future__ import annotations

import mimetypes
import os
import secrets
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from aiosh import link, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.storage import Passage, StoredObject

app = typer.Typer()
store = typer.Typer(no_args_is_help=True)
app.add_typer(store, name="store", help="Keep objects by name, with their versions.")

PART: Final = 1 << 20

Name = Annotated[str, typer.Argument(help="name of the object", metavar="NAME")]
Pool = Annotated[str, typer.Option("--pool", "-p", help="a group's shared pool")]
Version = Annotated[int, typer.Option("--version", "-v", min=0, help="0: the newest")]

OBJECTS: Final[list[Column[StoredObject]]] = [
    Column("NAME", lambda o: o.name, least=12),
    Column("VERSION", lambda o: str(o.version), right=True),
    Column("SIZE", lambda o: tables.size(o.size), right=True),
    Column("TYPE", lambda o: o.content_type, least=8),
    Column("CREATED", lambda o: tables.clock(o.created)),
    Column("SHA256", lambda o: o.digest[:12]),
    Column("", lambda o: "encrypted" if o.encrypted else ""),
]
PASSAGES: Final[list[Column[Passage]]] = [
    Column("NAME", lambda p: p.name, least=12),
    Column("VERSION", lambda p: str(p.version), right=True),
    Column("AT", lambda p: str(p.start), right=True),
    Column("SCORE", lambda p: f"{p.score:.4f}", right=True),
    Column("TEXT", lambda p: " ".join(p.text.split()), least=16),
]


@store.command()
def put(
    name: Name,
    file: Annotated[str, typer.Argument(help="file to read; -: standard input")] = "-",
    kind: Annotated[str, typer.Option("--type", "-t", help="default: by the file's name")] = "",
    meta: Annotated[
        list[str] | None,
        typer.Option("--meta", "-m", metavar="NAME=TEXT", help="metadata; again for more"),
    ] = None,
    pool: Pool = "",
    json: Json = False,
) -> None:
    """Write a new version of an object."""
    kind = kind or mimetypes.guess_type(name if file == "-" else file)[0] or ""
    facts: dict[str, Any] = {
        "content_type": kind or "application/octet-stream",
        "metadata": dict(map(_fact, meta or [])),
        "pool": pool,
    }
    reading = nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb")  # noqa: SIM115
    with reading as source, link.kernel() as kernel:
        upload, offset, part = secrets.token_hex(8), 0, _next(source)
        while True:
            following = _next(source) if len(part) == PART else b""
            stored = kernel.sto_write(
                name, part, offset=offset, last=not following, upload=upload, **facts
            )
            if not following:
                break
            offset, part = offset + len(part), following
    if json:
        tables.print_json(stored)


@store.command()
def get(
    name: Name,
    file: Annotated[str, typer.Argument(help="file to write; -: standard output")] = "-",
    version: Version = 0,
    pool: Pool = "",
) -> None:
    """Read an object; a file is there whole or not at all."""
    with link.kernel() as kernel, kernel.sto_read(name, version=version, pool=pool) as parts:
        if file == "-":
            for part in parts:
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            return
        partial = f"{file}.{secrets.token_hex(4)}.part"
        try:
            with open(partial, "xb") as target:
                for part in parts:
                    target.write(part)
            os.replace(partial, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise


@store.command()
def ls(
    prefix: Annotated[str, typer.Argument(help="what names begin with")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 1000,
    pool: Pool = "",
    json: Json = False,
) -> None:
    """List objects."""
    with link.kernel() as kernel:
        rows = kernel.sto_list(prefix=prefix, limit=limit, pool=pool)
    tables.show(OBJECTS, rows, json)


@store.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="names of objects", metavar="NAME...")],
    pool: Pool = "",
) -> None:
    """Delete objects with all their versions."""
    with link.kernel() as kernel:
        for name in names:
            kernel.sto_delete(name, pool=pool)


@store.command()
def history(
    name: Name,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 100,
    pool: Pool = "",
    json: Json = False,
) -> None:
    """List the versions of an object, the newest first."""
    with link.kernel() as kernel:
        rows = kernel.sto_history(name, limit=limit, pool=pool)
    tables.show(OBJECTS, rows, json)


@store.command()
def rollback(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="version to go back to")],
    pool: Pool = "",
    json: Json = False,
) -> None:
    """Make an older version the newest again; those between stay in the history."""
    with link.kernel() as kernel:
        stored = kernel.sto_rollback(name, version, pool=pool)
    if json:
        tables.print_json(stored)


@store.command()
def search(
    words: Annotated[list[str], typer.Argument(help="what to look for", metavar="QUERY...")],
    k: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="passages")] = 10,
    mode: Annotated[str, typer.Option("--mode", help="vector, keyword or hybrid")] = "hybrid",
    prefix: Annotated[str, typer.Option("--prefix", help="only names that begin so")] = "",
    pool: Pool = "",
    json: Json = False,
) -> None:
    """Find passages of stored texts, by meaning, by words, or both."""
    with link.kernel() as kernel:
        rows = kernel.sto_search(" ".join(words), k=k, mode=mode, prefix=prefix, pool=pool)
    tables.show(PASSAGES, rows, json)


def _next(source: BinaryIO) -> bytes:
    """Return the next PART bytes, fewer only at the end, also of a pipe."""
    found = b""
    while len(found) < PART and (data := source.read(PART - len(found))):
        found += data
    return found


def _fact(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise link.Misuse(f"--meta {text}: write it as author=Ada")
    return name, value
