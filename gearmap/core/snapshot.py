"""Progress of a run as a value, and the Protocol of whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["FailureRow", "ProgressSink", "ProgressSnapshot", "WorkerView"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What a worker is known to do.

    Attributes
    ----------
    task
        The task that it is at, or None if that is not known.
    seconds
        Since it was first heard of with this chunk.
    is_lost
        Whether nothing is expected of it any more: it has been silent for too long.
    silent
        Seconds since its last sign where two beats at least are missing; None while all is as it should be.
    """

    name: str
    task: int | None
    seconds: float
    is_lost: bool = False
    silent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    """A task that failed for good, in words; `call` and `traceback` are empty where they are not known."""

    task: int
    call: str
    error: str
    message: str
    worker: str | None
    attempts: int
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot:
    """Counts of one run at one instant.

    `total` is None while nobody knows how many tasks there will be. `running` are tasks that were sent to a job server
    and have no outcome yet, `queued` those that wait to be sent. `again` counts tasks that were sent once more, or
    started once more by a job server. `earlier` of those `done` were so before this run began: it goes on where another
    one stopped. `retried` of them are done after they had failed. `elapsed` is in seconds. `working` are the workers
    that have tasks of the run, or had some when they were lost: the first of many. `partial` is the sum of how far
    running tasks say that they are, each from 0.0 to 1.0; a task that is settled counts whole, and no more here.
    """

    total: int | None
    done: int
    failed: int
    cancelled: int
    running: int
    queued: int
    again: int
    elapsed: float
    workers: int | None
    earlier: int = 0
    retried: int = 0
    working: tuple[WorkerView, ...] = ()
    partial: float = 0.0

    @property
    def settled(self) -> int:
        """Tasks that will not change any more."""
        return self.done + self.failed + self.cancelled

    @property
    def rate(self) -> float:
        """Tasks done or failed for each second since the start; 0.0 before the first."""
        return (self.done - self.earlier + self.failed) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end at the present rate, or None if that is not known."""
        if self.total is None or self.rate == 0.0:
            return None
        return (self.total - self.settled) / self.rate


class ProgressSink(Protocol):
    """Shows a run. Called from the thread that waits for the run, a few times a second."""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show the present state."""

    def notice(self, text: str) -> None:
        """Show why nothing happens, such as that no worker is there; it holds until there are workers."""

    def failed(self, row: FailureRow) -> None:
        """Show a task that has failed for good."""

    def printed(self, task: int, stream: str, text: str) -> None:
        """Show, if asked, what a task has written to `"stdout"` or `"stderr"`."""

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        """Show the last state; `note` says how the run ended, empty if all is well."""
