"""What a node's limits say of one task and of one child.

Rule 1: nothing here reads a clock or a process: `now` and positions are arguments.
Rule 2: a task's time begins when it is first seen, so a task is never stopped early; it is stopped late by no more than
the time between two looks.
"""

from __future__ import annotations

from dataclasses import dataclass

from gearmap.core.node_events import JobNeeds

__all__ = ["TASK_LOOK_INTERVAL", "ChildUse", "TaskClock"]

# How often a node looks which task runs, where tasks have a time limit. Raised: fewer wake-ups; lowered: a task that
# runs too long is stopped sooner after its time (it may take so much more, and what killing costs).
TASK_LOOK_INTERVAL = 0.05

_NEVER = float("inf")
_PLAIN = JobNeeds()


@dataclass(slots=True)
class TaskClock:
    """How long the present task of an execution has been running, as far as was seen.

    Attributes
    ----------
    limit
        Seconds that a task may take.
    position
        The task that was seen last, or None.
    since
        When it was seen first.
    next_look
        When somebody should look again.
    """

    limit: float
    position: int | None = None
    since: float = 0.0
    next_look: float = _NEVER

    def look_soon(self, now: float) -> None:
        """Somebody looks, or can look from now on."""
        self.next_look = now + TASK_LOOK_INTERVAL

    def sees(self, position: int | None, now: float) -> bool:
        """Take in which task runs (None if none does); return whether its time is over.

        >>> clock = TaskClock(limit=1.0)
        >>> clock.sees(0, 10.0), clock.sees(0, 10.9), clock.sees(1, 11.0), clock.sees(1, 12.0)
        (False, False, False, True)
        """
        if position is None or position != self.position:
            self.position, self.since = position, now
        over = self.since + self.limit
        if position is not None and now >= over:
            self.next_look = _NEVER
            return True
        self.next_look = now + TASK_LOOK_INTERVAL
        if position is not None and over < self.next_look:
            self.next_look = over
        return False


@dataclass(slots=True)
class ChildUse:
    """What one child has run, and for whom.

    Attributes
    ----------
    limit
        How many tasks the node lets a child run, or None.
    tasks
        How many it was given.
    tenant
        Whose initializer it has run, or an empty string.
    is_spent
        Whether it may run no more after its present job.
    loud_until
        Until when it is taken for one that writes much to its descriptors; 0.0 if it is not.
    """

    limit: int | None = None
    tasks: int = 0
    tenant: str = ""
    is_spent: bool = False
    loud_until: float = 0.0

    def suits(self, n_tasks: int, needs: JobNeeds | None) -> bool:
        """Whether the child may run a job. A fresh one may run any."""
        needs = needs or _PLAIN
        if self.tenant and self.tenant != needs.tenant:
            return False
        return not self.tasks or needs.max_tasks is None or self.tasks + n_tasks <= needs.max_tasks

    def takes(self, n_tasks: int, needs: JobNeeds | None) -> None:
        """Take in that the child was given a job."""
        self.tasks += n_tasks
        self.is_spent = self.limit is not None and self.tasks >= self.limit
        if needs is not None:
            if needs.initializer:
                self.tenant = needs.tenant
            if needs.max_tasks is not None and self.tasks >= needs.max_tasks:
                self.is_spent = True
