"""What a node says of tasks that it did not run, or that took their process with them.

What must not live here: when a node refuses (`core.node_engine`), and sending it (`node`).
"""

from __future__ import annotations

import time

from gearmap.core import node_events as ne
from gearmap.errors import SerializationError
from gearmap.runtime.wording import clock_time
from gearmap.runtime.work import Work
from gearmap.wire.outcome import NotRun, NotRunReason, Outcome, Printed, TaskFailure, describe_exception

__all__ = ["refusal"]

_REASONS = {
    ne.NodeReason.AVOIDED: NotRunReason.AVOIDED,
    ne.NodeReason.EXPIRED: NotRunReason.EXPIRED,
    ne.NodeReason.DRAINING: NotRunReason.DRAINING,
    ne.NodeReason.STOPPED: NotRunReason.STOPPED,
    ne.NodeReason.CHILD_DIED: NotRunReason.CHILD_DIED,
    ne.NodeReason.DIED_LOADING: NotRunReason.DIED_LOADING,
    ne.NodeReason.TIMED_OUT: NotRunReason.TIMED_OUT,
    ne.NodeReason.INITIALIZER_FAILED: NotRunReason.INITIALIZER_FAILED,
    ne.NodeReason.BLOB_UNAVAILABLE: NotRunReason.BLOB_UNAVAILABLE,
}


def refusal(answer: ne.AnswerNotRun, work: Work, worker: str) -> Outcome:
    """Return the outcome that ends a job so, with what its tasks have printed."""
    reason = _REASONS[answer.reason]
    detail = answer.detail
    if reason is NotRunReason.EXPIRED:
        detail = f"it is {clock_time(time.time())} on {worker}"
    failures: tuple[TaskFailure, ...] = ()
    if reason is NotRunReason.BLOB_UNAVAILABLE:
        failures = (describe_exception(SerializationError(detail), 0),)
    charged = answer.charged
    printed = work.take_heard()
    if charged is not None:
        printed += tuple(Printed(charged, name, *kept) for name, kept in work.last_words)
    return Outcome(
        not_run=NotRun(reason=reason, detail=detail),
        failures=failures,
        final=True,
        worker=worker,
        beat=charged,
        printed=printed,
        elapsed=answer.seconds,
    )
