"""How many tasks a chunk takes, and what that makes of a run: a deterministic simulation of two workers."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

import pytest

from gearmap.core import events as ev
from gearmap.core.chunking import GROWTH, TARGET_BYTES, TARGET_SECONDS, TaskStatistics, budget, chunk_size
from gearmap.core.engine import RunEngine

OVERHEAD = 0.0005  # seconds that a job costs beyond its tasks


def measured(seconds: float, count: int) -> TaskStatistics:
    statistics = TaskStatistics()
    statistics.measured(count, seconds * count)
    return statistics


# --------------------------------------------------------------------------------------------------------- the rules


def test_nothing_is_believed_before_it_was_measured() -> None:
    assert chunk_size(TaskStatistics(), workers=8, remaining=10**6) == 1


def test_the_users_chunksize_wins_over_everything() -> None:
    assert chunk_size(measured(10.0, 1), workers=8, remaining=3, chunksize=50) == 50


def test_a_chunk_aims_at_the_target_duration() -> None:
    size = chunk_size(measured(0.001, 1000), workers=2, remaining=None)
    assert size == pytest.approx(TARGET_SECONDS / 0.001, abs=1)


def test_chunks_of_many_workers_are_longer_so_that_their_client_keeps_up() -> None:
    few, many, most = (chunk_size(measured(0.001, 10**6), workers=n, remaining=None) for n in (100, 1000, 5000))
    assert few == pytest.approx(TARGET_SECONDS / 0.001, abs=1)
    assert most == pytest.approx(5 * many, abs=5)
    jobs_a_second = 1000 / (many * 0.001)
    assert jobs_a_second < 1500


def test_a_budget_is_several_times_what_a_chunk_aims_at() -> None:
    for workers in (1, 100, 1000):
        aimed = chunk_size(measured(0.001, 10**6), workers=workers, remaining=None) * 0.001
        assert budget(workers) == pytest.approx(4 * aimed, rel=0.01)


def test_a_chunk_grows_by_a_bounded_factor() -> None:
    assert chunk_size(measured(1e-6, 1), workers=2, remaining=None) == GROWTH
    assert chunk_size(measured(1e-6, GROWTH), workers=2, remaining=None) == GROWTH**2


def test_a_task_longer_than_the_target_travels_alone() -> None:
    assert chunk_size(measured(3600.0, 1), workers=2, remaining=10**6) == 1


def test_chunks_shrink_at_the_tail_but_not_below_what_is_worth_a_job() -> None:
    sizes = [chunk_size(measured(0.001, 1000), workers=2, remaining=n) for n in (10_000, 300, 60, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 10


def test_large_arguments_make_small_chunks() -> None:
    statistics = measured(1e-6, 100_000)
    statistics.pickled(10, 10 * TARGET_BYTES // 4)
    assert chunk_size(statistics, workers=2, remaining=None) == 4


def test_an_argument_larger_than_a_job_still_makes_a_chunk() -> None:
    statistics = measured(1e-6, 100_000)
    statistics.pickled(1, 10 * TARGET_BYTES)
    assert chunk_size(statistics, workers=2, remaining=None) == 1


def test_a_much_larger_sample_replaces_the_first_task_which_paid_for_imports() -> None:
    statistics = measured(2.0, 1)
    statistics.measured(32, 0.032)
    assert statistics.seconds == pytest.approx(0.001)


@pytest.mark.parametrize(("count", "elapsed"), [(0, 1.0), (-1, 1.0), (1, -1.0), (1, math.nan), (1, math.inf)], ids=repr)
def test_a_measurement_that_cannot_be_true_is_left_out(count: int, elapsed: float) -> None:
    statistics = measured(0.5, 1)
    statistics.measured(count, elapsed)
    assert statistics == measured(0.5, 1)


# ---------------------------------------------------------------------------------------------------- the simulation


def simulate(durations: Sequence[float], *, workers: int = 2, submitted: bool = False) -> tuple[float, int]:
    """Run tasks of these durations; return (makespan, number of jobs). `submitted` ones come one by one, at once."""
    upto = [0.0, *accumulate(durations)]
    engine = RunEngine(total=None if submitted else len(durations))
    queue: deque[ev.Submit] = deque()
    running: list[tuple[float, int, float, int]] = []  # end, attempt, work, tasks
    now, jobs, known = 0.0, 0, 0

    def carry_out(instructions: list[ev.Instruction]) -> None:
        queue.extend(one for one in instructions if isinstance(one, ev.Submit))

    carry_out(engine.handle_all([ev.ServerUp(0), ev.WorkersSeen(workers)], now))
    if submitted:
        blocks = [ev.AddBlock(ev.Block(task, task, 1, "f")) for task in range(len(durations))]
        carry_out(engine.handle_all([*blocks, ev.InputEnded()], now))
        known = len(durations)
    while not engine.ended:
        while known < len(durations) and (size := min(engine.next_block_size("f"), len(durations) - known)):
            carry_out(engine.handle(ev.AddBlock(ev.Block(known, known, size, "f")), now))
            known += size
        if known == len(durations) and not submitted:
            submitted = True
            carry_out(engine.handle(ev.InputEnded(), now))
        while queue and len(running) < workers:
            job = queue.popleft()
            work = sum(upto[span.first + span.size] - upto[span.first] for span in job.spans)
            heapq.heappush(running, (now + OVERHEAD + work, job.attempt, work, sum(span.size for span in job.spans)))
            jobs += 1
        now, attempt, work, size = heapq.heappop(running)
        outcome = ev.OutcomeArrived(attempt, b"x", "w", ((0, size),), elapsed=work, count=size, final=True)
        carry_out(engine.handle(outcome, now))
    return now, jobs


def efficiency(durations: Sequence[float], *, workers: int = 2, submitted: bool = False) -> float:
    makespan, _ = simulate(durations, workers=workers, submitted=submitted)
    return max(sum(durations) / workers, max(durations)) / makespan


def lognormal(seed: int, count: int = 200) -> list[float]:
    """Durations with a median of 50 ms and a long tail."""
    draw = random.Random(seed)
    return [draw.lognormvariate(math.log(0.05), 1.0) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("submitted", [False, True], ids=["mapped", "submitted"])
def test_a_million_trivial_tasks_become_a_few_dozen_jobs(submitted: bool) -> None:
    count = 50_000 if submitted else 1_000_000
    makespan, jobs = simulate([1e-7] * count, submitted=submitted)
    assert jobs <= 40
    assert makespan <= count * 1e-7 / 2 + 0.010


@pytest.mark.parametrize("submitted", [False, True], ids=["mapped", "submitted"])
def test_tasks_of_five_milliseconds_keep_both_workers_busy(submitted: bool) -> None:
    assert efficiency([0.005] * 400, submitted=submitted) >= 0.97


@pytest.mark.parametrize("submitted", [False, True], ids=["mapped", "submitted"])
def test_uneven_tasks_end_close_together(submitted: bool) -> None:
    ratios = [1 / efficiency(lognormal(seed), submitted=submitted) for seed in range(5)]
    assert fmean(ratios) <= 1.05
    assert max(ratios) <= 1.15


def test_with_more_workers_chunking_is_as_good_as_one_task_at_a_time() -> None:
    # given a workload that no order of single tasks could run better than this
    durations = lognormal(1)
    greedy = [0.0] * 8
    for duration in durations:
        heapq.heapreplace(greedy, greedy[0] + OVERHEAD + duration)
    # when / then
    assert simulate(durations, workers=8)[0] <= 1.10 * max(greedy)


def test_a_slow_first_task_does_not_make_the_others_travel_alone() -> None:
    makespan, jobs = simulate([0.5, 0.5] + [0.001] * 1000)
    assert jobs < 60
    assert makespan < 1.1
