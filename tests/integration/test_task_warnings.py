"""What tasks warn of is warned of here, once, whoever waits for them."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from typing import Any

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture
def seen():
    """What is warned of in this process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def messages(seen: list[Any]) -> list[str]:
    """What was said before the worker is named."""
    return [str(each.message).partition("; worker ")[0] for each in seen]


class Mine(UserWarning):
    """A category that exists here only."""


def careless(x):
    if x % 3 == 0:
        warnings.warn("it may be divided by three", RuntimeWarning, stacklevel=1)
    print("task", x, file=sys.stderr)
    return x


def test_a_map_warns_once_of_what_many_of_its_tasks_warned_of(cluster, seen, capsys):
    assert cluster.map(careless, range(12)) == list(range(12))
    assert messages(seen) == ["it may be divided by three (4 tasks, first 0, 3, 6"]
    assert seen[0].category is RuntimeWarning
    assert seen[0].filename == __file__
    assert seen[0].lineno == careless.__code__.co_firstlineno + 2
    assert "divided" not in capsys.readouterr().err


def test_tasks_are_heard_as_if_each_were_alone_in_its_process(cluster, seen):
    for _ in range(2):
        assert cluster.map(careless, [0] * 6, chunksize=6)
    assert messages(seen) == ["it may be divided by three (6 tasks, first 0, 1, 2"] * 2


def test_an_imap_warns_at_its_end(cluster, seen):
    results = cluster.imap(careless, range(6))
    assert next(results) == 0
    assert not seen
    assert list(results) == [1, 2, 3, 4, 5]
    assert messages(seen) == ["it may be divided by three (2 tasks, first 0, 3"]


def test_a_future_warns_when_its_result_is_taken_and_only_then(cluster, seen):
    future = cluster.submit(careless, 3)
    assert future.exception() is None
    assert [future.result(), future.result()] == [3, 3]
    assert messages(seen) == [f"it may be divided by three (task {future.task_index}"]
    assert future.stderr == "task 3\n"


def test_an_executor_warns_once_for_each_chunk_of_its_map(cluster, seen):
    with cluster.executor() as executor:
        assert list(executor.map(careless, range(6), chunksize=6)) == list(range(6))
    assert messages(seen) == ["it may be divided by three (2 tasks, first 0, 3"]


def test_a_task_that_fails_has_warned_before(cluster, seen):
    def task(x):
        warnings.warn("mind the gap", Mine, stacklevel=1)
        raise KeyError(x)

    with pytest.raises(KeyError):
        cluster.submit(task, 1).result()
    with pytest.raises(KeyError):
        cluster.map(task, [1])
    assert messages(seen)[1] == "mind the gap (task 0"
    assert {each.category for each in seen} == {Mine}


def test_what_a_task_warned_of_survives_its_process(cluster, seen):
    def task():
        warnings.warn("last words", UserWarning, stacklevel=1)
        os._exit(3)

    with pytest.raises(gearmap.WorkerLost):
        cluster.options(max_worker_losses=0).submit(task).result()
    assert [text.partition(" (")[0] for text in messages(seen)] == ["last words"]


def test_where_warnings_are_errors_the_map_raises_and_has_its_results(cluster):
    with pytest.raises(RuntimeWarning, match="divided"):
        cluster.map(careless, range(3))
    assert gearmap.last().partial() == {0: 0, 1: 1, 2: 2}


def test_where_warnings_are_errors_a_future_raises_once(cluster):
    future = cluster.submit(careless, 0)
    with pytest.raises(RuntimeWarning, match="divided"):
        future.result()
    assert future.result() == 0

    async def waits():
        return await cluster.submit(careless, 0)

    with pytest.raises(RuntimeWarning, match="divided"):
        asyncio.run(waits())


def test_a_task_that_does_something_about_warnings_itself_has_its_way(cluster, seen):
    def records():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("for myself", stacklevel=1)
        return [str(each.message) for each in caught]

    def refuses():
        warnings.simplefilter("error")
        try:
            warnings.warn("no", stacklevel=1)
        except UserWarning as error:
            return str(error)

    def ignores():
        warnings.simplefilter("ignore")
        warnings.warn("nothing", stacklevel=1)
        return "ignored"

    assert cluster.map(lambda fn: fn(), [records, refuses, ignores]) == [["for myself"], "no", "ignored"]
    assert cluster.map(careless, [0, 1]) == [0, 1]
    assert messages(seen) == ["it may be divided by three (task 0"]


def test_a_task_that_warns_of_everything_is_cut_short(cluster, seen, caplog):
    def task():
        for number in range(10_000):
            warnings.warn(f"number {number}", stacklevel=1)

    cluster.map(lambda _: task(), [0])
    assert len(seen) == 20
    assert caplog.messages == ["... and 9980 more warnings and log records of tasks"]
    assert messages(seen)[:2] == ["number 0 (task 0", "number 1 (task 0"]
