"""What a task learns about itself on a real worker."""

from __future__ import annotations

import os
import time

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")


def test_outside_of_tasks_there_is_none():
    assert gearmap.current_task() is None


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_a_task_of_a_map_knows_its_number(cluster, chunksize):
    def numbers(x):
        now = gearmap.current_task()
        return x, now.index, now.attempt, now.level, now.deadline

    found = cluster.map(numbers, range(100, 400), chunksize=chunksize)

    assert found == [(100 + i, i, 1, 0, None) for i in range(300)]


def test_the_tasks_of_a_map_share_its_id_and_name_their_workers(cluster):
    def who(x):
        now = gearmap.current_task()
        return now.run_id, now.worker

    first, second = cluster.map(who, range(20)), cluster.map(who, range(20))

    assert len({run for run, _ in first}) == 1
    assert {run for run, _ in first} != {run for run, _ in second}
    assert all("/" in worker for _, worker in first)


def test_a_single_call_knows_its_number(cluster):
    def number():
        return gearmap.current_task().index

    futures = [cluster.submit(number) for _ in range(200)]
    numbers = [future.result(30) for future in futures]

    assert numbers == list(range(numbers[0], numbers[0] + 200))


def test_an_iterator_of_results_knows_its_numbers(cluster):
    assert list(cluster.imap(lambda x: gearmap.current_task().index, "abcdef")) == list(range(6))


def test_each_attempt_has_its_number(cluster):
    def fails_at_first(x):
        if x == 7 and gearmap.current_task().attempt < 3:
            raise ValueError("again")
        now = gearmap.current_task()
        return now.index, now.attempt

    results = cluster.options(retry_delay=0.0).map(fails_at_first, range(10), retries=3)

    assert results == [(i, 3 if i == 7 else 1) for i in range(10)]


def test_a_task_can_see_its_time_run_out(cluster):
    def until_the_end():
        deadline = gearmap.current_task().deadline
        time.sleep(max(0.0, deadline - time.monotonic() - 1.0))
        return deadline - time.monotonic()

    client = cluster.options(task_timeout=3.0)

    assert 0 < client.submit(until_the_end).result(30) <= 1.0
    assert all(0 < left <= 1.0 for left in cluster.map(lambda x: until_the_end(), [1, 2, 3], task_timeout=3.0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_a_task_has_forked_is_no_task(cluster):
    def forks():
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, repr(gearmap.current_task()).encode())
            os._exit(0)
        os.wait()
        return os.read(reading, 100)

    assert cluster.submit(forks).result(30) == b"None"


def test_inline_tasks_know_their_numbers_too():
    with gearmap.LocalCluster(0) as inline:
        assert inline.map(lambda x: gearmap.current_task().index, "abc") == [0, 1, 2]
        assert inline.submit(lambda: gearmap.current_task().worker).result() == "inline"
        assert gearmap.current_task() is None
