"""What a node enforces: time of tasks, memory and use of children, whose children they are. One test for each rule."""

from __future__ import annotations

import pytest
from node_engine_support import ONE, THREE, TWO, of_kind, running, started, ticks, times_of

from gearmap.core.limits import TASK_LOOK_INTERVAL, ChildUse, TaskClock
from gearmap.core.node_engine import LIMITED_MEMORY_INTERVAL, MEMORY_INTERVAL, NodeEngine
from gearmap.core.node_events import (
    AnswerNotRun,
    ChildGone,
    ChildReady,
    Drain,
    Exit,
    Finish,
    Instruction,
    JobGone,
    JobNeeds,
    JobTaken,
    KillChild,
    LookAtMemory,
    LookAtTask,
    MemorySeen,
    NodeReason,
    OutcomeFinal,
    RunJob,
    Start,
    StartChild,
    StopExecution,
    TaskSeen,
    Tick,
)

MB = 2**20


def positions(engine: NodeEngine, seen: list[tuple[float, int | None]]) -> list[tuple[float, Instruction]]:
    """Let child 0 be at positions from certain times on, and the node look when it likes; return what it did."""
    done: list[tuple[float, Instruction]] = []
    times = [when for when, _ in seen[1:]] + [seen[-1][0] + 60.0]
    for (_, position), until in zip(seen, times, strict=True):
        while engine.deadline is not None and engine.deadline < until:
            now = engine.deadline
            for one in engine.handle(Tick(), now):
                done.append((now, one))
                if one == LookAtTask(0):
                    done += [(now, each) for each in engine.handle(TaskSeen(0, position), now)]
    return done


# --------------------------------------------------------------------------------------------------- time of a task


def test_nobody_looks_at_tasks_without_a_time_limit() -> None:
    assert times_of(LookAtTask, ticks(running(), 10.0)) == []
    assert times_of(LookAtTask, ticks(running(needs=JobNeeds(tenant="t")), 10.0)) == []


@pytest.mark.parametrize("began", [0.0, 0.049, 0.051, 3.33])
@pytest.mark.parametrize("limit", [0.01, 0.1, 1.0, 30.0])
def test_a_task_is_stopped_within_a_fifth_of_a_second_after_its_time_and_never_before(
    limit: float, began: float
) -> None:
    engine = running(needs=JobNeeds(task_timeout=limit))
    (killed,) = times_of(KillChild, positions(engine, [(0.0, None), (began, 0)]))
    assert began + limit <= killed + 0.001
    assert killed <= began + limit + 0.1


def test_each_task_has_its_own_time() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0), n_tasks=4)
    done = positions(engine, [(0.0, 0), (0.9, 1), (1.8, 2), (2.7, 3)])
    (killed,) = times_of(KillChild, done)
    assert 3.7 <= killed < 3.9


def test_loading_does_not_count_also_between_tasks() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0), n_tasks=2)
    done = positions(engine, [(0.0, None), (5.0, 0), (5.9, None), (9.0, 0)])
    (killed,) = times_of(KillChild, done)
    assert killed >= 10.0


def test_the_task_that_ran_too_long_is_charged() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0), n_tasks=4)
    positions(engine, [(0.0, 2)])
    (answer,) = of_kind(AnswerNotRun, engine.handle(ChildGone(0, 2, "SIGKILL"), 1.2))
    assert (answer.reason, answer.charged) == (NodeReason.TIMED_OUT, 2)
    assert answer.detail == "stopped after 1.00 s"


@pytest.mark.parametrize("then", [3, None])
def test_nobody_is_charged_if_the_child_had_gone_on_before_it_was_dead(then: int | None) -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0), n_tasks=4)
    positions(engine, [(0.0, 2)])
    (answer,) = of_kind(AnswerNotRun, engine.handle(ChildGone(0, then, "SIGKILL"), 1.2))
    assert (answer.reason, answer.charged) == (NodeReason.TIMED_OUT, None)


def test_a_final_outcome_that_overtakes_the_kill_counts() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0))
    positions(engine, [(0.0, 0)])
    assert engine.handle(OutcomeFinal(0), 1.2) == [Finish(0)]
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 1.3)) == []


