"""The run engine, one decision at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from gearmap.core import events as ev
from gearmap.core.engine import BEAT_TIMEOUT, MAX_EXECUTIONS, REJECTION_PAUSE, RunEngine
from gearmap.core.retry import RetryPolicy, retry_delay


def block(
    first: int, size: int = 1, *, number: int | None = None, function: str = "f", payload: int = 10
) -> ev.AddBlock:
    return ev.AddBlock(ev.Block(first if number is None else number, first, size, function, payload))


def running(*sizes: int, end: bool = True, **options: object) -> tuple[RunEngine, list[ev.Submit]]:
    """An engine with one server whose first jobs are out: a chunk for each block."""
    engine = RunEngine(**{"fail_fast": False, "chunksize": 1} | options)  # type: ignore[arg-type]  # a test's shorthand
    events: list[ev.Input] = [ev.ServerUp(0)]
    first = 0
    for size in sizes:
        events.append(block(first, size))
        first += size
    out = engine.handle_all([*events, ev.InputEnded()] if end else events, 0.0)
    return engine, submits(out)


def submits(out: Sequence[ev.Instruction]) -> list[ev.Submit]:
    return [one for one in out if isinstance(one, ev.Submit)]


def tasks(submit: ev.Submit) -> list[int]:
    return [task for span in submit.spans for task in range(span.first, span.first + span.size)]


def outcome(
    attempt: int, *done: ev.TaskRange, execution: bytes = b"x", worker: str = "w", **more: object
) -> ev.OutcomeArrived:
    return ev.OutcomeArrived(attempt, execution, worker, done, **{"final": True} | more)  # type: ignore[arg-type]


def not_run(kind: ev.NotRunKind, **more: object) -> ev.NotRunReport:
    return ev.NotRunReport(kind, **more)  # type: ignore[arg-type]  # a test's shorthand


def failed(*positions: int, retry: bool = True) -> tuple[ev.TaskFailed, ...]:
    return tuple(ev.TaskFailed(position, f"error {position}", retry) for position in positions)


# ------------------------------------------------------------------------------------------------------ a good run


def test_a_run_without_tasks_ends_with_its_input() -> None:
    engine = RunEngine()
    assert engine.handle(ev.InputEnded(), 0.0) == [ev.RunEnded()]
    assert engine.handle(ev.InputEnded(), 0.0) == []


def test_results_are_delivered_in_their_place_and_the_block_is_dropped() -> None:
    engine, (job,) = running(4)
    assert engine.handle(outcome(job.attempt, (2, 4), (0, 2)), 1.0) == [
        ev.Deliver(0, 0, 2, 2, job.attempt, "w"),
        ev.Deliver(1, 0, 0, 2, job.attempt, "w"),
        ev.DropBlock(0),
        ev.RunEnded(),
    ]


def test_one_delivery_covers_neighbours_from_several_blocks() -> None:
    engine, (job,) = running(1, 1, 1, chunksize=3)
    out = engine.handle(outcome(job.attempt, (0, 3)), 1.0)
    assert out == [ev.Deliver(0, 0, 0, 3, job.attempt, "w"), *(ev.DropBlock(n) for n in range(3)), ev.RunEnded()]


def test_tasks_that_were_done_before_are_not_sent_again() -> None:
    engine = RunEngine(chunksize=10)
    gone = ev.AddBlock(ev.Block(0, 0, 5, "f"), done=((0, 5),))
    partly = ev.AddBlock(ev.Block(1, 5, 6, "f", 60), done=((5, 7), (9, 10)))
    out = engine.handle_all([ev.ServerUp(0), gone, partly, ev.InputEnded()], 0.0)
    (job,) = submits(out)
    assert out == [ev.DropBlock(0), job]
    assert tasks(job) == [7, 8, 10]
    assert engine.handle(outcome(job.attempt, (0, 3)), 1.0)[-2:] == [ev.DropBlock(1), ev.RunEnded()]


def test_a_run_of_which_everything_was_done_before_ends_at_once() -> None:
    engine = RunEngine()
    out = engine.handle_all([ev.AddBlock(ev.Block(0, 0, 5, "f"), done=((0, 5),)), ev.InputEnded()], 0.0)
    assert out == [ev.DropBlock(0), ev.RunEnded()]


def test_an_empty_block_is_dropped_at_once() -> None:
    engine = RunEngine()
    assert engine.handle_all([ev.ServerUp(0), block(0, 0, number=9)], 0.0) == [ev.DropBlock(9)]


def test_a_block_that_comes_after_the_end_is_dropped_at_once() -> None:
    engine = RunEngine()
    assert engine.handle_all([ev.CancelRun(), block(0, 3)], 0.0) == [ev.RunEnded(), ev.DropBlock(0)]


def test_nothing_is_sent_before_a_server_is_there() -> None:
    engine = RunEngine(chunksize=1)
    assert engine.handle(block(0), 0.0) == []
    assert len(submits(engine.handle(ev.ServerUp(3), 0.0))) == 1


# ---------------------------------------------------------------------------------------------- windows and chunks


def test_while_nobody_knows_the_workers_four_jobs_are_out() -> None:
    _, jobs = running(*[1] * 10)
    assert len(jobs) == 4


def test_the_window_is_two_jobs_for_each_worker_over_all_servers() -> None:
    engine, jobs = running(*[1] * 40)
    jobs += submits(engine.handle_all([ev.ServerUp(1), ev.WorkersSeen(5)], 0.0))
    assert [sum(job.server == server for job in jobs) for server in (0, 1)] == [5, 5]


def test_a_queue_without_workers_still_gets_jobs_so_that_work_starts_when_one_appears() -> None:
    engine = RunEngine(chunksize=1)
    out = engine.handle_all([ev.WorkersSeen(0), ev.ServerUp(0), *(block(n) for n in range(5))], 0.0)
    assert len(submits(out)) == 2


def test_max_workers_bounds_the_jobs_over_all_servers() -> None:
    engine = RunEngine(chunksize=1, max_workers=3)
    servers = [ev.ServerUp(n) for n in range(4)]
    assert len(submits(engine.handle_all([*servers, *(block(n) for n in range(9))], 0.0))) == 3


def test_tasks_of_different_functions_never_share_a_chunk() -> None:
    engine = RunEngine(chunksize=10)
    blocks = [block(0), block(1), block(2, function="g"), block(3, function="g"), block(4)]
    jobs = submits(engine.handle_all([*blocks, ev.ServerUp(0)], 0.0))
    assert [tasks(job) for job in jobs] == [[0, 1], [2, 3], [4]]


def test_a_block_that_wants_to_be_alone_shares_no_chunk_with_those_before_and_after_it() -> None:
    blocks = [ev.AddBlock(ev.Block(n, n, 1, "f", 10, alone=n == 1)) for n in range(4)]
    engine = RunEngine(chunksize=10)
    jobs = submits(engine.handle_all([ev.ServerUp(0), *blocks, ev.InputEnded()], 0.0))
    assert [tasks(job) for job in jobs] == [[0], [1], [2, 3]]


def test_large_arguments_are_not_gathered_into_one_job() -> None:
    engine = RunEngine(chunksize=10)
    jobs = submits(engine.handle_all([block(0, payload=3 << 20), block(1, payload=3 << 20), ev.ServerUp(0)], 0.0))
    assert [tasks(job) for job in jobs] == [[0], [1]]


@pytest.mark.parametrize("chunksize", [None, 50])
def test_a_chunk_never_holds_more_tasks_than_a_child_may_run(chunksize: int | None) -> None:
    engine = RunEngine(chunksize=chunksize, max_chunksize=4, fail_fast=False)
    engine.handle_all([ev.WorkersSeen(1), ev.ServerUp(0), block(0)], 0.0)
    engine.handle(ev.OutcomeArrived(1, b"e", "w", ((0, 1),), elapsed=1e-6, count=1, final=True), 0.1)
    sizes = [len(tasks(job)) for job in submits(engine.handle_all([block(n) for n in range(1, 11)], 0.2))]
    assert engine.next_block_size("f") <= 4
    assert sizes
    assert max(sizes) == 4


def test_one_block_is_asked_for_ahead_and_none_after_the_input_ended() -> None:
    engine = RunEngine(chunksize=7)
    assert engine.next_block_size("f") == 7
    engine.handle(block(0, 7), 0.0)
    assert engine.next_block_size("f") == 0
    engine.handle(ev.ServerUp(0), 0.0)
    assert engine.next_block_size("f") == 7
    engine.handle(ev.InputEnded(), 0.0)
    assert engine.next_block_size("f") == 0


# --------------------------------------------------------------------------------------------------- failing tasks


def test_by_default_the_first_failure_ends_the_run_and_stops_what_runs() -> None:
    engine, (one, two, *_) = running(2, 2, 2, fail_fast=True, end=False)
    out = engine.handle(outcome(one.attempt, (1, 2), failed=failed(0)), 1.0)
    assert out[0] == ev.Deliver(0, 0, 1, 1, one.attempt, "w")
    assert out[1] == ev.FailTask(0, "error 0", 1, "w")
    assert ev.CancelAttempt(two.attempt) in out
    assert out[-1] == ev.RunEnded()
    assert engine.ended


def test_all_failures_of_one_outcome_are_told_before_the_run_ends() -> None:
    engine, (one, *_) = running(3, 1, fail_fast=True)
    out = engine.handle(outcome(one.attempt, failed=failed(0, 2)), 1.0)
    assert [item.task for item in out if isinstance(item, ev.FailTask)] == [0, 2]
    assert engine.snapshot(1.0).failed == 2


def test_a_failed_task_is_run_again_alone_until_its_retries_are_spent() -> None:
    engine, (job,) = running(3, policy=RetryPolicy(retries=1))
    (again,) = submits(engine.handle(outcome(job.attempt, (0, 1), (2, 3), failed=failed(1)), 1.0))
    assert tasks(again) == [1]
    out = engine.handle(outcome(again.attempt, failed=failed(0)), 2.0)
    assert out == [ev.FailTask(1, "error 0", 2, "w"), ev.DropBlock(0), ev.RunEnded()]


def test_a_failure_that_the_user_does_not_want_retried_is_final() -> None:
    engine, (job,) = running(1, policy=RetryPolicy(retries=5))
    out = engine.handle(outcome(job.attempt, failed=failed(0, retry=False)), 1.0)
    assert out[0] == ev.FailTask(0, "error 0", 1, "w")


def test_a_failure_that_is_told_twice_spends_one_retry() -> None:
    engine, (job,) = running(2, policy=RetryPolicy(retries=1))
    assert engine.handle(outcome(job.attempt, failed=failed(0), final=False), 1.0) == []
    assert engine.handle(outcome(job.attempt, failed=failed(0), final=False, execution=b"y"), 1.0) == []


# -------------------------------------------------------------------------------------------------- waiting to retry

BACKOFF = RetryPolicy(retries=3, retry_delay=1.0)


def due(engine: RunEngine) -> float:
    assert engine.deadline is not None
    return engine.deadline


def test_a_retry_waits_for_its_delay_which_doubles_and_is_a_little_longer_each_time() -> None:
    engine, (job,) = running(1, policy=BACKOFF)
    now = 10.0
    for delay in (1.0, 2.0, 4.0):
        assert submits(engine.handle(outcome(job.attempt, failed=failed(0)), now)) == []
        assert delay <= due(engine) - now <= 1.25 * delay
        assert engine.handle(ev.Tick(), due(engine) - 0.001) == []
        now = due(engine)
        (job,) = submits(engine.handle(ev.Tick(), now))
    out = engine.handle(outcome(job.attempt, failed=failed(0)), now)
    assert out == [ev.FailTask(0, "error 0", 4, "w"), ev.DropBlock(0), ev.RunEnded()]


def test_a_retry_never_waits_much_longer_than_half_a_minute() -> None:
    policy = RetryPolicy(retries=3000, retry_delay=1.0)
    delays = [retry_delay(policy, failures, seed=7, task=3) for failures in (1, 5, 6, 100, 3000)]
    assert all(least <= delay <= 1.25 * least for least, delay in zip((1, 16, 30, 30, 30), delays, strict=True))


def test_retries_of_many_tasks_and_runs_are_spread_and_each_is_always_the_same() -> None:
    delays = [retry_delay(BACKOFF, 1, seed=seed, task=task) for seed in range(10) for task in range(100)]
    assert delays == [retry_delay(BACKOFF, 1, seed=seed, task=task) for seed in range(10) for task in range(100)]
    assert len(set(delays)) == 1000
    assert [sum(at <= 4 * (delay - 1.0) * 4 < at + 1 for delay in delays) // 100 for at in range(4)] == [2, 2, 2, 2]


def test_others_go_on_while_a_task_waits_for_its_retry() -> None:
    engine, jobs = running(1, 1, policy=BACKOFF, max_workers=1, end=False)
    (other,) = submits(engine.handle(outcome(jobs[0].attempt, failed=failed(0)), 1.0))
    assert tasks(other) == [1]
    assert engine.next_block_size("f") == 1
    assert engine.handle(outcome(other.attempt, (0, 1)), 1.5)[0] == ev.Deliver(0, 0, 1, 1, other.attempt, "w")


def test_a_run_does_not_end_while_a_task_waits_for_its_retry_and_counts_it_as_queued() -> None:
    engine, (job,) = running(2, policy=BACKOFF)
    assert ev.RunEnded() not in engine.handle(outcome(job.attempt, (1, 2), failed=failed(0)), 1.0)
    shot = engine.snapshot(1.0)
    assert (shot.total, shot.done, shot.running, shot.queued, shot.again) == (2, 1, 0, 1, 1)
    assert engine.wants_workers
    (again,) = submits(engine.handle(ev.Tick(), due(engine)))
    out = engine.handle(outcome(again.attempt, (0, 1)), 3.0)
    assert out == [ev.Deliver(0, 0, 0, 1, again.attempt, "w", 2), ev.DropBlock(0), ev.RunEnded()]


def test_the_rest_of_a_chunk_does_not_wait_with_the_task_that_failed() -> None:
    engine, (job,) = running(4, policy=BACKOFF)
    engine.handle(outcome(job.attempt, failed=failed(1), final=False), 1.0)
    (rest,) = submits(engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.REJECTED), 1.0)) or submits(
        engine.handle(ev.Tick(), 1.0 + REJECTION_PAUSE)
    )
    assert tasks(rest) == [0, 2, 3]
    (again,) = submits(engine.handle(ev.Tick(), due(engine)))
    assert tasks(again) == [1]


def test_a_task_whose_delay_was_over_before_its_chunk_goes_with_the_end_of_it() -> None:
    engine, (job,) = running(2, policy=BACKOFF)
    engine.handle(outcome(job.attempt, failed=failed(0), final=False), 1.0)
    (again,) = submits(engine.handle(outcome(job.attempt, (1, 2)), 9.0))
    assert tasks(again) == [0]


def test_tasks_that_failed_together_go_again_together() -> None:
    engine, (job,) = running(50, policy=RetryPolicy(retries=1, retry_delay=0.1))
    engine.handle(outcome(job.attempt, failed=failed(*range(50))), 1.0)
    (again,) = submits(engine.handle(ev.Tick(), due(engine)))
    assert tasks(again) == list(range(50))


def test_a_task_that_waits_for_its_retry_is_cancelled_like_any_that_waits() -> None:
    engine, (job,) = running(1, policy=BACKOFF)
    engine.handle(outcome(job.attempt, failed=failed(0)), 1.0)
    assert engine.handle(ev.CancelTask(0), 1.1) == [ev.DropBlock(0), ev.RunEnded()]


def test_a_result_that_comes_after_all_is_taken_from_a_task_that_waits_for_its_retry() -> None:
    # given an execution that failed the task, and fell silent
    engine, (job,) = running(2, policy=RetryPolicy(retries=3, retry_delay=30.0))
    engine.handle(ev.Beat(job.attempt, b"x", "w", 1), 0.0)
    engine.handle(outcome(job.attempt, failed=failed(0), final=False), 20.0)
    (other,) = submits(engine.handle(ev.Tick(), 50.0))
    assert tasks(other) == [1]
    # when another execution of the same job has a result
    out = engine.handle(outcome(job.attempt, (0, 1), execution=b"y", final=False), 50.0)
    # then
    assert out == [ev.Deliver(0, 0, 0, 1, job.attempt, "w")]
    assert engine.handle(ev.Tick(), 100.0) == []


def test_the_first_failure_for_good_ends_the_run_though_others_wait_for_their_retry() -> None:
    engine, (one, two) = running(1, 1, policy=BACKOFF, fail_fast=True)
    engine.handle(outcome(one.attempt, failed=failed(0)), 1.0)
    out = engine.handle(outcome(two.attempt, failed=failed(0, retry=False)), 1.1)
    assert (out[0], out[-1]) == (ev.FailTask(1, "error 0", 1, "w"), ev.RunEnded())
    assert engine.snapshot(1.0).cancelled == 1
    assert engine.deadline is None


def test_losses_and_failures_are_counted_together_as_attempts() -> None:
    engine, (job,) = running(1, policy=RetryPolicy(retries=1))
    died = not_run(ev.NotRunKind.DIED, detail="signal 9", charged=0)
    (job,) = submits(engine.handle(outcome(job.attempt, not_run=died), 1.0))
    (job,) = submits(engine.handle(outcome(job.attempt, not_run=not_run(ev.NotRunKind.AGAIN)), 2.0))
    (job,) = submits(engine.handle(outcome(job.attempt, failed=failed(0)), 3.0))
    assert engine.handle(outcome(job.attempt, (0, 1)), 4.0)[0] == ev.Deliver(0, 0, 0, 1, job.attempt, "w", 3)


@pytest.mark.parametrize("kind", [ev.NotRunKind.DIED, ev.NotRunKind.TIMED_OUT])
def test_a_task_that_failed_and_is_blamed_for_the_end_of_its_job_too_is_charged_once(kind: ev.NotRunKind) -> None:
    engine, (job,) = running(3, policy=RetryPolicy(retries=1, max_worker_losses=1, retry_delay=1.0))
    out = engine.handle(outcome(job.attempt, failed=failed(0), not_run=not_run(kind, charged=0)), 1.0)
    assert [tasks(rest) for rest in submits(out)] == [[1, 2]]
    assert len(out) == 1
    assert engine.snapshot(1.0).queued == 1


# -------------------------------------------------------------------------------------------------- tasks too slow


def slow(position: int | None) -> ev.NotRunReport:
    return not_run(ev.NotRunKind.TIMED_OUT, detail="31 s", charged=position)


def test_a_task_that_runs_too_long_is_given_up_and_the_others_run_again_uncharged() -> None:
    engine, (job,) = running(4)
    out = engine.handle(outcome(job.attempt, (0, 1), not_run=slow(1)), 1.0)
    assert ev.TimeOutTask(1, 1, 1, "w", "31 s") in out
    (others,) = submits(out)
    assert (tasks(others), others.avoid) == ([2, 3], ())
    assert engine.handle(outcome(others.attempt, (0, 2)), 2.0)[-1] == ev.RunEnded()


def test_a_task_that_ran_too_long_has_retries_like_one_that_failed_and_goes_alone() -> None:
    engine, (job,) = running(2, policy=RetryPolicy(retries=2))
    other, again = submits(engine.handle(outcome(job.attempt, not_run=slow(0)), 1.0))
    assert (tasks(other), tasks(again)) == ([1], [0])
    (again,) = submits(engine.handle(outcome(again.attempt, failed=failed(0)), 2.0))
    out = engine.handle(outcome(again.attempt, not_run=slow(0)), 3.0)
    assert out == [ev.TimeOutTask(0, 3, 3, "w", "31 s")]


def test_a_task_that_ran_too_long_is_not_run_again_if_timeouts_are_not_retried() -> None:
    engine, (job,) = running(1, policy=RetryPolicy(retries=5, retry_timeouts=False))
    assert engine.handle(outcome(job.attempt, not_run=slow(0)), 1.0)[0] == ev.TimeOutTask(0, 1, 1, "w", "31 s")


@pytest.mark.parametrize("position", [None, 0, 7, -1])
def test_a_timeout_that_came_too_late_charges_nobody(position: int | None) -> None:
    engine, (job,) = running(3)
    (again,) = submits(engine.handle(outcome(job.attempt, (0, 1), not_run=slow(position)), 1.0))
    assert tasks(again) == [1, 2]
    assert engine.snapshot(1.0).failed == 0


def test_by_default_a_task_that_ran_too_long_ends_the_run() -> None:
    engine, (job, _) = running(2, 2, fail_fast=True)
    out = engine.handle(outcome(job.attempt, not_run=slow(0)), 1.0)
    assert (out[0], out[-1]) == (ev.TimeOutTask(0, 1, 1, "w", "31 s"), ev.RunEnded())


# --------------------------------------------------------------------------------------------------- lost attempts


def test_tasks_of_a_dead_server_go_to_another_in_their_order_and_uncharged() -> None:
    engine, jobs = running(2, 2, policy=RetryPolicy(max_worker_losses=1))
    assert engine.handle(outcome(jobs[0].attempt, (0, 1), final=False), 1.0)
    again = submits(engine.handle_all([ev.ServerDown(0), ev.ServerUp(1)], 2.0))
    assert [(job.server, tasks(job)) for job in again] == [(1, [1]), (1, [2, 3])]


def test_late_news_of_an_attempt_whose_server_died_changes_nothing() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.ServerDown(0), 1.0)
    assert engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.SERVER), 1.0) == []
    assert engine.handle(outcome(job.attempt, (0, 1)), 1.0) == []
    assert len(submits(engine.handle(ev.ServerUp(0), 2.0))) == 1


def test_the_task_that_a_worker_died_of_is_charged_and_parted_from_its_neighbours() -> None:
    engine, (job,) = running(4)
    report = not_run(ev.NotRunKind.DIED, detail="signal 11", charged=1)
    others, culprit = submits(engine.handle(outcome(job.attempt, (0, 1), not_run=report), 1.0))
    assert (tasks(others), others.avoid) == ([2, 3], ())
    assert (tasks(culprit), culprit.avoid) == ([1], ("w",))


def test_a_task_that_takes_too_many_workers_with_it_is_lost_and_the_others_finish() -> None:
    engine, (job,) = running(2, policy=RetryPolicy(max_worker_losses=2))
    report = not_run(ev.NotRunKind.DIED, detail="signal 9", charged=0)
    other, culprit = submits(engine.handle(outcome(job.attempt, not_run=report), 1.0))
    out = engine.handle(outcome(culprit.attempt, not_run=report), 2.0)
    assert out == [ev.LoseTask(0, 2, "signal 9", "w")]
    assert engine.handle(outcome(other.attempt, (0, 1)), 3.0)[-1] == ev.RunEnded()


def test_a_death_after_the_blamed_task_was_finished_charges_nobody() -> None:
    engine, (job,) = running(2, policy=RetryPolicy(max_worker_losses=1))
    report = not_run(ev.NotRunKind.DIED, charged=0)
    (again,) = submits(engine.handle(outcome(job.attempt, (0, 1), not_run=report), 1.0))
    assert tasks(again) == [1]


def test_a_chunk_that_killed_a_worker_without_a_trace_is_halved() -> None:
    engine, (job,) = running(5)
    halves = submits(engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.WORKER), 1.0))
    assert [tasks(half) for half in halves] == [[0, 1], [2, 3, 4]]


def test_a_chunk_of_which_the_node_does_not_know_who_killed_a_child_goes_again_as_one_to_be_watched() -> None:
    engine, (job,) = running(5)
    assert not job.exact
    report = not_run(ev.NotRunKind.DIED, charged=None)
    (again,) = submits(engine.handle(outcome(job.attempt, (0, 1), not_run=report), 1.0))
    assert (tasks(again), again.exact, again.attempts) == ([1, 2, 3, 4], True, 1)
    rest, culprit = submits(engine.handle(outcome(again.attempt, not_run=replace(report, charged=1)), 2.0))
    assert (tasks(rest), tasks(culprit)) == ([1, 3, 4], [2])


def test_a_watched_chunk_that_killed_a_child_and_nobody_knows_who_is_halved() -> None:
    engine, (job,) = running(4)
    report = not_run(ev.NotRunKind.DIED, charged=None)
    (again,) = submits(engine.handle(outcome(job.attempt, not_run=report), 1.0))
    halves = submits(engine.handle(outcome(again.attempt, not_run=report), 2.0))
    assert [tasks(half) for half in halves] == [[0, 1], [2, 3]]


def test_what_is_left_of_a_chunk_that_took_long_is_shared_out_and_counts_as_nothing() -> None:
    engine, (job,) = running(9)
    engine.handle(ev.WorkersSeen(2), 0.5)
    report = not_run(ev.NotRunKind.OVER_BUDGET)
    parts = submits(engine.handle(outcome(job.attempt, (0, 2), not_run=report), 1.0))
    while len(parts) < 4:  # the window lets some wait
        parts += submits(engine.handle(outcome(parts[-1].attempt, (0, 9)), 2.0))
    assert [tasks(part) for part in parts] == [[2, 3], [4, 5], [6, 7], [8]]
    assert all((part.attempts, part.avoid) == (1, ()) for part in parts)
    assert engine.snapshot(2.0).again == 0


def test_chunks_of_several_tasks_have_a_budget_unless_their_size_was_asked_for() -> None:
    measured = RunEngine()
    (several,) = submits(measured.handle_all([ev.ServerUp(0), block(0, 3)], 0.0))
    (single,) = submits(measured.handle(block(3, 1), 0.0))
    chosen = running(3)[1][0]
    assert several.budget is not None
    assert single.budget is None
    assert chosen.budget is None


def test_a_single_task_that_kills_workers_without_a_trace_is_not_run_for_ever() -> None:
    engine, jobs = running(1)
    for _ in range(2):
        jobs = submits(engine.handle(ev.AttemptLost(jobs[0].attempt, ev.LossReason.WORKER), 1.0))
    out = engine.handle(ev.AttemptLost(jobs[0].attempt, ev.LossReason.WORKER), 1.0)
    assert out == [ev.LoseTask(0, 3, "the worker was lost", None), ev.DropBlock(0), ev.RunEnded()]


def test_a_server_that_refuses_a_job_is_left_alone_for_a_while() -> None:
    engine, (job,) = running(1)
    assert engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.REJECTED), 1.0) == []
    assert engine.deadline == 1.0 + REJECTION_PAUSE
    assert engine.handle(ev.Tick(), engine.deadline - 0.01) == []
    (again,) = submits(engine.handle(ev.Tick(), engine.deadline))
    assert tasks(again) == [0]
    assert engine.deadline is None


def test_a_chunk_that_was_not_sent_as_a_task_was_cancelled_goes_at_once_without_it() -> None:
    engine, (job,) = running(3, policy=RetryPolicy(max_worker_losses=1))
    events = [ev.AttemptLost(job.attempt, ev.LossReason.UNSENT), ev.CancelTask(1)]
    (again,) = submits(engine.handle_all(events, 1.0))
    assert tasks(again) == [0, 2]


def test_another_server_takes_what_one_refused() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.ServerUp(1), 0.5)
    (again,) = submits(engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.REJECTED), 1.0))
    assert again.server == 1


def test_a_server_that_comes_back_is_not_blamed_for_what_it_refused_before() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.REJECTED), 1.0)
    (again,) = submits(engine.handle_all([ev.ServerDown(0), ev.ServerUp(0)], 1.1))
    assert tasks(again) == [0]


# --------------------------------------------------------------------------------------------------------- silence


def test_an_execution_that_had_begun_is_lost_after_thirty_seconds_of_silence() -> None:
    engine, (job,) = running(2)
    engine.handle(ev.Beat(job.attempt, b"x", "w", 1), 10.0)
    assert engine.deadline == 10.0 + BEAT_TIMEOUT
    assert engine.handle(ev.Tick(), 39.9) == []
    out = engine.handle(ev.Tick(), 40.0)
    assert out[0] == ev.CancelAttempt(job.attempt)
    assert [tasks(again) for again in submits(out)] == [[0], [1]]
    assert engine.deadline is None


def test_a_job_that_a_worker_has_taken_and_never_told_of_is_lost_after_thirty_seconds() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.JobSeen(job.attempt, running=True), 100.0)
    engine.handle(ev.JobSeen(job.attempt, running=True), 101.0)
    assert engine.deadline == 100.0 + BEAT_TIMEOUT
    assert engine.handle(ev.Tick(), 129.9) == []
    out = engine.handle(ev.Tick(), 130.0)
    assert out[0] == ev.CancelAttempt(job.attempt)
    assert [tasks(again) for again in submits(out)] == [[0]]


def test_a_job_that_came_back_into_the_queue_may_wait_again() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.JobSeen(job.attempt, running=True), 100.0)
    engine.handle(ev.JobSeen(job.attempt, running=False), 110.0)
    assert engine.handle(ev.Tick(), 1e6) == []


def test_who_tells_of_itself_is_judged_by_its_beats_alone() -> None:
    engine, (job,) = running(1)
    engine.handle(ev.JobSeen(job.attempt, running=True), 100.0)
    engine.handle(ev.Beat(job.attempt, b"x", "w", 0), 129.0)
    engine.handle(ev.JobSeen(job.attempt, running=True), 129.5)
    assert engine.handle(ev.Tick(), 158.9) == []
    assert submits(engine.handle(ev.Tick(), 159.0))


def test_what_was_not_heard_of_for_long_is_worth_a_question_until_it_is() -> None:
    engine, (first, second) = running(1, 1)
    assert engine.unheard(BEAT_TIMEOUT / 3 - 0.1) == []
    assert engine.unheard(BEAT_TIMEOUT / 3) == [first.attempt, second.attempt]
    engine.handle(ev.Beat(first.attempt, b"x", "w", 0), 11.0)
    assert engine.unheard(100.0) == [second.attempt]


def test_a_job_that_waits_in_the_queue_is_never_taken_for_lost() -> None:
    engine, _ = running(1)
    assert engine.deadline is None
    assert engine.handle(ev.Tick(), 1e6) == []


def test_what_an_attempt_delivers_after_it_was_given_up_counts_and_is_not_run_again() -> None:
    # given an attempt that fell silent while every window was full
    engine, (job, other) = running(1, 1, max_workers=2)
    engine.handle(ev.Beat(job.attempt, b"x", "w", 0), 0.0)
    engine.handle(ev.Beat(other.attempt, b"y", "w", 0), 20.0)
    (again,) = submits(engine.handle(ev.Tick(), 30.0))
    engine.handle(ev.Beat(again.attempt, b"z", "w", 0), 30.0)
    # when it comes back, and then its rerun falls silent too
    assert engine.handle(outcome(job.attempt, (0, 1)), 31.0)[0] == ev.Deliver(0, 0, 0, 1, job.attempt, "w")
    engine.handle(ev.Beat(other.attempt, b"y", "w", 0), 59.0)
    # then nothing of it is left to run
    assert engine.handle(ev.Tick(), 60.0) == [ev.CancelAttempt(again.attempt)]


def test_a_task_that_was_delivered_late_while_it_waited_is_not_sent() -> None:
    engine, (job,) = running(1, end=False)
    engine.handle(ev.Beat(job.attempt, b"x", "w", 0), 0.0)
    # given the server is full of refusals when the attempt is given up
    engine.handle_all([block(1)], 29.5)
    engine.handle(ev.AttemptLost(2, ev.LossReason.REJECTED), 29.5)
    assert engine.handle(ev.Tick(), 30.0) == [ev.CancelAttempt(job.attempt)]
    # when
    assert ev.DropBlock(0) in engine.handle(outcome(job.attempt, (0, 1)), 30.1)
    # then
    (only,) = submits(engine.handle(ev.Tick(), 31.0))
    assert tasks(only) == [1]


def test_of_two_executions_the_newest_says_which_task_is_blamed() -> None:
    engine, (job,) = running(3)
    engine.handle(ev.Beat(job.attempt, b"x", "w", 2), 0.0)
    engine.handle(ev.Beat(job.attempt, b"y", "v", 0), 1.0)
    others, culprit = submits(engine.handle(ev.AttemptLost(job.attempt, ev.LossReason.WORKER), 2.0))
    assert (tasks(others), tasks(culprit)) == ([1, 2], [0])


def test_an_attempt_that_the_server_starts_too_often_is_taken_back() -> None:
    engine, (job,) = running(1)
    for number in range(MAX_EXECUTIONS):
        assert engine.handle(ev.Beat(job.attempt, bytes((number,)), "w", 0), 1.0) == []
    out = engine.handle(ev.Beat(job.attempt, b"one more", "w", 0), 1.0)
    assert out[0] == ev.CancelAttempt(job.attempt)
    assert engine.snapshot(1.0).again == MAX_EXECUTIONS + 1


# -------------------------------------------------------------------------------------------------------- refusals


def test_an_uncharged_refusal_sends_the_whole_chunk_again_as_one_job() -> None:
    engine, (job,) = running(1, 1, 1, chunksize=3)
    (again,) = submits(engine.handle(outcome(job.attempt, not_run=not_run(ev.NotRunKind.AVOIDED)), 1.0))
    assert tasks(again) == [0, 1, 2]


def test_one_node_that_lacks_a_package_is_avoided_and_the_others_do_the_work() -> None:
    engine, (job,) = running(2)
    engine.handle(ev.WorkersSeen(8), 0.0)
    report = not_run(ev.NotRunKind.CANNOT_LOAD, failure="no polars")
    for number in range(7):
        (job,) = submits(engine.handle(outcome(job.attempt, not_run=report, worker=f"w{number}"), 1.0))
        assert job.avoid == tuple(f"w{n}" for n in range(number + 1))
    out = engine.handle(outcome(job.attempt, not_run=report, worker="w7"), 1.0)
    assert [(one.task, one.failure) for one in out if isinstance(one, ev.FailTask)] == [
        (0, "no polars"),
        (1, "no polars"),
    ]


def test_that_nobody_can_load_a_function_is_known_once_each_worker_has_said_so_of_any_chunk() -> None:
    engine, (first, second, third, *_) = running(1, 1, 1, 1, fail_fast=True)
    engine.handle(ev.WorkersSeen(3), 0.0)
    report = not_run(ev.NotRunKind.CANNOT_LOAD, failure="no polars")
    (again,) = submits(engine.handle(outcome(first.attempt, not_run=report, worker="a"), 1.0))
    assert again.avoid == ("a",)
    (again,) = submits(engine.handle(outcome(second.attempt, not_run=report, worker="b"), 1.0))
    assert again.avoid == ("a", "b")
    (again,) = submits(engine.handle(outcome(again.attempt, not_run=report, worker="b"), 1.0))
    assert again.avoid == ("a", "b")
    out = engine.handle(outcome(third.attempt, not_run=report, worker="c"), 1.0)
    assert [(one.task, one.failure) for one in out if isinstance(one, ev.FailTask)] == [(2, "no polars")]
    assert engine.ended


@pytest.mark.parametrize("failures", [(), failed(0)])
def test_where_one_worker_could_what_others_said_of_other_chunks_does_not_count(
    failures: tuple[ev.TaskFailed, ...],
) -> None:
    engine, (first, second, third, fourth) = running(1, 1, 1, 1)
    engine.handle(ev.WorkersSeen(3), 0.0)
    report = not_run(ev.NotRunKind.CANNOT_LOAD, failure="no polars")
    engine.handle(outcome(first.attempt, not_run=report, worker="a"), 1.0)
    engine.handle(outcome(second.attempt, not_run=report, worker="b"), 1.0)
    done = () if failures else ((0, 1),)
    engine.handle(outcome(third.attempt, *done, worker="c", count=len(done), elapsed=0.1, failed=failures), 1.0)
    (again,) = submits(engine.handle(outcome(fourth.attempt, not_run=report, worker="d"), 1.0))
    assert again.avoid == ("d",)


def test_each_function_is_lacked_by_itself() -> None:
    engine = RunEngine(fail_fast=False, chunksize=1)
    blocks = [ev.AddBlock(ev.Block(number, number, 1, b"fg"[number : number + 1], 1)) for number in range(2)]
    f, g = submits(engine.handle_all([ev.ServerUp(0), ev.WorkersSeen(2), *blocks, ev.InputEnded()], 0.0))
    report = not_run(ev.NotRunKind.CANNOT_LOAD, failure="no polars")
    engine.handle(outcome(f.attempt, not_run=report, worker="a"), 1.0)
    (again,) = submits(engine.handle(outcome(g.attempt, not_run=report, worker="b"), 1.0))
    assert again.avoid == ("b",)


def test_what_could_not_be_fetched_is_tried_again_later_and_then_its_tasks_fail() -> None:
    engine, (job,) = running(2, chunksize=2)
    report = not_run(ev.NotRunKind.NO_BLOB, failure="nothing came")
    now = 1.0
    for delay in (1.0, 2.0, 4.0, 8.0):
        assert submits(engine.handle(outcome(job.attempt, not_run=report), now)) == []
        assert engine.deadline is not None
        assert engine.deadline <= now + delay
        assert submits(engine.handle(ev.Tick(), now + 0.9 * delay)) == []
        (job,) = submits(engine.handle(ev.Tick(), now + delay))
        assert (tasks(job), job.avoid) == ([0, 1], ())
        now += delay
    out = engine.handle(outcome(job.attempt, not_run=report), now)
    assert [(one.task, one.failure) for one in out if isinstance(one, ev.FailTask)] == [
        (0, "nothing came"),
        (1, "nothing came"),
    ]


def test_an_initializer_that_raises_breaks_the_run_at_once_and_says_what_it_raised() -> None:
    engine, (job, *_) = running(1, 1)
    report = not_run(ev.NotRunKind.INITIALIZER_FAILED, detail="ValueError: no", failure="the error")
    out = engine.handle(outcome(job.attempt, not_run=report), 1.0)
    assert ev.BreakRun(ev.NotRunKind.INITIALIZER_FAILED, "ValueError: no", "the error", "w") in out
    assert engine.ended


def test_a_process_that_ends_in_the_initializer_is_forgiven_until_it_is_too_often() -> None:
    engine, (job,) = running(2, policy=RetryPolicy(max_worker_losses=2))
    report = not_run(ev.NotRunKind.INITIALIZER_FAILED, detail="its process ended: SIGKILL")
    (again,) = submits(engine.handle(outcome(job.attempt, not_run=report), 1.0))
    assert tasks(again) == [0, 1]
    out = engine.handle(outcome(again.attempt, not_run=report), 2.0)
    assert ev.BreakRun(ev.NotRunKind.INITIALIZER_FAILED, "its process ended: SIGKILL", None, "w") in out


def test_envelopes_that_expire_twice_break_the_run() -> None:
    engine, (job,) = running(1)
    report = not_run(ev.NotRunKind.EXPIRED, detail="12:00 there, 14:00 here")
    (again,) = submits(engine.handle(outcome(job.attempt, not_run=report), 1.0))
    out = engine.handle(outcome(again.attempt, not_run=report), 2.0)
    assert out == [ev.BreakRun(ev.NotRunKind.EXPIRED, report.detail), ev.DropBlock(0), ev.RunEnded()]


# ------------------------------------------------------------------------------------------------------ cancelling


def test_a_task_that_waits_is_cancelled_and_one_that_was_sent_goes_on() -> None:
    engine, jobs = running(*[1] * 6)
    assert engine.handle(ev.CancelTask(5), 0.0) == [ev.DropBlock(5)]
    assert engine.handle(ev.CancelTask(5), 0.0) == []
    assert engine.handle(ev.CancelTask(0), 0.0) == []
    (more,) = submits(engine.handle(outcome(jobs[0].attempt, (0, 1)), 1.0))
    assert tasks(more) == [4]


def test_a_hole_that_cancelling_made_is_kept_out_of_the_chunk() -> None:
    engine = RunEngine(chunksize=5)
    out = engine.handle_all([block(0, 5), ev.CancelTask(2), ev.ServerUp(0)], 0.0)
    (job,) = submits(out)
    assert tasks(job) == [0, 1, 3, 4]
    assert engine.handle(outcome(job.attempt, (1, 3)), 1.0)[:2] == [
        ev.Deliver(0, 0, 1, 1, job.attempt, "w"),
        ev.Deliver(0, 1, 3, 1, job.attempt, "w"),
    ]


def test_cancelling_a_run_drops_everything_and_says_so_once() -> None:
    engine, (job,) = running(3, end=False)
    assert engine.handle(ev.CancelRun(), 1.0) == [ev.CancelAttempt(job.attempt), ev.DropBlock(0), ev.RunEnded()]
    assert engine.handle_all([ev.CancelRun(), ev.Tick(), ev.ServerDown(0), outcome(job.attempt, (0, 3))], 2.0) == []


def test_a_job_that_has_delivered_everything_is_not_stopped_when_the_run_ends() -> None:
    engine, (job,) = running(2)
    out = engine.handle(outcome(job.attempt, (0, 2), final=False), 1.0)
    assert out == [ev.Deliver(0, 0, 0, 2, job.attempt, "w"), ev.DropBlock(0), ev.RunEnded()]


# ------------------------------------------------------------------------------------------------------------ cost


def steps(call: Callable[[], object]) -> int:
    """Return how many lines of the engine's code a call runs: a cost that no other program on the machine changes."""
    count = 0

    def tracer(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if "core" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def cost(count: int, batch: int = 100) -> float:
    """Return the engine's steps for each of `count` tasks that are submitted one by one."""
    blocks = [block(task) for task in range(count)]
    engine = RunEngine(fail_fast=False)
    jobs: list[ev.Submit] = []
    spent = 0

    def tell(events: list[ev.Input], now: float) -> None:
        nonlocal spent
        out: list[ev.Instruction] = []
        spent += steps(lambda: out.extend(engine.handle_all(events, now)))
        jobs.extend(submits(out))

    def answer(now: float) -> None:
        job = jobs.pop(0)
        size = sum(span.size for span in job.spans)
        tell([outcome(job.attempt, (0, size), elapsed=1e-6 * size, count=size)], now)

    tell([ev.ServerUp(0), ev.WorkersSeen(2)], 0.0)
    for at in range(0, count, batch):
        tell(list(blocks[at : at + batch]), float(at))
        answer(float(at))
    tell([ev.InputEnded()], 1e6)
    while jobs:
        answer(1e6)
    assert engine.ended
    return spent / count


@pytest.mark.slow
def test_a_submitted_task_costs_the_same_however_many_there_are() -> None:
    few, many = cost(500), cost(5_000)
    # a quadratic step would make it ten times as much
    assert many < 2 * few


@pytest.mark.slow
def test_cancelling_every_waiting_task_one_by_one_is_not_quadratic() -> None:
    def each(count: int) -> float:
        engine, _ = running(*[1] * count)
        events: list[ev.Input] = [ev.CancelTask(task) for task in reversed(range(count))]
        return steps(lambda: engine.handle_all(events, 1.0)) / count

    assert each(5_000) < 2 * each(500)


# ------------------------------------------------------------------------------------------------------------- counts


def test_what_happened_to_jobs_is_counted_for_a_report() -> None:
    engine, jobs = running(1, 1, 1, 1)
    engine.handle(outcome(jobs[0].attempt, failed=failed(0), final=True), 1.0)
    engine.handle(outcome(jobs[1].attempt, not_run=not_run(ev.NotRunKind.AGAIN, why="draining")), 1.0)
    engine.handle(ev.Beat(jobs[2].attempt, b"a", "w"), 1.0)
    engine.handle(ev.Beat(jobs[2].attempt, b"b", "w"), 1.0)
    engine.handle(ev.AttemptLost(jobs[3].attempt, ev.LossReason.SERVER), 1.0)
    tally = engine.tally
    assert (tally.jobs, tally.executions, tally.failures) == (6, 4, 1)
    assert tally.losses == {"the job server went away": 1}
    assert tally.not_run == {"draining": 1}
