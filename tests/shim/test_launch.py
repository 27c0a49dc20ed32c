"""What an agent's process is born with: identity, limits, descriptors, credential, signals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aiosd.spawn import Spec
from tests.shim.kernel import Kernel

SECRET = b"s3cret-credential-of-agent-seven"

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can switch to another uid")

TELL = "import json, os, resource\n"


async def _told(kernel: Kernel, expression: str, **fields: Any) -> Any:
    """The value of an expression in the agent's process."""
    await kernel.python(f"{TELL}print(json.dumps({expression}))", **fields)
    record = await kernel.exit()
    text = "".join(r.text for r in kernel.output())
    assert record.code == 0, text
    return json.loads(text)


async def test_the_credential_reaches_the_agent_alone(kernel: Kernel) -> None:
    code = (
        "import os, signal\n"
        "fd = int(os.environ['AIOS_CREDENTIAL_FD'])\n"
        "print(fd, os.read(fd, 100).decode(), os.read(fd, 100)); signal.pause()"
    )
    shim = await kernel.python(code, credential=SECRET)
    pid = await shim.ready()
    assert await kernel.text("\n") == f"3 {SECRET.decode()} b''\n"
    for process in (pid, shim.shim_pid):
        for name in ("environ", "cmdline"):
            assert SECRET not in Path(f"/proc/{process}/{name}").read_bytes()
    pipe = os.readlink(f"/proc/{pid}/fd/3")
    assert pipe not in _targets(shim.shim_pid)
    assert pipe not in _targets(os.getpid())
    for file in (kernel.dir / "7").iterdir():
        if file.is_file() and not file.name.startswith("log"):
            assert SECRET not in file.read_bytes()


def _targets(pid: int) -> list[str]:
    targets = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            targets.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue
    return targets


async def test_the_environment_is_as_given_and_not_on_disk(kernel: Kernel) -> None:
    env = {"API_KEY": "very-secret", "NAME": "naïve\nline"}
    told = await _told(kernel, "dict(os.environ)", env=env)
    told.pop("LC_CTYPE", None)  # Python's own, in the C locale
    assert told == {**env, "AIOS_AID": "7"}
    stored = (kernel.dir / "7" / "spec.json").read_bytes()
    assert b"very-secret" not in stored
    assert json.loads(stored)["env"] == ["API_KEY", "NAME"]
    assert (kernel.dir / "7").stat().st_mode & 0o777 == 0o700


async def test_no_descriptor_leaks(kernel: Kernel) -> None:
    held = os.memfd_create("the kernel's", 0)  # inheritable: only closing it can keep it here
    try:
        listing = "sorted(int(n) for n in os.listdir('/proc/self/fd'))"
        seen = await _told(kernel, listing, credential=SECRET)
        assert seen[:4] == [0, 1, 2, 3]
        assert len(seen) == 5  # the fifth is the listing's own
        shim = kernel.shims[0]
        assert not any("the kernel's" in target for target in _targets(shim.shim_pid))
        assert len(_targets(shim.shim_pid)) <= 9  # 3, listener, connection, log, wake-up pipe
    finally:
        os.close(held)


async def test_session_group_and_directory(kernel: Kernel, tmp_path: Path) -> None:
    facts = "[os.getpid(), os.getpgid(0), os.getsid(0), os.getppid(), os.getcwd(), os.isatty(0)]"
    pid, group, session, parent, cwd, tty = await _told(kernel, facts, cwd=str(tmp_path))
    shim = kernel.shims[0]
    assert (pid, group, cwd, tty) == (shim.pid, shim.pid, str(tmp_path), False)
    assert session == parent == shim.shim_pid != os.getsid(0)


async def test_signals_are_as_at_birth(kernel: Kernel) -> None:
    # Not Python, which ignores two signals itself.
    await kernel.start("/bin/grep", "-E", "^(Sig(Blk|Ign)|NoNewPrivs)", "/proc/self/status")
    await kernel.exit()
    status = dict(record.text.split() for record in kernel.output())
    assert status["NoNewPrivs:"] == "1"
    # The C library keeps 32 and 33 for itself: nobody can set them, so they are as they came.
    settable = ~(0b11 << 31)
    masks = [int(status[name], 16) & settable for name in ("SigBlk:", "SigIgn:")]
    assert masks == [0, 0]


async def test_limits(kernel: Kernel) -> None:
    wanted = {"nofile": 64, "nproc": 500, "as": 1 << 30, "cpu": 100, "fsize": 1 << 20}
    names = [*wanted, "core"]
    asked = f"{{n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n.upper())) for n in {names}}}"
    told = await _told(kernel, asked, rlimits=wanted)
    assert told == {**{name: [value, value] for name, value in wanted.items()}, "core": [0, 0]}


async def test_a_limit_above_ours_becomes_ours(kernel: Kernel) -> None:
    asked = "resource.getrlimit(resource.RLIMIT_NOFILE)"
    soft, hard = await _told(kernel, asked, rlimits={"nofile": 1 << 40})
    assert soft == hard < 1 << 40


@ROOT
async def test_another_uid(kernel: Kernel) -> None:
    await kernel.start("/usr/bin/id", uid=65534, gid=65533, groups=(65532,))
    assert (await kernel.exit()).code == 0
    text = "".join(r.text for r in kernel.output())
    assert text.startswith("uid=65534")
    assert "gid=65533" in text
    assert "65532" in text
    assert "root" not in text


@ROOT
async def test_another_uid_dies_with_the_shim_as_well(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000", uid=65534, gid=65534)
    await shim.ready()
    os.kill(shim.shim_pid, 9)
    await kernel.heard("lost")


@ROOT
async def test_a_directory_that_the_uid_may_not_enter(kernel: Kernel, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shim = await kernel.start("/bin/true", uid=65534, gid=65534, cwd=str(private))
    with pytest.raises(PermissionError, match="cannot enter the working directory"):
        await shim.ready()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"argv": []}, "argv is empty"),
        ({"uid": 5}, "uid and gid go together"),
        ({"rlimits": {"files": 3}}, "no limit named files; there are as, core, cpu"),
        ({"credential": b"x" * 5000}, "longer than 4096"),
    ],
)
def test_a_wrong_spec(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(OSError, match=words):
        Spec(**{"argv": ["/bin/true"], "cwd": "/", "env": {}, **fields})


async def test_a_nul_in_an_argument(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/echo", "a\0b")
    with pytest.raises(OSError, match="null"):
        await shim.ready()


async def test_a_large_environment(kernel: Kernel) -> None:
    env = {f"V{i}": "x" * 10000 for i in range(100)}
    assert await _told(kernel, "len(os.environ)", env=env) in (101, 102)
