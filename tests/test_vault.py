"""The vault: whose data is whose, what was changed is refused, where keys are, rotation."""

from __future__ import annotations

import base64
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from aiosd.abi.accounts import DecryptData, EncryptData
from aiosd.vault import CREDENTIAL, KEY, OVERHEAD, VARIABLE, Vault, load_keys, rotate
from tests.daemon import Daemon
from tests.system.parties import audit, register


def keys(*letters: str) -> Callable[[], list[bytes]]:
    return lambda: [letter.encode() * KEY for letter in letters]


def bad(vault: Vault, owner: str, sealed: bytes, context: bytes = b"") -> str:
    with pytest.raises(OSError, match="this was") as caught:
        vault.unseal(owner, sealed, context)
    assert caught.value.errno == errno.EBADMSG
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_only_the_owner_in_the_same_context_gets_it_back(size: int) -> None:
    vault, data = Vault(keys("a")), os.urandom(size)
    sealed = vault.seal("agent:1", data, b"here")
    assert len(sealed) == size + OVERHEAD
    assert vault.unseal("agent:1", sealed, b"here") == data
    assert vault.seal("agent:1", data, b"here") != sealed
    for owner, context in (("agent:2", b"here"), ("agent:1", b"there"), ("agent:1h", b"ere")):
        assert "somebody else" in bad(vault, owner, sealed, context)


def test_whatever_is_changed_is_noticed() -> None:
    vault = Vault(keys("a"))
    sealed = vault.seal("agent:1", b"secret")
    for i in range(len(sealed)):
        bad(vault, "agent:1", sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :])
    for cut in range(len(sealed)):
        bad(vault, "agent:1", sealed[:cut])


def test_older_keys_are_for_reading() -> None:
    old = Vault(keys("a")).seal("uid:5", b"old")
    both = Vault(keys("a", "b"))
    new = both.seal("uid:5", b"new")
    assert both.unseal("uid:5", old) == b"old"
    assert Vault(keys("b")).unseal("uid:5", new) == b"new"
    assert "which is not there" in bad(Vault(keys("b")), "uid:5", old)


def test_where_keys_come_from(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    [made] = load_keys(str(path), {})
    assert load_keys(str(path), {}) == [made]
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / CREDENTIAL).write_text(base64.b64encode(b"c" * KEY).decode())
    there = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_keys(str(path), there) == [b"c" * KEY]
    words = " ".join(base64.urlsafe_b64encode(letter * KEY).decode() for letter in (b"d", b"e"))
    assert load_keys(str(path), {**there, VARIABLE: words}) == [b"d" * KEY, b"e" * KEY]
    rotate(str(path), {})
    assert load_keys(str(path), {})[0] == made
    assert len(load_keys(str(path), {})) == 2
    with pytest.raises(OSError, match="32 bytes"):
        load_keys(str(path), {VARIABLE: "short"})
    with pytest.raises(OSError, match=VARIABLE):
        rotate(str(path), {VARIABLE: words})


@pytest.mark.parametrize("trick", ["readable", "link", "second name", "pipe", "empty"])
def test_a_key_file_that_is_not_ours_alone(tmp_path: Path, trick: str) -> None:
    path, other = tmp_path / "master.key", tmp_path / "other"
    load_keys(str(path), {})
    if trick == "readable":
        path.chmod(0o640)
    elif trick == "link":
        path.rename(other)
        path.symlink_to(other)
    elif trick == "second name":
        os.link(path, other)
    elif trick == "pipe":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        path.write_text("# no key\n")
    with pytest.raises(OSError, match=r"master|symbolic") as caught:
        load_keys(str(path), {})
    assert caught.value.errno in (errno.EPERM, errno.ELOOP, errno.EINVAL)


def test_agents_and_persons_have_keys_of_their_own(
    state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        owner, (one, _), (two, _) = (
            daemon.connect(), register(daemon, "one"), register(daemon, "two"),
        )  # fmt: skip
        large = os.urandom(4 << 20)
        mine = one.call(EncryptData(b"mine"))
        assert one.call(DecryptData(mine)) == b"mine"
        assert one.call(DecryptData(one.call(EncryptData(large)))) == large
        theirs = owner.call(EncryptData(b"ours"))
        for client, sealed in ((two, mine), (owner, mine), (one, theirs), (one, b"x" * 99)):
            with pytest.raises(OSError, match="decrypt_data") as caught:
                client.call(DecryptData(sealed))
            assert caught.value.errno == errno.EBADMSG
        assert daemon.run("--rotate-key").returncode == 0
        daemon.send_signal(signal.SIGHUP)
        daemon.await_notice("READY=1")
        newer = owner.call(EncryptData(b"newer"))
        assert newer[:5] != theirs[:5]
        assert owner.call(DecryptData(theirs)) == b"ours"
        assert audit(owner, kind="kernel.reload")
        for client in (owner, one, two):
            client.close()
        daemon.stop(signal.SIGKILL)
        daemon.start()
        with daemon.connect() as owner:
            assert owner.call(DecryptData(theirs)) == b"ours"