def test_a_task_that_is_being_stopped_is_not_looked_at_any_more() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0))
    engine.handle(StopExecution(ONE), 0.02)
    assert times_of(LookAtTask, ticks(engine, 60.0)) == []
    assert engine.handle(TaskSeen(0, 0), 50.0) == []
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 50.0)) == [
        AnswerNotRun(0, NodeReason.STOPPED)
    ]


def test_the_clock_of_one_job_is_not_that_of_the_next() -> None:
    engine = running(needs=JobNeeds(task_timeout=1.0))
    engine.handle(TaskSeen(0, 0), 0.1)
    engine.handle(OutcomeFinal(0), 1.0)
    engine.handle(JobTaken(0, TWO, needs=JobNeeds(task_timeout=1.0)), 1.05)
    assert engine.handle(TaskSeen(0, 0), 1.2) == []
    assert of_kind(KillChild, engine.handle(TaskSeen(0, 0), 2.3)) == [KillChild(0)]


def test_a_job_that_waits_for_its_child_has_no_time_to_lose() -> None:
    engine = NodeEngine(workers=1)
    engine.handle(Start(), 0.0)
    engine.handle(JobTaken(0, ONE, needs=JobNeeds(task_timeout=0.1)), 0.0)
    assert times_of(KillChild, ticks(engine, 60.0)) == []
    engine.handle(ChildReady(0), 60.0)
    engine.handle(TaskSeen(0, 0), 60.1)
    assert times_of(KillChild, positions(engine, [(60.1, 0)])) == [pytest.approx(60.2)]


def test_what_is_seen_of_a_child_without_a_job_is_ignored() -> None:
    engine = started()
    assert engine.handle(TaskSeen(0, 0), 1.0) == []
    assert engine.handle(TaskSeen(77, 0), 1.0) == []


def test_looks_at_tasks_come_often_enough_for_the_promise() -> None:
    assert TASK_LOOK_INTERVAL <= 0.1
    clock = TaskClock(limit=1.0)
    clock.look_soon(0.0)
    assert clock.next_look == TASK_LOOK_INTERVAL


# ------------------------------------------------------------------------------------------------------------ memory


def test_a_child_above_the_memory_limit_is_killed_and_its_task_charged_as_a_loss() -> None:
    engine = running(memory_limit=4096 * MB, n_tasks=9)
    assert of_kind(KillChild, engine.handle(MemorySeen(0, 4096 * MB), 1.0)) == []
    assert of_kind(KillChild, engine.handle(MemorySeen(0, 4403 * MB), 1.1)) == [KillChild(0)]
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 7, "SIGKILL"), 1.2)) == [
        AnswerNotRun(0, NodeReason.CHILD_DIED, 7, "memory limit of 4.0 GB (it used 4.3 GB)")
    ]


def test_an_idle_child_above_the_limit_is_replaced_and_nobody_charged() -> None:
    engine = running(memory_limit=MB)
    engine.handle(OutcomeFinal(0), 0.05)
    out = engine.handle(MemorySeen(0, 2 * MB), 0.1)
    assert out == [KillChild(0), StartChild(2)]
    assert of_kind(RunJob, engine.handle(JobTaken(0, TWO), 0.2)) == [RunJob(0, 1)]
    assert engine.handle(MemorySeen(0, 2 * MB), 0.3) == []
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 0.3)) == []


def test_without_a_limit_memory_is_only_looked_at_while_there_is_work() -> None:
    engine = running(foreground=False)
    assert times_of(LookAtMemory, ticks(engine, 1.1)) == [MEMORY_INTERVAL * n for n in (1, 2, 3, 4)]
    assert engine.handle(MemorySeen(0, 2**60), 1.1) == []
    engine.handle(OutcomeFinal(0), 1.1)
    assert engine.deadline is None


def test_many_short_jobs_are_looked_at_too_and_once_more_when_they_are_over() -> None:
    # given
    engine = started(workers=2, memory_limit=MB)
    looks: list[float] = []
    # when
    for number in range(20):
        now = number * 0.03
        looks += [now for _ in of_kind(LookAtMemory, engine.handle(JobTaken(0, ONE), now))]
        looks += [now for _ in of_kind(LookAtMemory, engine.handle(OutcomeFinal(0), now + 0.02))]
    # then
    assert len(looks) == 5
    assert LIMITED_MEMORY_INTERVAL == 0.1
    engine.handle(JobTaken(0, ONE), 0.6)
    engine.handle(OutcomeFinal(0), 0.61)
    assert [one for _, one in ticks(engine, 60.0)] == [LookAtMemory((0,))]
    assert engine.deadline is None


