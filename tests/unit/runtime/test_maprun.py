"""The thread that waits for a map: what it does first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gearmap.core.snapshot import ProgressSnapshot
from gearmap.display.sinks import NoSink
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.jobwriter import Place
from gearmap.runtime.maprun import MapRun
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

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []

    def post(self, command: Callable[[], None]) -> None:
        happened.append("posted")
        self.posted.append(command)


def map_run(driver: Any, n_tasks: int) -> MapRun:
    return MapRun(
        driver,
        ArgumentSource([range(n_tasks)]),
        (b"digest", [b""]),
        place=Place(),
        sink=NoSink(),
        on_notice=print,
        timeout=None,
        return_exceptions=False,
    )


def test_a_wanted_block_goes_out_before_results_are_unpickled() -> None:
    driver = FakeDriver()
    run = map_run(driver, 4)
    run._feed(2)
    run.delivered(0, 1, ResultBatch(dumps([Noted()])), 0, "w")
    run.delivered(1, 1, ResultBatch(dumps([Noted()])), 0, "w")
    run.wanted(1)

    class Ending(FakeDriver):
        def post(self, command: Callable[[], None]) -> None:
            super().post(command)
            run.ended(END)

    run._driver = Ending()  # type: ignore[assignment]  # whose block was the last
    happened.clear()
    run._wait(None)
    assert happened == ["posted", "unpickled", "unpickled"]
    assert run._results == ["unpickled", "unpickled", None]


def test_nothing_is_fed_to_a_run_that_has_ended() -> None:
    driver = FakeDriver()
    run = map_run(driver, 4)
    run._feed(2)
    run.wanted(2)
    run.delivered(0, 2, ResultBatch(dumps([1, 2])), 0, "w")
    run.ended(END)
    happened.clear()
    run._wait(None)
    assert happened == []
    assert run._results == [1, 2]


def test_several_deliveries_of_a_round_are_told_once_and_in_the_next_one() -> None:
    driver = FakeDriver()
    run = map_run(driver, 4)
    run.delivered(0, 1, ResultBatch(dumps([1])), 0, "w")
    run.delivered(1, 1, ResultBatch(dumps([2])), 0, "w")
    assert len(driver.posted) == 1
    driver.posted.pop()()
    run.delivered(2, 1, ResultBatch(dumps([3])), 0, "w")
    assert len(driver.posted) == 1
