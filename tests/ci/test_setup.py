"""The set-up of `make`: what it remembers, what it says while it works, and how it fails."""

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "setup.py"

# Lines as pip and ninja write them.
LOG = """\
Collecting rich>=13.9 (from aios==0.1.0)
  Building wheel for llama-cpp-python (pyproject.toml): started
  [7/193] /usr/bin/g++ -O3 -o ggml.cpp.o -c /tmp/build/vendor/ggml/src/ggml.cpp
  A line that says nothing about progress
Installing collected packages: rich, typer
""".splitlines(keepends=True)


@pytest.fixture
def setup(tmp_path: Path) -> ModuleType:
    """Load the script, bound to a checkout that holds only what it reads."""
    spec = importlib.util.spec_from_file_location("aios_setup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script).update(
        ROOT=tmp_path, VENV=tmp_path / ".venv", STAMP=tmp_path / "stamp", LOG=tmp_path / "log"
    )
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    return script


def test_the_second_call_does_nothing(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(setup, "make_venv", lambda keep: None)
    monkeypatch.setattr(setup, "install", installed.append)
    setup.main(["daemon", "llama"])
    setup.main(["llama"])
    assert installed == [["daemon", "llama"]]
    setup.main(["dev"])
    assert installed[1:] == [["daemon", "dev", "llama"]], "what was there before stays"


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_calls_for_another_set_up(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(setup, "make_venv", lambda keep: None)
    monkeypatch.setattr(setup, "install", lambda extras: None)
    setup.main(["daemon"])
    assert setup.installed_extras() == {"daemon"}
    (setup.ROOT / changed).write_text("another")
    assert setup.installed_extras() == set()


def test_a_failed_set_up_leaves_no_stamp(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(extras: list[str]) -> None:
        sys.exit("pip ended with an error")

    monkeypatch.setattr(setup, "make_venv", lambda keep: None)
    monkeypatch.setattr(setup, "install", end)
    with pytest.raises(SystemExit):
        setup.main(["daemon"])
    assert setup.installed_extras() == set()


def test_an_old_python_is_told_what_to_do(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (99, 0))
    with pytest.raises(SystemExit, match=r"needs Python 99.0 .*\n.*make PYTHON="):
        setup.check_python()


def test_a_missing_compiler_is_named_with_its_packages(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.LOG.write_text("CMake Error: no CMAKE_C_COMPILER could be found\n")
    monkeypatch.setenv("PATH", str(setup.ROOT))
    with pytest.raises(SystemExit, match="build-essential"):
        setup.explain_failure()


def test_progress_tells_the_phase_and_the_step(
    setup: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "REPEAT_SECONDS", 0.0)
    progress = setup.Progress()
    for line in LOG:
        progress.show([line])
    shown = [line.removeprefix("        0s  ") for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "fetching rich>=13.9",
        "==> compiling llama.cpp for this CPU: some minutes, once, as pip keeps the result",
        "building llama-cpp-python",
        "compiling llama.cpp [7/193] ggml.cpp",
        "compiling llama.cpp [7/193] ggml.cpp",
        "installing packages (2)",
    ]


def test_each_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(text for extra in extras.values() for text in extra),
    ]
    requirements = [one for one in map(Requirement, wanted) if one.name != "aios"]
    unmet = [str(one) for one in requirements if pins.get(one.name, "") not in one.specifier]
    assert not unmet
    assert pins["torch"] == "2.13.0", "other versions may bring gigabytes of GPU libraries"
