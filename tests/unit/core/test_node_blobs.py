"""A job that names blobs waits for them, and holds up nobody else."""

from __future__ import annotations

from node_engine_support import ONE, TWO, of_kind, started, ticks

from gearmap.core.node_engine import ASK_INTERVAL
from gearmap.core.node_events import (
    AnswerNotRun,
    AskClients,
    BlobsHere,
    BlobsMissing,
    ClientsCounted,
    JobGone,
    JobNeeds,
    JobTaken,
    NodeReason,
    RunJob,
    SendBeat,
    StopExecution,
)

BLOBS = JobNeeds(blobs=True)


def waiting(workers=1):
    """A node whose worker 0 has a job that waits for blobs since 0.0."""
    engine = started(workers)
    assert engine.handle(JobTaken(0, ONE, needs=BLOBS), 0.0) == []
    return engine


def test_a_child_gets_the_job_when_its_blobs_are_here():
    assert waiting().handle(BlobsHere(0, ONE), 0.1) == [RunJob(0, 0)]


def test_a_job_that_waits_holds_up_no_other_worker():
    assert waiting(2).handle(JobTaken(1, TWO), 0.1) == [RunJob(1, 1)]


def test_a_job_that_waits_gives_signs_of_life_and_asks_for_its_client():
    done = [each for _, each in ticks(waiting(), 1.0)]
    assert of_kind(SendBeat, done)
    assert of_kind(AskClients, done)


def test_a_job_whose_blobs_do_not_come_is_given_back_and_its_worker_is_free():
    engine = waiting()
    told = engine.handle(BlobsMissing(0, ONE, "the client is away"), 3.0)
    assert told == [AnswerNotRun(0, NodeReason.BLOB_UNAVAILABLE, detail="the client is away")]
    assert engine.handle(JobTaken(0, TWO), 3.1) == [RunJob(0, 0)]


def test_a_job_that_waits_is_stopped_like_any_other():
    engine = waiting()
    assert engine.handle(StopExecution(ONE), 1.0) == [AnswerNotRun(0, NodeReason.STOPPED)]
    engine = waiting()
    engine.handle(ClientsCounted(0, ONE, 0), ASK_INTERVAL)
    assert engine.handle(ClientsCounted(0, ONE, 0), 2 * ASK_INTERVAL) == [AnswerNotRun(0, NodeReason.STOPPED)]


def test_what_comes_too_late_is_no_news():
    engine = waiting()
    engine.handle(JobGone(0), 1.0)
    assert engine.handle(BlobsHere(0, ONE), 1.0) == []
    assert engine.handle(BlobsMissing(0, ONE, "late"), 1.0) == []
    engine.handle(JobTaken(0, TWO, needs=BLOBS), 1.0)
    assert engine.handle(BlobsHere(0, ONE), 1.0) == []
    assert engine.handle(BlobsHere(0, TWO), 1.0) == [RunJob(0, 0)]
    assert engine.handle(BlobsHere(0, TWO), 1.0) == []
