"""The configuration: aiosd.toml read, checked and completed into the structs of settings.py.

    config = load(None, os.environ, {"sched.quantum": 8})

Where a value comes from, the first that has it: the command line's overrides, the environment
(AIOS_SOCKET, AIOS_STATE_DIR, AIOS_RUNTIME_DIR), the file, the default. Paths left empty stand for
their usual place: XDG for a user, FHS for the system service (`system=True`). A relative path is
relative to the file that names it.

What must hold: nothing unknown or wrong is dropped or guessed. All problems of a file are reported
at once, each with its key, the reason and, for an unknown key, the nearest valid one.
"""

from __future__ import annotations

import difflib
import errno
import functools
import grp
import hashlib
import os
import pwd
import re
import stat
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeGuard, TypeVar

import msgspec

from aiosd.modelfile import HUB, find_model, is_name, packaged_models
from aiosd.settings import (
    AT_START,
    MODEL,
    PACKAGED_MODEL,
    PATH,
    Agents,
    Config,
    Context,
    Core,
    History,
    Kernel,
    Memory,
    Rlimits,
    Sched,
    Section,
    Storage,
)

__all__ = [
    "ENVIRONMENT",
    "PACKAGED_MODEL",
    "Agents",
    "Change",
    "Config",
    "ConfigError",
    "Context",
    "Core",
    "History",
    "Kernel",
    "Memory",
    "Problem",
    "Rlimits",
    "Sched",
    "Storage",
    "default_file",
    "diff",
    "find_model",
    "find_user",
    "load",
    "make_dirs",
]

ENVIRONMENT: Final = {
    "AIOS_SOCKET": "kernel.socket",
    "AIOS_STATE_DIR": "kernel.state_dir",
    "AIOS_RUNTIME_DIR": "kernel.runtime_dir",
}


_TABLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,23}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. source: the file, a variable, "command line", or "" for a default.

    key: dotted path, as kernel.socket or cores[0].name.
    """

    source: str
    key: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.reason) if part)


class ConfigError(OSError):
    """The configuration can't be used; `problems` has every reason, one a line in the message."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(errno.EINVAL, "\n".join(map(str, problems)))
        self.problems = problems

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value differs. live: it can change while the daemon runs, else at next start."""

    key: str
    old: Any
    new: Any
    live: bool


def load(
    path: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    *,
    system: bool = False,
    choices: Mapping[str, Collection[str]] | None = None,
) -> Config:
    """Read the configuration; nothing is created.

    path: the file, or None for the usual place, where none need exist.
    overrides: values by dotted key, from the command line.
    system: FHS places instead of XDG ones.
    choices: valid words for keys that name a replaceable part, e.g. {"sched.policy": [...]}.

    Raises ConfigError with every problem, or the OSError of a file that can't be read.
    """
    reader = _Reader(environ, choices or {})
    file = Path(path) if path is not None else default_file(environ, system)
    raw = _parse(file, must_exist=path is not None)
    tree = reader.read(raw, str(file), file.absolute().parent)
    for variable, key in ENVIRONMENT.items():
        if environ.get(variable):
            tree |= reader.read(_nest(key, environ[variable]), variable, Path.cwd())
    for key, value in (overrides or {}).items():
        tree |= reader.read(_nest(key, value), "command line", Path.cwd())
    config = _resolve(_build(Config, tree, ""), environ, system)
    reader.check(config)
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def diff(old: Config, new: Config) -> list[Change]:
    """Return the keys whose values differ, and whether each can change while running."""
    return list(_changes(Config, old, new, ""))


def default_file(environ: Mapping[str, str], system: bool = False) -> Path:
    """Return where the configuration file usually is."""
    if system:
        return Path("/etc/aios/aiosd.toml")
    return _xdg(environ, "XDG_CONFIG_HOME", ".config") / "aios" / "aiosd.toml"


def find_user(user: str) -> int | None:
    """Return the uid of a user who is given by name or by number; None for an unknown name."""
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def make_dirs(config: Config) -> None:
    """Create the state, runtime and KV directories, 0700 (0710 for a group to reach the socket).

    Raises PermissionError for one that another user owns or may write to, with the cure.
    """
    kernel = config.kernel
    gid = grp.getgrnam(kernel.group).gr_gid if kernel.group else -1
    for place in (kernel.state_dir, config.context.kv_dir):
        _make_dir(Path(place), -1)
    names = ("agents", "work", "indexes", "tools", "mcp")
    inner = [Path(kernel.state_dir, name) for name in names]
    if Path(config.storage.dir).parent == Path(kernel.state_dir):
        inner.append(Path(config.storage.dir))
    for inside in inner:
        _make_inner(inside)
    _make_dir(Path(kernel.runtime_dir), gid)
    of_socket = Path(kernel.socket).parent
    if not of_socket.is_dir() or not of_socket.stat().st_mode & stat.S_ISVTX:  # as /tmp has it
        _make_dir(of_socket, gid)


def _make_dir(place: Path, gid: int) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        _check_dir(place)
        return
    if gid >= 0:
        os.chown(place, -1, gid)
        place.chmod(0o710)


def _make_inner(place: Path) -> None:
    """Make a directory inside one of ours, 0700; what is no directory of ours there is refused."""
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            reason = "not a directory of ours, perhaps a link: move it away"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(place)) from None
        place.chmod(0o700)


def _check_dir(place: Path) -> None:
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(place))
    if found.st_uid != os.geteuid():
        reason = f"user {found.st_uid} owns it: remove it, or configure another"
        raise PermissionError(errno.EPERM, reason, str(place))
    if found.st_mode & 0o022:
        reason = "other users may write to it: chmod go-w, or configure another"
        raise PermissionError(errno.EPERM, reason, str(place))


def _parse(file: Path, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(file), "", f"not valid TOML: {error}")]) from None


class _Reader:
    """Turns raw tables into checked values by dotted key, and gathers what is wrong."""

    def __init__(self, environ: Mapping[str, str], choices: Mapping[str, Collection[str]]) -> None:
        self.problems: list[Problem] = []
        self._environ = environ
        self._choices = choices
        self._source = ""
        self._base = Path()
        self._sources: dict[str, str] = {}  # of each key that has a value

    def read(self, raw: Mapping[str, Any], source: str, base: Path) -> dict[str, Any]:
        """Return the good values by dotted key. base: what relative paths are relative to."""
        self._source, self._base = source, base
        values = self._table(Config, raw, "")
        self._sources |= dict.fromkeys(values, source)
        return values

    def check(self, config: Config) -> None:
        """Check what concerns several keys, or the machine."""
        self._source = ""
        names = [core.name for core in config.cores]
        for i, core in enumerate(config.cores):
            if core.name in names[:i]:
                self._wrong(f"cores[{i}].name", f"{core.name!r} is taken by another core")
            known = packaged_models()
            if self._told(f"cores[{i}].driver"):
                continue  # the driver here is not the one that was meant
            if core.driver == "llama" and is_name(core.model) and core.model not in known:
                reason = f"no model {core.model!r}; packages carry {', '.join(sorted(known))}; "
                more = "any other is named by its GGUF file, or as hf:OWNER/NAME"
                self._wrong(f"cores[{i}].model", reason + more)
        if len(os.fsencode(config.kernel.socket)) > 107:
            reason = f"{config.kernel.socket}: longer than the 107 bytes a Unix socket may have"
            self._wrong("kernel.socket", f"{reason}; set a shorter one, or AIOS_RUNTIME_DIR")
        self._shares(config.sched)
        for name, rule in config.routing.rules.items():
            for other in rule.fallback:
                if other not in config.routing.rules:
                    reason = f"no rule {other!r}{_nearest(other, tuple(config.routing.rules))}"
                    self._wrong(f"routing.rules.{name}.fallback", reason)
        for name, server in config.tools.mcp.items():
            if bool(server.command) == bool(server.url):
                self._wrong(f"tools.mcp.{name}", "give it either a command or a url")
        groups = [group.gr_name for group in grp.getgrall()] if config.kernel.group else []
        if config.kernel.group and config.kernel.group not in groups:
            close = difflib.get_close_matches(config.kernel.group, groups, n=1)
            near = f"; did you mean {close[0]!r}?" if close else "; create it with groupadd"
            self._wrong("kernel.group", f"no group {config.kernel.group!r}{near}")

    def _told(self, key: str) -> bool:
        return any(problem.key == key for problem in self.problems)

    def _shares(self, sched: Sched) -> None:
        """Check that the users and groups of shares exist, and that nobody is in two groups."""
        of: dict[int, str] = {}
        for group, users in sched.groups.items():
            for user in users:
                uid = find_user(user)
                if uid is None:
                    self._wrong(f"sched.groups.{group}", f"no user {user!r}")
                elif of.setdefault(uid, group) != group:
                    self._wrong(f"sched.groups.{group}", f"{user!r} is in {of[uid]!r} already")
        for name in sched.weights:
            if name not in sched.groups and find_user(name) is None:
                self._wrong(f"sched.weights.{name}", "no user and none of sched.groups")

    def _wrong(self, key: str, reason: str) -> None:
        source, at = self._source, key.partition("[")[0]
        while not source and at:  # a table that the user names is on record as a whole
            source, at = self._sources.get(at, ""), at.rpartition(".")[0]
        self.problems.append(Problem(source, key, reason))

    def _table(self, cls: type[Section], raw: object, prefix: str) -> dict[str, Any]:
        if not isinstance(raw, Mapping):
            self._wrong(prefix, f"expected a table, got {raw!r}")
            return {}
        hints = _hints(cls)
        values: dict[str, Any] = {}
        for key, value in raw.items():
            dotted = f"{prefix}.{key}" if prefix else key
            hint = hints.get(key)
            if hint is None:
                self._wrong(dotted, f"unknown key{_nearest_key(dotted, list(hints))}")
            elif _is_section(hint):
                values |= self._table(hint, value, dotted)
            elif (kind := _sections(hint)) is not None:
                values[dotted] = self._named(kind, value, dotted)
            elif dotted == "cores":
                values[dotted] = self._cores(value)
            else:
                values |= self._value(hint, value, dotted)
        return values

    def _cores(self, raw: object) -> tuple[Core, ...]:
        if not isinstance(raw, list):
            self._wrong("cores", "write each core as a table [[cores]]")
            return ()
        tables = ((f"cores[{i}]", table) for i, table in enumerate(raw))
        return tuple(_build(Core, self._table(Core, table, at), at) for at, table in tables)

    def _named(self, cls: type[Section], raw: object, at: str) -> dict[str, Section]:
        """Read tables that the user names, as [tools.mcp.NAME]."""
        if not isinstance(raw, Mapping):
            self._wrong(at, f"write each as a table [{at}.NAME]")
            return {}
        for name in raw:
            if not _TABLE_NAME.fullmatch(name):
                reason = "a name has up to 24 small letters, digits and _, and begins with a letter"
                self._wrong(f"{at}.{name}", reason)
        tables = ((name, f"{at}.{name}", table) for name, table in raw.items())
        return {name: _build(cls, self._table(cls, table, key), key) for name, key, table in tables}

    def _value(self, hint: Any, value: Any, dotted: str) -> dict[str, Any]:
        marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        words = self._words(hint, dotted)
        try:
            for mark in marks:
                value = self._mark(mark, value)
            if words and value not in words:
                raise ValueError(f"{value!r} is no choice{_nearest(value, words)}")
            if isinstance(value, float) and not abs(value) < float("inf"):
                raise ValueError(f"expected a finite number, got {value}")
            return {dotted: msgspec.convert(value, hint)}
        except msgspec.ValidationError as error:
            self._wrong(dotted, _mismatch(error, marks, value))
        except ValueError as error:
            self._wrong(dotted, str(error))
        return {}

    def _words(self, hint: Any, dotted: str) -> tuple[str, ...]:
        if typing.get_origin(hint) is Literal:
            return typing.get_args(hint)
        key = re.sub(r"\[\d+\]|(?<=^routing\.rules)\.[^.]+", "", dotted)
        return tuple(self._choices.get(key, ()))

    def _mark(self, mark: object, value: Any) -> Any:
        if mark == PATH:
            return (
                [self._place(v) for v in value] if isinstance(value, list) else self._place(value)
            )
        if mark == MODEL and isinstance(value, str):
            return value if is_name(value) or value.startswith(HUB) else self._place(value)
        return mark(value) if callable(mark) else value

    def _place(self, text: Any) -> Any:
        if not isinstance(text, str) or not text:
            return text
        if text == "~" or text.startswith("~/"):
            text = str(_home(self._environ)) + text[1:]
        return os.path.normpath(self._base / text)


_S = TypeVar("_S", bound=Section)


def _build(cls: type[_S], values: Mapping[str, Any], prefix: str) -> _S:
    """Make a section from the values by dotted key, with defaults where there is none."""
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        dotted = f"{prefix}.{field.encode_name}" if prefix else field.encode_name
        if _is_section(field.type):
            given[field.name] = _build(field.type, values, dotted)
        elif dotted in values:
            given[field.name] = values[dotted]
    return cls(**given)


def _resolve(config: Config, environ: Mapping[str, str], system: bool) -> Config:
    """Fill in the places that were left empty."""
    kernel, replace = config.kernel, msgspec.structs.replace
    runtime_dir = kernel.runtime_dir or str(_runtime_dir(environ, system))
    state_dir = kernel.state_dir or str(_state_dir(environ, system))
    socket = kernel.socket or os.path.join(runtime_dir, "aiosd.sock")
    cache_dir = kernel.cache_dir or str(_cache_dir(environ, system))
    kernel = replace(
        kernel, runtime_dir=runtime_dir, state_dir=state_dir, cache_dir=cache_dir, socket=socket
    )
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]
    kv_dir = config.context.kv_dir or f"/dev/shm/aios-{os.getuid()}-{digest}"
    key_file = config.encryption.key_file or os.path.join(state_dir, "master.key")
    encryption = replace(config.encryption, key_file=key_file)
    agents = replace(config.agents, path=_agent_path(config.agents.path, environ, system))
    context = replace(config.context, kv_dir=kv_dir)
    storage = replace(config.storage, dir=config.storage.dir or os.path.join(state_dir, "blobs"))
    tools = replace(
        config.tools,
        path=config.tools.path or [str(default_file(environ, system).parent / "tools")],
        secrets_file=config.tools.secrets_file or os.path.join(state_dir, "secrets.toml"),
    )
    at = config.gateway.socket or os.path.join(runtime_dir, "gateway.sock")
    return replace(
        config,
        kernel=kernel,
        context=context,
        agents=agents,
        encryption=encryption,
        storage=storage,
        tools=tools,
        gateway=replace(config.gateway, socket=at),
    )


def _agent_path(path: list[str], environ: Mapping[str, str], system: bool) -> list[str]:
    own = Path("/usr/local/share") if system else _xdg(environ, "XDG_DATA_HOME", ".local/share")
    here = Path(__file__).resolve().parent
    shipped = next((p for p in (here / "agents", here.parent / "agents") if p.is_dir()), None)
    return [*(path or [str(own / "aios/agents")]), *([str(shipped)] if shipped else [])]


def _runtime_dir(environ: Mapping[str, str], system: bool) -> Path:
    if system:
        return Path("/run/aios")
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "aios"
    base_dir = Path(f"/run/user/{os.getuid()}")
    return base_dir / "aios" if base_dir.is_dir() else Path(f"/tmp/aios-{os.getuid()}")


def _state_dir(environ: Mapping[str, str], system: bool) -> Path:
    if system:
        return Path("/var/lib/aios")
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "aios"


def _cache_dir(environ: Mapping[str, str], system: bool) -> Path:
    return Path("/var/cache/aios") if system else _xdg(environ, "XDG_CACHE_HOME", ".cache") / "aios"


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    given = environ.get(variable, "")
    return Path(given) if os.path.isabs(given) else _home(environ) / fallback


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))


def _nest(dotted: str, value: object) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return typing.cast("dict[str, Any]", value)


@functools.cache
def _hints(cls: type[Section]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(cls)}


def _is_section(hint: object) -> TypeGuard[type[Section]]:
    return isinstance(hint, type) and issubclass(hint, Section)


def _sections(hint: object) -> type[Section] | None:
    """Return of which section a field holds several, by their names; None when it doesn't."""
    kind = typing.get_args(hint)[1:] if typing.get_origin(hint) is dict else ()
    return kind[0] if kind and _is_section(kind[0]) else None


