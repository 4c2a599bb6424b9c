"""The notebooks run from top to bottom, and are saved as they ran.

After a change: `make notebooks`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from acceptance_support import REPOSITORY
from programs import missing

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

# Seconds for a whole notebook. The longest takes 35 on a machine that has other things to do.
TIMEOUT = 200

# In a process of its own: the libraries of the notebook world warn about each other.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
"""


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_is_a_quickstart() -> None:
    assert "01_quickstart.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT + 20)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_assertions_hold(path: Path, tmp_path: Path) -> None:
    for package in ("sklearn", "matplotlib"):
        if package in path.read_text(encoding="utf-8") and find_spec(package) is None:
            missing(package)

    ended = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr[-4000:]
    assert {path.name for path in tmp_path.iterdir()} <= {"ipython"}  # nothing is left beside the notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_with_its_outputs_from_one_run(path: Path) -> None:
    cells = read_cells(path)

    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells)
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_of_a_notebook_name_no_folder_of_the_machine_that_ran_it(path: Path) -> None:
    outputs = json.dumps([cell["outputs"] for cell in read_cells(path)])

    assert re.search(r"(?<![\w.<])/(?:home|root|work|Users|tmp|usr|opt|var)\b", outputs) is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asserts_what_it_claims(path: Path) -> None:
    assert sum("assert " in "".join(cell["source"]) for cell in read_cells(path)) >= 5
