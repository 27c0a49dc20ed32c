"""The manual: section 2 is the table's, the pages by hand name what there is, and all are clean."""

from __future__ import annotations

import re
import shutil
import subprocess
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd import config
from aiosd.abi import manual
from aiosd.abi.describe import arguments
from aiosd.abi.table import BY_NAME, TABLE

ROOT = Path(__file__).parents[1]
MAN = ROOT / "man"
PAGES = sorted(MAN.glob("man[0-9]/*.[0-9]*"))
BY_HAND = {"aiosd.1", "aiosctl.1", "aiosh.1", "aiosd.toml.5", "aios.7", "aios-tools.7",
           "aios-tool-catalog.7", "aios-ray.7", "aios-gateway.7"}  # fmt: skip
MACROS = {"TH", "SH", "SS", "TP", "PP", "B", "BR", "BI", "I", "IR", "IB", "RB", "RI", "RS", "RE",
          "nf", "fi", "br"}  # fmt: skip


def plain(page: str) -> str:
    """Return a page's words: no macros, no fonts, no escapes."""
    text = (MAN / page).read_text("utf-8")
    text = re.sub(r"\\f.|[\"]", "", text).replace("\\-", "-").replace("\\(ti", "~")
    return re.sub(r"^\.\w+ ?", "", text, flags=re.MULTILINE)


def words(page: str) -> set[str]:
    found = set(re.findall(r"[\w~][\w.-]*\w|-[\w-]+|\w", plain(page)))
    return found | {part for word in found for part in word.split(".")}


def test_section_2_is_not_stale() -> None:
    for name, text in manual.pages().items():
        assert (MAN / name).read_text("utf-8") == text, f"{name}: run python -m aiosd.abi.manual"


def test_there_is_a_page_for_every_call_and_no_other() -> None:
    there = {page.name for page in PAGES}
    assert there == BY_HAND | {f"{name}.2aios" for name in BY_NAME} | {manual.OVERVIEW}


def test_writing_removes_pages_of_calls_that_are_no_more(tmp_path: Path) -> None:
    old = tmp_path / "man2" / "fly.2aios"
    old.parent.mkdir()
    old.touch()
    assert manual.main([str(old.parent)]) == 0
    assert not old.exists()
    assert (tmp_path / "man2" / "kill.2aios").exists()
    assert (tmp_path / "man7" / manual.OVERVIEW).exists()


@pytest.mark.parametrize("wrong", [["--help"], ["a/man2", "b/man2"], ["elsewhere"]])
def test_the_generator_takes_one_directory_called_man2(wrong: list[str], tmp_path: Path) -> None:
    assert manual.main(wrong) == 2


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_page_names_arguments_errors_and_capability(name: str) -> None:
    call = BY_NAME[name]
    found = words(f"man2/{name}.2aios")
    wanted = {*(each.name for each in arguments(call)), *call.errors, str(call.number)}
    if call.needs:
        wanted.add(call.needs)
    assert wanted <= found


def test_the_groups_of_the_overview_are_the_tables() -> None:
    assert set(manual.GROUPS) == {call.group for call in TABLE.values()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_well_formed(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    first = next(line for line in lines if not line.startswith('.\\"'))
    name, _, number = page.name.rpartition(".")
    assert first.startswith(f".TH {manual.escape(name.upper())} {number} ")
    used = {line[1:].split()[0] for line in lines if line.startswith(".") and line[1:2] != "\\"}
    assert used <= MACROS
    assert [line for line in lines if line.endswith(" ")] == []
    headings = [line[4:] for line in lines if line.startswith(".SH ")]
    assert headings[0] == "NAME"
    assert headings[-1] == "SEE ALSO"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_refers_to_is_there(page: Path) -> None:
    system = {"sd_notify(3)", "setrlimit(2)"}
    text = page.read_text("utf-8").replace("\\-", "-")
    for name, number in re.findall(r"^\.BR ([\w.-]+) \((\d\w*)\)", text, flags=re.MULTILINE):
        there = (MAN / f"man{number[0]}" / f"{name}.{number}").exists()
        assert there or f"{name}({number})" in system, f"{name}({number})"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_complain_about() -> None:
    """All pages in one run: each begins anew with its .TH."""
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z", *PAGES], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_the_pages_of_the_commands_name_every_command_and_option() -> None:
    app = pytest.importorskip("aiosh.app")
    found = words("man1/aiosctl.1")
    missing = sorted(set(_commands(app.group())) - found)
    assert missing == []


def _commands(group: Any) -> list[str]:
    named = []
    for name, command in group.commands.items():
        if command.hidden:  # another word for one that is named
            continue
        named.append(name)
        named += [option for parameter in command.params for option in parameter.opts[:1]
                  if option.startswith("--")]  # fmt: skip
        if hasattr(command, "commands"):
            named += _commands(command)
    return named


def test_aiosd_1_names_every_option() -> None:
    from aiosd import main

    options = {each for action in main._parser()._actions for each in action.option_strings}
    assert options <= words("man1/aiosd.1")


def test_aiosh_1_names_every_command_of_the_shell() -> None:
    shell = pytest.importorskip("aiosh.shell")
    assert set(shell.Shell().own) <= words("man1/aiosh.1")


def test_aiosd_toml_5_names_every_setting() -> None:
    found = words("man5/aiosd.toml.5")
    assert sorted(set(_settings(config.Config)) - found) == []


def _settings(section: type[msgspec.Struct]) -> list[str]:
    """Return the names of a section's settings and tables, those of its tables too."""
    hints = typing.get_type_hints(section)
    names = []
    for field in msgspec.structs.fields(section):
        names.append(field.encode_name)
        for each in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(each, type) and issubclass(each, msgspec.Struct):
                names += _settings(each)
    return names
