"""The thread that waits for a map: what it does first."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

import pytest

from gearmap.config import RunOptions
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.display.sinks import NoSink
from gearmap.errors import RunTimeout, SerializationError
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.jobwriter import Place
from gearmap.runtime.maprecord import MapRecord
from gearmap.runtime.maprun import MapRun
from gearmap.runtime.port import RunPort
from gearmap.runtime.run import Run
from gearmap.wire.outcome import TaskFailure, describe_exception
from gearmap.wire.serializer import dumps

END = ProgressSnapshot(total=2, done=2, failed=0, cancelled=0, running=0, queued=0, again=0, elapsed=1.0, workers=1)

happened: list[str] = []


class Noted:
    """Notes when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return note, ("unpickled",)


def note(what: str) -> str:
    happened.append(what)
    return what


class FakeDriver:
    """Takes commands and runs none."""

    is_alive = True

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []

    def post(self, command: Callable[[], None], consumer: object = None) -> None:
        happened.append("posted")
        self.posted.append(command)


def map_run(driver: Any, n_tasks: int, **options: Any) -> tuple[MapRun, RunPort, MapRecord]:
    record = MapRecord(note, ArgumentSource([range(n_tasks)]), RunOptions(**options))
    port = RunPort(driver, (b"digest", [b""]), Place(), record.kind)
    return MapRun(port, lambda port: no_run(), record, where="here", sink=NoSink(), on_notice=print), port, record


def no_run() -> Run:
    raise AssertionError("nobody runs commands here")


def results_of(record: MapRecord) -> dict[int, Any]:
    return {
        task: record.results_of(task, task + 1)[0] for low, high in record.result_ranges() for task in range(low, high)
    }


def failure(task: int, message: str) -> TaskFailure:
    try:
        raise LookupError(message)
    except LookupError as error:
        return describe_exception(error, task)


def test_a_wanted_block_goes_out_before_results_are_unpickled() -> None:
    class Ending(FakeDriver):
        def post(self, command: Callable[[], None], consumer: object = None) -> None:
            super().post(command)
            if is_ending:
                port.ended(END)

    is_ending = False
    run, port, record = map_run(Ending(), 4)
    run._feed(2)
    port.delivered(0, 1, ResultBatch(dumps([Noted()])), 0, "w")
    port.delivered(1, 1, ResultBatch(dumps([Noted()])), 0, "w")
    port.wanted(1)
    happened.clear()
    is_ending = True  # with the block that is posted next
    run._wait(None)
    assert happened == ["posted", "unpickled", "unpickled"]
    assert results_of(record) == {0: "unpickled", 1: "unpickled"}
    assert record.size == 3


def test_nothing_is_fed_to_a_run_that_has_ended() -> None:
    run, port, record = map_run(FakeDriver(), 4)
    run._feed(2)
    port.wanted(2)
    port.delivered(0, 2, ResultBatch(dumps([1, 2])), 0, "w")
    port.ended(END)
    happened.clear()
    run._wait(None)
    assert happened == []
    assert results_of(record) == {0: 1, 1: 2}


def test_several_deliveries_of_a_round_are_told_once_and_in_the_next_one() -> None:
    driver = FakeDriver()
    _, port, _ = map_run(driver, 4)
    port.delivered(0, 1, ResultBatch(dumps([1])), 0, "w")
    port.delivered(1, 1, ResultBatch(dumps([2])), 0, "w")
    assert len(driver.posted) == 1
    driver.posted.pop()()
    port.delivered(2, 1, ResultBatch(dumps([3])), 0, "w")
    assert len(driver.posted) == 1


def test_what_came_before_an_interrupt_is_kept() -> None:
    class Interrupting(FakeDriver):
        def post(self, command: Callable[[], None], consumer: object = None) -> None:
            super().post(command)
            if len(self.posted) == 3:  # the first block, the news of results, the second block
                raise KeyboardInterrupt

    driver = Interrupting()
    run, port, record = map_run(driver, 10)
    run._feed(3)
    port.delivered(0, 2, ResultBatch(dumps([5, 6])), 0, "w")
    port.wanted(4)
    run._go_on = lambda: None  # type: ignore[method-assign]  # the first block was sent
    run._port.open = lambda make_run: None  # type: ignore[method-assign]  # and the run is open
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    assert results_of(record) == {0: 5, 1: 6}
    assert record.size == 7
    assert [(piece.first, piece.size, piece.done) for piece in record.pieces()] == [(0, 3, ((0, 2),)), (3, 4, ())]


def test_the_first_failure_that_came_is_raised_with_the_counts() -> None:
    run, port, record = map_run(FakeDriver(), 9)
    run._feed(9)
    port.failed(4, failure(4, "first"), 1, "w")
    port.failed(2, failure(2, "second"), 1, "w")
    port.ended(replace(END, total=9, done=3, failed=2, cancelled=4))
    run._wait(None)
    with pytest.raises(LookupError, match="first") as caught:
        run._conclude()
    told = "".join(getattr(caught.value, "__notes__", [])) + str(caught.value.__cause__)
    assert "(task 4 of 9; on w; 3 done, 1 other task failed, 4 not run; gearmap.last().resume() goes on" in told
    assert [failed.task for failed in record.failed.values()] == [4, 2]


def test_a_result_that_cannot_be_unpickled_fails_its_task() -> None:
    run, port, record = map_run(FakeDriver(), 3, return_exceptions=True)
    run._feed(3)
    port.delivered(0, 1, ResultBatch([b"not a pickle"]), 0, "w")
    port.delivered(1, 2, ResultBatch(dumps([1, 2])), 0, "w")
    port.ended(END)
    run._wait(None)
    run._conclude()
    first, *others = record.all_results()
    assert isinstance(first, SerializationError)
    assert others == [1, 2]


def test_another_thread_ends_the_wait() -> None:
    run, _, _ = map_run(FakeDriver(), 3)
    run.cancel()
    with pytest.raises(CancelledError):
        run._wait(None)


def test_time_that_is_up_ends_the_wait_with_counts() -> None:
    run, port, record = map_run(FakeDriver(), 3, timeout=0.5)
    run._feed(3)
    port.delivered(0, 1, ResultBatch(dumps([1])), 0, "w")
    with pytest.raises(RunTimeout):
        run._wait(time.monotonic())
    run._keep(port.take(0.0))
    assert str(record.timed_out()).startswith("1 of 3 tasks done after timeout=0.5 s; the run was cancelled; gearmap.l")
