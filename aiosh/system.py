"""Commands about the kernel itself: info, metrics, watermark, syscall, man."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.call import Call, Syscall
    from aiosd.abi.system import CallStatistics, SystemInfo

app = typer.Typer()

CALLS: Final[list[Column[CallStatistics]]] = [
    Column("CALL", lambda row: row.name),
    Column("CALLS", lambda row: str(row.calls), right=True),
    Column("ERRORS", lambda row: str(row.errors), right=True),
    Column("TOTAL", lambda row: tables.span(row.seconds), right=True),
    Column("MEAN_US", lambda row: f"{1e6 * row.seconds / max(1, row.calls):.1f}", right=True),
    Column("SLOWEST_MS", lambda row: f"{1e3 * row.slowest_s:.2f}", right=True),
]


@app.command()
def info(
    calls: Annotated[bool, typer.Option("--calls", help="statistics of every call")] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="wait for the daemon so long")
    ] = 0,
    cores: Annotated[
        bool, typer.Option("--cores", help="with --wait: until every core is ready")
    ] = False,
    json: Json = False,
) -> None:
    """Describe the kernel: version, load, memory, sockets, missing calls."""
    deadline = time.monotonic() + wait
    state = _reached(deadline)
    if cores:
        _ready(deadline)
    if json:
        tables.print_json(state)
    elif calls:
        tables.show(CALLS, sorted(state.calls, key=lambda row: -row.calls), json=False)
    else:
        tables.facts(_facts(state))


def _reached(deadline: float) -> SystemInfo:
    """Ask the daemon about itself, again until the deadline while it can't be reached."""
    while True:
        try:
            with link.kernel() as kernel:
                return kernel.sysinfo()
        except link.Unreachable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _ready(deadline: float) -> None:
    """Return once every core is ready; raise Failure when one failed or time is up."""
    while True:
        with link.kernel() as kernel:
            rows = [core for core in kernel.list_cores() if core.kind != "tool"]
        for core in rows:
            if core.state == "failed":
                raise link.Failure(f"core {core.name} failed: {link.trouble(core)}")
        late = [core.name for core in rows if core.state != "ready"]
        if not late:
            return
        if time.monotonic() >= deadline:
            raise link.Failure(f"not ready in time: {' '.join(late)}; `cores` shows their state")
        time.sleep(0.1)


def _facts(state: SystemInfo) -> list[tuple[str, str]]:
    limit = tables.size(state.kv_ram_limit) if state.kv_ram_limit else "no limit"
    agents = " ".join(f"{letter}:{number}" for letter, number in sorted(state.agents.items()))
    return [
        ("version", f"{state.version} (ABI level {state.level})"),
        (
            "pid",
            f"{state.pid}, up {tables.span(state.uptime_s)}, {tables.size(state.rss)} resident",
        ),
        ("socket", state.socket),
        ("state", state.state_dir),
        ("config", state.config or "built-in defaults"),
        ("connections", str(state.connections)),
        ("agents", agents or "none"),
        ("requests", f"{state.requests} in flight, {state.preemptions} preemptions so far"),
        ("tokens", f"{state.tokens_in} in, {state.tokens_out} out"),
        ("KV in RAM", f"{tables.size(state.kv_ram)} of {limit}"),
        ("KV on disk", f"{tables.size(state.kv_disk)} of {tables.size(state.kv_disk_limit)}"),
        ("missing calls", _few(state.missing)),
    ]


def _few(names: list[str]) -> str:
    """Return names, or how many they are where that would fill the screen."""
    if len(names) <= 6:
        return " ".join(names) or "none"
    return f"{len(names)} of the table's (--json names them)"


@app.command()
def metrics(json: Json = False) -> None:
    """Show the kernel's metrics, as text that Prometheus reads."""
    from aios import exposition

    with link.kernel() as kernel:
        rows = kernel.read_metrics()
    if json:
        tables.print_json(rows)
    else:
        print(exposition(rows), end="")


@app.command()
def watermark(
    file: Annotated[
        typer.FileText, typer.Argument(metavar="[FILE]", help="the text; standard input if none")
    ] = "-",  # type: ignore[assignment]
    core: Annotated[
        str, typer.Option("--core", help="one with the model of the text", metavar="CORE")
    ] = "",
    json: Json = False,
) -> None:
    """Say whether a text carries this kernel's watermark."""
    text = file.read()
    with link.kernel() as kernel:
        found = kernel.detect_watermark(text=text, core=core)
    if json:
        tables.print_json(found)
        return
    chance = f"p {found.p:.2g}" if found.p else "p below 1e-300"
    facts = [
        ("watermark", "yes" if found.marked else "no"),
        ("z", f"{found.z:.2f} ({chance}; above 4 counts as marked)"),
        ("green", f"{found.green} of {found.pairs} pairs, a quarter by chance"),
        ("tokens", f"{found.tokens} by core {found.core}"),
    ]
    tables.facts(facts)