def test_a_job_that_ended_its_child_by_its_memory_is_stopped_for_one_reason_only() -> None:
    engine = running(memory_limit=MB, needs=JobNeeds(task_timeout=0.1))
    engine.handle(MemorySeen(0, 2 * MB), 0.05)
    for now in (5.0, 6.0):
        assert engine.handle(TaskSeen(0, 0), now) == []
        assert engine.handle(MemorySeen(0, 3 * MB), now) == []
    (answer,) = of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 6.1))
    assert (answer.reason, answer.detail) == (NodeReason.CHILD_DIED, "memory limit of 1 MB (it used 2 MB)")


# --------------------------------------------------------------------------------------------------------- recycling


def test_a_child_that_ran_as_many_tasks_as_the_node_lets_it_is_replaced_after_the_job() -> None:
    engine = running(max_tasks_per_child=5, n_tasks=3)
    assert engine.handle(OutcomeFinal(0), 0.1) == [Finish(0)]
    assert engine.handle(JobTaken(0, TWO, n_tasks=3), 0.1) == [RunJob(0, 0)]
    assert engine.handle(OutcomeFinal(0), 0.2) == [Finish(0), KillChild(0), StartChild(2)]
    assert engine.handle(JobTaken(0, THREE, n_tasks=100), 0.2) == [RunJob(0, 1)]


def test_a_recycled_childs_death_is_nobodys_loss() -> None:
    engine = running(max_tasks_per_child=1)
    engine.handle(OutcomeFinal(0), 0.1)
    engine.handle(JobTaken(0, TWO), 0.1)
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 1, "SIGKILL"), 0.2)) == []
    assert engine.execution_of(0) == TWO


def test_a_job_that_would_make_a_child_run_too_many_tasks_gets_another_child() -> None:
    # given
    engine = running(n_tasks=3)
    engine.handle(OutcomeFinal(0), 0.1)
    # when
    out = engine.handle(JobTaken(0, TWO, n_tasks=2, needs=JobNeeds(max_tasks=4)), 0.1)
    # then
    assert out == [KillChild(0), StartChild(2), RunJob(0, 1)]


def test_a_job_that_just_fits_keeps_its_child_which_is_replaced_then() -> None:
    engine = running(n_tasks=3)
    engine.handle(OutcomeFinal(0), 0.1)
    assert engine.handle(JobTaken(0, TWO, n_tasks=1, needs=JobNeeds(max_tasks=4)), 0.1) == [RunJob(0, 0)]
    assert engine.handle(OutcomeFinal(0), 0.2) == [Finish(0), KillChild(0), StartChild(2)]


def test_a_job_of_too_many_tasks_runs_on_a_fresh_child() -> None:
    engine = running(n_tasks=9, needs=JobNeeds(max_tasks=4))
    assert engine.handle(OutcomeFinal(0), 0.2) == [Finish(0), KillChild(0), StartChild(2)]


def test_a_job_waits_for_a_fresh_child_if_there_is_no_spare() -> None:
    engine = started(spares=0, max_tasks_per_child=1)
    engine.handle(JobTaken(0, ONE), 0.0)
    assert engine.handle(OutcomeFinal(0), 0.1) == [Finish(0), KillChild(0), StartChild(1)]
    assert engine.handle(JobTaken(0, TWO), 0.1) == []
    assert engine.handle(ChildReady(1), 0.2) == [RunJob(0, 1)]


# ----------------------------------------------------------------------------------------------------------- tenants


def tenant(name: str, *, initializer: bool = True) -> JobNeeds:
    return JobNeeds(tenant=name, initializer=initializer)


def test_a_child_with_an_initializer_serves_its_tenant_on() -> None:
    engine = running(needs=tenant("a"))
    engine.handle(OutcomeFinal(0), 0.1)
    assert engine.handle(JobTaken(0, TWO, needs=tenant("a")), 0.1) == [RunJob(0, 0)]


