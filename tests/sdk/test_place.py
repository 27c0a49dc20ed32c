"""Where the SDK looks for a kernel, and what it does with an inherited credential."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios import place
from aiosd import config


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIOS_SOCKET", "AIOS_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert place.socket_path() == f"{tmp_path}/aios/aiosd.sock"
    monkeypatch.setenv("AIOS_RUNTIME_DIR", "/elsewhere")
    assert place.socket_path() == "/elsewhere/aiosd.sock"
    monkeypatch.setenv("AIOS_SOCKET", "/named.sock")
    assert place.socket_path() == "/named.sock"
    assert place.socket_path(Path("/given.sock")) == "/given.sock"


@pytest.mark.parametrize("variables", [{}, {"XDG_RUNTIME_DIR": "/x"}, {"AIOS_RUNTIME_DIR": "/y"}])
def test_it_is_where_aiosd_listens(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = config.load(None, os.environ, {})
    assert f"{place.candidates()[0]}/aiosd.sock" == settings.kernel.socket


def test_a_socket_in_tmp_that_another_user_made_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "TEMPORARY", str(tmp_path))
    path = tmp_path / f"aios-{os.getuid()}" / "aiosd.sock"
    path.parent.mkdir()
    path.touch()
    assert place._usable(str(path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert not place._usable(str(path))


def test_a_credential_is_read_once_and_hidden_from_children() -> None:
    out, into = os.pipe()
    os.write(into, b"secret")
    os.close(into)
    environ = {"AIOS_CREDENTIAL_FD": str(out)}
    inherited = place.Inherited(environ)
    assert inherited.take() == "secret"
    assert environ == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)
    inherited.replace("another's", "x")
    assert inherited.take() == "secret"
    inherited.replace("secret", "next")
    assert inherited.take() == "next"


def test_without_a_credential_there_is_none() -> None:
    assert place.Inherited({}).take() == ""
