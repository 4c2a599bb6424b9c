"""A map as an object: its states, whoever runs it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from gearmap.config import RunOptions
from gearmap.errors import ClusterBroken, ConfigurationError, RunTimeout, WorkerLost
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.failed import Failed
from gearmap.runtime.mapfuture import FailedTask, MapFuture, Runner
from gearmap.runtime.maprecord import KEPT_OUTPUT_CHARS, MapRecord
from gearmap.wire.printed import Output


class Script:
    """A run that does what it is told to."""

    def __init__(self, execute: Callable[[], None]) -> None:
        self.execute = execute
        self.was_cancelled = False

    def cancel(self) -> None:
        self.was_cancelled = True


def double(x: int) -> int:
    return 2 * x


class Rig:
    """A map of `double` over 0 ... n-1 whose runs are written by the test."""

    def __init__(self, n: int, **options: Any) -> None:
        self.record = MapRecord(double, ArgumentSource([range(n)]), RunOptions(**options))
        self.future: MapFuture[int] = MapFuture(self.record, self.launch)
        self.launched: list[bool] = []
        self.scripts: list[Callable[[], None]] = []
        self.runner = Script(lambda: None)

    def launch(self, future: MapFuture[Any], *, again: bool) -> Runner:
        self.launched.append(again)
        self.runner = Script(self.scripts.pop(0))
        return self.runner

    def run(self, *steps: Callable[[], None]) -> Any:
        """Run these steps as one run."""

        def execute() -> None:
            for step in steps:
                step()

        self.scripts.append(execute)
        return self.future.run_here() if not self.launched else self.future.resume()

    def take(self) -> None:
        while self.record.has_more:
            self.record.take(100)

    def place(self, first: int, stop: int) -> Callable[[], None]:
        return lambda: self.record.place(first, [self.record.fn(task) for task in range(first, stop)])

    def fail(self, task: int, error: Exception) -> Callable[[], None]:
        def step() -> None:
            self.record.fail(Failed(task, error, 1, "w"))
            if not self.record.options.return_exceptions:
                raise error

        return step


def raising(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_a_map_that_went_well_gives_its_results_to_all_who_ask() -> None:
    rig = Rig(4)
    assert rig.run(rig.take, rig.place(0, 4)) == [0, 2, 4, 6]
    future = rig.future
    assert (future.done(), future.cancelled(), future.cancel(), future.exception()) == (True, False, False, None)
    assert list(future) == future.result(0) == [0, 2, 4, 6]
    assert future.partial() == {0: 0, 1: 2, 2: 4, 3: 6}
    assert [(one.task_index, one.result()) for one in future.as_completed()] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert future.resume() == [0, 2, 4, 6]
    assert rig.launched == [False]
    assert repr(future) == "<MapFuture of double: done, 4 of 4 tasks done>"


def test_a_failed_map_keeps_what_was_done_and_goes_on() -> None:
    rig = Rig(4)
    with pytest.raises(LookupError):
        rig.run(rig.take, rig.place(2, 4), rig.place(0, 1), rig.fail(1, LookupError("one")))
    future = rig.future
    assert future.partial() == {0: 0, 2: 4, 3: 6}
    assert isinstance(future.exception(), LookupError)
    (failed,) = future.failed()
    assert isinstance(failed, FailedTask)
    assert (failed.task_index, failed.attempts, failed.worker, failed.call) == (1, 1, "w", "double(1)")
    assert repr(failed) == "<task 1: double(1) raised LookupError: one on w>"
    assert failed.rerun_here() == 2
    got = []
    with pytest.raises(LookupError):
        got.extend(future)
    assert got == [0]
    assert sorted(one.task_index for one in future.as_completed()) == [0, 1, 2, 3]
    # when it goes on
    assert rig.run(rig.place(1, 2)) == [0, 2, 4, 6]
    assert (rig.launched, future.failed(), future.exception()) == ([False, True], [], None)
    with pytest.raises(ConfigurationError, match="gone"):
        failed.rerun_here()


def test_what_tasks_printed_is_kept_of_the_newest_and_bounded() -> None:
    record = Rig(3).record
    half = "x" * (KEPT_OUTPUT_CHARS // 2)
    record.printed(0, Output("a"))
    record.printed(1, Output(half))
    record.printed(1, Output(half[:-1]))  # again, by a later run
    record.printed(2, Output("", half))
    assert [record.output_of(task) for task in range(4)] == [Output("a"), Output(half[:-1]), Output("", half), Output()]
    record.printed(3, Output("b"))
    assert [record.output_of(task) for task in (0, 3)] == [Output(), Output("b")]


def test_another_function_is_kept_only_if_its_run_begins() -> None:
    rig = Rig(2)
    with pytest.raises(LookupError):
        rig.run(rig.take, rig.fail(0, LookupError("zero")))
    with pytest.raises(IndexError):  # the launch fails: there is no script
        rig.future.resume(lambda x: -x)
    assert rig.record.fn is double
    assert isinstance(rig.future.exception(), LookupError)
    rig.scripts.append(rig.place(0, 2))
    assert rig.future.resume(lambda x: -x) == [0, -1]


def test_failures_in_place_are_results_and_still_to_be_resumed() -> None:
    rig = Rig(3, return_exceptions=True)
    error = WorkerLost("gone")
    results = rig.run(rig.take, rig.place(0, 1), rig.fail(1, error), rig.place(2, 3))
    assert results == [0, error, 4]
    assert rig.future.partial() == {0: 0, 2: 4}
    assert list(rig.future) == results
    assert rig.run(rig.place(1, 2)) == [0, 2, 4]


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), CancelledError()])
def test_an_interrupted_map_is_cancelled_for_whoever_asks_later(ending: BaseException) -> None:
    rig = Rig(2)
    with pytest.raises((KeyboardInterrupt, CancelledError)):
        rig.run(rig.take, rig.place(0, 1), raising(ending))
    future = rig.future
    assert (future.done(), future.cancelled(), future.cancel()) == (True, True, True)
    for ask in (future.result, future.exception, lambda: list(future)):
        with pytest.raises(CancelledError):
            ask()
    assert future.partial() == {0: 0}
    assert rig.run(rig.place(1, 2)) == [0, 2]
    assert not future.cancelled()


def test_a_cancelled_map_stays_so_whatever_its_run_still_does() -> None:
    rig = Rig(2)
    with pytest.raises(CancelledError):
        rig.run(rig.take, lambda: rig.future.cancel() or None, rig.place(0, 2))
    assert rig.runner.was_cancelled
    assert rig.future.partial() == {0: 0, 1: 2}


def test_a_map_that_runs_cannot_go_on() -> None:
    rig = Rig(2)

    def too_early() -> None:
        with pytest.raises(ConfigurationError, match="has not ended"):
            rig.future.resume()
        with pytest.raises(concurrent.futures.TimeoutError, match="0 of 2 tasks done after 0 s; the map goes on"):
            rig.future.result(0)
        assert repr(rig.future) == "<MapFuture of double: running, 0 of 2 tasks done>"

    assert rig.run(rig.take, too_early, rig.place(0, 2)) == [0, 2]


def test_what_ended_the_run_is_raised_after_the_tasks_that_completed() -> None:
    rig = Rig(3, return_exceptions=True)
    with pytest.raises(RunTimeout):
        rig.run(rig.take, rig.fail(0, LookupError()), rig.place(1, 2), raising(RunTimeout("late")))
    completed = []
    with pytest.raises(RunTimeout):
        completed.extend(rig.future.as_completed())
    assert [one.task_index for one in completed] == [1, 0]


def test_callbacks_come_once_and_at_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(1)
    called: list[str] = []
    rig.future.add_done_callback(lambda future: called.append(f"first {future.done()}"))
    rig.future.add_done_callback(lambda future: [].pop())
    rig.future.add_done_callback(lambda future: called.append("second"))
    rig.run(rig.take, rig.place(0, 1))
    assert called == ["first True", "second"]
    assert "exception calling callback" in caplog.text
    rig.future.add_done_callback(lambda future: called.append("late"))
    assert called[-1] == "late"


def test_a_map_that_is_over_can_be_awaited() -> None:
    rig = Rig(2)
    rig.run(rig.take, rig.place(0, 2))

    async def main() -> list[int]:
        return await rig.future

    assert asyncio.run(main()) == [0, 2]


def test_its_thread_swallows_what_everybody_can_ask_for() -> None:
    rig = Rig(1)
    rig.scripts.append(raising(LookupError("mine")))
    rig.future.run_in_thread()
    assert isinstance(rig.future.exception(20), LookupError)
    other = Rig(1)
    other.scripts.append(raising(SystemExit(3)))
    other.future.run_in_thread()
    with pytest.raises(CancelledError):
        other.future.result(20)


def test_in_a_forked_process_a_map_of_the_parent_has_ended_and_can_go_on() -> None:
    rig = Rig(3)

    def fork() -> None:
        with rig.record.condition:  # as another thread may do at that moment
            rig.future._after_fork_in_child()
        with pytest.raises(ClusterBroken, match="in the process that was forked"):
            rig.future.result()
        rig.scripts.append(rig.place(1, 3))
        assert rig.future.resume() == [0, 2, 4]

    rig.run(rig.take, rig.place(0, 1), fork)
