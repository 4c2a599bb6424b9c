"""What to do about a failure.

Rule 1: nothing here sleeps, reads a clock or draws a random number.
Rule 2: everything here is total: it returns a decision and never raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gearmap.core.events import NotRunKind

__all__ = ["MAX_REFUSALS", "History", "RetryPolicy", "Verdict", "after_refusal", "decide"]

# How often one chunk may be answered that the worker was to be avoided (then the list is dropped), or that the job
# expired (then the clocks are wrong). Also the workers that must be unable to load the function before its tasks fail,
# while nobody knows how many workers there are.
MAX_REFUSALS = 2


class Verdict(Enum):
    """What happens to a task next."""

    RUN_AGAIN = "run again"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a task may be run again.

    Attributes
    ----------
    retries
        Re-executions after an exception of the task's own, or after it ran too long.
    retry_timeouts
        Whether a task that ran too long is run again at all.
    max_worker_losses
        How many workers a task may take with it: at this number it is given up.
    """

    retries: int = 0
    retry_timeouts: bool = True
    max_worker_losses: int = 3


def decide(policy: RetryPolicy, *, failures: int = 0, losses: int = 0) -> Verdict:
    """Return what to do with a task after its `failures`-th own failure or its `losses`-th lost worker.

    >>> decide(RetryPolicy(retries=1), failures=1)
    <Verdict.RUN_AGAIN: 'run again'>
    >>> decide(RetryPolicy(retries=1), failures=2)
    <Verdict.GIVE_UP: 'give up'>
    """
    if failures > policy.retries or losses >= max(1, policy.max_worker_losses):
        return Verdict.GIVE_UP
    return Verdict.RUN_AGAIN


@dataclass(frozen=True, slots=True)
class History:
    """What a chunk met on its way so far.

    Attributes
    ----------
    avoid
        Workers that its next header names.
    lacking
        Workers that cannot load the function.
    avoided, expired
        How often it came back for that reason.
    """

    avoid: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    avoided: int = 0
    expired: int = 0


def after_refusal(history: History, kind: NotRunKind, worker: str, *, workers: int | None) -> History | None:
    """Return the history with which a chunk that `worker` refused goes again, or None if it does not.

    A worker that cannot load the function answers at once, so it meets far more chunks than the workers that are busy
    with the others: only when as many as there are (`workers`, None if nobody knows) have said so, nobody can.

    >>> after_refusal(History(), NotRunKind.CANNOT_LOAD, "a", workers=2)
    History(avoid=('a',), lacking=('a',), avoided=0, expired=0)
    >>> after_refusal(_, NotRunKind.CANNOT_LOAD, "b", workers=2) is None
    True
    """
    if kind is NotRunKind.CANNOT_LOAD:
        lacking = history.lacking if worker in history.lacking else (*history.lacking, worker)
        if len(lacking) >= (workers or MAX_REFUSALS):
            return None
        return replace(history, avoid=lacking, lacking=lacking)
    if kind is NotRunKind.AVOIDED:
        if history.avoided + 1 >= MAX_REFUSALS:  # nobody else takes it
            return replace(history, avoid=(), avoided=0)
        return replace(history, avoided=history.avoided + 1)
    if kind is NotRunKind.EXPIRED:
        if history.expired + 1 >= MAX_REFUSALS:
            return None
        return replace(history, expired=history.expired + 1)
    return History(avoid=history.lacking, lacking=history.lacking)
