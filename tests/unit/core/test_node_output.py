"""How often a node takes what its tasks write to their descriptors."""

from __future__ import annotations

from node_engine_support import ONE, TWO, of_kind, running, ticks, times_of

from gearmap.core.node_engine import LOUD_BYTES, LOUD_INTERVAL, LOUD_SECONDS, OUTPUT_INTERVAL
from gearmap.core.node_events import JobTaken, LookAtOutput, OutcomeFinal, OutputSeen, StopExecution, Tick


def test_a_task_that_lasts_is_looked_at_four_times_a_second() -> None:
    assert times_of(LookAtOutput, ticks(running(), 1.1)) == [0.25, 0.5, 0.75, 1.0]


def test_one_that_writes_much_is_looked_at_often_until_it_has_been_quiet_for_a_while() -> None:
    engine = running()
    ticks(engine, 0.25)
    engine.handle(OutputSeen(0, LOUD_BYTES), 0.25)
    assert times_of(LookAtOutput, ticks(engine, 0.25 + LOUD_INTERVAL)) == [round(0.25 + LOUD_INTERVAL, 3)]
    quiet = 0.25 + LOUD_SECONDS
    engine.handle(OutputSeen(0, 0), quiet)
    assert times_of(LookAtOutput, ticks(engine, quiet + OUTPUT_INTERVAL)) == [round(quiet + OUTPUT_INTERVAL, 3)]


def test_the_next_job_of_a_child_that_wrote_much_is_looked_at_from_its_beginning() -> None:
    engine = running()
    engine.handle(OutputSeen(0, LOUD_BYTES), 0.1)
    engine.handle(OutcomeFinal(0), 0.2)
    assert of_kind(LookAtOutput, engine.handle(JobTaken(0, TWO), 0.3)) == [LookAtOutput(0, 0)]


def test_an_execution_that_is_being_stopped_is_looked_at_no_more() -> None:
    engine = running()
    engine.handle(StopExecution(ONE), 0.1)
    engine.handle(OutputSeen(0, LOUD_BYTES), 0.1)
    assert of_kind(LookAtOutput, engine.handle(Tick(), 1.0)) == []
