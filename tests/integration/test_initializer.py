"""Initializers and children that are replaced, through `options()`; executors have their own file."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest
from programs import KINDS, require_kind

import gearmap
from gearmap.errors import RemoteTraceback

LIMIT = 30.0


@pytest.fixture(scope="module", params=KINDS[:1])
def own(request):
    require_kind(request.param)
    with gearmap.LocalCluster(2, server=request.param) as cluster:
        yield cluster


def remember(value):
    os.environ["REMEMBERED"] = f"{os.environ.get('REMEMBERED', '')}{value}"


def remembered(_=None):
    return os.getpid(), os.environ.get("REMEMBERED", "")


def test_an_initializer_runs_once_in_each_child_before_its_first_task(own):
    found = own.options(initializer=remember, initargs=("a",)).map(remembered, range(40), chunksize=2)
    assert {value for _, value in found} == {"a"}


def test_a_child_that_ran_an_initializer_serves_calls_with_an_equal_one_only(own):
    first = own.options(initializer=remember, initargs=("first",))
    second = own.options(initializer=remember, initargs=("second",))
    plain = {own.submit(remembered).result(LIMIT) for _ in range(4)}
    found = {
        name: {use.submit(remembered).result(LIMIT) for _ in range(4)}
        for name, use in (("first", first), ("second", second))
    }
    assert {value for _, value in plain} == {""}
    for name, results in found.items():
        assert {value for _, value in results} == {name}
    assert not {pid for pid, _ in found["first"]} & {pid for pid, _ in found["second"]}


def test_the_arguments_of_an_initializer_are_those_of_the_first_call(own):
    values = ["x"]
    use = own.options(initializer=lambda given: remember(given[0]), initargs=(values,))
    assert use.submit(remembered).result(LIMIT)[1] == "x"
    values[0] = "y"
    assert use.submit(remembered).result(LIMIT)[1] == "x"


def test_a_failing_initializer_breaks_its_run_with_its_error_and_no_other(own):
    def fail():
        raise ValueError("error in initializer")

    bad = own.options(initializer=fail)
    with pytest.raises(
        gearmap.ClusterBroken, match=r"the initializer failed on .+: ValueError: error in initializer"
    ) as e:
        bad.map(abs, range(10))
    assert isinstance(e.value.__cause__, RemoteTraceback)
    assert "in fail" in str(e.value.__cause__)
    future = bad.submit(abs, -1)
    with pytest.raises(gearmap.ClusterBroken, match="error in initializer"):
        future.result(LIMIT)
    with pytest.raises(gearmap.ClusterBroken, match="error in initializer"):
        bad.submit(abs, -1)
    assert own.submit(abs, -1).result(LIMIT) == 1


def test_an_initializer_that_ends_its_process_breaks_its_run_after_some_tries(own):
    bad = own.options(initializer=os._exit, initargs=(3,), max_worker_losses=2)
    with pytest.raises(gearmap.ClusterBroken, match=r"the initializer failed on .+: its process ended: exit code 3"):
        bad.map(abs, range(3))
    assert own.submit(abs, -1).result(LIMIT) == 1


def test_an_initializer_that_does_not_pickle_is_named(own):
    with pytest.raises(gearmap.SerializationError, match="the initializer"):
        own.options(initializer=remember, initargs=(threading.Lock(),)).submit(abs, 1)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_child_is_replaced_before_it_has_run_more_tasks_than_it_may(own, limit):
    use = own.options(max_tasks_per_child=limit)
    futures = [use.submit(os.getpid) for _ in range(8)]
    pids = Counter(future.result(LIMIT) for future in futures)
    assert max(pids.values()) <= limit
    pids = Counter(use.map(lambda _: os.getpid(), range(8), chunksize=50))
    assert max(pids.values()) <= limit
