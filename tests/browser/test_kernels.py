"""What must hold for every ipykernel that people have; the folders with them come from `make test`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cluster
from lab import REPOSITORY, Lab, NotebookPage
from programs import missing

pytestmark = pytest.mark.slow

FOLDER = Path(sys.prefix) / "kernels"
VERSIONS = re.findall(r"^KERNELS := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[0].split()

# Seconds until an interrupted cell has ended.
PROMISED = 0.3
ATTEMPTS = 5

WORK = """
import ipykernel, time

def nap(number):
    time.sleep(0.1)
    return number

def long_map():
    # With a mark, as the browser may be slower than the kernel.
    try:
        gearmap.map(nap, range(500), chunksize=1, progress=True)
    finally:
        print(f"ended {time.time()}")

async def long_await():
    try:
        await gearmap.map_async(nap, range(500), chunksize=1)
    finally:
        print(f"ended {time.time()}")

ipykernel.__version__
"""

PARTIAL = "0 < len(gearmap.last().partial()) < 500 and gearmap.last().cancelled()"


@pytest.fixture(params=VERSIONS)
def kernel(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The name of a kernel with one version of ipykernel."""
    version = str(request.param)
    folder = FOLDER / version
    if not folder.is_dir():
        missing(f"ipykernel {version} in {folder}")
    described = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"ipykernel {version}",
        "language": "python",
        "env": {"PYTHONPATH": f"{folder}:{REPOSITORY}"},
    }
    place = lab.data / "kernels" / f"ipykernel-{version}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "kernel.json").write_text(json.dumps(described))
    return place.name


def seconds_to_interrupt(notebook: NotebookPage, cluster: Cluster, cell: int) -> float:
    """Interrupt a cell while it works, and return after how many seconds it has ended in the kernel."""
    notebook.start(cell)
    cluster.wait_until_busy()
    began = time.time()
    notebook.interrupt()
    notebook.wait_done(cell)
    cluster.wait_until_idle()
    return float(re.findall(r"ended ([\d.]+)", notebook.text(cell))[0]) - began


def fewest_seconds(notebook: NotebookPage, cluster: Cluster, cell: int) -> float:
    """Return the best of some attempts: a busy machine makes single ones slow, and only a fault all of them."""
    took = sorted(seconds_to_interrupt(notebook, cluster, cell) for _ in range(ATTEMPTS))
    print(f"cell {cell}: best {took[0]:.3f} s, median {took[ATTEMPTS // 2]:.3f} s")
    return took[0]


def test_an_interrupt_is_prompt(kernel: str, cluster: Cluster, open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(cluster.connect + WORK, "long_map()", "await long_await()", PARTIAL, kernel=kernel)
    notebook.run(0)
    assert notebook.text(0) == repr(kernel.removeprefix("ipykernel-"))

    blocking = fewest_seconds(notebook, cluster, 1)
    awaiting = fewest_seconds(notebook, cluster, 2)

    assert "KeyboardInterrupt" in notebook.text(1)
    assert "KeyboardInterrupt" in notebook.text(2) or "CancelledError" in notebook.text(2)
    shown = "interrupted after", "cancelled after"  # an awaited map is cancelled, as asyncio tells it no more
    assert [words in notebook.area(cell).inner_text() for cell, words in zip((1, 2), shown, strict=True)] == [True] * 2
    notebook.run(3)
    assert notebook.text(3) == "True"
    assert max(blocking, awaiting) <= PROMISED, f"map {blocking:.3f} s, await {awaiting:.3f} s"


def test_output_stays_with_the_cell_whose_map_it_is(
    kernel: str, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK,
        "run = gearmap.map_async(nap, range(20), chunksize=1, progress=True, desc='first')",
        "print('second')\nresults = run.result()",
        "gearmap.map(lambda x: x, range(3), progress=True, desc='third')",
        kernel=kernel,
    )

    notebook.run(0, 1, 2, 3)

    assert "third" not in notebook.text(1) + notebook.text(2)
    assert "second" in notebook.text(2)
    assert "first" not in notebook.text(2) + notebook.text(3)
    assert "[0, 1, 2]" in notebook.text(3)


def test_cancel_is_heard_while_the_cell_waits_where_the_kernel_can_hear(
    kernel: str, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK, "gearmap.map(nap, range(500), chunksize=1)", "gearmap.last().cancelled()", kernel=kernel
    )
    notebook.run(0)
    notebook.start(1)
    cluster.wait_until_busy()
    notebook.area(1).get_by_role("button", name="Cancel").click()

    if kernel.startswith("ipykernel-6"):  # it has no thread that would hear it
        notebook.page.get_by_text("Cancelling...").wait_for()
        assert cluster.jobs()[0] > 0
        notebook.interrupt()
    notebook.wait_done(1)

    cluster.wait_until_idle()
    notebook.run(2)
    assert notebook.text(2) == "True"
