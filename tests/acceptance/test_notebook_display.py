"""What a kernel without a front end keeps of a run: the truth, in few messages."""

from __future__ import annotations

from collections import Counter
from typing import Any

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

START = """
import os, time, gearmap
cluster = gearmap.LocalCluster(2).__enter__()
def work(number):
    time.sleep(5e-5)
    return 1 / (number - 50_000)
def short(number):
    time.sleep(0.1)
"""


class Counting(nbclient.NotebookClient):
    """Counts the messages that each cell sends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: Counter[int] = Counter()

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        self.counts[cell_index] += 1
        return super().process_message(msg, cell, cell_index)


def executed(*cells: str) -> Counting:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    client = Counting(made, timeout=60, kernel_name="python3")
    client.execute()
    return client


def test_a_flood_of_tiny_tasks_is_few_messages_and_ends_with_the_truth() -> None:
    client = executed(
        START,
        "began = time.monotonic()\n"
        "run = gearmap.map(work, range(100_000), progress=True, return_exceptions=True)\n"
        "print(time.monotonic() - began)",
        "gearmap.last().failed()",
        "gearmap.map(abs, range(10))",
        "cluster.close()",
    )
    outputs = client.nb.cells[1].outputs
    summary, emptied = (each.data for each in outputs if each.output_type == "display_data")
    assert emptied["text/plain"] == ""  # the card's
    (text,) = (each.text for each in outputs if each.output_type == "stream")
    assert set(summary) == {"text/plain", "text/html"}
    assert "finished after" in summary["text/plain"]
    assert "100,000/100,000 · 100%" in summary["text/plain"]
    assert "ZeroDivisionError" in summary["text/html"]
    assert client.counts[1] < 15 * float(text) + 25  # those of the cell itself, and of a widget that comes and goes
    assert "task 50000" in client.nb.cells[2].outputs[0].data["text/html"]
    assert [each.output_type for each in client.nb.cells[3].outputs] == ["execute_result"]  # too short for a card


def test_without_widgets_there_is_html_and_off_is_off() -> None:
    client = executed(
        START,
        "os.environ['GEARMAP_PROGRESS'] = 'html'\ngearmap.map(short, range(20));",
        "os.environ['GEARMAP_PROGRESS'] = 'off'\ngearmap.map(short, range(20), progress=True);",
        "cluster.close()",
    )
    (summary,) = client.nb.cells[1].outputs
    assert "20/20 · 100%" in summary.data["text/html"]
    assert client.nb.cells[2].outputs == []


SAYS = """
import base64, logging, time, warnings, gearmap
cluster = gearmap.LocalCluster(2).__enter__()
def says(x):
    import matplotlib.pyplot as plt
    plt.figure(figsize=(1, 1))
    warnings.warn("mind the gap")
    logging.getLogger("of.a.task").warning("logged")
    return x
"""


def test_what_a_task_says_and_shows_stands_in_the_cell_that_waits_for_it() -> None:
    client = executed(
        SAYS,
        "future = cluster.submit(says, 1)\ncluster.map(abs, range(10), progress=False);",
        "future.result()",
        "future.result()",
        "cluster.map(says, range(3), progress=False);",
        "gearmap.last().output(2)",
        "cluster.close()",
    )
    _, quiet, waits, again, mapped, asked, _ = (cell.outputs for cell in client.nb.cells)
    assert quiet == []
    assert [each.data["text/plain"] for each in again] == ["1"]
    (figure,) = (each.data for each in waits if each.output_type == "display_data")
    assert figure["text/plain"] == "<Figure size 100x100 with 0 Axes>"
    errors = "".join(each.text for each in waits if each.get("name") == "stderr")
    assert "UserWarning: mind the gap (task 0; worker " in errors
    assert "logged" in errors
    texts = {name: "".join(each.text for each in mapped if each.get("name") == name) for name in ("stdout", "stderr")}
    assert texts["stdout"] == "3 tasks displayed something (0, 1, 2); gearmap.last().output(0) shows it\n"
    assert texts["stderr"].count("mind the gap (3 tasks, first 0, 1, 2; worker ") == 1
    assert [set(each.data) for each in asked] == [{"image/png", "text/plain"}]
