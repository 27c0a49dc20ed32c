"""Models of the hub: its cache, a stand-in for its server, and the calls about them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aiosd import modelfile
from aiosd.abi.cores import AddCore, ListModels, Model, RemoveModel
from aiosd.hub import Reference
from tests.daemon import Daemon

COMMIT = "c" * 40
FILES = ["README.md", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "split/x-00001-of-00002.gguf",
         "split/x-00002-of-00002.gguf"]  # fmt: skip


def test_a_reference_is_read_and_finds_its_file() -> None:
    def found(text: str) -> list[str]:
        return Reference.parse(text).choose(FILES)

    assert found("hf:acme/tiny") == ["tiny-Q4_K_M.gguf"]
    assert found("hf:acme/tiny:q8_0") == ["tiny-Q8_0.gguf"]
    assert found("hf:acme/tiny@v2:tiny-Q8_0.gguf") == ["tiny-Q8_0.gguf"]
    assert found("hf:acme/tiny:x-") == FILES[3:]
    assert Reference.parse("hf:acme/tiny@v2:a.gguf") == Reference("acme/tiny", "v2", "a.gguf")
    assert Reference.parse("hf:a/b").choose(["only.gguf"]) == ["only.gguf"]
    with pytest.raises(FileNotFoundError, match=r"no file matches 'F16'.*tiny-Q8_0\.gguf"):
        found("hf:acme/tiny:F16")
    with pytest.raises(FileNotFoundError, match="2 files match 'tiny'"):
        found("hf:acme/tiny:tiny")
    for wrong in ("hf:acme", "hf:a/b/c", "hf:acme/tiny:", "hf:../x:y:z"):
        with pytest.raises(OSError, match="write it as hf:OWNER/NAME"):
            Reference.parse(wrong)


def test_packages_tell_of_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier/small.gguf").write_bytes(b"GGUF")
    (tmp_path / "carrier-1.dist-info").mkdir()
    (tmp_path / "carrier-1.dist-info/METADATA").write_text("Name: carrier\nVersion: 1\n")
    (tmp_path / "carrier-1.dist-info/entry_points.txt").write_text(
        "[aios.models]\nmine = carrier\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert modelfile.find_model("mine") == tmp_path / "carrier/small.gguf"
    assert modelfile.packaged_models()["mine"] == "carrier"
    (tmp_path / "carrier/small.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="carrier has none"):
        modelfile.find_model("mine")


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to those who want a file. asked: what was asked of it."""

    content: ClassVar[dict[str, bytes]] = {"tiny-Q4_K_M.gguf": b"GGUF, nearly"}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/acme/tiny"):
            files = [{"rfilename": name, "path": name, "type": "file", "size": len(data),
                      "oid": "a" * 40} for name, data in self.content.items()]  # fmt: skip
            tree = "/tree/" in path
            found: Any = files if tree else {"id": "acme/tiny", "sha": COMMIT, "siblings": files}
            self._send(json.dumps(found).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/acme/tiny/resolve/") and path.rpartition("/")[2] in self.content:
            data = self.content[path.rpartition("/")[2]]
            tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(data, tag, body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serve one repository; gives the environment that leads there, with a cache of its own."""
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    home = str(tmp_path / "hf")
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_HOME": home, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()
    thread.join()
    server.server_close()


def ask(environ: dict[str, str], *words: str) -> Any:
    found = subprocess.run(
        [sys.executable, "-m", "aiosd.hub", *words],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return json.loads(found.stdout)


def test_a_model_is_fetched_once_and_listed_and_removed(
    hub: dict[str, str], state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    path = ask(hub, "find", "hf:acme/tiny")
    assert Path(path).read_bytes() == Hub.content["tiny-Q4_K_M.gguf"]
    seen = len(Hub.asked)
    assert ask(hub, "find", "hf:acme/tiny:Q4") == path and len(Hub.asked) == seen, "nobody is asked"
    daemon = Daemon(state_dir, runtime_dir, kv_dir)
    daemon.environ |= {**hub, "HF_HUB_OFFLINE": "1"}
    with daemon, daemon.connect() as person:
        rows: list[Model] = person.call(ListModels())
        [row] = [row for row in rows if row.kind == "hub"]
        assert (row.name, row.bytes) == ("hf:acme/tiny:tiny-Q4_K_M.gguf", 12)
        assert row.path == path
        for model, number, words in (
            ("hf:acme/none", errno.ENOENT, "in the cache, and HF_HUB_OFFLINE is set"),
            ("hf:acme", errno.EINVAL, "write it as hf:OWNER/NAME"),
        ):
            with pytest.raises(OSError, match=words) as no:
                person.call(AddCore(model))
            assert no.value.errno == number
        with pytest.raises(OSError, match="remove a package with pip"):
            person.call(RemoveModel("smollm2"))
        assert person.call(RemoveModel("hf:acme/tiny")) == 12
        assert not [row for row in person.call(ListModels()) if row.kind == "hub"]
        with pytest.raises(OSError, match="not in the cache"):
            person.call(RemoveModel("hf:acme/tiny"))


def test_what_can_not_be_fetched_says_why(hub: dict[str, str]) -> None:
    none = ask(hub, "find", "hf:acme/none")
    assert none["errno"] == errno.ENOENT and "no such repository" in none["message"]
    lost = ask({**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}, "find", "hf:acme/tiny")
    assert lost["errno"] == errno.EHOSTUNREACH and "can't be fetched" in lost["message"]