def _keys(cls: type[Section], prefix: str = "") -> Iterator[str]:
    for key, hint in _hints(cls).items():
        dotted = f"{prefix}.{key}" if prefix else key
        yield from _keys(hint, dotted) if _is_section(hint) else (dotted,)


def _changes(cls: type[Section], old: Any, new: Any, prefix: str) -> Iterator[Change]:
    for field in msgspec.structs.fields(cls):
        dotted = f"{prefix}.{field.encode_name}" if prefix else field.encode_name
        before, after = getattr(old, field.name), getattr(new, field.name)
        if _is_section(field.type):
            yield from _changes(field.type, before, after, dotted)
        elif before != after:
            marks = typing.get_args(_hints(cls)[field.encode_name])[1:]
            yield Change(dotted, before, after, live=AT_START not in marks)


def _mismatch(error: msgspec.ValidationError, marks: Iterable[Any], value: object) -> str:
    """Say what was expected: in the setting's own words, where it has some, else in msgspec's.

    Its own words come without the value: what stands where a key's name belongs may be the key.
    """
    for mark in marks:
        if isinstance(mark, msgspec.Meta) and mark.description:
            return f"expected {mark.description}"
    expected = str(error).replace("`", "").partition(", got")[0]
    return f"{expected[0].lower()}{expected[1:]}, got {value!r}"


