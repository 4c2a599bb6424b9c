"""What a task printed before its process ended, or was ended, comes back, and how long it took."""

from __future__ import annotations

import os
import sys
import time

import pytest

import gearmap
from gearmap import TaskTimeout, WorkerLost

LIMIT = 60.0

pytestmark = pytest.mark.usefixtures("functions_travel")


def speaks_and_dies(text):
    print(text)
    print("oh", file=sys.stderr)
    os._exit(3)


def speaks_and_stays(text):
    print(text, flush=True)
    time.sleep(60)


def speaks_and_raises(seconds):
    print("soon")
    time.sleep(seconds)
    raise ValueError(seconds)


def test_what_a_task_printed_before_it_died_comes_with_its_failure(cluster):
    future = cluster.options(max_worker_losses=1).submit(speaks_and_dies, "last words")
    assert isinstance(future.exception(LIMIT), WorkerLost)
    assert (future.stdout, future.stderr, future.duration) == ("last words\n", "oh\n", None)


def test_what_a_task_printed_before_its_time_was_over_comes_with_its_failure(cluster):
    future = cluster.options(task_timeout=0.4).submit(speaks_and_stays, "still here")
    assert isinstance(future.exception(LIMIT), TaskTimeout)
    assert (future.stdout, future.stderr) == ("still here\n", "")
    assert 0.4 <= future.duration < 10


def test_a_task_that_failed_tells_how_long_it_took(cluster):
    future = cluster.submit(speaks_and_raises, 0.05)
    assert isinstance(future.exception(LIMIT), ValueError)
    assert future.stdout == "soon\n"
    assert 0.05 <= future.duration < 10


def test_a_failed_task_among_others_takes_its_own_time_only(cluster):
    def task(x):
        if x == 5:
            time.sleep(0.05)
            raise ValueError(x)

    with pytest.raises(ValueError, match="5"):
        cluster.map(task, range(10), chunksize=10)
    (failed,) = gearmap.last().failed()
    assert 0.05 <= failed.duration < 10


def test_a_map_prints_and_keeps_what_its_lost_task_said(cluster, capsys):
    def task(x):
        if x == 2:
            speaks_and_dies(f"task {x}")
        print("task", x)
        return x

    results = cluster.options(max_worker_losses=1).map(task, range(4), return_exceptions=True, chunksize=4)

    assert [result for result in results if not isinstance(result, WorkerLost)] == [0, 1, 3]
    printed = capsys.readouterr()
    assert sorted(printed.out.splitlines()) == [f"task {x}" for x in range(4)]
    assert printed.err == "oh\n"
    run = gearmap.last()
    (failed,) = run.failed()
    assert (failed.task_index, failed.stdout, failed.stderr, failed.duration) == (2, "task 2\n", "oh\n", None)
    assert [run.output(task).stdout for task in range(5)] == [*(f"task {x}\n" for x in range(4)), ""]
    assert {future.task_index: future.stdout for future in run.as_completed()} == {x: f"task {x}\n" for x in range(4)}


def test_of_a_task_that_printed_much_and_died_the_beginning_and_the_end_come_back(cluster):
    def task():
        for number in range(50_000):
            print(number)
        os._exit(3)

    future = cluster.options(max_worker_losses=1).submit(task)
    assert isinstance(future.exception(LIMIT), WorkerLost)
    assert future.stdout.startswith("0\n1\n2\n")
    assert future.stdout.endswith("\n49998\n49999\n")
    assert " bytes left out ..." in future.stdout
    assert len(future.stdout) < 70_000


def test_what_was_printed_by_the_task_before_is_not_told_of_the_one_that_died(cluster):
    def task(x):
        if x == 1:
            os._exit(3)
        print("task", x)

    cluster.options(max_worker_losses=1).map(task, range(2), return_exceptions=True, chunksize=2)
    run = gearmap.last()
    assert [run.output(x).stdout for x in range(2)] == ["task 0\n", ""]
