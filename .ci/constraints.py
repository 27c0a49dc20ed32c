"""Writes constraints.txt anew: the newest versions that all extras and build tools agree on.

    .venv/bin/python .ci/constraints.py          (make constraints)

Resolved in one go, so that any subset of the extras gets the same versions. The two packages in
HELD are moved by hand, since a new version of them is a decision: torch, where another version may
bring several gigabytes of GPU libraries, and llama-cpp-python, on which exactness was measured.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELD = ["torch==2.13.0", "llama-cpp-python==0.3.36"]
# What the build environments of this and the packages that come as source ask for.
BUILD_TOOLS = ["hatchling", "editables", "scikit-build-core", "cmake", "ninja", "pybind11", "wheel"]
HEAD = """\
# Every package that a checkout installs, in any combination of its extras, with its build tools.
# Written by `make constraints`; why two of them are held by hand is said in .ci/constraints.py.
"""


def main() -> None:
    """Resolve, and replace constraints.txt."""
    wanted = [f"{ROOT}[all,bench,dev]", *HELD, *BUILD_TOOLS]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*pip, "--report", report.name, *wanted], check=True)
        found = [item["metadata"] for item in json.load(report)["install"]]
    pins = sorted(f"{normal(item['name'])}=={public(item['version'])}" for item in found)
    pins = [pin for pin in pins if not pin.startswith("aios==")]
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n")
    print(f"constraints.txt: {len(pins)} packages")


def normal(name: str) -> str:
    """Spell a package's name in the one normalized way."""
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """Drop a build's local label: 2.13.0+cpu is 2.13.0 to everyone else."""
    return version.partition("+")[0]


if __name__ == "__main__":
    main()
