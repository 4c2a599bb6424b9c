"""What a task learns about itself, without a process of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from gearmap.runtime import task
from gearmap.runtime.slate import SLATE_BYTES, Slate
from gearmap.wire.jobheader import JobHeader, encode_numbers

HEADER = JobHeader(run="run", function_digest="ff", attempt=2, level=1)


@pytest.fixture(autouse=True)
def _no_job_is_left() -> Iterator[None]:
    yield
    task.end_job()
    assert task.current_task() is None


def begin(position: int, header: JobHeader = HEADER) -> memoryview:
    shared = memoryview(bytearray(8)).cast("q")
    shared[0] = position
    task.begin_job(b"e" * 16, "host/1", header, encode_numbers([(5, 7), (40, 50)]), shared)
    return shared


def test_outside_of_a_job_there_is_no_task() -> None:
    assert task.current_task() is None
    assert task.running_execution() is None
    assert task.running_header() is None


def test_the_number_of_the_running_task_is_looked_up_when_it_is_asked_for() -> None:
    shared = begin(1)
    assert task.current_task() == task.Task(6, 2, "host/1", None, "run", 1)
    shared[0] = 4
    assert task.current_task() == task.Task(42, 2, "host/1", None, "run", 1)


@pytest.mark.parametrize("position", [~0, ~3, -(2**62), 99])
def test_while_no_task_runs_there_is_none(position: int) -> None:
    begin(position)
    assert task.current_task() is None


def test_a_thread_of_the_task_learns_the_same() -> None:
    begin(0)
    found: list[task.Task | None] = []
    thread = threading.Thread(target=lambda: found.append(task.current_task()))
    thread.start()
    thread.join()
    assert found == [task.current_task()]


def test_the_deadline_is_counted_from_the_start_of_each_task() -> None:
    shared = begin(0, JobHeader(run="run", function_digest="ff", task_timeout=10.0))
    deadlines = []
    for position in task.timed(iter([0, 1])):
        shared[0] = position
        now = task.current_task()
        assert now is not None
        deadlines.append(now.deadline)
    assert None not in deadlines
    assert len(set(deadlines)) == 2


def test_what_is_to_end_with_the_job_does_in_its_order_and_once(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    begin(0)
    task.at_end_of_job(lambda: calls.append("first"))
    task.at_end_of_job(lambda: calls.append(str(1 // 0)))
    task.at_end_of_job(lambda: calls.append("last"))
    assert calls == []
    with caplog.at_level(logging.CRITICAL):
        task.end_job()
    task.end_job()
    assert calls == ["first", "last"]


def test_after_the_job_it_ends_at_once() -> None:
    calls: list[str] = []
    task.at_end_of_job(lambda: calls.append("late"))
    assert calls == ["late"]


def test_how_far_a_task_is_stands_where_the_node_looks_until_another_one_runs() -> None:
    slate = Slate(bytearray(SLATE_BYTES))
    task.begin_job(b"e" * 16, "host/1", HEADER, encode_numbers([(5, 7)]), slate.index, slate.progress)
    slate.index[0] = 1
    assert slate.progress.of(1) is None
    task.report_progress(3, 4)
    assert slate.progress.of(1) == 0.75
    task.report_progress(0.5)
    assert slate.progress.of(1) == 0.5
    assert slate.progress.of(0) is None
    for done, total, fraction in ((9, 4, 1.0), (-1, 4, 0.0), (1, 0, 0.0), (float("nan"), 1, 0.0)):
        task.report_progress(done, total)
        assert slate.progress.of(1) == fraction
    task.begin_job(b"f" * 16, "host/1", HEADER, encode_numbers([(5, 7)]), slate.index, slate.progress)
    assert slate.progress.of(1) is None
    slate.index[0] = -3
    task.report_progress(1)
    assert slate.progress.of(-3) is None


def test_outside_of_a_task_progress_is_nobodys() -> None:
    task.report_progress(1, 2)
    begin(0)
    task.report_progress(1, 2)
