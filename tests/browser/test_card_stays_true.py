"""What a card leaves in notebooks that are opened again and exported, and what a flood of tiny tasks does to a page."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import Cluster
from lab import Lab, NotebookPage

pytestmark = pytest.mark.slow

WORK = """
import time

def simulate(number):
    time.sleep(0.1)
    if number == 3:
        raise ValueError("negative mass")
    return number
"""
MAP = "results = gearmap.map(simulate, range(20), chunksize=1, return_exceptions=True)"
TRUTH = ("finished after", "20/20 · 100%", "negative mass")

# What kernels send to a page beside their own states.
SHOWN = (b'"comm_msg"', b'"update_display_data"', b'"display_data"', b'"stream"')


def export(path: Path, form: str) -> str:
    """Return the notebook as nbconvert writes it."""
    command = [sys.executable, "-m", "nbconvert", "--to", form, "--stdout", str(path)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode()


def test_a_notebook_that_is_opened_again_or_exported_tells_how_its_run_ended(
    lab: Lab, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(cluster.connect + WORK, MAP)
    notebook.run(0, 1)
    saved = notebook.saved()
    # As it comes from somebody else: what this server has signed itself, it would show without cleaning it.
    saved.cells[0].source += "\n# changed elsewhere"
    path = lab.root / f"received-{notebook.path}"
    nbformat.write(saved, path)

    again = open_notebook(path=path.name)

    shown = again.area(1).inner_text()
    again.screenshot("card-opened-again")
    assert [each for each in TRUTH if each not in shown and each not in again.area(1).inner_html()] == []
    assert again.area(1).get_by_role("button").count() == 0
    page = export(path, "html")
    assert [each for each in TRUTH if each not in page] == []
    assert (
        '<script type="application/vnd.jupyter.widget-view+json">' not in page
    )  # that would be empty without a network
    assert TRUTH[0] in export(path, "markdown")


def test_a_flood_of_tiny_tasks_leaves_the_page_alone(
    cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect,
        """
import time

def spin(number):
    until = time.perf_counter() + 1e-4
    while time.perf_counter() < until:
        pass
    return number

sum(gearmap.map(spin, range(100_000)))
""",
    )
    notebook.run(0)
    notebook.start(1)
    notebook.area(1).locator(".gm-card").wait_for()
    notebook.frames.clear()
    began = time.monotonic()

    waits = []
    menu = notebook.page.locator(".lm-MenuBar-item").first
    opened = notebook.page.locator(".lm-Menu").first
    for _ in range(5):
        clicked = time.monotonic()
        menu.click()
        opened.wait_for()
        waits.append(time.monotonic() - clicked)
        notebook.page.keyboard.press("Escape")
        opened.wait_for(state="hidden")
    notebook.wait_done(1)
    took = time.monotonic() - began

    n_shown = sum(any(kind in frame for kind in SHOWN) for frame in notebook.frames)
    notebook.screenshot("flood")
    print(f"{took:.1f} s, {n_shown} messages, {len(waits)} clicks, median {statistics.median(waits):.3f} s")
    assert notebook.text(1).endswith(str(sum(range(100_000))))
    assert took > 1.0
    assert n_shown > 2
    assert n_shown / took < 15
    assert statistics.median(waits) < 0.5
