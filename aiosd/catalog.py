"""The catalog: every tool that is declared, whoever declared it.

    catalog = Catalog(db, settings)
    await catalog.boot()                    # what was registered is there again
    catalog.read_manifests()                # again after SIGHUP
    tool = catalog.get("add")               # FileNotFoundError that names what is near
    catalog.put("mcp:files", declarations)  # all of one source, in place of what it had

Sources: `manifest:FILE` (a directory of TOML files, which the operator writes), `registered`
(register_tool; durable), `package:NAME` (entry points), `mcp:NAME`, `kernel` (kerneltools.py).
Where two declare one name, the one whose source comes first in ORDER counts; the other is kept as
shadowed, and `problems` says so.

What must hold: a manifest that is wrong takes nothing else down: it is named in `problems`.
"""

from __future__ import annotations

import difflib
import errno
import logging
import sqlite3
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd.abi.tools import ListToolSources, ToolSource
from aiosd.access import Caller
from aiosd.declaration import Declaration, declare, widen
from aiosd.keys import answerer
from aiosd.killpoint import reach
from aiosd.settings import Tools

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

log = logging.getLogger(__name__)

ORDER: Final = ("manifest", "registered", "package", "mcp", "kernel")
"""Kinds of sources: of tools with one name, the first counts."""
REGISTERED: Final = "registered"
MANIFEST_MAX: Final = 256 << 10
MANIFESTS: Final = 1024
MOST: Final = 4096
"""Tools that may be registered."""


