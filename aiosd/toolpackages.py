"""Tools of installed packages: those that come with AIOS, and entry points of the group aios.tools.

    packages = Packages(settings, state_dir, hidden, catalog)
    await packages.discover()         # once; again after `forget`

The kernel imports no tool. A process in a box imports the modules and prints what they declare;
what it said is kept on disk under the versions of the packages and the times of the files, so the
next kernel needs no such process. It begins with the first call that asks for tools, not at boot.

What must hold: a module that can't be imported, hangs or lies takes no other one down; `problems`
of the catalog says what is wrong with it.
"""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import hashlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from aiosd import toolproc
from aiosd.box import Box
from aiosd.catalog import Catalog
from aiosd.declaration import Declaration, declare
from aiosd.settings import Tools

log = logging.getLogger(__name__)

GROUP: Final = "aios.tools"
OURS: Final = "aios"
MOST: Final = 256
"""Modules that are looked at."""
TIME_S: Final = 120.0
OUTPUT: Final = 8 << 20
MEMORY: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a package. name: of its entry point; print: tells it from another version."""

    package: str
    name: str
    value: str
    print: str


class Packages:
    """Finds the tools of packages. hidden: paths that no box shows."""

    def __init__(
        self,
        settings: Callable[[], Tools],
        state_dir: str,
        hidden: tuple[str, ...],
        catalog: Catalog,
    ) -> None:
        self._settings = settings
        self._folder = Path(state_dir, "tools", "declaring")
        self._known = Path(state_dir, "tools", "declared.json")
        self._hidden = hidden
        self._catalog = catalog
        self._finding: asyncio.Task[None] | None = None

    async def discover(self) -> None:
        """Return once the tools of all packages are in the catalog."""
        if not self._settings().packages:
            return
        if self._finding is None:
            self._finding = asyncio.get_running_loop().create_task(self._find())
        await asyncio.shield(self._finding)

    def forget(self) -> None:
        """Look again when somebody next asks."""
        if self._finding is not None and self._finding.done():
            self._finding = None

    async def close(self) -> None:
        """Look no further."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)

    async def _find(self) -> None:
        modules = await asyncio.to_thread(_modules, self._settings().packages)
        for source in self._catalog.sources("package"):
            self._catalog.drop(source)
        if not modules:
            return
        print = hashlib.sha256(repr(modules).encode()).hexdigest()
        said = await asyncio.to_thread(_read, self._known, print)
        if said is None:
            said = await self._ask(modules)
            if not said["failed"]:
                await asyncio.to_thread(_write, self._known, print, said)
        self._enter(modules, said)

    async def _ask(self, modules: list[Module]) -> dict[str, Any]:
        """Have the modules declare their tools: all at once, else one by one."""
        names = [module.value for module in modules]
        try:
            return await self._declare(names)
        except OSError as error:
            if len(names) == 1:
                return {"tools": [], "failed": {names[0]: error.strerror}}
        said: dict[str, Any] = {"tools": [], "failed": {}}
        for name in names:
            try:
                one = await self._declare([name])
            except OSError as error:
                said["failed"][name] = error.strerror
                continue
            said["tools"] += one["tools"]
            said["failed"] |= one["failed"]
        return said

    async def _declare(self, names: list[str]) -> dict[str, Any]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        box = Box(
            argv=(sys.executable, "-m", "aios.toolhost", "--declare", *names),
            workspace=str(self._folder),
            hidden=self._hidden,
            memory=MEMORY,
            cpu_s=int(TIME_S),
        )
        spec = toolproc.Spec(tool="declaring", box=box, limit=OUTPUT)
        process = await toolproc.start(spec, stdin=False)
        try:
            await asyncio.wait({process.exited}, timeout=TIME_S)
            said, told = process.stdout.take(), process.stderr.take()
        finally:
            await process.end()
        try:
            return msgspec.convert(msgspec.json.decode(said), dict[str, Any]) | {}
        except (msgspec.DecodeError, msgspec.ValidationError):
            last = told.decode(errors="replace").strip()[-300:]
            raise OSError(errno.EIO, f"declared nothing within {TIME_S:g} s: {last}") from None

    def _enter(self, modules: list[Module], said: dict[str, Any]) -> None:
        packages = {module.value: module.package for module in modules}
        found: dict[str, list[Declaration]] = {}
        for raw in said.get("tools", []):
            value = str(raw.get("python", ""))
            package = packages.get(value) or packages.get(value.partition(":")[0])
            if package is None:
                log.warning("a tool of no package was declared: %.80r", raw)
                continue
            source = f"package:{package}"
            try:
                found.setdefault(source, []).append(declare(raw, source))
            except OSError as error:
                self._problem(f"{source}:{value}", str(error.strerror))
        for value, why in said.get("failed", {}).items():
            self._problem(f"package:{packages.get(value, '?')}:{value}", str(why))
        for source, tools in found.items():
            self._catalog.put(source, tools)

    def _problem(self, source: str, why: str) -> None:
        self._catalog.problems[source] = why
        log.warning("%s declares no tool: %s", source, why)


def _modules(patterns: list[str]) -> list[Module]:
    """Return the modules that are served, in order."""
    found = {module.value: module for module in (*_ours(), *_installed())}
    wanted = [
        module
        for module in found.values()
        if any(fnmatch.fnmatchcase(module.name, pattern) for pattern in patterns)
    ]
    return sorted(wanted, key=lambda module: (module.package, module.value))[:MOST]


def _ours() -> list[Module]:
    """Return the modules that come with AIOS: beside this package, or inside of it."""
    here = Path(__file__).resolve().parent
    for folder, prefix in ((here / "agents", "aiosd.agents"), (here.parent / "agents", "agents")):
        if (folder / "tools").is_dir():
            files = sorted((folder / "tools").glob("[a-z]*.py"))
            files = [file for file in files if b"@tool" in file.read_bytes()]
            return [
                Module(OURS, file.stem, f"{prefix}.tools.{file.stem}", _print(file))
                for file in files
            ]
    return []


def _installed() -> list[Module]:
    found = []
    for point in metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else "?"
        if package != OURS:
            version = point.dist.version if point.dist else ""
            top = importlib.util.find_spec(point.module.partition(".")[0])
            time = _print(Path(top.origin)) if top and top.origin else ""
            found.append(Module(package, point.name, point.value, f"{version} {time}"))
    return found


def _print(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _read(path: Path, print: str) -> dict[str, Any] | None:
    """Return what was said before, if it was by these very modules."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=tuple[str, dict[str, Any]])
    except (OSError, msgspec.MsgspecError):
        return None
    return kept[1] if kept[0] == print else None


def _write(path: Path, print: str, said: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(msgspec.json.encode((print, said)))
        os.replace(fresh, path)
    except OSError as error:
        log.warning("what tools declare is not kept: %s", error)
