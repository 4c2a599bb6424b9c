"""Retries on real clusters: which failures, how often, when; and tasks that run longer than they may."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest
from integration_support import wait_until

import gearmap
from gearmap.config import Patience


class Flaky:
    """A task that fails at first; each of its runs leaves a line with its time in a file, whichever process runs it."""

    def __init__(self, path, *errors):
        self.path = path
        self.errors = errors

    def __call__(self, _=None):
        with self.path.open("a") as file:
            file.write(f"{time.time()}\n")
        ran = len(self.path.read_text().splitlines())
        if ran <= len(self.errors):
            raise self.errors[ran - 1](f"run {ran}")
        return ran

    def times(self):
        return [float(line) for line in self.path.read_text().splitlines()]


class Hanging(Flaky):
    """A task that takes too long at first."""

    def __call__(self, _=None):
        try:
            return super().__call__()
        except TimeoutError:
            time.sleep(60)


@pytest.fixture
def flaky(tmp_path):
    return lambda *errors: Flaky(tmp_path / "runs", *errors)


@pytest.fixture
def hanging(tmp_path):
    return lambda times: Hanging(tmp_path / "runs", *[TimeoutError] * times)


# ------------------------------------------------------------------------------------------------- which, how often


def test_a_task_that_fails_at_first_gives_its_result_in_the_end(cluster, flaky):
    task = flaky(ValueError, OSError)
    assert cluster.options(retry_delay=0.01).map(task, [0], retries=2) == [3]
    assert len(task.times()) == 3


def test_the_last_error_is_raised_and_says_which_attempt_it_was(cluster, flaky):
    task = flaky(ValueError, OSError, KeyError)
    with pytest.raises(KeyError, match="run 3") as caught:
        cluster.options(retry_delay=0).map(task, [0], retries=2)
    assert "attempt 3" in "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert len(task.times()) == 3


def test_a_future_knows_its_attempts(cluster, flaky):
    good = cluster.options(retries=3, retry_delay=0).submit(flaky(ValueError))
    assert (good.result(60), good.attempts) == (2, 2)


def test_a_future_that_failed_knows_its_attempts(cluster, flaky):
    bad = cluster.options(retries=1, retry_delay=0).submit(flaky(ValueError, ValueError))
    assert isinstance(bad.exception(60), ValueError)
    assert bad.attempts == 2


@pytest.mark.parametrize(
    "classes", [LookupError, [LookupError], (OSError, LookupError)], ids=["class", "list", "tuple"]
)
def test_exceptions_to_retry_may_come_in_each_form_and_subclasses_count(cluster, flaky, classes):
    task = flaky(KeyError)
    assert cluster.options(retry_delay=0).map(task, [0], retries=1, retry_exceptions=classes) == [2]


def test_an_exception_that_is_not_named_is_not_retried(cluster, flaky):
    task = flaky(KeyError)
    with pytest.raises(KeyError, match="run 1"):
        cluster.map(task, [0], retries=5, retry_exceptions=[OSError, ValueError])
    assert len(task.times()) == 1


def test_nothing_is_retried_if_no_class_is_named(cluster, flaky):
    with pytest.raises(KeyError, match="run 1"):
        cluster.map(flaky(KeyError), [0], retries=5, retry_exceptions=())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_is_no_exception_is_not_retried_unless_it_is_asked_for(cluster, tmp_path, error):
    once, again = Flaky(tmp_path / "once", error), Flaky(tmp_path / "again", error)
    (failure,) = cluster.map(once, [0], retries=5, return_exceptions=True)
    assert isinstance(failure, BaseException)
    assert len(once.times()) == 1
    assert cluster.options(retry_delay=0).map(again, [0], retries=1, retry_exceptions=error) == [2]


def test_classes_that_exist_only_here_are_matched_on_the_worker(cluster, tmp_path):
    class Mine(Exception):
        pass

    class Special(Mine):
        pass

    class Other(Exception):
        pass

    task, other = Flaky(tmp_path / "task", Special, Mine), Flaky(tmp_path / "other", Other)
    options = cluster.options(retries=5, retry_delay=0, retry_exceptions=Mine)
    assert options.map(task, [0]) == [3]
    with pytest.raises(Other):
        options.map(other, [0])
    assert len(other.times()) == 1


def test_a_class_that_does_not_pickle_is_named(cluster):
    class Bad(Exception):
        lock = threading.Lock()

    with pytest.raises(gearmap.SerializationError, match="retry_exceptions"):
        cluster.map(abs, [1], retries=1, retry_exceptions=Bad)
    with pytest.raises(gearmap.SerializationError, match="retry_exceptions"):
        cluster.options(retries=1, retry_exceptions=Bad).submit(abs, 1)


def test_a_result_that_does_not_pickle_is_not_worked_out_again(cluster, tmp_path):
    task = Flaky(tmp_path / "runs")
    with pytest.raises(gearmap.SerializationError, match="lock"):
        cluster.map(lambda x: (task(), threading.Lock()), [0], retries=3)
    assert len(task.times()) == 1


# --------------------------------------------------------------------------------------------------------------- when


def test_each_retry_waits_twice_as_long_as_the_one_before(cluster, flaky):
    task = flaky(ValueError, ValueError, ValueError)
    cluster.options(retry_delay=0.2).map(task, [0], retries=3)
    first, second, third, fourth = task.times()
    assert second - first >= 0.2
    assert third - second >= 0.4
    assert fourth - third >= 0.8


def test_others_are_not_held_up_by_a_task_that_waits_for_its_retry(cluster, tmp_path):
    task = Flaky(tmp_path / "task", ValueError)
    others = Flaky(tmp_path / "others")

    def work(x):
        return task() if x == 0 else others()

    cluster.options(retry_delay=1.0).map(work, range(20), retries=1, chunksize=1, max_workers=1)

    assert len(others.times()) == 19
    assert max(others.times()) < task.times()[1]


# ---------------------------------------------------------------------------------------------------------- too long


def test_a_task_that_runs_too_long_fails_and_the_rest_of_its_chunk_does_not(cluster):
    def work(x):
        if x == 2:
            time.sleep(60)
        return x

    results = cluster.map(work, range(6), chunksize=6, task_timeout=0.3, return_exceptions=True)

    error = results.pop(2)
    assert type(error) is gearmap.TaskTimeout
    assert str(error).startswith("task 2 (work(2)) ran longer than task_timeout=0.3 s on ")
    assert (error.task_index, error.attempts) == (2, 1)
    assert results == [0, 1, 3, 4, 5]


def test_by_default_a_map_ends_with_the_first_task_that_runs_too_long(cluster):
    with pytest.raises(gearmap.TaskTimeout, match=r"task \d \(<lambda>\(\d\)\) ran longer than task_timeout=0\.2 s"):
        cluster.map(lambda x: time.sleep(60), range(8), task_timeout=0.2)


def test_a_task_that_ran_too_long_is_retried_like_one_that_failed(cluster, hanging):
    task = hanging(2)
    assert cluster.options(retry_delay=0.1).map(task, [0], task_timeout=0.3, retries=2) == [3]
    first, second, third = task.times()
    assert second - first >= 0.3 + 0.1
    assert third - second >= 0.3 + 0.2


def test_the_attempts_of_a_task_that_always_runs_too_long_are_counted(cluster, hanging):
    future = cluster.options(task_timeout=0.2, retries=1, retry_delay=0).submit(hanging(5))
    error = future.exception(60)
    assert isinstance(error, gearmap.TaskTimeout)
    assert str(error).endswith("(attempt 2 of 2)")
    assert (future.attempts, future.worker) == (2, error.worker)


@pytest.mark.parametrize(
    ("classes", "runs"), [(gearmap.TaskTimeout, 2), (TimeoutError, 2), ((ValueError, KeyError), 1), ((), 1)]
)
def test_exceptions_to_retry_decide_on_timeouts_too(cluster, hanging, classes, runs):
    task = hanging(5)
    with pytest.raises(gearmap.TaskTimeout):
        cluster.options(retry_delay=0).map(task, [0], task_timeout=0.2, retries=1, retry_exceptions=classes)
    assert len(task.times()) == runs


# ---------------------------------------------------------------------------------------------------------- given up


def test_an_execution_that_nobody_waits_for_any_more_is_stopped_while_its_run_goes_on(cluster, tmp_path, monkeypatch):
    # given a client that takes a worker for lost between its first beat and its second
    monkeypatch.setattr(cluster._backend, "patience", Patience(beat_timeout=1.0))
    pids = tmp_path / "pids"

    def work():
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(pids.read_text().splitlines()) == 1:
            time.sleep(60)
        return "the second"

    # when
    future = cluster.options(max_worker_losses=9).submit(work)  # a run of its own
    # then
    assert future.result(60) == "the second"
    first = int(pids.read_text().splitlines()[0])
    wait_until(lambda: not psutil.pid_exists(first), "the first execution is stopped", 10.0)