class Catalog:
    """All declared tools. settings: where manifests are, now."""

    def __init__(self, db: Database, settings: Callable[[], Tools]) -> None:
        self._db = db
        self._settings = settings
        self._sources: dict[str, dict[str, Declaration]] = {REGISTERED: {}}
        self._tools: dict[str, Declaration] = {}
        self.problems: dict[str, str] = {}
        """What is wrong, by the source that it is wrong with."""

    def __iter__(self) -> Iterator[Declaration]:
        return iter([self._tools[name] for name in sorted(self._tools)])

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def get(self, name: str) -> Declaration:
        """Return a tool; FileNotFoundError when there is none of that name."""
        found = self._tools.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._tools, 1)
            hint = f"did you mean {near[0]!r}?" if near else "list_tools says what there is"
            raise FileNotFoundError(errno.ENOENT, f"there is no tool {name!r}; {hint}")
        return found

    def put(self, source: str, tools: Iterable[Declaration]) -> None:
        """Let these be the tools of a source."""
        self._sources[source] = {tool.name: tool for tool in tools}
        self._merge()

    def drop(self, source: str) -> None:
        """Forget a source with its tools and its problem."""
        self._sources.pop(source, None)
        self.problems.pop(source, None)
        self._merge()

    def sources(self, kind: str) -> list[str]:
        """Return the sources of a kind."""
        return [source for source in self._sources if source.partition(":")[0] == kind]

    def _merge(self) -> None:
        tools: dict[str, Declaration] = {}
        for source in sorted(self._sources, key=_rank):
            for name, tool in self._sources[source].items():
                tools.setdefault(name, tool)
        self._tools = {name: self._widened(tool) for name, tool in tools.items()}

    def _widened(self, tool: Declaration) -> Declaration:
        """Return a tool with what the operator lets it reach besides."""
        self.problems.pop(f"needs:{tool.name}", None)
        more = self._settings().needs.get(tool.name)
        if not more:
            return tool
        try:
            return widen(tool, more)
        except OSError as error:
            self.problems[f"needs:{tool.name}"] = str(error.strerror)
            log.warning("%s", error.strerror)
            return tool

    def sys_list_tool_sources(self, caller: Caller, args: ListToolSources) -> list[ToolSource]:
        """Say where tools come from, and what is wrong there."""
        return [
            ToolSource(name, len(self._sources.get(name, ())), self.problems.get(name, ""))
            for name in sorted(self._sources.keys() | self.problems.keys())
        ]

    # Manifests.

    def read_manifests(self) -> None:
        """Read the directories again; a file that is wrong is logged and listed. Blocks."""
        for source in self.sources("manifest") + [s for s in self.problems if _is_manifest(s)]:
            self._sources.pop(source, None)
            self.problems.pop(source, None)
        for folder in self._settings().path:
            for file in sorted(Path(folder).glob("*.toml"))[:MANIFESTS]:
                self._read(file)
        self._merge()

    def _read(self, file: Path) -> None:
        source = f"manifest:{file}"
        try:
            with file.open("rb") as opened:
                data = opened.read(MANIFEST_MAX + 1)
            if len(data) > MANIFEST_MAX:
                raise OSError(errno.EFBIG, f"a manifest has at most {MANIFEST_MAX} bytes")
            raw = tomllib.loads(data.decode())
            tool = declare(raw, source, base=str(file.parent), operator=True)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.problems[source] = str(reason)
            log.warning("%s declares no tool: %s", file, reason)
            return
        twin = [each for each in self.sources("manifest") if tool.name in self._sources[each]]
        if twin:
            self.problems[source] = f"{tool.name} is declared by {twin[0][9:]} already"
            log.warning("%s: %s", file, self.problems[source])
            return
        self._sources[source] = {tool.name: tool}

    # Registered tools.

    async def boot(self) -> None:
        """Read what was registered."""
        rows = await self._db.read(
            lambda db: db.execute("select name, declaration from tools").fetchall()
        )
        for name, text in rows:
            try:
                tool = declare(msgspec.json.decode(text), REGISTERED)
            except (OSError, msgspec.DecodeError) as error:  # written by another version
                self.problems[f"{REGISTERED}:{name}"] = str(error)
                log.warning("the registered tool %s can't be used: %s", name, error)
                continue
            self._sources[REGISTERED][name] = tool
        self._merge()

    async def register(self, raw: dict[str, Any], replace: bool, reply: Any) -> Declaration:
        """Add a tool for good. reply: what is answered, made of the declaration.

        Raises OSError: EINVAL, FileExistsError unless `replace`.
        """
        tool = declare(raw, REGISTERED)
        mine = self._sources[REGISTERED]
        known = self._tools.get(tool.name)
        if known is not None and not (replace and known.source == REGISTERED):
            raise _taken(tool.name, known.source)
        if len(mine) >= MOST and tool.name not in mine:
            raise OSError(errno.ENOSPC, f"{MOST} tools are registered, the limit; remove some")
        text = msgspec.json.encode(msgspec.structs.replace(tool, source="")).decode()
        answer = answerer()

        def write(db: Connection) -> None:
            verb = "insert or replace" if replace else "insert"
            db.execute(f"{verb} into tools values (?, ?)", (tool.name, text))
            answer(db, reply(tool))
            reach("tools.registered")

        try:
            await self._db.write(write)
        except sqlite3.IntegrityError:  # another one was quicker
            raise _taken(tool.name, REGISTERED) from None
        mine[tool.name] = tool
        self.problems.pop(f"{REGISTERED}:{tool.name}", None)
        self._merge()
        return tool

    async def remove(self, name: str, reply: Any) -> Declaration:
        """Take a registered tool away. Raises FileNotFoundError when none has that name."""
        tool = self._sources[REGISTERED].get(name)
        if tool is None:
            where = f"; {self._tools[name].source} declares it" if name in self._tools else ""
            raise FileNotFoundError(errno.ENOENT, f"no tool {name!r} was registered{where}")
        answer = answerer()

        def write(db: Connection) -> None:
            db.execute("delete from tools where name = ?", (name,))
            answer(db, reply(tool))

        await self._db.write(write)
        self._sources[REGISTERED].pop(name, None)
        self._merge()
        return tool


def _taken(name: str, source: str) -> FileExistsError:
    cure = "set replace" if source == REGISTERED else "take another name"
    return FileExistsError(errno.EEXIST, f"there is a tool {name!r} already ({source}); {cure}")


def _rank(source: str) -> tuple[int, str]:
    kind = source.partition(":")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), source)


def _is_manifest(source: str) -> bool:
    return source.startswith("manifest:")
