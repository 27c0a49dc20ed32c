"""The daemon as a process: how it starts, what it refuses, how it reloads and ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiosd.abi.system import Hello, Ping, Sysinfo, Watch
from aiosd.system import VERSION
from tests.daemon import PATIENCE, ROOT, Client, Daemon, answer


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        yield daemon


@pytest.fixture
def idle(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Daemon:
    """A daemon that is not started."""
    return Daemon(state_dir, runtime_dir, kv_dir)


def test_it_answers_and_leaves_nothing_behind(daemon: Daemon) -> None:
    with daemon.connect() as client:
        assert client.welcome.pid == daemon.process.pid
        assert client.welcome.uid == os.getuid()
        assert client.call(Ping(b"x")).payload == b"x"
        info = client.call(Sysinfo())
        assert info.socket == daemon.socket
        assert info.config == str(daemon.config)
        assert info.connections == 1
        assert next(c for c in info.calls if c.name == "ping").calls == 1
    assert daemon.stop() == 0
    assert list(daemon.runtime_dir.iterdir()) == []


def test_its_memory_is_within_the_budget(daemon: Daemon) -> None:
    assert daemon.resident() < 80 << 20


def test_the_socket_is_for_its_owner_alone(daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_another_uid_cannot_connect(daemon: Daemon) -> None:
    os.chmod(daemon.runtime_dir, 0o755)  # the directory lets everybody in: the socket must not
    base = daemon.runtime_dir.parent
    mode = stat.S_IMODE(base.stat().st_mode)
    base.chmod(0o755)
    try:
        pid = os.fork()
        if not pid:
            with suppress(BaseException):
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                os.stat(daemon.socket)
                try:
                    socket.socket(socket.AF_UNIX).connect(daemon.socket)
                except PermissionError:
                    os._exit(13)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 13
    finally:
        base.chmod(mode)


def test_a_second_instance_is_refused_by_name(daemon: Daemon) -> None:
    second = daemon.run()
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(
        f"aiosd: another aiosd (pid {daemon.process.pid})"
    )
    assert "Traceback" not in second.stderr
    with daemon.connect() as client:
        client.call(Ping())


def test_a_stale_socket_is_replaced(daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)
    assert os.path.exists(daemon.socket)
    daemon.start()
    with daemon.connect() as client:
        client.call(Ping())


def test_what_is_no_socket_is_left_alone(idle: Daemon) -> None:
    Path(idle.socket).write_text("mine")
    refused = idle.run()
    assert refused.returncode == 1
    assert "no socket; remove it" in refused.stderr
    assert Path(idle.socket).read_text() == "mine"
    Path(idle.socket).unlink()


def test_somebody_elses_socket_is_left_alone(idle: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(idle.socket)
        other.listen()
        refused = idle.run()
        assert refused.returncode == 1
        assert "listens here already" in refused.stderr
    os.unlink(idle.socket)


def test_the_state_directory_serves_one_kernel(
    daemon: Daemon, runtime_dir: Path, kv_dir: Path
) -> None:
    elsewhere = runtime_dir / "other"
    elsewhere.mkdir(mode=0o700)
    other = Daemon(daemon.state_dir, elsewhere, kv_dir)
    refused = other.run()
    assert refused.returncode == 1
    assert f"pid {daemon.process.pid}" in refused.stderr
    elsewhere.rmdir()


def test_term_lets_replies_out_and_tells_waiting_ones_why(daemon: Daemon) -> None:
    client = daemon.connect()
    watch = client.send(Watch(kinds=["nothing"]))
    client.call(Ping())  # the watch is under way
    daemon.send_signal(signal.SIGTERM)
    reply = client.read()
    assert reply.id == watch
    with pytest.raises(OSError, match="going down") as raised:
        answer(reply)
    assert raised.value.errno == 108  # ESHUTDOWN
    with pytest.raises(EOFError):
        client.read()
    client.close()
    assert daemon.process.wait(PATIENCE) == 0
    daemon.await_notice("STOPPING=1")


def test_hup_applies_what_can_change(daemon: Daemon) -> None:
    watcher = daemon.connect()
    watcher.send(Watch(kinds=["kernel.reload"]))
    watcher.send(Ping())
    watcher.read()
    daemon.configure("[kernel]\nmax_inflight = 1\nmax_frame = 100000\n")
    daemon.send_signal(signal.SIGHUP)
    daemon.await_notice("RELOADING=1")
    daemon.await_notice("READY=1")
    assert answer(watcher.read())["data"] == {"changed": ["kernel.max_inflight"]}
    assert "kernel.max_frame changes at the next start" in daemon.log.read_text()
    watch = watcher.send(Watch())
    reply = watcher.read()
    assert reply.id == watch
    with pytest.raises(BlockingIOError, match="max_inflight"):
        answer(reply)
    watcher.close()


def test_a_wrong_file_changes_nothing_and_is_named(daemon: Daemon) -> None:
    daemon.configure("[kernel]\nmax_inflights = 1\n")
    daemon.send_signal(signal.SIGHUP)
    daemon.await_notice("RELOADING=1")
    daemon.await_notice("READY=1")
    log = daemon.log.read_text()
    assert "configuration unchanged" in log
    assert "did you mean kernel.max_inflight" in log
    with daemon.connect() as client:
        client.call(Ping())


def test_a_wrong_file_at_start_is_a_sentence_not_a_traceback(idle: Daemon) -> None:
    idle.configure("[kernel]\nmax_inflights = 1\n")
    for command in ([], ["--check-config"]):
        refused = idle.run(*command)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"aiosd: {idle.config}: kernel.max_inflights: unknown key")


def test_check_config_says_ok(idle: Daemon) -> None:
    checked = idle.run("--check-config")
    assert (checked.returncode, checked.stdout) == (0, f"{idle.config}: ok\n")


def test_an_unusable_directory_is_a_sentence(idle: Daemon, runtime_dir: Path) -> None:
    runtime_dir.chmod(0o777)
    refused = idle.run()
    runtime_dir.chmod(0o700)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"aiosd: {runtime_dir}: ")


def test_the_version_is_the_distributions(idle: Daemon) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION
    assert idle.run("--version").stdout == f"aiosd {VERSION}\n"


def test_a_missing_library_names_the_extra(idle: Daemon, tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError('no uvloop', name='uvloop')")
    refused = subprocess.run(
        idle.arguments(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr == "aiosd: uvloop is not installed; run: pip install 'aios[daemon]'\n"


def test_a_client_that_is_too_new_learns_who_must_upgrade(daemon: Daemon) -> None:
    with Client(daemon.socket, hello=False) as client:
        with pytest.raises(OSError, match="the kernel is too old") as raised:
            client.call(Hello(level=999))
        assert raised.value.errno == 71  # EPROTO