@app.command(context_settings={"ignore_unknown_options": True})
def syscall(
    name: Annotated[str, typer.Argument(help="name of the call", autocompletion=offers.calls)],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", autocompletion=offers.fields)
    ] = None,
) -> None:
    """Make any system call by name; the answer is JSON, a stream one line per piece.

    A value is text where the call takes text, else JSON: `syscall wait aid=3 timeout=0.5`.
    """
    entry = find_call(name)
    args = arguments(entry, words or [])
    with link.kernel() as kernel:
        answer = getattr(kernel, entry.name)(**args)
        if isinstance(answer, Iterator):
            for piece in answer:
                tables.print_json_line(piece)
        elif answer is not None:
            tables.print_json(answer)


def find_call(name: str) -> Syscall:
    """Return a row of the table by name or number. Raises Misuse, with the nearest."""
    from difflib import get_close_matches

    from aiosd.abi.table import BY_NAME, TABLE

    found = BY_NAME.get(name) or (TABLE.get(int(name)) if name.isdecimal() else None)
    if found is not None:
        return found
    near = get_close_matches(name, BY_NAME, 1)
    hint = f"; did you mean {near[0]}?" if near else "; `man syscalls` lists them"
    raise link.Misuse(f"there is no system call {name!r}{hint}")


def arguments(entry: Syscall, words: list[str]) -> dict[str, Any]:
    """Return KEY=VALUE words as the arguments of a call, checked against its types.

    Raises Misuse for a word without =, a field that the call lacks, a wrong value.
    """
    import msgspec

    given: dict[str, Any] = {}
    types = msgspec.structs.fields(entry.args)
    known = {field.encode_name: field.type for field in types}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise link.Misuse(f"{word!r}: write KEY=VALUE; keys are {' '.join(known)}")
        if key not in known:
            raise link.Misuse(
                f"{entry.name} has no field {key!r}; it has {' '.join(known) or 'none'}"
            )
        given[key] = _value(known[key], key, text)
    try:
        checked: Call = msgspec.convert(given, entry.args)
    except msgspec.ValidationError as error:
        raise link.Misuse(f"{entry.name}: {error}") from None
    return {key: getattr(checked, key) for key in given}


def _value(kind: Any, key: str, text: str) -> Any:
    """Return a word as a value of a field's type: text as it stands, anything else as JSON."""
    import json

    import msgspec

    if msgspec.inspect.type_info(kind) == msgspec.inspect.AnyType():
        try:
            return json.loads(text)
        except ValueError:
            return text
    if _takes_bytes(kind):
        return text.encode()
    try:
        return msgspec.to_builtins(msgspec.convert(text, kind, strict=False))
    except msgspec.ValidationError as error:
        try:
            value = json.loads(text)
        except ValueError:
            raise link.Misuse(f"{key}={text}: {error}") from None
        return value


def _takes_bytes(kind: Any) -> bool:
    import msgspec

    info = msgspec.inspect.type_info(kind)
    inner = info.type if isinstance(info, msgspec.inspect.Metadata) else info
    return isinstance(inner, msgspec.inspect.BytesType)


@app.command()
def man(
    page: Annotated[str, typer.Argument(help="a system call, `syscalls`, or a page's name")],
    section: Annotated[str, typer.Option("--section", "-s", help="1, 2, 5 or 7")] = "",
) -> None:
    """Show a manual page; for a system call what the table says of it, if it has no page here."""
    path = _page(page, section)
    if path and _man(path):
        return
    from aiosh import manual

    text = manual.page(page)
    if text is None:
        raise link.Failure(f"there is no manual page {page!r}; {manual.hint(page)}")
    if sys.stdout.isatty():
        import pydoc

        pydoc.pager(text)
    else:
        print(text)


def _page(name: str, section: str) -> str:
    """Return the file of a manual page in the installation or the checkout, or nothing."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Section 2 itself is Linux's: kill(2) is not ours.
    sections = ["2aios" if section == "2" else section] if section else ["1", "2aios", "5", "7"]
    for base in (os.path.join(here, "man"), os.path.join(sys.prefix, "share", "man")):
        for number in sections:
            for folder in (f"man{number[0]}", ""):
                for suffix in ("", ".gz"):
                    path = os.path.join(base, folder, f"{name}.{number}{suffix}")
                    if os.path.isfile(path):
                        return path
    return ""


def _man(path: str) -> bool:
    """Let man(1) show a file; False where there is no man."""
    import shutil
    import subprocess

    if shutil.which("man") is None:
        return False
    return subprocess.run(["man", "-l", path], check=False).returncode == 0
