"""Which session a run gets, and what is done about its jobs when it leaves one that others go on using.

Law of the file: pure. A job server's answer about a job is old when it arrives: each step is safe if the job has moved
on meanwhile, and is decided again with the next answer.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["GRACE_SECONDS", "MAX_SESSIONS", "LeavingStep", "next_step", "shares_session"]

# Sessions of their own that the runs of one client have; the others share one. Raised: more runs end by closing
# sockets, which is simple and drops everything at once; lowered: fewer connections, here and at the job servers.
MAX_SESSIONS = 32

# How long a job that runs may go on after its run has left. Raised: fewer children are killed whose job was about to
# end by itself; lowered: workers are free sooner.
GRACE_SECONDS = 0.2


class LeavingStep(Enum):
    """What is done about a job that nobody wants any more."""

    FORGET = "it is gone, or will not be run"
    CANCEL = "drop it from the job server's queue"
    STOP = "have its node stop it"
    WAIT = "ask again: it has just begun, or its node is not known yet"


def shares_session(own_sessions: int) -> bool:
    """Whether a new run shares a session, while so many runs of its client have one of their own.

    >>> shares_session(31), shares_session(32)
    (False, True)
    """
    return own_sessions >= MAX_SESSIONS


def next_step(*, known: bool, running: bool, is_cancelled: bool, is_heard: bool, elapsed: float) -> LeavingStep:
    """Return what to do about a job, after its job server was asked about it.

    Parameters
    ----------
    known, running
        What the job server says.
    is_cancelled
        Whether it was told to drop the job. One that a worker had taken by then runs all the same.
    is_heard
        Whether a node has told that it runs the job.
    elapsed
        Seconds since the run has left.
    """
    if not known:
        return LeavingStep.FORGET
    if not running:
        return LeavingStep.FORGET if is_cancelled else LeavingStep.CANCEL
    return LeavingStep.STOP if is_heard and elapsed >= GRACE_SECONDS else LeavingStep.WAIT
