"""The card of a cluster in a real JupyterLab: it follows while somebody looks, scales, and stays true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nbformat
import pytest
from lab import NotebookPage, eventually

pytestmark = pytest.mark.slow

START = """
import time, gearmap
cluster = gearmap.LocalCluster(2)
cluster.map(abs, [-1])
def slow(x):
    time.sleep(0.2)
    return x
"""


def states(card: Any) -> list[str]:
    """What the workers do, as the card says."""
    found: list[str] = card.locator(".gm-node .gm-state").all_inner_texts()
    return found


def test_a_cluster_shows_what_it_does_scales_and_stays_true(open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(
        START,
        "cluster",
        "results = cluster.map(slow, range(60), chunksize=1)\nprint(results == list(range(60)))",
        "cluster.close()",
    )
    notebook.run(0, 1)
    card = notebook.area(1).locator(".gm-cluster")
    card.wait_for()
    eventually(lambda: states(card) == ["idle", "idle"], "both workers are idle")
    assert card.locator(".gm-count").input_value() == "2"
    notebook.screenshot("cluster-idle-light")

    # While a cell runs, the card goes on, and scaling works.
    notebook.start(2)
    eventually(lambda: states(card) == ["busy", "busy"], "both work")
    card.get_by_role("button", name="one worker more").click()
    eventually(lambda: len(states(card)) == 3 and set(states(card)) == {"busy"}, "a third works, too")
    assert card.locator(".gm-node").count() == 2
    notebook.screenshot("cluster-busy-light")
    notebook.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    notebook.page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    notebook.screenshot("cluster-busy-dark")
    card.get_by_role("spinbutton", name="workers").fill("2")
    card.get_by_role("spinbutton", name="workers").press("Enter")
    notebook.wait_done(2)
    assert notebook.text(2).strip().endswith("True")
    eventually(lambda: len(states(card)) == 2, "one has gone")

    notebook.run(3)
    eventually(lambda: card.count() == 0, "a table takes its place")
    assert "(closed)" in notebook.area(1).inner_text()
    notebook.screenshot("cluster-closed-dark")
    (output,) = notebook.saved().cells[1].outputs
    assert list(output.data) == ["text/html", "text/plain"]


def test_a_notebook_that_somebody_else_opens_has_a_table_with_its_time(
    open_notebook: Callable[..., NotebookPage],
) -> None:
    notebook = open_notebook(START, "cluster")
    notebook.run(0, 1)
    notebook.area(1).locator(".gm-cluster").wait_for()
    saved = notebook.saved()
    (output,) = saved.cells[1].outputs
    assert "2 workers" in output.data["text/html"]
    assert output.data["text/plain"].startswith("<LocalCluster: local cluster, 2 workers")
    saved.cells[0].source += "\n# changed elsewhere"  # or this server would trust what it has signed itself
    path = notebook.lab.root / f"received-{notebook.path}"
    nbformat.write(saved, path)

    again = open_notebook(path=path.name)

    eventually(lambda: "as of 20" in again.area(1).inner_text(), "the table is there")
    again.screenshot("cluster-opened-again")


def test_nobody_is_asked_while_nobody_looks(open_notebook: Callable[..., NotebookPage]) -> None:
    notebook = open_notebook(
        START,
        "cluster",
        "print(sorted(t.name for t in __import__('threading').enumerate() if t.name == 'gearmap-cluster-card'))",
    )
    notebook.run(0, 1)
    notebook.area(1).locator(".gm-cluster").wait_for()
    notebook.run(2)
    assert "gearmap-cluster-card" in notebook.text(2)
    notebook.command("notebook:hide-cell-outputs")  # of the active cell only: the card goes on
    notebook.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    notebook.command("notebook:hide-cell-outputs")

    def is_asked() -> bool:
        notebook.run(2)
        return "gearmap-cluster-card" in notebook.text(2)

    eventually(lambda: not is_asked(), "the thread that asks has ended")
    notebook.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    notebook.command("notebook:show-cell-outputs")
    eventually(is_asked, "it asks again")
