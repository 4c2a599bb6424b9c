"""What a person sees of an error: their own lines, here and on the worker, and which task it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Python 3.10 shows no notes, and one frame of gearmap.
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes before Python 3.11")

SCRIPT = """
import gearmap

def ratio(x):
    return (x + 1) / (x - 3)

def simulate(x):
    return ratio(x)

def study(numbers):
    return gearmap.map(simulate, numbers)

def numbers():
    yield 1
    raise LookupError("no more numbers")

def innermost(error):
    entry = error.__traceback__
    while entry.tb_next is not None:
        entry = entry.tb_next
    return entry.tb_frame.f_code.co_name

if __name__ == "__main__":
    with gearmap.LocalCluster(1):
        try:
            study(numbers())
        except LookupError as error:
            print(innermost(error))
        try:
            study([1, 3])
        except ZeroDivisionError as error:
            print(innermost(error))  # where a debugger would land
            raise
"""


def run(script: Path, **environment: str) -> tuple[str, str]:
    """Run it, and return what it prints and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program whose second map fails."""
    path = tmp_path / "study.py"
    path.write_text(SCRIPT)
    return path


def functions(text: str) -> list[str]:
    """Return the functions whose frames a text shows."""
    return re.findall(r'^  File ".*", line \d+, in (\S+)$', text, re.MULTILINE)


def test_the_error_of_a_task_shows_the_users_frames_here_and_on_the_worker(script: Path) -> None:
    printed, said = run(script)

    here, _, remote = said.partition("Remote traceback")
    assert functions(here) == ["<module>", "study"]
    assert "\nZeroDivisionError: division by zero\n(task 1 of 2: simulate(3); on " in here
    assert functions(remote) == ["simulate", "ratio"]
    assert "    return (x + 1) / (x - 3)\n" in remote
    assert said.endswith("\nZeroDivisionError: division by zero\n")
    assert printed == "numbers\nstudy\n"


def test_every_frame_is_shown_if_that_is_asked_for(script: Path) -> None:
    _, said = run(script, GEARMAP_TRACEBACK="full")

    shown = functions(said.partition("Remote traceback")[0])
    assert shown[:3] == ["<module>", "study", "map"]
    assert shown[-1] == "_conclude"


def test_ipython_shows_the_users_cell_and_the_remote_traceback(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    cells = tmp_path / "cells.py"
    cells.write_text(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.history_manager.enabled = False\n"
        "shell.run_cell('%colors nocolor')\n"
        "shell.run_cell('import gearmap\\ncluster = gearmap.LocalCluster(1).__enter__()')\n"
        "shell.run_cell('def ratio(x):\\n    return 1 / (x - 3)')\n"
        "shell.run_cell('gearmap.map(ratio, [1, 3])')\n"
        "shell.run_cell('cluster.__exit__(None, None, None)')\n"
    )

    printed, _ = run(cells, IPYTHONDIR=str(tmp_path))

    assert "----> 1 gearmap.map(ratio, [1, 3])\n\nZeroDivisionError: division by zero\n(task 1 of 2" in printed
    assert "in ratio\n    return 1 / (x - 3)\n" in printed
    assert "/gearmap/" not in printed
