"""What a person reads about a task that was given up."""

from __future__ import annotations

import pytest

from gearmap.core import events as ev
from gearmap.errors import TaskTimeout, WorkerLost
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.sentcall import SentCall
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.serializer import dump_function, dumps


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
    assert str(error) == (
        "task 57 killed its worker 3 times: SIGKILL at 14.8 GB of 15.6 GB, last on gpu1; out of memory?"
    )
    assert (error.task_index, error.attempts, error.worker) == (57, 3, "gpu1")


def test_a_worker_that_nobody_knows_is_not_named() -> None:
    error = GivenUp.lost(ev.LoseTask(0, 1, "the worker was lost", None)).error()
    assert str(error) == "task 0 killed its worker once: the worker was lost"


class Spiteful:
    """Does not even unpickle."""

    def __reduce__(self):
        return (divmod, (1, 0))


def train(x, *, depth=1):
    return x


@pytest.mark.parametrize(
    ("kind", "arguments", "offset", "shown"),
    [
        (BlockKind.CALLS, ((57,), {"depth": 3}), 0, "train(57, depth=3)"),
        (BlockKind.ROWS, [(1,), (57,)], 1, "train(57)"),
        (BlockKind.COLUMNS, (range(50, 60),), 7, "train(57)"),
        (BlockKind.COLUMNS, ([1, 57], ["a", "b"]), 1, "train(57, 'b')"),
    ],
)
def test_the_call_is_shown_where_the_error_is_made(kind, arguments, offset, shown) -> None:
    call = SentCall(dump_function(train), kind, dumps(arguments), offset)
    error = GivenUp.lost(ev.LoseTask(57, 2, "exit code 3", "gpu1"), call).error()
    assert str(error) == f"task 57 ({shown}) killed its worker 2 times: exit code 3, last on gpu1"
    error = GivenUp.timed_out(ev.TimeOutTask(57, 1, 1, "gpu1"), 2.0, call).error()
    assert str(error) == f"task 57 ({shown}) ran longer than task_timeout=2 s on gpu1"


def test_a_call_that_does_not_unpickle_is_left_out() -> None:
    call = SentCall(dump_function(train), BlockKind.ROWS, dumps([(Spiteful(),)]), 0)
    error = GivenUp.lost(ev.LoseTask(0, 1, "exit code 3", None), call).error()
    assert str(error) == "task 0 killed its worker once: exit code 3"


def test_only_a_kill_that_nobody_of_us_sent_is_taken_for_a_lack_of_memory() -> None:
    error = GivenUp.lost(ev.LoseTask(0, 1, "memory limit of 4.0 GB (it used 4.3 GB)", None)).error()
    assert str(error) == "task 0 killed its worker once: memory limit of 4.0 GB (it used 4.3 GB)"
