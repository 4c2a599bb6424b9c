"""Tasks so short that a child does not note which one runs: what it says of them is as exact as of all others."""

from __future__ import annotations

import ctypes
import os

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")

N_TASKS = 30_000


def exits():
    os._exit(3)


def crashes():
    ctypes.string_at(0)


@pytest.mark.parametrize("end", [exits, crashes])
def test_the_one_that_ends_its_process_is_charged_and_all_others_finish(cluster, end):
    def task(x):
        if x == 21_357:
            end()
        return x

    results = cluster.map(task, range(N_TASKS), chunksize=10_000, return_exceptions=True)

    lost = results[21_357]
    assert isinstance(lost, gearmap.WorkerLost)
    assert lost.task_index == 21_357
    assert [x for x in results if isinstance(x, int)] == [x for x in range(N_TASKS) if x != 21_357]


def test_the_one_that_raises_is_told_and_all_others_finish(cluster):
    def task(x):
        return 1 // (x % 7_919)

    results = cluster.map(task, range(N_TASKS), chunksize=10_000, return_exceptions=True)

    failed = [x for x, result in enumerate(results) if isinstance(result, Exception)]
    assert failed == list(range(0, N_TASKS, 7_919))
    assert isinstance(results[7_919], ZeroDivisionError)


def test_one_that_raises_stop_iteration_has_failed_like_any_other(cluster):
    def task(x):
        return x if x % 10_007 else next(iter(()))

    results = cluster.map(task, range(N_TASKS), chunksize=10_000, return_exceptions=True)

    assert [x for x, result in enumerate(results) if isinstance(result, gearmap.RemoteError)] == [0, 10_007, 20_014]
    assert [x for x in results if isinstance(x, int)] == [x for x in range(N_TASKS) if x % 10_007]


def test_the_one_that_asks_is_told_its_number(cluster):
    def task(x):
        return gearmap.current_task().index if x % 997 == 0 else x

    assert cluster.map(task, range(N_TASKS), chunksize=10_000) == list(range(N_TASKS))


def test_what_one_prints_is_its_own(cluster):
    def task(x):
        if x % 9_973 == 0:
            print("here is", x)

    run = cluster.map_async(task, range(N_TASKS), chunksize=10_000)
    run.result(60)

    assert run.output(9_973).stdout == "here is 9973\n"
    assert run.output(9_974).stdout == ""
