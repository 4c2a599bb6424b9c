"""What to do about a failure.

Rule 1: nothing here sleeps, reads a clock or draws a random number.
Rule 2: everything here is total: it returns a decision and never raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gearmap.core.events import NotRunKind

__all__ = [
    "LONGEST_DELAY",
    "MAX_FETCHES",
    "MAX_REFUSALS",
    "History",
    "RetryPolicy",
    "Verdict",
    "after_loss",
    "after_refusal",
    "decide",
    "refusal_delay",
    "retry_delay",
]

# The longest wait before a retry (seconds), but for the jitter. Raised: what is down for long is asked less often;
# lowered: work goes on sooner once it is back.
LONGEST_DELAY = 30.0

# Retries are late by up to this part of their delay, so that tasks that failed together do not come back together.
# Raised: a service that is overloaded gets more relief; lowered: less waiting.
JITTER = 0.25

# How often one chunk may be answered that the worker was to be avoided (then the list is dropped), or that the job
# expired while nobody has run any (then the clocks are wrong). Also the workers that must be unable to load the
# function before its tasks fail, while nobody knows how many workers there are.
MAX_REFUSALS = 2

# How often a node may fail to fetch what a chunk needs before its tasks fail, and how long (seconds) the chunk waits
# after the first time; twice as long each time. A node tries for 15 s. Raised: clients that are suspended, or cut off,
# for longer lose nothing; lowered: what can never be had is known sooner.
MAX_FETCHES = 5
_FETCH_DELAY = 1.0

_WORD = 2**64 - 1


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
    retry_delay
        Seconds before the first re-execution; see `retry_delay`.
    max_worker_losses
        How many workers a task may take with it: at this number it is given up.
    """

    retries: int = 0
    retry_timeouts: bool = True
    retry_delay: float = 0.0
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


def retry_delay(policy: RetryPolicy, failures: int, *, seed: int, task: int) -> float:
    """Return how long a task waits after its `failures`-th failure: twice as long each time, and a little more.

    The little more is up to a quarter; it depends on `seed`, task and failure alone, and is spread evenly.

    >>> retry_delay(RetryPolicy(), 3, seed=1, task=0)
    0.0
    >>> 2.0 <= retry_delay(RetryPolicy(retry_delay=0.5), 3, seed=1, task=0) <= 2.5
    True
    """
    delay = min(LONGEST_DELAY, policy.retry_delay * 2.0 ** min(failures - 1, 64))
    return delay * (1.0 + JITTER * _spread(seed, task, failures))


def _spread(*numbers: int) -> float:
    """Return a number from 0 to 1 that looks random but is always the same for the same numbers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state / _WORD


@dataclass(frozen=True, slots=True)
class History:
    """What a chunk met on its way so far: each of its tasks has met the same.

    Attributes
    ----------
    failures
        How often its tasks failed by themselves.
    losses
        How many workers its task took with it; chunks of several have 0.
    exact
        Whether one of its tasks took a worker with it and nobody knows which: the next time it must be known.
    avoid
        Workers that its next header names.
    lacking
        Workers that cannot load the function.
    avoided, expired
        How often it came back for that reason.
    unready
        How often its worker ended in the initializer.
    unfetched
        How often its worker could not fetch what it needs.
    """

    avoid: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    avoided: int = 0
    expired: int = 0
    unready: int = 0
    unfetched: int = 0
    failures: int = 0
    losses: int = 0
    exact: bool = False

    @property
    def attempts(self) -> int:
        """Which attempt the present one is, as its tasks' user counts: nobody's fault is not counted."""
        return self.failures + self.losses + 1


def after_loss(history: History) -> History:
    """Return the history with which tasks go again that are not to blame: what cannot load them is still avoided."""
    return replace(history, avoid=history.lacking, avoided=0, expired=0)


def after_refusal(
    history: History, kind: NotRunKind, worker: str, *, workers: int | None, is_loaded: bool = False
) -> History | None:
    """Return the history with which a chunk that `worker` refused goes again, or None if it does not.

    A worker that cannot load the function answers at once, so it meets far more chunks than the workers that are busy
    with the others: only when as many as there are (`workers`, None if nobody knows) have said so, nobody can.

    >>> one = after_refusal(History(), NotRunKind.CANNOT_LOAD, "a", workers=2)
    >>> one.avoid
    ('a',)
    >>> after_refusal(one, NotRunKind.CANNOT_LOAD, "b", workers=2) is None
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
        # Once anybody has run the function, the clock that is wrong is that worker's, and others may be busy.
        if history.expired + 1 >= MAX_REFUSALS and not is_loaded:
            return None
        return replace(history, expired=history.expired + 1, avoid=(*history.lacking, worker), avoided=0)
    if kind is NotRunKind.NO_BLOB:
        if history.unfetched + 1 >= MAX_FETCHES:
            return None
        return replace(after_loss(history), unfetched=history.unfetched + 1)
    return after_loss(history)


def refusal_delay(history: History) -> float:
    """Return how long a chunk waits whose worker could not fetch what it needs, or has a wrong clock.

    >>> [refusal_delay(History(unfetched=times)) for times in (1, 2, 4)]
    [1.0, 2.0, 8.0]
    >>> [refusal_delay(History(expired=times)) for times in (1, 2, 4)]
    [0.0, 1.0, 4.0]
    """
    times = max(history.unfetched, history.expired - 1)
    return min(LONGEST_DELAY, _FETCH_DELAY * 2.0 ** (times - 1)) if times > 0 else 0.0
