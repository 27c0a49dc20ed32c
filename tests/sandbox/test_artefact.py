"""Opening what a tool has left: no link is followed, nothing but a file is opened."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from aiosd.artefact import open_beneath


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    place = tmp_path / "workspace"
    (place / "deep/er").mkdir(parents=True)
    (place / "deep/er/file").write_text("content")
    (place / "link").symlink_to(tmp_path / "secret")
    (place / "inner").symlink_to("deep/er/file")
    (place / "up").symlink_to("..")
    os.mkfifo(place / "fifo")
    return place


def test_file_is_opened(workspace: Path) -> None:
    with open(open_beneath(str(workspace), "deep/er/file")) as file:
        assert file.read() == "content"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("link", errno.ELOOP),
        ("inner", errno.ELOOP),
        ("up/secret", errno.ELOOP),
        ("../secret", errno.EINVAL),
        ("deep/../deep/er/file", errno.EINVAL),
        ("/etc/passwd", errno.EINVAL),
        ("", errno.EINVAL),
        ("missing", errno.ENOENT),
        ("fifo", errno.ENOTSUP),
        ("socket", errno.ENOTSUP),
        ("deep", errno.ENOTSUP),
    ],
)
def test_anything_else_is_refused(workspace: Path, name: str, error: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    at = os.getcwd()
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(workspace)  # the path may be too long for a socket's address
        try:
            bound.bind("socket")
        finally:
            os.chdir(at)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            open_beneath(str(workspace), name)
    assert caught.value.errno == error
    assert len(os.listdir("/proc/self/fd")) == before