@pytest.mark.parametrize("needs", [None, JobNeeds(tenant="b"), tenant("b"), JobNeeds(task_timeout=1.0)])
def test_a_child_with_an_initializer_serves_nobody_else(needs: JobNeeds | None) -> None:
    engine = running(needs=tenant("a"))
    engine.handle(OutcomeFinal(0), 0.1)
    out = engine.handle(JobTaken(0, TWO, needs=needs), 0.1)
    assert out == [KillChild(0), StartChild(2), RunJob(0, 1)]


def test_a_child_without_an_initializer_serves_everybody() -> None:
    engine = running(needs=tenant("a", initializer=False))
    for needs in (None, tenant("b", initializer=False), tenant("c")):
        engine.handle(OutcomeFinal(0), 0.1)
        assert engine.handle(JobTaken(0, TWO, needs=needs), 0.1) == [RunJob(0, 0)]


def test_a_job_that_has_to_wait_for_another_child_gets_it_when_it_is_ready() -> None:
    engine = started(spares=0)
    engine.handle(JobTaken(0, ONE, needs=tenant("a")), 0.0)
    engine.handle(OutcomeFinal(0), 0.1)
    assert engine.handle(JobTaken(0, TWO, needs=tenant("b")), 0.1) == [KillChild(0), StartChild(1)]
    assert engine.handle(ChildGone(0, 0, "SIGKILL"), 0.15) == []
    assert engine.handle(ChildReady(1), 0.2) == [RunJob(0, 1)]


def test_a_child_whose_initializer_failed_is_replaced() -> None:
    engine = running(needs=tenant("a"))
    assert engine.handle(OutcomeFinal(0, last=True), 0.1) == [Finish(0), KillChild(0), StartChild(2)]
    assert engine.handle(JobTaken(0, TWO, needs=tenant("a")), 0.1) == [RunJob(0, 1)]


def test_a_child_that_died_in_its_initializer_charges_no_task() -> None:
    engine = running(needs=tenant("a"))
    out = engine.handle(ChildGone(0, None, "exit code 3", initializing=True), 0.1)
    assert out[0] == AnswerNotRun(0, NodeReason.INITIALIZER_FAILED, None, "its process ended: exit code 3")


def test_an_initializer_above_the_memory_limit_is_to_blame_itself() -> None:
    engine = running(needs=tenant("a"), memory_limit=MB)
    engine.handle(MemorySeen(0, 2 * MB), 0.1)
    (answer,) = of_kind(AnswerNotRun, engine.handle(ChildGone(0, None, "SIGKILL", initializing=True), 0.2))
    assert answer.reason is NodeReason.INITIALIZER_FAILED
    assert answer.detail == "its process ended: memory limit of 1 MB (it used 2 MB)"


def test_an_execution_that_was_stopped_in_its_initializer_is_stopped() -> None:
    engine = running(needs=tenant("a"))
    engine.handle(StopExecution(ONE), 0.1)
    out = engine.handle(ChildGone(0, None, "SIGKILL", initializing=True), 0.2)
    assert of_kind(AnswerNotRun, out) == [AnswerNotRun(0, NodeReason.STOPPED)]


# ------------------------------------------------------------------------------------------------------ and the rest


def test_a_job_that_is_gone_while_its_task_is_overdue_kills_once() -> None:
    engine = running(needs=JobNeeds(task_timeout=0.1))
    positions(engine, [(0.0, 0)])
    assert engine.handle(JobGone(0), 1.0) == []
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 1.1)) == []


def test_a_draining_node_enforces_its_limits_and_starts_nothing_for_them() -> None:
    # given
    engine = running(needs=JobNeeds(task_timeout=1.0), max_tasks_per_child=1)
    engine.handle(Drain(30.0), 0.0)
    # when
    done = positions(engine, [(0.0, 0)])
    # then
    assert of_kind(StartChild, [one for _, one in done]) == []
    assert engine.handle(ChildGone(0, 0, "SIGKILL"), 1.2) == [
        AnswerNotRun(0, NodeReason.TIMED_OUT, 0, "stopped after 1.00 s", 1.0),
        Exit(),
    ]


def test_a_fresh_child_may_run_any_job() -> None:
    assert ChildUse().suits(1000, JobNeeds(tenant="a", initializer=True, max_tasks=1))
