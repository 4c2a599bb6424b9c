"""Futures and runs where a cell ends with one."""

from __future__ import annotations

from typing import Any

from gearmap.client import LocalCluster
from gearmap.notebook.reprs import failed_html, future_html, map_html
from gearmap.runtime.futures import Future
from gearmap.runtime.mapfuture import MapFuture


def inverse(number: int) -> float:
    return 1 / number


def run_of(*numbers: int) -> MapFuture[Any]:
    with LocalCluster(0) as cluster:  # in this process
        return cluster.map_async(inverse, numbers, return_exceptions=True)


def test_a_map_that_is_done_says_so_with_its_counts() -> None:
    html = map_html(run_of(1, 2, 4))
    assert "<b>inverse</b>" in html
    assert "finished" in html
    assert "3/3 · 100%" in html


def test_a_map_with_failures_shows_them() -> None:
    html = map_html(run_of(1, 0, 2))
    assert "1 failed" in html
    assert "ZeroDivisionError" in html


def test_failed_tasks_are_a_list_that_shows_itself() -> None:
    failed = run_of(0, 1, 0).failed()
    assert [each.task_index for each in failed] == [0, 2]
    html = failed_html(failed)  # type: ignore[arg-type]  # it is one
    assert html.startswith("<details open>")
    assert "2 failed" in html
    assert "task 2" in html
    assert failed_html(run_of(1).failed()) == "<div>no task has failed</div>"  # type: ignore[arg-type]  # it is one


def test_a_future_shows_its_state_and_not_its_result() -> None:
    future: Future[Any] = Future(3)
    assert future_html(future) == "<div><b>task 3</b>: pending</div>"
    future.set_running_or_notify_cancel()
    future.worker, future.attempts = "<w>", 2
    future.set_result("secret")
    assert future_html(future) == "<div><b>task 3</b>: finished returned str · on &lt;w&gt; · 2 attempts</div>"


def test_a_future_that_failed_names_the_error() -> None:
    future: Future[Any] = Future(0)
    future.set_exception(KeyError("x"))
    assert "finished raised KeyError" in future_html(future)
