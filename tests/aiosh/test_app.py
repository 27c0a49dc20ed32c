"""The app without a daemon: usage, help, exit statuses, what it costs to start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from aiosh import app, system
from aiosh.words import Plain
from tests.aiosh.conftest import Run, surroundings


def test_each_command_is_where_the_list_says() -> None:
    for part, commands in app.PARTS.items():
        module = import_module(f"aiosh.{part}")
        made = typer.main.get_command(_with_callback(module.app))
        assert tuple(sorted(getattr(made, "commands", {}))) == tuple(sorted(commands))


def _with_callback(part: typer.Typer) -> typer.Typer:
    whole = typer.Typer()
    whole.callback()(lambda: None)
    whole.add_typer(part)
    return whole


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app.build(), ["--help"])
    assert result.exit_code == 0
    for commands in app.PARTS.values():
        assert all(command in result.stdout for command in commands)


def test_no_help_has_words_in_brackets_which_would_be_taken_for_markup() -> None:
    assert [text for text in _helps(app.group()) if "[" in text] == []


def _helps(command: Any) -> Iterator[str]:
    yield command.help or ""
    yield from (getattr(param, "help", None) or "" for param in command.params)
    for below in getattr(command, "commands", {}).values():
        yield from _helps(below)


def test_a_group_alone_says_its_help_and_no_empty_message(ctl: Run) -> None:
    said = ctl("route")
    assert (said.status, said.err) == (2, "")
    assert "explain" in said.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pss"], "no such command 'pss'"),
        (["ps", "--alll"], "no such option"),
        (["kill"], "at least one agent"),
        (["kill", "-9", "-15", "3"], "one signal at a time"),
        (["nice", "-n", "40", "math"], "40 is not within -20 to 19"),
        (["nice", "-n", "abc", "math"], "'abc' is not an integer"),
        (["wait", "-t", "nan"], "nan is not from 0"),
        (["run"], "missing argument"),
        (["run", "-e", "NOT_SET_HERE", "math"], "write NOT_SET_HERE=VALUE"),
        (["syscall", "wiat"], "did you mean wait?"),
        (["syscall", "wait", "aid"], "write KEY=VALUE"),
        (["syscall", "wait", "agent=3"], "it has aid"),
        (["syscall", "wait", "aid=x"], "Expected `int`"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(
    ctl: Run, words: list[str], sentence: str
) -> None:
    result = ctl(*words)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("aiosctl: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_an_unknown_command_brings_the_nearest(ctl: Run) -> None:
    assert "'suspend'" in ctl("suspnd").err


@pytest.mark.parametrize("words", [["ps"], ["run", "true"], ["info"], ["top", "-b"], ["demo"]])
def test_without_a_daemon_the_status_is_125(
    ctl: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.setenv("AIOS_SOCKET", str(tmp_path / "nobody.sock"))
    result = ctl(*words)
    assert result.status == 125
    assert "aiosd is not running" in result.err


def test_kill_lists_signals(ctl: Run) -> None:
    result = ctl("kill", "-l")
    assert result.status == 0
    assert [
        int(line.split()[0])
        for line in result.out.splitlines()
        if line.split()[1] in ("KILL", "TERM")
    ] == [9, 15]


def test_man_shows_what_the_table_says(ctl: Run) -> None:
    page = ctl("man", "suspend_agent")
    assert page.status == 0
    assert "suspend" in page.out.lower()
    assert ctl("man", "nothing_such").status == 1
    assert "did you mean 'llm_generate'" in ctl("man", "llmgenerate").err


def test_help_shows_no_word_behind_a_flag(ctl: Run) -> None:
    page = ctl("logs", "--help")
    assert "--follow" in page.out
    assert "bool" not in page.out.lower()


def test_man_finds_each_page() -> None:
    assert system._page("aiosctl", "").endswith("man1/aiosctl.1")
    assert system._page("kill", "").endswith("man2/kill.2aios")
    assert system._page("kill", "2") == system._page("kill", "2aios") != ""
    assert system._page("kill", "1") == ""


def test_words_become_the_values_that_typer_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    light = [param for command in _commands() for param in command.params]
    assert any(isinstance(getattr(param, "_runtime_param", None), Plain) for param in light)
    words = ["-n", "3", "--kind", "agent", "--since", "2.5"]
    mine = _parsed("history", words)
    monkeypatch.setattr(app, "lighten", lambda group: group)
    app.group.cache_clear()
    try:
        assert _parsed("history", words) == mine
    finally:
        app.group.cache_clear()


def _commands() -> list[Any]:
    return list(app.group().commands.values())


def _parsed(name: str, words: list[str]) -> dict[str, Any]:
    context = app.group().commands[name].make_context(name, list(words))
    return dict(context.params)


def test_a_command_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    script = (
        "import sys; from aiosh import app; status = app.execute(['ps']);"
        "heavy = {'rich', 'prompt_toolkit', 'pydantic', 'sacrebleu', 'numpy'} & set(sys.modules);"
        "print(status, sorted(heavy))"
    )
    environ = surroundings() | {"AIOS_SOCKET": str(tmp_path / "nobody.sock")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "125 []"
