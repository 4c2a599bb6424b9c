"""The run card in a real JupyterLab: it lives while the run does, obeys, and leaves the truth."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from conftest import Cluster
from lab import Lab, NotebookPage, eventually

pytestmark = pytest.mark.slow

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

WORK = """
import time

def simulate(number):
    time.sleep(0.1)
    if number % 10 == 3:
        raise ValueError(f"negative mass in sample {number} <b>&amp;</b>")
    return number
"""


def test_a_card_moves_and_what_was_opened_stays_open(
    cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK,
        "results = gearmap.map(simulate, range(100), chunksize=1, return_exceptions=True)",
    )
    notebook.run(0)
    notebook.start(1)
    card = notebook.area(1).locator(".gm-card")
    failures = card.locator(".gm-failures")
    failures.locator("> summary").press("Enter")  # no mouse is needed
    row = failures.locator("tbody tr").first
    row.locator("details > summary").press("Space")
    trace = row.locator("pre")
    trace.wait_for()
    assert "negative mass in sample" in trace.inner_text()
    before = card.locator(".gm-line").inner_text()
    notebook.screenshot("card-running-light")
    notebook.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    notebook.page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    eventually(lambda: card.locator(".gm-line").inner_text() != before, "the card moves")
    notebook.screenshot("card-running-dark")
    assert trace.is_visible()
    assert card.get_by_role("status").inner_text() == "running"
    assert not notebook.area(1).get_by_text("no final status recorded").is_visible()
    notebook.wait_done(1)
    eventually(lambda: card.count() == 0, "the summary takes its place")
    notebook.screenshot("card-done-dark")
    bundle, emptied = (output["data"] for output in notebook.outputs(1) if output["output_type"] == "display_data")
    assert emptied["text/plain"] == ""
    assert WIDGET_VIEW not in emptied
    assert WIDGET_VIEW not in bundle
    assert "finished after" in "".join(bundle["text/plain"])
    assert "100/100 · 100%" in "".join(bundle["text/html"])
    assert "negative mass" in notebook.area(1).inner_html()
    notebook.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    notebook.page.locator("body[data-jp-theme-light=true]").wait_for(state="attached")
    notebook.screenshot("card-done-light")


def test_cancel_ends_a_map_that_its_cell_waits_for(
    cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK,
        "gearmap.map(simulate, range(1000), chunksize=1, return_exceptions=True)",
        "print(gearmap.last().cancelled(), 0 < len(gearmap.last().partial()) < 1000)",
    )
    notebook.run(0)
    notebook.start(1)
    cluster.wait_until_busy()
    button = notebook.area(1).get_by_role("button", name="Cancel")
    button.click()
    began = time.monotonic()
    notebook.wait_done(1)
    assert time.monotonic() - began < 10.0  # the map would take a minute
    cluster.wait_until_idle()
    notebook.run(2)
    notebook.screenshot("card-cancelled")
    assert "CancelledError" in notebook.text(1) or "RunCancelled" in notebook.text(1)
    assert "cancelled after" in notebook.area(1).inner_text()
    assert notebook.text(2) == "True True\n"


def test_cancel_ends_a_map_in_the_background_whose_card_is_there_at_once(
    cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK,
        "run = gearmap.map_async(simulate, range(1000), chunksize=1, return_exceptions=True)",
        "print('another cell')",
        "run.cancelled()",
    )
    notebook.run(0, 1, 2)
    cluster.wait_until_busy()
    bar = notebook.area(1).get_by_role("progressbar")
    assert (bar.get_attribute("aria-valuemin"), bar.get_attribute("aria-valuemax")) == ("0", "1000")
    assert "/1,000" in (bar.get_attribute("aria-valuetext") or "")
    notebook.area(1).get_by_role("button", name="Cancel").press("Enter")
    eventually(lambda: "cancelled after" in notebook.area(1).inner_text(), "the card says that it was cancelled")
    cluster.wait_until_idle()
    notebook.run(3)
    assert notebook.text(2) == "another cell\n"
    assert notebook.text(3) == "True"
    assert notebook.area(1).locator(".gm-card").count() == 0


SHOWN = """
from gearmap.core.snapshot import FailureRow, ProgressSnapshot, WorkerView
from gearmap.display.registry import SinkRequest
from gearmap.notebook.display import KernelDisplay

workers = [WorkerView(f"node{number // 8}.cluster.example/{number % 8}", number, 1.0) for number in range(32)]
words = "of many words " * 20
row = FailureRow(task=37, call="simulate(37)", error="ValueError", message=words, worker="node1.cluster.example/3",
                 attempts=2, traceback="Traceback (most recent call last):\\n    raise ValueError(words)\\n" + words)
card = KernelDisplay().make_card(SinkRequest(title="simulate", where="head:4730", total=1000))
card.failed(row)
card.update(ProgressSnapshot(total=1000, done=607, failed=1, cancelled=0, running=200, queued=192, again=0,
                             elapsed=14.5, workers=200, working=tuple(workers)))
"""


def test_a_card_of_many_workers_fits_into_a_narrow_window(open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(SHOWN)
    notebook.run(0)
    card = notebook.area(0).locator(".gm-card")
    card.locator(".gm-failures > summary").click()
    card.locator("tbody details > summary").click()
    notebook.page.set_viewport_size({"width": 480, "height": 1200})
    box = "node => node.scrollWidth <= node.clientWidth"
    eventually(lambda: card.bounding_box()["width"] < 450, "the card is narrow")
    card.scroll_into_view_if_needed()
    notebook.screenshot("card-narrow")
    assert card.evaluate(box)
    assert card.locator("table").evaluate(box)
    assert card.locator(".gm-strip").bounding_box()["height"] < 200
    assert "and 176 more" in card.inner_text()


def test_a_kernel_that_dies_leaves_a_true_sentence(
    lab: Lab, cluster: Cluster, open_notebook: Callable[..., NotebookPage]
) -> None:
    notebook = open_notebook(
        cluster.connect + WORK,
        "run = gearmap.map_async(simulate, range(1000), chunksize=1, return_exceptions=True)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    )
    notebook.run(0, 1)
    cluster.wait_until_busy()
    notebook.start(2)
    cluster.wait_until_idle()
    saved = notebook.saved()
    output = saved.cells[1].outputs[0]
    assert "gearmap simulate: 1,000 tasks, started" in output.data["text/plain"]
    assert "no final status recorded" in output.data["text/html"]
    assert "%" not in output.data["text/html"]
    lab.end_kernels()
    again = open_notebook(path=notebook.path)
    sentence = again.area(1).get_by_text("no final status recorded")
    sentence.wait_for()
    again.screenshot("card-of-a-dead-kernel")
    assert sentence.inner_text() == output.data["text/plain"]
