"""Progress as a value."""

from __future__ import annotations

import pytest

from gearmap.core import events as ev
from gearmap.core.engine import BEAT_TIMEOUT, SHOWN_WORKERS, RunEngine
from gearmap.core.retry import RetryPolicy
from gearmap.core.snapshot import ProgressSnapshot, WorkerView


def snapshot(**changes: object) -> ProgressSnapshot:
    values: dict[str, object] = {"total": 10, "done": 4, "failed": 1, "cancelled": 0, "running": 2, "queued": 3}
    values |= {"again": 0, "elapsed": 5.0, "workers": 2} | changes
    return ProgressSnapshot(**values)  # type: ignore[arg-type]  # a test's shorthand


def test_rate_and_eta_follow_from_the_counts() -> None:
    assert snapshot().settled == 5
    assert snapshot().rate == pytest.approx(1.0)
    assert snapshot().eta == pytest.approx(5.0)


def test_what_an_earlier_run_has_done_is_done_but_no_measure_of_the_rate() -> None:
    shot = snapshot(done=8, earlier=5)
    assert (shot.settled, shot.rate) == (9, pytest.approx(0.8))


def test_the_engine_counts_what_an_earlier_run_has_done() -> None:
    engine = RunEngine()
    engine.handle(ev.AddBlock(ev.Block(0, 0, 3, "f"), done=((1, 3),)), 0.0)
    shot = engine.snapshot(1.0)
    assert (shot.done, shot.earlier, shot.rate, shot.queued) == (2, 2, 0.0, 1)


def test_there_is_no_eta_without_a_total_or_before_the_first_result() -> None:
    assert snapshot(total=None).eta is None
    assert snapshot(done=0, failed=0).eta is None
    assert snapshot(elapsed=0.0).eta is None


def test_cancelled_tasks_are_settled_but_not_work_done() -> None:
    assert snapshot(cancelled=5).rate == pytest.approx(1.0)
    assert snapshot(cancelled=5).eta == 0.0


def test_an_announced_total_counts_as_queued_before_its_tasks_come() -> None:
    engine = RunEngine(total=10)
    engine.handle(ev.AddBlock(ev.Block(0, 0, 3, "f")), 0.0)
    shot = engine.snapshot(1.0)
    assert (shot.total, shot.queued, shot.running) == (10, 10, 0)


def test_an_input_that_ends_early_corrects_the_total() -> None:
    engine = RunEngine(total=10)
    engine.handle_all([ev.AddBlock(ev.Block(0, 0, 3, "f")), ev.InputEnded()], 0.0)
    assert engine.snapshot(1.0).total == 3


def test_more_tasks_than_announced_raise_the_total() -> None:
    engine = RunEngine(total=2)
    engine.handle_all([ev.AddBlock(ev.Block(0, 0, 3, "f")), ev.ServerUp(0)], 0.0)
    shot = engine.snapshot(1.0)
    assert (shot.total, shot.queued, shot.running) == (3, 0, 3)


def test_a_cancelled_run_counts_what_never_came_as_cancelled() -> None:
    engine = RunEngine(total=10)
    engine.handle_all([ev.AddBlock(ev.Block(0, 0, 3, "f")), ev.CancelRun()], 0.0)
    shot = engine.snapshot(1.0)
    assert (shot.total, shot.cancelled, shot.queued, shot.eta) == (10, 10, 0, None)


def test_a_run_of_unknown_length_has_no_total_until_its_input_ends() -> None:
    engine = RunEngine()
    engine.handle(ev.AddBlock(ev.Block(0, 0, 3, "f")), 0.0)
    assert engine.snapshot(1.0).total is None
    engine.handle(ev.InputEnded(), 0.0)
    assert engine.snapshot(1.0).total == 3


def working_engine(size: int = 3) -> RunEngine:
    engine = RunEngine(chunksize=size)
    engine.handle_all([ev.ServerUp(0), ev.WorkersSeen(1), ev.AddBlock(ev.Block(0, 0, size, "f"))], 0.0)
    return engine


def test_what_is_done_after_it_had_failed_is_counted_as_retried() -> None:
    engine = RunEngine(chunksize=2, policy=RetryPolicy(retries=1))
    block = ev.AddBlock(ev.Block(0, 0, 2, "f"))
    engine.handle_all([ev.ServerUp(0), ev.WorkersSeen(1), block, ev.InputEnded()], 0.0)
    failed = (ev.TaskFailed(1, "boom"),)
    again = engine.handle(ev.OutcomeArrived(1, b"x", "w", ((0, 1),), failed, final=True), 1.0)
    assert engine.snapshot(1.0).retried == 0
    assert any(isinstance(each, ev.Submit) for each in again)
    engine.handle(ev.OutcomeArrived(2, b"y", "w", ((0, 1),), final=True), 101.0)
    shot = engine.snapshot(1.0)
    assert (shot.done, shot.retried) == (2, 1)


def test_a_worker_is_shown_with_the_task_that_it_is_at() -> None:
    engine = working_engine()
    assert engine.snapshot(0.0, 0.0).working == ()
    engine.handle(ev.Beat(1, b"x", "host-1", 0), 1.0)
    assert engine.snapshot(3.0, 3.0).working == (WorkerView("host-1", 0, 2.0),)
    engine.handle(ev.OutcomeArrived(1, b"x", "host-1", ((0, 1),)), 3.5)
    assert engine.snapshot(4.0, 4.0).working == (WorkerView("host-1", 1, 3.0),)
    engine.handle(ev.OutcomeArrived(1, b"x", "host-1", ((1, 3),), final=True), 5.0)
    assert engine.snapshot(5.5, 5.5).working == (WorkerView("host-1", None, 0.5),)
    assert engine.snapshot(6.0, 6.0).working == ()


def test_a_worker_that_has_been_silent_for_too_long_is_shown_as_lost() -> None:
    engine = working_engine()
    engine.handle(ev.Beat(1, b"x", "host-1", 0), 1.0)
    engine.handle(ev.Tick(), 1.0 + BEAT_TIMEOUT)
    (view,) = engine.snapshot(60.0, 60.0).working
    assert (view.name, view.task, view.is_lost) == ("host-1", None, True)


def test_a_worker_whose_beats_are_missing_is_silent_before_it_is_lost_and_is_no_more_when_one_comes() -> None:
    engine = working_engine()
    engine.handle(ev.Beat(1, b"x", "host-1", 0), 1.0)
    (early,) = engine.snapshot(11.0, 11.0).working
    assert early.silent is None  # one beat, of five seconds, may be late
    (late,) = engine.snapshot(14.0, 14.0).working
    assert (late.silent, late.is_lost, late.task) == (13.0, False, 0)
    engine.handle(ev.Beat(1, b"x", "host-1", 0), 14.5)
    (back,) = engine.snapshot(15.0, 15.0).working
    assert back == WorkerView("host-1", 0, 14.0)


def test_only_the_first_of_many_workers_are_named() -> None:
    engine = RunEngine(chunksize=1)
    blocks = [ev.AddBlock(ev.Block(task, task, 1, "f")) for task in range(100)]
    engine.handle_all([ev.ServerUp(0), ev.WorkersSeen(100), *blocks], 0.0)
    engine.handle_all([ev.Beat(1 + each, b"%d" % each, f"w{each}", 0) for each in range(100)], 1.0)
    assert len(engine.snapshot(2.0, 2.0).working) == SHOWN_WORKERS
