"""What a person reads about a task that was given up."""

from __future__ import annotations

from gearmap.core import events as ev
from gearmap.errors import TaskTimeout, WorkerLost
from gearmap.runtime.givenup import GivenUp


def test_a_task_that_ran_too_long_says_how_long_where_and_how_often() -> None:
    error = GivenUp.timed_out(ev.TimeOutTask(12, 3, 3, "gpu1"), 30.0).error()
    assert type(error) is TaskTimeout
    assert str(error) == "task 12 ran longer than task_timeout=30 s on gpu1 (attempt 3 of 3)"
    assert (error.task_index, error.attempts, error.worker) == (12, 3, "gpu1")


def test_where_there_was_one_attempt_only_it_is_not_counted() -> None:
    error = GivenUp.timed_out(ev.TimeOutTask(12, 1, 1, "gpu1"), 0.5).error()
    assert str(error) == "task 12 ran longer than task_timeout=0.5 s on gpu1"


def test_a_task_that_killed_its_workers_says_how_and_how_often() -> None:
    error = GivenUp.lost(ev.LoseTask(57, 3, "SIGKILL at 14.8 GB of 15.6 GB", "gpu1")).error()
    assert type(error) is WorkerLost
    assert str(error) == "task 57 killed its worker 3 times: SIGKILL at 14.8 GB of 15.6 GB, last on gpu1"
    assert (error.task_index, error.attempts, error.worker) == (57, 3, "gpu1")


def test_a_worker_that_nobody_knows_is_not_named() -> None:
    error = GivenUp.lost(ev.LoseTask(0, 1, "the worker was lost", None)).error()
    assert str(error) == "task 0 killed its worker once: the worker was lost"
