"""The environment that a spawned agent starts with, and the account it runs as.

Clean, as under systemd or docker: nothing of the kernel's own environment but what an agent needs
to find programs and read text (PATH with the kernel's interpreter first, LANG, TZ), what the user
database says of its account (HOME, USER, LOGNAME, SHELL), TERM=dumb because its output is a log,
and PYTHONPATH where `import aios` would fail without; where the gateway is, in the variables that
the OpenAI SDK reads. The caller's additions come over that; where
the kernel is (AIOS_SOCKET) and who the agent is (AIOS_AID, AIOS_CREDENTIAL_FD) come last.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import pwd
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")

ADDRESSES: Final = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
"""Where clients of OpenAI's interface look for its address: the official one, and LlamaIndex."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that an agent runs as. groups: all of them. switch: it is not the kernel's own."""

    uid: int
    gid: int
    name: str
    home: str
    shell: str
    groups: tuple[int, ...]
    switch: bool


def account(uid: int, gid: int) -> Account:
    """Look up who an agent is to run as; may ask the network, so call it in a thread.

    Raises PermissionError when the kernel can't become that user: only root can be others.
    """
    own = os.geteuid()
    if uid != own and own != 0:
        raise PermissionError(
            errno.EPERM,
            f"spawn: this kernel runs as uid {own} and can start programs as that uid alone, "
            f"not as uid {uid}: start an aiosd of your own",
        )
    try:
        entry = pwd.getpwuid(uid)
        name, home, shell, gid = entry.pw_name, entry.pw_dir, entry.pw_shell, entry.pw_gid
    except KeyError:
        name, home, shell = str(uid), "/", "/bin/sh"
    groups = tuple(os.getgrouplist(name, gid)) if uid != own else ()
    return Account(uid, gid, name, home, shell or "/bin/sh", groups, uid != own)


def merged(ours: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return what a program finds of the gateway (`ours`), and what its caller gives it.

    A caller's own address of an endpoint stands alone: our key must not be sent there.
    """
    elsewhere = any(name in given for name in ADDRESSES)
    kept = {
        name: value
        for name, value in ours.items()
        if not (elsewhere and name.startswith("OPENAI_"))
    }
    return {**kept, **given}


def environment(who: Account, socket: str, additions: Mapping[str, str]) -> dict[str, str]:
    """Return an agent's whole environment, but for what its shim adds."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    env = {
        "PATH": _path(who),
        "LANG": "C.UTF-8",
        **kept,
        "HOME": who.home,
        "USER": who.name,
        "LOGNAME": who.name,
        "SHELL": who.shell,
        "TERM": "dumb",
        **additions,
        "AIOS_SOCKET": socket,
    }
    if places := sdk_places():
        before = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
        env["PYTHONPATH"] = os.pathsep.join([*before, *places])
    return env


def _path(who: Account) -> str:
    """The kernel's PATH for its own user, the system's for another; its interpreter first."""
    base = SYSTEM_PATH if who.switch else os.environ.get("PATH", SYSTEM_PATH)
    own = os.path.dirname(sys.executable)
    return base if own in base.split(os.pathsep) else f"{own}{os.pathsep}{base}"


@cache
def sdk_places() -> list[str]:
    """Return the directories that hold `aios` and `aiosd`, unless they are installed.

    In a checkout the one is `sdk` and the other its parent.
    """
    installed = {
        os.path.realpath(place) for place in [*site.getsitepackages(), site.getusersitepackages()]
    }
    kernel = Path(__file__).resolve().parents[1]
    found = importlib.util.find_spec("aios")
    sdk = Path(found.origin).resolve().parents[1] if found and found.origin else kernel / "sdk"
    places = dict.fromkeys(str(place) for place in (sdk, kernel) if place.is_dir())
    return [place for place in places if place not in installed]
