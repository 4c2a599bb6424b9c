"""Maps in cells of a real JupyterLab: where their output goes, and what stops them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest
from conftest import Cluster
from lab import REPOSITORY, Lab, NotebookPage

pytestmark = pytest.mark.slow

LONG_WORK = """
import time

def nap(number):
    time.sleep(0.2)
    return number
"""

REPORT = """
run = gearmap.last()
partial = run.partial()
assert partial and all(partial[task] == task for task in partial)
print(f"{len(partial) < 500}, cancelled: {run.cancelled()}")
"""


def test_the_quickstart_runs_cell_by_cell(lab: Lab, open_notebook: Callable[..., NotebookPage]) -> None:
    shutil.copy(REPOSITORY / "notebooks" / "01_quickstart.ipynb", lab.root)
    notebook = open_notebook(path="01_quickstart.ipynb")

    notebook.command("notebook:run-all-cells")

    cells = notebook.saved().cells
    notebook.screenshot("quickstart")
    assert [cell.cell_type for cell in cells].count("code") > 5
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert not [out for cell in cells for out in cell.get("outputs", ()) if out.output_type == "error"]


def test_what_a_map_shows_stands_under_its_cell(cluster: Cluster, open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(
        cluster.connect,
        "squares = gearmap.map(lambda x: x * x, range(1000), progress=True, desc='squares')\nsum(squares)",
        "'the next cell'",
    )

    notebook.run(0, 1, 2)

    notebook.screenshot("map")
    assert "332833500" in notebook.text(1)
    assert "332833500" in notebook.area(1).inner_text()
    assert notebook.text(2) == "'the next cell'"


@pytest.mark.parametrize("way", ["rest", "menu"])
def test_an_interrupt_ends_the_work_on_the_cluster_and_leaves_what_is_done(
    way: str, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(cluster.connect + LONG_WORK, "gearmap.map(nap, range(500), chunksize=1)", REPORT)
    notebook.run(0)
    notebook.start(1)
    cluster.wait_until_busy()

    if way == "rest":
        notebook.interrupt()
    else:
        notebook.command("notebook:interrupt-kernel")
    began = time.monotonic()
    notebook.wait_done(1)
    took = time.monotonic() - began

    cluster.wait_until_idle()
    notebook.run(2)
    notebook.screenshot(f"interrupted-{way}")
    assert "KeyboardInterrupt" in notebook.text(1)
    assert took < 10.0  # the map would take most of a minute; how soon it is, the kernels are asked in test_kernels
    assert notebook.text(2) == "True, cancelled: True\n"


def test_a_map_can_be_awaited_and_interrupted(cluster: Cluster, open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(
        cluster.connect + LONG_WORK,
        "run = gearmap.map_async(nap, range(10))\nawait run",
        "await gearmap.map_async(nap, range(500), chunksize=1)",
        REPORT,
    )
    notebook.run(0, 1)
    assert notebook.text(1).endswith(str(list(range(10))))  # after the card

    notebook.start(2)
    cluster.wait_until_busy()
    notebook.interrupt()
    notebook.wait_done(2)

    cluster.wait_until_idle()
    assert "CancelledError" in notebook.text(2) or "KeyboardInterrupt" in notebook.text(2)
    notebook.run(3)
    assert notebook.text(3) == "True, cancelled: True\n"


def test_a_map_in_the_background_is_cancelled_from_another_cell(
    cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + LONG_WORK, "run = gearmap.map_async(nap, range(500), chunksize=1)", "run.cancel()", REPORT
    )
    notebook.run(0, 1)
    cluster.wait_until_busy()

    notebook.run(2)

    cluster.wait_until_idle()
    notebook.run(3)
    assert notebook.text(3) == "True, cancelled: True\n"


def test_a_kernel_that_is_shut_down_takes_its_work_with_it(
    lab: Lab, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(cluster.connect + LONG_WORK, "gearmap.map(nap, range(500), chunksize=1)")
    notebook.run(0)
    notebook.start(1)
    cluster.wait_until_busy()

    lab.end_kernels()

    cluster.wait_until_idle()
