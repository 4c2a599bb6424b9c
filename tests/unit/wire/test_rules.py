"""The laws of `gearmap.wire`, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gearmap.wire import seal

SOURCES = sorted(Path(seal.__file__).parent.glob("*.py"))
PICKLING = {"serializer.py", "functions.py"}
IMPURE = {
    "socket",
    "threading",
    "time",
    "random",
    "secrets",
    "uuid",
    "subprocess",
    "selectors",
    "asyncio",
    "datetime",
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_wire_module_is_pure_and_imports_downwards_only(path):
    modules = set(imported_modules(path))
    assert not {module.partition(".")[0] for module in modules} & IMPURE
    ours = {module for module in modules if module.startswith("gearmap")}
    below = ("gearmap.errors", "gearmap.memory", "gearmap.secret", "gearmap.wire")
    assert all(module.startswith(below) for module in ours)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_the_serializer_and_its_functions_pickle(path):
    pickling = {"pickle", "cloudpickle", "marshal", "shelve", "_pickle"} & set(imported_modules(path))
    assert not pickling or path.name in PICKLING


def test_the_sources_were_found():
    assert len(SOURCES) > 5
