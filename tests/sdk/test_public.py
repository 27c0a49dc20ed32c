"""The SDK's face: what it exports, that its methods are the table's, and what mypy sees of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aios
import aios.calls
from aiosd.abi import bindings
from aiosd.abi.call import Syscall
from aiosd.abi.describe import arguments, records
from aiosd.abi.table import TABLE

ROOT = Path(__file__).parents[2]
CALLS = [call for call in TABLE.values() if call.name not in bindings.CONNECTION]


def test_all_is_exactly_what_is_public() -> None:
    stated = _stated()
    assert set(aios.__all__) == set(stated) | {"AsyncKernel", "connect_async"}
    for name, module in stated.items():
        assert getattr(aios, name) is getattr(importlib.import_module(module), name), name
    assert set(aios.__all__) <= set(dir(aios))
    assert not hasattr(aios, "connect_soon")
    assert len(set(aios.__all__)) == len(aios.__all__)


def _stated() -> dict[str, str]:
    """The names that type checkers see in `aios`, and from which module each is."""
    tree = ast.parse(Path(aios.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    hidden = {"annotations", "TYPE_CHECKING", "Any", "Final", "tools"}
    return {
        alias.name: node.module or ""
        for node in imports
        for alias in node.names
        if alias.name not in hidden
    }


def test_to_import_aios_imports_next_to_nothing() -> None:
    code = "import aios, sys; print([n for n in sys.modules if n.startswith(('aiosd', 'msgspec'))])"
    path = f"{ROOT}{os.pathsep}{ROOT / 'sdk'}"
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=True, stdout=-1)
    assert done.stdout.decode().strip() == "[]"


def test_every_type_that_a_method_answers_with_is_exported() -> None:
    named = {
        struct.__name__
        for call in CALLS
        for kind in (call.reply, call.chunk)
        for struct in records(kind)
    }
    assert named <= set(aios.__all__)


def test_the_methods_are_not_stale() -> None:
    source = Path(aios.calls.__file__).read_text("utf-8")
    assert source == bindings.render(), (
        "the table changed: run python -m aiosd.abi.bindings > sdk/aios/calls.py"
    )


@pytest.mark.parametrize("face", [aios.Kernel, aios.AsyncKernel])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_call_is_a_method(call: Syscall, face: type) -> None:
    method = inspect.signature(getattr(face, call.name))
    taken = [each for each in method.parameters.values() if each.name != "self"]
    assert [each.name for each in taken if each.default is each.empty] == [
        each.name for each in arguments(call) if each.required
    ]
    assert {each.name for each in taken} == set(call.args.__struct_fields__)
    optional = {each.name for each in taken if each.kind is each.KEYWORD_ONLY}
    exempt = {bindings.POSITIONAL.get(call.name)}
    assert optional == {each.name for each in arguments(call) if not each.required} - exempt


def test_the_sdk_imports_nothing_heavy() -> None:
    script = (
        "import sys, aios\n"
        "ours = {n for n in sys.modules if n.split('.')[0] in ('aiosd', 'aiosh')}\n"
        "assert all(n == 'aiosd' or n.startswith('aiosd.abi') for n in ours), ours\n"
        "foreign = {'asyncio', 'typer', 'rich', 'uvloop', 'sqlite_utils', 'numpy', 'psutil'}\n"
        "assert not foreign & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=_environment())


def test_mypy_sees_what_a_user_expects() -> None:
    """Also that the package says it is typed: mypy would not look into it otherwise."""
    assert (ROOT / "sdk/aios/py.typed").exists()
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/sdk/typed_program.py"],
        check=False, cwd=ROOT, env=_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"}
