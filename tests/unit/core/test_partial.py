"""Tasks that say how far they are count in part, until they are settled."""

from __future__ import annotations

from gearmap.core import events as ev
from gearmap.core.engine import RunEngine

FIRST, SECOND = b"1" * 16, b"2" * 16


def running() -> tuple[RunEngine, int]:
    """An engine whose tasks 0 to 3 are one attempt."""
    engine = RunEngine(chunksize=4)
    engine.handle(ev.ServerUp(0), 0.0)
    (submit,) = engine.handle(ev.AddBlock(ev.Block(0, 0, 4, b"f", 1)), 0.0)
    assert isinstance(submit, ev.Submit)
    return engine, submit.attempt


def test_what_a_running_task_says_counts_until_it_is_settled() -> None:
    engine, attempt = running()
    assert engine.snapshot(1.0).partial == 0.0
    engine.handle(ev.Beat(attempt, FIRST, "w", 1, 0.75), 1.0)
    assert engine.snapshot(1.0).partial == 0.75
    engine.handle(ev.Beat(attempt, FIRST, "w", 1), 1.1)
    assert engine.snapshot(1.0).partial == 0.75
    engine.handle(ev.OutcomeArrived(attempt, FIRST, "w", ((1, 2),)), 1.2)
    assert engine.snapshot(1.0).partial == 0.0


def test_only_the_newest_execution_counts() -> None:
    engine, attempt = running()
    engine.handle(ev.Beat(attempt, FIRST, "w", 3, 0.75), 1.0)
    engine.handle(ev.Beat(attempt, SECOND, "w", 0), 1.1)
    assert engine.snapshot(1.0).partial == 0.0
    engine.handle(ev.Beat(attempt, SECOND, "w", 99, 0.5), 1.1)
    assert engine.snapshot(1.0).partial == 0.0


def test_an_attempt_that_was_lost_counts_no_more() -> None:
    engine, attempt = running()
    engine.handle(ev.Beat(attempt, FIRST, "w", 1, 0.75), 1.0)
    engine.handle(ev.AttemptLost(attempt, ev.LossReason.WORKER), 1.2)
    assert engine.snapshot(1.0).partial == 0.0
