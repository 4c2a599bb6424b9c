"""Tasks in the calling process: the same options as elsewhere."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import gearmap
from gearmap.config import RunOptions
from gearmap.core.snapshot import FailureRow, ProgressSnapshot
from gearmap.display.sinks import NoSink
from gearmap.errors import TaskTimeout
from gearmap.runtime import inlineprogress
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.inline import InlineMap, submit_inline
from gearmap.runtime.maprecord import MapRecord

CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    CALLS.clear()


def flaky(error: type[Exception], good_from: int = 3) -> int:
    CALLS.append(error)
    if len(CALLS) < good_from:
        raise error("not yet")
    return len(CALLS)


def run(options: RunOptions, error: type[Exception] = ValueError) -> Any:
    return submit_inline(flaky, (error,), {}, 0, options)


def run_rows(rows: list[tuple[Any, ...]], options: RunOptions) -> list[Any]:
    record = MapRecord(flaky, ArgumentSource([rows], rows=True), options)
    InlineMap(record, NoSink()).execute()
    return record.all_results()


def test_a_task_is_run_again_as_often_as_it_may_and_the_attempts_are_told() -> None:
    future = run(RunOptions(retries=5))
    assert (future.result(), future.attempts) == (3, 3)


def test_the_last_error_is_raised_when_the_retries_are_spent() -> None:
    future = run(RunOptions(retries=1))
    with pytest.raises(ValueError, match="not yet"):
        future.result()
    assert (len(CALLS), future.attempts) == (2, 2)


def test_an_exception_that_is_not_to_be_retried_is_raised_at_once() -> None:
    assert isinstance(run(RunOptions(retries=5, retry_exceptions=[OSError])).exception(), ValueError)
    assert len(CALLS) == 1


def test_a_map_retries_each_of_its_tasks() -> None:
    assert run_rows([(ValueError,), (ValueError,)], RunOptions(retries=2)) == [3, 4]


@pytest.mark.parametrize(
    ("retry", "calls"), [((Exception,), 2), (TimeoutError, 2), (TaskTimeout, 2), (OSError, 2), ((), 1)]
)
def test_a_task_that_took_too_long_has_failed_when_it_returns(retry: Any, calls: int) -> None:
    options = RunOptions(retries=1, task_timeout=1e-9, retry_exceptions=retry, return_exceptions=True)
    (error,) = run_rows([(ValueError, 0)], options)
    assert type(error) is TaskTimeout
    assert "task 0 ran longer than task_timeout=1e-09 s (attempt " in str(error)
    assert len(CALLS) == calls


class Shown(NoSink):
    """A display that keeps what it was told."""

    def __init__(self) -> None:
        self.shots: list[ProgressSnapshot] = []
        self.rows: list[FailureRow] = []
        self.note = "it has not ended"

    def update(self, snapshot: ProgressSnapshot) -> None:
        self.shots.append(snapshot)

    def failed(self, row: FailureRow) -> None:
        self.rows.append(row)

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        self.shots.append(snapshot)
        self.note = note


def says_how_far(number: int) -> int:
    gearmap.report_progress(number, 4)
    if number == 2:
        raise ValueError("two")
    return number


def show(numbers: list[int], options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.setattr(inlineprogress, "INTERVAL", 0.0)
    shown = Shown()
    try:
        InlineMap(MapRecord(says_how_far, ArgumentSource([numbers]), options), shown).execute()
    except ValueError:
        pass
    return shown


def test_a_map_shows_what_is_done_and_how_far_the_task_says_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show([1, 3], RunOptions(), monkeypatch)
    assert [(each.done, each.running, each.partial) for each in shown.shots] == [
        *((0, 1, 0.0), (0, 1, 0.25), (1, 0, 0.0)),
        *((1, 1, 0.0), (1, 1, 0.75), (2, 0, 0.0)),
        (2, 0, 0.0),
    ]
    assert [view.task for each in shown.shots for view in each.working] == [0, 0, 1, 1]
    assert shown.note == ""


def test_a_map_shows_its_failures_and_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show([1, 2, 3], RunOptions(return_exceptions=True), monkeypatch)
    assert (shown.shots[-1].done, shown.shots[-1].failed, shown.note) == (2, 1, "")
    assert [(row.task, row.error) for row in shown.rows] == [(1, "ValueError")]

    shown = show([1, 2, 3], RunOptions(), monkeypatch)
    assert (shown.shots[-1].queued, shown.note) == (1, "failed: ValueError")


def test_tiny_tasks_do_not_show_each_of_their_steps() -> None:
    shown = Shown()
    InlineMap(MapRecord(says_how_far, ArgumentSource([[1] * 200]), RunOptions()), shown).execute()
    assert len(shown.shots) < 100


class AsksForTheLastMap:
    def __del__(self):
        gearmap.last()


def test_results_of_the_last_map_may_ask_for_it_when_they_go():
    def runs_two_maps():
        with gearmap.LocalCluster(0) as here:
            here.map(lambda x: AsksForTheLastMap(), range(3), progress=False)
            here.map(abs, range(3), progress=False)

    thread = threading.Thread(target=runs_two_maps, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
