"""What type checkers make of the public surface: they infer results, and find wrong arguments."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKED = HERE / "checked"

Complaints = dict[int, list[str]]


def complaints_of_mypy(path: Path) -> Complaints:
    """Return what mypy --strict says, by line."""
    ended = run("mypy", "--strict", "--no-error-summary", "--no-pretty", str(path))
    found: Complaints = {}
    for line in ended.stdout.splitlines():
        match = re.match(rf"[^:]*{path.name}:(\d+): error: (.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    assert bool(found) == bool(ended.returncode), ended.stdout
    return found


def complaints_of_pyright(path: Path) -> Complaints:
    """Return what pyright says, by line."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    ended = run("pyright", "--outputjson", "--pythonpath", sys.executable, str(path))
    if not ended.stdout.lstrip().startswith("{"):
        pytest.skip(f"pyright does not run here: {ended.stderr[-200:]}")
    found: Complaints = {}
    for each in json.loads(ended.stdout)["generalDiagnostics"]:
        if each["severity"] == "error":
            found.setdefault(each["range"]["start"]["line"] + 1, []).append(each["message"])
    return found


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


either = pytest.mark.parametrize("complaints_of", [complaints_of_mypy, complaints_of_pyright], ids=["mypy", "pyright"])


@either
def test_results_have_the_types_that_functions_return(complaints_of: Callable[[Path], Complaints]) -> None:
    assert complaints_of(CHECKED / "inference.py") == {}


@either
def test_wrong_arguments_are_found_and_nothing_else(complaints_of: Callable[[Path], Complaints]) -> None:
    path = CHECKED / "mistakes.py"
    wrong = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# wrong")}
    found = complaints_of(path)
    assert wrong
    assert {line: found.get(line, "not found") for line in wrong | set(found)} == {
        line: found.get(line) for line in wrong
    }
