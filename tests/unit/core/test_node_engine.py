"""The rules of a node: its children, its workers' jobs, its answers. One test for each rule; the last tries all.

The clock is an argument, so that an hour takes no time. Behaviour only: nothing here looks inside the engine.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from node_engine_support import ONE, THREE, TWO, of_kind, running, started, ticks, times_of

from gearmap.core.childstarts import MAX_FAILED_STARTS
from gearmap.core.node_engine import (
    ASK_INTERVAL,
    AVOID_DELAY,
    BEAT_INTERVAL,
    FIRST_BEAT,
    NodeEngine,
)
from gearmap.core.node_events import (
    AnswerNotRun,
    AskClients,
    ChildGone,
    ChildReady,
    ClientsCounted,
    CloseWorkers,
    Drain,
    Exit,
    Finish,
    Forward,
    Input,
    Instruction,
    JobGone,
    JobNeeds,
    JobTaken,
    KillChild,
    LookAtMemory,
    LookAtOutput,
    LookAtTask,
    MemorySeen,
    NodeReason,
    OpenWorkers,
    OutcomeCommitted,
    OutcomeFinal,
    Pause,
    RunJob,
    SendBeat,
    Start,
    StartChild,
    StopExecution,
    TaskSeen,
    Tick,
)

# ----------------------------------------------------------------------------------------------------------- children


@pytest.mark.parametrize(("workers", "spares", "children"), [(1, 1, 2), (4, 1, 5), (3, 0, 3), (2, 2, 4)])
def test_a_node_starts_a_child_for_each_worker_and_the_spares(workers: int, spares: int, children: int) -> None:
    engine = NodeEngine(workers=workers, spares=spares)
    assert engine.handle(Start(), 0.0) == [StartChild(number) for number in range(children)]


def test_a_job_that_comes_before_any_child_is_ready_runs_on_the_first_that_is() -> None:
    # given
    engine = NodeEngine(workers=2)
    engine.handle(Start(), 0.0)
    assert of_kind(RunJob, engine.handle(JobTaken(1, ONE), 0.0)) == []
    # then
    assert engine.handle(ChildReady(2), 0.1) == [RunJob(1, 2)]
    assert engine.handle(ChildReady(0), 0.1) == []


def test_a_worker_keeps_its_child_from_job_to_job() -> None:
    engine = started(workers=2)
    children = set()
    for execution in (ONE, TWO, THREE):
        (run,) = of_kind(RunJob, engine.handle(JobTaken(1, execution), 0.0))
        children.add(run.child)
        assert engine.handle(OutcomeFinal(run.child), 0.0) == [Finish(1)]
    assert len(children) == 1


def test_two_workers_never_share_a_child() -> None:
    engine = started(workers=2)
    runs = [*engine.handle(JobTaken(0, ONE), 0.0), *engine.handle(JobTaken(1, TWO), 0.0)]
    assert len({run.child for run in of_kind(RunJob, runs)}) == 2


def test_who_runs_what_is_told_by_worker_and_by_child() -> None:
    engine = running(workers=2)
    assert (engine.busy, engine.execution_of(0), engine.execution_of(1)) == (1, ONE, None)
    assert (engine.worker_of(0), engine.worker_of(1)) == (0, None)
    assert (engine.child_of(0), engine.child_of(1)) == (0, None)
    engine.handle(OutcomeFinal(0), 1.0)
    assert (engine.busy, engine.execution_of(0), engine.worker_of(0)) == (0, None, None)
    assert engine.child_of(0) is None


def test_the_spare_takes_the_place_of_a_dead_child_at_once_and_a_new_spare_is_started() -> None:
    # given
    engine = running()
    # when
    out = engine.handle(ChildGone(0, 5, "SIGSEGV"), 1.0)
    # then
    assert out == [AnswerNotRun(0, NodeReason.CHILD_DIED, 5, "SIGSEGV"), StartChild(2)]
    assert engine.handle(JobTaken(0, TWO), 1.0) == [RunJob(0, 1)]


def test_a_spare_that_dies_is_replaced() -> None:
    engine = started()
    assert engine.handle(ChildGone(1, None, "SIGKILL"), 1.0) == [StartChild(2)]
    engine.handle(ChildReady(2), 1.0)
    assert of_kind(RunJob, engine.handle(JobTaken(0, ONE), 1.0)) == [RunJob(0, 0)]


def test_an_idle_workers_child_that_dies_is_replaced_and_nothing_is_answered() -> None:
    engine = started()
    assert engine.handle(ChildGone(0, None, "SIGKILL"), 1.0) == [StartChild(2)]
    assert of_kind(RunJob, engine.handle(JobTaken(0, ONE), 1.0)) == [RunJob(0, 1)]


def test_when_both_children_are_lost_the_job_waits_for_the_new_one() -> None:
    engine = running()
    engine.handle(ChildGone(1, None, "SIGKILL"), 1.0)
    engine.handle(ChildGone(0, 0, "SIGKILL"), 1.0)
    assert of_kind(RunJob, engine.handle(JobTaken(0, TWO), 1.0)) == []
    assert of_kind(RunJob, engine.handle(ChildReady(2), 2.0)) == [RunJob(0, 2)]


def test_a_child_that_dies_while_it_starts_is_started_again_and_then_the_node_gives_up() -> None:
    # given
    engine = NodeEngine(workers=1, spares=0)
    engine.handle(Start(), 0.0)
    # when
    now, times = 0.0, []
    for number in range(MAX_FAILED_STARTS - 1):
        out = engine.handle(ChildGone(number, None, "exit code 1"), now)
        if not out:
            assert engine.deadline is not None
            now = engine.deadline
            out = engine.handle(Tick(), now)
        assert out == [StartChild(number + 1)]
        times.append(now)
    (end,) = engine.handle(ChildGone(MAX_FAILED_STARTS - 1, None, "exit code 1"), now)
    # then
    assert times == pytest.approx([0.0, 0.1, 0.3, 0.7])  # the first at once, and then it waits ever longer
    assert isinstance(end, Exit)
    assert "exit code 1" in end.problem
    assert engine.handle(JobTaken(0, ONE), 0.0) == []


def test_what_ends_all_children_that_start_is_one_failure_and_one_is_tried_before_the_others() -> None:
    # given
    engine = NodeEngine(workers=8, spares=1)
    starting = [one.child for one in of_kind(StartChild, engine.handle(Start(), 0.0))]
    assert len(starting) == 9 > MAX_FAILED_STARTS
    # when
    out = [one for child in starting for one in engine.handle(ChildGone(child, None, "SIGKILL"), 0.0)]
    # then
    assert out == [StartChild(9)]
    assert of_kind(StartChild, engine.handle(ChildReady(9), 0.0)) == [StartChild(child) for child in range(10, 18)]


def test_a_child_is_tried_again_though_the_last_job_ended_meanwhile() -> None:
    engine = NodeEngine(workers=1, spares=0)
    engine.handle(Start(), 0.0)
    engine.handle(ChildGone(0, None, "SIGKILL"), 0.0)
    engine.handle(ChildGone(1, None, "SIGKILL"), 0.0)  # now there is a wait
    engine.handle(JobTaken(0, ONE), 0.0)
    engine.handle(JobGone(0), 0.0)
    assert engine.deadline is not None
    assert engine.handle(Tick(), engine.deadline) == [StartChild(2)]


def test_a_child_that_never_gets_ready_does_not_keep_others_from_being_tried_after_a_failure() -> None:
    engine = NodeEngine(workers=2, spares=0)
    engine.handle(Start(), 0.0)
    assert engine.handle(ChildGone(1, None, "SIGKILL"), 0.0) == [StartChild(2)]


def test_a_node_of_many_workers_that_can_start_none_tries_only_a_few() -> None:
    # given
    engine = NodeEngine(workers=64, spares=1)
    starting = [one.child for one in of_kind(StartChild, engine.handle(Start(), 0.0))]
    tried, ended = len(starting), False
    # when
    while not ended:
        event = ChildGone(starting.pop(0), None, "exit code 1") if starting else Tick()
        out = engine.handle(event, 0.0 if starting else engine.deadline or 0.0)
        starting += [one.child for one in of_kind(StartChild, out)]
        tried += len(of_kind(StartChild, out))
        ended |= bool(of_kind(Exit, out))
    # then
    assert tried == 65 + MAX_FAILED_STARTS - 1


def test_failed_starts_count_only_in_a_row() -> None:
    engine = NodeEngine(workers=1, spares=0)
    child = 0
    engine.handle(Start(), 0.0)
    for _ in range(3 * MAX_FAILED_STARTS):
        for event in (ChildGone(child, None, "x"), ChildReady(child + 1), ChildGone(child + 1, None, "x")):
            assert of_kind(Exit, engine.handle(event, 0.0)) == []
        child += 2


def test_a_node_that_gives_up_first_gives_its_jobs_back() -> None:
    # given
    engine = NodeEngine(workers=2, spares=0)
    engine.handle(Start(), 0.0)
    engine.handle(ChildReady(0), 0.0)
    engine.handle(JobTaken(0, ONE), 0.0)  # runs
    engine.handle(JobTaken(1, TWO), 0.0)  # waits for child 1
    # when
    out: list[Instruction] = []
    for number in range(1, MAX_FAILED_STARTS + 1):
        engine.handle(Tick(), 10.0 * number)
        out = engine.handle(ChildGone(number, None, "exit code 1"), 10.0 * number)
    # then
    assert {one.worker for one in of_kind(AnswerNotRun, out)} == {0, 1}
    assert all(one.charged is None for one in of_kind(AnswerNotRun, out))
    assert isinstance(out[-1], Exit)
    assert len(of_kind(Exit, out)) == 1


def test_a_child_that_nobody_started_is_ignored_when_it_says_it_is_ready() -> None:
    engine = started()
    assert engine.handle(ChildReady(77), 0.0) == []
    engine.handle(JobTaken(0, ONE), 0.0)
    assert engine.handle(ChildGone(0, 0, "x"), 0.0)[0] == AnswerNotRun(0, NodeReason.CHILD_DIED, 0, "x")


# ------------------------------------------------------------------------------------------------- beats and outcomes


def test_an_execution_beats_first_after_a_quarter_second_and_then_every_five() -> None:
    engine = running(foreground=False)
    beats = times_of(SendBeat, ticks(engine, until=16.0))
    assert (FIRST_BEAT, BEAT_INTERVAL) == (0.25, 5.0)
    assert beats == [0.25, 5.25, 10.25, 15.25]


def test_a_job_that_is_shorter_than_the_first_beat_costs_none() -> None:
    engine = running()
    assert engine.handle(OutcomeFinal(0), 0.24) == [Finish(0)]
    assert engine.deadline is None


def test_each_worker_beats_for_itself() -> None:
    engine = running(workers=2, foreground=False)
    engine.handle(JobTaken(1, TWO, foreground=False), 0.1)
    beats = [(round(when, 3), one) for when, one in ticks(engine, 1.0) if isinstance(one, SendBeat)]
    assert beats == [(0.25, SendBeat(0)), (0.35, SendBeat(1))]


def test_a_committed_outcome_is_forwarded_once_within_a_quarter_second() -> None:
    # given
    engine = running(foreground=False)
    ticks(engine, 1.0)
    # when
    engine.handle(OutcomeCommitted(0), 1.0)
    engine.handle(OutcomeCommitted(0), 1.2)
    # then
    assert times_of(Forward, ticks(engine, 4.0)) == [1.25]


def test_outcomes_that_come_after_a_forward_are_forwarded_by_the_next() -> None:
    engine = running(foreground=False)
    engine.handle(OutcomeCommitted(0), 1.0)
    engine.handle(Tick(), 1.25)
    engine.handle(OutcomeCommitted(0), 1.3)
    assert times_of(Forward, ticks(engine, 4.0)) == [1.55]


def test_what_a_child_of_many_tasks_has_committed_is_looked_for_four_times_a_second() -> None:
    # given
    engine = running(foreground=False)
    engine.handle(OutcomeFinal(0), 0.0)
    # when
    engine.handle(JobTaken(0, TWO, foreground=False, n_tasks=2), 0.0)
    # then
    assert times_of(Forward, ticks(engine, 1.1)) == [0.25, 0.5, 0.75, 1.0]
    engine.handle(OutcomeFinal(0), 1.1)
    assert times_of(Forward, ticks(engine, 4.0)) == []


def test_what_is_left_to_forward_goes_with_the_completion() -> None:
    engine = running(foreground=False)
    engine.handle(OutcomeCommitted(0), 0.1)
    assert engine.handle(OutcomeFinal(0), 0.2) == [Finish(0)]
    assert ticks(engine, 10.0) == []


# --------------------------------------------------------------------------------------------------------- orphan guard


def counted(engine: NodeEngine, clients: int, now: float, execution: bytes = ONE) -> list[Instruction]:
    return engine.handle(ClientsCounted(0, execution, clients), now)


def test_the_job_server_is_asked_again_and_again_who_waits() -> None:
    asked = times_of(AskClients, ticks(running(), until=2.1))
    assert asked == [ASK_INTERVAL * number for number in (1, 2, 3, 4)]


def test_a_task_ends_less_than_two_seconds_after_its_client_went_whenever_that_was() -> None:
    for went in (0.0, 0.2, 0.49, 0.5, 0.51, 3.3):
        engine = running()
        killed = None
        while killed is None:
            assert engine.deadline is not None
            now = engine.deadline
            for instruction in engine.handle(Tick(), now):
                if isinstance(instruction, AskClients):
                    answer = ClientsCounted(0, ONE, 0 if now >= went else 1)
                    killed = now if of_kind(KillChild, engine.handle(answer, now)) else killed
        assert killed - went <= 1.5


def test_nobody_waits_twice_in_a_row_stops_the_execution() -> None:
    engine = running()
    assert of_kind(KillChild, counted(engine, 0, 0.5)) == []
    assert of_kind(KillChild, counted(engine, 0, 1.0)) == [KillChild(0)]
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 3, "SIGKILL"), 1.1)) == [
        AnswerNotRun(0, NodeReason.STOPPED)
    ]


def test_a_client_in_between_starts_the_count_anew() -> None:
    engine = running()
    for now, clients in enumerate([0, 1, 0, 2, 0]):
        assert of_kind(KillChild, counted(engine, clients, float(now))) == []
    assert of_kind(KillChild, counted(engine, 0, 6.0)) == [KillChild(0)]


def test_silence_of_the_job_server_is_not_news() -> None:
    engine = running()
    counted(engine, 0, 0.5)
    done = ticks(engine, until=3600.0)
    assert {type(one) for _, one in done} == {SendBeat, AskClients, LookAtMemory, LookAtOutput}


def test_an_answer_about_an_earlier_execution_does_not_count() -> None:
    engine = running()
    counted(engine, 0, 0.5)
    engine.handle(OutcomeFinal(0), 0.6)
    engine.handle(JobTaken(0, TWO), 0.6)
    for now in (0.7, 0.8, 0.9):
        assert of_kind(KillChild, counted(engine, 0, now)) == []
    assert counted(engine, 0, 1.0, execution=TWO) == []
    assert of_kind(KillChild, counted(engine, 0, 1.1, execution=TWO)) == [KillChild(0)]


def test_an_answer_for_a_worker_without_a_job_is_ignored() -> None:
    engine = started()
    assert [counted(engine, 0, now) for now in (0.5, 1.0, 1.5)] == [[], [], []]


def test_nobody_is_asked_about_a_background_job_and_no_answer_stops_it() -> None:
    engine = running(foreground=False)
    assert times_of(AskClients, ticks(engine, until=60.0)) == []
    for now in (61.0, 62.0, 63.0):
        assert of_kind(KillChild, counted(engine, 0, now)) == []


def test_a_job_that_still_waits_for_a_child_is_given_back_when_nobody_waits_for_it() -> None:
    engine = NodeEngine(workers=1)
    engine.handle(Start(), 0.0)
    engine.handle(JobTaken(0, ONE), 0.0)
    counted(engine, 0, 0.1)
    assert counted(engine, 0, 0.2) == [AnswerNotRun(0, NodeReason.STOPPED)]
    assert of_kind(RunJob, engine.handle(ChildReady(0), 0.3)) == []


# ------------------------------------------------------------------------------------------------- stopping and killing


def test_a_stopped_execution_kills_its_child_and_is_answered_when_that_is_gone() -> None:
    # given
    engine = running()
    # when
    out = engine.handle(StopExecution(ONE), 1.0)
    # then
    assert out == [KillChild(0), StartChild(2)]
    assert engine.busy == 1
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 4, "SIGKILL"), 1.1)) == [
        AnswerNotRun(0, NodeReason.STOPPED)
    ]
    assert engine.busy == 0


def test_stopping_twice_kills_once() -> None:
    engine = running()
    engine.handle(StopExecution(ONE), 1.0)
    assert engine.handle(StopExecution(ONE), 1.0) == []


def test_stopping_an_unknown_execution_does_nothing() -> None:
    assert running().handle(StopExecution(TWO), 0.1) == []


def test_a_stopped_execution_neither_beats_nor_asks_any_more() -> None:
    engine = running()
    engine.handle(StopExecution(ONE), 0.1)
    assert ticks(engine, 60.0) == []


def test_a_killed_child_gets_no_new_job() -> None:
    # given
    engine = running()
    engine.handle(JobGone(0), 1.0)
    # then
    assert engine.handle(JobTaken(0, TWO), 1.0) == [RunJob(0, 1)]
    assert of_kind(RunJob, engine.handle(ChildGone(0, 0, "SIGKILL"), 1.1)) == []
    assert engine.handle(OutcomeFinal(1), 1.2) == [Finish(0)]


def test_a_final_outcome_that_overtakes_the_kill_finishes_the_job_and_the_child_still_gets_no_other() -> None:
    # given
    engine = running()
    engine.handle(StopExecution(ONE), 1.0)
    # when
    assert engine.handle(OutcomeFinal(0), 1.0) == [Finish(0)]
    # then
    assert engine.handle(JobTaken(0, TWO), 1.0) == [RunJob(0, 1)]
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 1.1)) == []
    assert engine.execution_of(0) == TWO


def test_a_job_whose_connection_is_lost_is_killed_and_not_answered() -> None:
    engine = running()
    assert engine.handle(JobGone(0), 1.0) == [KillChild(0), StartChild(2)]
    assert engine.busy == 0
    assert of_kind(AnswerNotRun, engine.handle(ChildGone(0, 0, "SIGKILL"), 1.1)) == []
    assert ticks(engine, 60.0) == []


def test_a_lost_job_that_no_child_had_kills_nothing() -> None:
    engine = started()
    engine.handle(JobTaken(0, ONE, avoided=True), 0.0)
    assert engine.handle(JobGone(0), 0.1) == []
    assert ticks(engine, 60.0) == []


def test_an_outcome_of_a_lost_job_is_dropped() -> None:
    engine = running()
    engine.handle(JobGone(0), 1.0)
    assert engine.handle(OutcomeFinal(0), 1.0) == []
    assert engine.handle(OutcomeCommitted(0), 1.0) == []


# -------------------------------------------------------------------------------------------------- avoided and expired


def test_an_avoided_job_is_given_back_after_a_moment_and_never_run() -> None:
    engine = started()
    assert engine.handle(JobTaken(0, ONE, avoided=True), 1.0) == []
    assert ticks(engine, 60.0) == [(1.0 + AVOID_DELAY, AnswerNotRun(0, NodeReason.AVOIDED))]
    assert AVOID_DELAY == 0.2


def test_an_avoided_job_that_is_stopped_is_given_back_at_once() -> None:
    engine = started()
    engine.handle(JobTaken(0, ONE, avoided=True), 1.0)
    assert engine.handle(StopExecution(ONE), 1.1) == [AnswerNotRun(0, NodeReason.STOPPED)]


def test_an_expired_job_is_answered_at_once() -> None:
    engine = started()
    out = engine.handle(JobTaken(0, ONE, expired=True), 1.0)
    assert out == [AnswerNotRun(0, NodeReason.EXPIRED)]
    assert engine.busy == 0


def test_a_worker_with_a_wrong_clock_holds_what_avoids_it_so_that_others_get_it() -> None:
    engine = started()
    assert engine.handle(JobTaken(0, ONE, expired=True, avoided=True), 1.0) == []
    assert ticks(engine, 60.0) == [(1.0 + AVOID_DELAY, AnswerNotRun(0, NodeReason.AVOIDED))]


# -------------------------------------------------------------------------------------------------------------- drain


def test_an_idle_node_that_is_drained_leaves_at_once() -> None:
    engine = started()
    assert engine.handle(Drain(10.0), 0.0) == [Pause(), Exit()]


def test_a_drained_node_lets_its_jobs_finish_and_leaves_then() -> None:
    engine = running(workers=2)
    assert engine.handle(Drain(10.0), 0.1) == [Pause()]
    assert of_kind(Exit, [one for _, one in ticks(engine, 9.0)]) == []
    assert engine.handle(OutcomeFinal(0), 9.0) == [Finish(0), Exit()]


def test_what_runs_longer_than_the_grace_is_given_back() -> None:
    # given
    engine = running()
    engine.handle(Drain(10.0), 1.0)
    # when
    done = ticks(engine, 60.0)
    # then
    assert times_of(KillChild, done) == [11.0]
    assert engine.handle(ChildGone(0, 7, "SIGKILL"), 11.1) == [AnswerNotRun(0, NodeReason.DRAINING), Exit()]


def test_a_shorter_grace_wins_and_a_longer_one_does_not() -> None:
    engine = running()
    engine.handle(Drain(10.0), 0.0)
    engine.handle(Drain(2.0), 1.0)
    engine.handle(Drain(60.0), 1.0)
    assert times_of(KillChild, ticks(engine, 60.0)) == [3.0]


def test_a_drained_node_starts_no_child() -> None:
    engine = running(workers=2)
    engine.handle(Drain(10.0), 1.0)
    assert of_kind(StartChild, engine.handle(ChildGone(1, None, "SIGKILL"), 1.0)) == []


@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_a_job_that_was_on_its_way_when_the_drain_began_is_given_back(grace: float) -> None:
    # given
    engine = running(workers=2)
    engine.handle(Drain(grace), 1.0)
    # when
    out = engine.handle(JobTaken(1, TWO), 1.0)
    # then
    assert of_kind(AnswerNotRun, out) == [AnswerNotRun(1, NodeReason.DRAINING)]
    assert of_kind(RunJob, out) == []


def test_a_job_without_a_child_is_given_back_when_the_grace_is_over() -> None:
    engine = NodeEngine(workers=1)
    engine.handle(Start(), 0.0)
    engine.handle(JobTaken(0, ONE), 0.0)
    engine.handle(Drain(1.0), 0.0)
    done = ticks(engine, 60.0)
    assert done[-2:] == [(1.0, AnswerNotRun(0, NodeReason.DRAINING)), (1.0, Exit())]


def test_an_exit_is_said_once_and_nothing_after_it() -> None:
    engine = started()
    engine.handle(Drain(0.0), 0.0)
    events: list[Input] = [Drain(0.0), Tick(), JobTaken(0, ONE), ChildGone(0, 0, "x"), ChildReady(1), Start()]
    assert [engine.handle(event, 1.0) for event in events] == [[]] * len(events)


def test_an_idle_node_wants_no_tick() -> None:
    assert started().deadline is None


# ------------------------------------------------------------------------------------------------------ nested levels


def with_level(workers: int = 1) -> NodeEngine:
    """A node whose nested level is served as well, by as many workers; their children come after the spare."""
    engine = started(workers)
    for start in of_kind(StartChild, engine.handle(OpenWorkers(workers, workers), 0.0)):
        engine.handle(ChildReady(start.child), 0.0)
    return engine


def test_each_worker_of_a_nested_level_gets_a_child_and_the_spare_is_made_good() -> None:
    engine = started(workers=2)
    out = engine.handle(OpenWorkers(2, 2), 0.0)
    assert out == [StartChild(3), StartChild(4)]
    assert engine.handle(JobTaken(2, ONE), 0.0) == [RunJob(2, 2)]  # on what was the spare


def test_the_children_of_a_level_that_is_closed_end_and_nobody_takes_their_place() -> None:
    engine = with_level()
    assert engine.handle(CloseWorkers(1, 1), 1.0) == [KillChild(1)]
    assert engine.handle(ChildGone(1, None, "SIGKILL"), 1.1) == []


def test_a_child_that_is_ready_when_its_level_is_closed_already_ends() -> None:
    engine = started()
    engine.handle(OpenWorkers(1, 1), 0.0)
    assert engine.handle(CloseWorkers(1, 1), 0.1) == [KillChild(1)]
    assert engine.handle(ChildReady(2), 0.2) == []  # the spare now


def test_a_level_that_is_opened_again_has_children_again() -> None:
    engine = with_level()
    engine.handle(CloseWorkers(1, 1), 1.0)
    assert engine.handle(OpenWorkers(1, 1), 2.0) == [StartChild(3)]
    assert engine.handle(JobTaken(1, ONE), 2.0) == [RunJob(1, 2)]


def test_a_draining_node_runs_the_nested_jobs_that_its_tasks_wait_for() -> None:
    engine = with_level()
    engine.handle(JobTaken(0, ONE), 0.0)
    assert engine.handle(Drain(10.0), 0.1) == [Pause()]
    assert engine.handle(JobTaken(1, TWO), 0.1) == [RunJob(1, 1)]
    assert engine.handle(OutcomeFinal(1), 0.2) == [Finish(1)]
    assert engine.handle(OutcomeFinal(0), 0.2) == [Finish(0), Exit()]


def test_a_draining_node_starts_children_for_nested_jobs_only() -> None:
    engine = running(workers=2)
    engine.handle(Drain(10.0), 1.0)
    for child in (1, 2):  # worker 1 has none any more
        engine.handle(ChildGone(child, None, "SIGKILL"), 1.0)
    assert engine.handle(OpenWorkers(2, 2), 1.0) == [StartChild(3), StartChild(4)]


# ------------------------------------------------------------------------------------------------ events in any order


NEEDS = st.none() | st.builds(
    JobNeeds,
    task_timeout=st.none() | st.sampled_from([0.1, 1.0]),
    tenant=st.sampled_from(["a", "b"]),
    initializer=st.booleans(),
    max_tasks=st.none() | st.integers(3, 5),
)


class NodeMachine(RuleBasedStateMachine):
    """Events in any order that a node can meet, against a plain model of what is owed to whom."""

    @initialize(
        workers=st.integers(1, 3),
        spares=st.integers(0, 2),
        memory_limit=st.none() | st.just(1000),
        max_tasks_per_child=st.none() | st.integers(1, 4),
    )
    def start(self, workers: int, spares: int, memory_limit: int | None, max_tasks_per_child: int | None) -> None:
        self.engine = NodeEngine(
            workers=workers, spares=spares, memory_limit=memory_limit, max_tasks_per_child=max_tasks_per_child
        )
        self.max_tasks_per_child = max_tasks_per_child
        self.jobs: dict[bytes, JobTaken] = {}
        self.tasks_of: Counter[int] = Counter()  # what each child ran, and for whom
        self.tenant_of: dict[int, str] = {}
        self.workers, self.spares = workers, spares
        self.nested = 0  # workers of a nested level that is open
        self.now = 0.0
        self.starting: set[int] = set()
        self.start_failed = False  # since a child became ready
        self.ready: set[int] = set()
        self.dying: set[int] = set()
        self.held: dict[int, bytes] = {}  # worker -> execution that it owes an answer for
        self.runs: dict[int, int] = {}  # worker -> child
        self.background: set[bytes] = set()
        self.answers: Counter[bytes] = Counter()
        self.executions = 0
        self.draining = False
        self.exits = 0
        self.send(Start())

    def send(self, event: Input) -> None:
        out = self.engine.handle(event, self.now)
        assert not out or not self.exits, "an instruction after the exit"
        for one in out:
            assert not self.exits, "an instruction after the exit"
            self.obey(one)

    def obey(self, one: Instruction) -> None:
        match one:
            case StartChild(child):
                assert not self.draining or self.nested
                assert child not in self.starting | self.ready | self.dying
                self.starting.add(child)
            case KillChild(child):
                assert child in self.ready, "killed twice, or never there"
                self.ready.discard(child)
                self.dying.add(child)
            case RunJob(worker, child):
                assert child in self.ready, "a job for a child that is not alive"
                assert child not in self.runs.values(), "two workers share a child"
                assert worker in self.held
                assert worker not in self.runs, "a job that is run twice"
                self.runs[worker] = child
                self.check_child(child, self.jobs[self.held[worker]])
            case Finish(worker):
                assert worker in self.runs, "a completion of a job that did not run"
                self.settle(worker)
            case AnswerNotRun(worker, reason, charged):
                assert charged is None or reason in (NodeReason.CHILD_DIED, NodeReason.TIMED_OUT)
                self.settle(worker)
            case Forward(worker) | SendBeat(worker):
                assert worker in self.held
            case AskClients(worker):
                assert self.held[worker] not in self.background
            case LookAtTask(child):
                (worker,) = (worker for worker, busy in self.runs.items() if busy == child)
                needs = self.jobs[self.held[worker]].needs
                assert needs is not None
                assert needs.task_timeout is not None
            case LookAtMemory(children):
                assert self.ready.issuperset(children)
            case Pause():
                assert self.draining
            case Exit(problem):
                assert problem or self.draining
                assert not self.held, "a job that is never answered"
                self.exits += 1

    def check_child(self, child: int, job: JobTaken) -> None:
        needs = job.needs or JobNeeds()
        assert self.tenant_of.get(child, needs.tenant) == needs.tenant, "a child of another tenant"
        before = self.tasks_of[child]
        for most in (needs.max_tasks, self.max_tasks_per_child):
            assert most is None or before < most or not before, "a child that has run enough"
        assert needs.max_tasks is None or not before or before + job.n_tasks <= needs.max_tasks
        self.tasks_of[child] += job.n_tasks
        if needs.initializer:
            self.tenant_of[child] = needs.tenant

    def settle(self, worker: int) -> None:
        self.answers[self.held.pop(worker)] += 1
        self.runs.pop(worker, None)

    @precondition(lambda self: not self.exits)
    @rule(
        worker=st.integers(0, 4),
        foreground=st.booleans(),
        fate=st.sampled_from(["run", "run", "run", "avoided", "expired"]),
        n_tasks=st.integers(1, 3),
        needs=NEEDS,
    )
    def take_a_job(self, worker: int, foreground: bool, fate: str, n_tasks: int, needs: JobNeeds | None) -> None:
        if worker >= self.workers + self.nested or worker in self.held:
            return
        execution = self.executions.to_bytes(16, "big")
        self.executions += 1
        self.held[worker] = execution
        if not foreground:
            self.background.add(execution)
        avoided, expired = fate == "avoided", fate == "expired"
        job = self.jobs[execution] = JobTaken(worker, execution, foreground, avoided, expired, n_tasks, needs)
        self.send(job)

    @precondition(lambda self: not self.exits and not self.draining)
    @rule(jobs=st.lists(st.tuples(st.integers(1, 3), NEEDS, st.booleans()), min_size=1, max_size=5))
    def do_whole_jobs(self, jobs: list[tuple[int, JobNeeds | None, bool]]) -> None:
        """What a worker does all day; by the other rules alone it would hardly ever come to that."""
        for n_tasks, needs, last in jobs:
            self.make_all_ready()
            if 0 not in self.held:
                self.take_a_job(0, True, "run", n_tasks, needs)
                self.make_all_ready()
                assert 0 in self.runs, "a job that waits although every child is ready"
            if 0 in self.runs:
                child = self.runs[0]
                self.send(OutcomeFinal(child, last))
                assert not (last and child in self.ready), "a child that must not be used again"

    def make_all_ready(self) -> None:
        if not self.starting:
            self.now += 0.5  # longer than any wait between two tries to start one
            self.send(Tick())
        while self.starting:
            child = self.starting.pop()
            self.start_failed = False
            self.ready.add(child)
            self.send(ChildReady(child))

    @rule()
    def open_a_level(self) -> None:
        if not self.exits and not self.nested:
            self.nested = 2
            self.send(OpenWorkers(self.workers, 2))

    @rule()
    def close_the_level(self) -> None:
        if not self.exits and self.nested and not any(worker >= self.workers for worker in self.held):
            self.nested = 0
            self.send(CloseWorkers(self.workers, 2))

    @rule(worker=st.integers(0, 4))
    def lose_the_connection(self, worker: int) -> None:
        if worker in self.held and not self.exits:
            self.answers[self.held.pop(worker)] += 1
            self.runs.pop(worker, None)
            self.send(JobGone(worker))

    @rule(data=st.data())
    def become_ready(self, data: st.DataObject) -> None:
        if self.starting:
            child = data.draw(st.sampled_from(sorted(self.starting)))
            self.starting.discard(child)
            self.start_failed = False
            self.ready.add(child)
            self.send(ChildReady(child))

    @rule(data=st.data(), position=st.none() | st.integers(0, 2))
    def see_a_task(self, data: st.DataObject, position: int | None) -> None:
        if self.runs:
            self.send(TaskSeen(data.draw(st.sampled_from(sorted(self.runs.values()))), position))

    @rule(data=st.data(), used_bytes=st.sampled_from([10, 1000, 1001]))
    def see_memory(self, data: st.DataObject, used_bytes: int) -> None:
        alive = sorted(self.starting | self.ready | self.dying)
        if alive:
            self.send(MemorySeen(data.draw(st.sampled_from(alive)), used_bytes))

    @rule(data=st.data(), position=st.none() | st.integers(0, 9), initializing=st.booleans())
    def die(self, data: st.DataObject, position: int | None, initializing: bool) -> None:
        alive = sorted(self.starting | self.ready | self.dying)
        if alive:
            child = data.draw(st.sampled_from(alive))
            self.start_failed |= child in self.starting
            for group in (self.starting, self.ready, self.dying):
                group.discard(child)
            self.send(ChildGone(child, position, "SIGKILL", initializing))

    @rule(data=st.data(), final=st.booleans(), last=st.booleans())
    def commit(self, data: st.DataObject, final: bool, last: bool) -> None:
        if self.runs:
            child = self.runs[data.draw(st.sampled_from(sorted(self.runs)))]
            self.send(OutcomeFinal(child, last) if final else OutcomeCommitted(child))
            assert not (final and last and child in self.ready), "a child that must not be used again"

    @rule(data=st.data(), clients=st.sampled_from([0, 0, 1]))
    def count_clients(self, data: st.DataObject, clients: int) -> None:
        if self.held:
            worker = data.draw(st.sampled_from(sorted(self.held)))
            self.send(ClientsCounted(worker, self.held[worker], clients))

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        if self.held:
            self.send(StopExecution(data.draw(st.sampled_from(sorted(self.held.values())))))

    @precondition(lambda self: self.executions > 3)
    @rule(grace=st.sampled_from([0.0, 1.0, 30.0]))
    def drain(self, grace: float) -> None:
        self.draining = True
        self.send(Drain(grace))

    @rule(step=st.sampled_from([0.0, 0.1, 0.25, 0.5, 5.0]))
    def let_time_pass(self, step: float) -> None:
        self.now += step
        self.send(Tick())

    @invariant()
    def children_are_as_many_as_needed_and_no_more(self) -> None:
        if not self.exits and not self.draining:
            needed = self.workers + self.nested + self.spares
            # After a failure one child is tried before the others.
            are_held_back = self.start_failed and (self.starting or self.engine.deadline is not None)
            assert len(self.starting | self.ready) >= needed or are_held_back
            # One that is started for a level that was closed since ends as soon as it can be told to.
            assert len(self.starting | self.ready) <= needed or self.starting

    @invariant()
    def a_ready_child_is_not_kept_from_a_job_that_waits(self) -> None:
        if not self.exits and len(self.ready) >= self.workers + self.nested:
            assert all(worker in self.runs or self.engine.deadline is not None for worker in self.held)

    @invariant()
    def the_engine_knows_what_it_owes(self) -> None:
        if not self.exits:
            assert self.engine.busy == len(self.held)
            assert {w: self.engine.execution_of(w) for w in self.held} == self.held
            assert self.engine.deadline is None or self.engine.deadline > self.now

    def teardown(self) -> None:
        """Whatever went before: drain the node, let its children die, and every job is answered once."""
        self.draining = True
        self.send(Drain(0.0))
        self.now += 60.0
        self.send(Tick())
        for child in sorted(self.dying):
            self.send(ChildGone(child, None, "SIGKILL"))
        assert not self.held
        assert self.exits == 1
        assert all(self.answers[number.to_bytes(16, "big")] == 1 for number in range(self.executions))


TestAnyOrderOfEvents = NodeMachine.TestCase
TestAnyOrderOfEvents.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