def mistake(error: msgspec.ValidationError, cls: type[Section]) -> str:
    """Say what is wrong in a section: where, and in the setting's own words if it has some."""
    text, _, path = str(error).replace("`", "").partition(" - at $.")
    hint: Any = cls
    for key in path.split(".") if path else ():
        hint = _hints(hint).get(key) if _is_section(hint) else None
    own = [mark.description for mark in typing.get_args(hint)[1:] if isinstance(mark, msgspec.Meta)]
    return f"{path}: " * bool(path) + (f"expected {own[0]}" if any(own) else text)


def _nearest_key(dotted: str, siblings: list[str]) -> str:
    """Name the valid key that was probably meant: beside it, or of that name elsewhere."""
    prefix, _, key = dotted.rpartition(".")
    if close := difflib.get_close_matches(key, siblings, n=1):
        return f"; did you mean {prefix and prefix + '.'}{close[0]}?"
    everywhere = [*_keys(Config), *(f"cores.{name}" for name in _hints(Core))]
    elsewhere = {other.rpartition(".")[2]: other for other in everywhere}
    if close := difflib.get_close_matches(key, list(elsewhere), n=1):
        return f"; did you mean {elsewhere[close[0]]}?"
    return f"; valid here: {', '.join(siblings)}"


def _nearest(word: object, valid: Collection[str]) -> str:
    close = difflib.get_close_matches(str(word), list(valid), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (valid: {', '.join(word or repr(word) for word in valid)})"
