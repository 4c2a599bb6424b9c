"""Chunks whose tasks take much longer than those before them."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")

N_SHORT, N_LONG = 20_000, 12


def test_long_tasks_after_thousands_of_short_ones_do_not_wait_for_one_another(cluster):
    def task(x):
        if x >= N_SHORT:
            time.sleep(0.4)
        return x, os.getpid()

    results = cluster.map(task, range(N_SHORT + N_LONG))

    assert [x for x, _ in results] == list(range(N_SHORT + N_LONG))
    by_process = Counter(pid for _, pid in results[N_SHORT:])
    assert len(by_process) == 2
    assert min(by_process.values()) >= 3, by_process
    assert gearmap.last().record.notes[-1].last.again == 0


def test_single_calls_that_travel_together_and_take_long_do_not_wait_for_one_another(cluster):
    def task(x):
        if x >= 1000:
            time.sleep(0.4)
        return x, os.getpid()

    futures = [cluster.submit(task, x) for x in range(1000 + N_LONG)]
    results = [future.result(60) for future in futures]

    assert [x for x, _ in results] == list(range(1000 + N_LONG))
    assert len({pid for _, pid in results[1000:]}) == 2


def test_a_chunk_whose_size_was_asked_for_stays_whole(cluster):
    def task(x):
        time.sleep(0.3)
        return os.getpid()

    assert len(set(cluster.map(task, range(4), chunksize=4))) == 1


def test_what_fails_and_takes_long_is_shared_out_too(cluster):
    def task(x):
        if x >= N_SHORT:
            time.sleep(0.4)
            raise ValueError(os.getpid())

    results = cluster.map(task, range(N_SHORT + N_LONG), return_exceptions=True)

    assert len({error.args for error in results[N_SHORT:]}) == 2
    assert results[:N_SHORT] == [None] * N_SHORT
