"""Whether anybody serves a run, and when to say that nobody does.

Law of the file: pure; `now` is an argument. It is said once for each time that workers were missing, and never before
every listing that is known says so: a job server that has not answered yet may have a hundred workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gearmap.core.names import Lane, TaskLane, explain_no_worker

__all__ = ["NOTICE_SECONDS", "WorkerWatch"]

# How long nobody may serve a run that has tasks before it is said. People are promised two seconds, of which connecting
# and the first listing take a part. Raised: nodes that start beside their client are not missed too early; lowered: a
# forgotten worker is known sooner.
NOTICE_SECONDS = 1.5

_NEVER = float("inf")


class WorkerWatch:
    """The workers that job servers list for one run.

    Parameters
    ----------
    lane
        What the run's workers must serve.
    patience
        How long nobody may serve it before that is said (seconds).

    Attributes
    ----------
    due
        When `notice` has something to say, if nothing else happens (monotonic seconds).
    """

    def __init__(self, lane: Lane | TaskLane, patience: float = NOTICE_SECONDS) -> None:
        self._lane = lane
        self._patience = patience
        self._listed: dict[int, dict[str, int]] = {}  # by server: workers of each function
        self._said = False
        self.due = _NEVER

    @property
    def count(self) -> int | None:
        """How many workers serve the run, or None while no job server has said so: the same stand on each of them."""
        name = self._lane.name
        return max((listed.get(name, 0) for listed in self._listed.values()), default=None)

    def listed(self, server: int, workers: Iterable[tuple[str, int]], now: float) -> None:
        """Take in the (function, workers) pairs of one job server."""
        self._listed[server] = dict(workers)
        self._look(now)

    def server_gone(self, server: int, now: float) -> None:
        """Forget what a job server has said."""
        self._listed.pop(server, None)
        self._look(now)

    def rest(self) -> None:
        """The run has no tasks: nobody is missed."""
        self.due = _NEVER

    def wake(self, now: float) -> None:
        """The run has tasks."""
        if self.due == _NEVER:
            self._look(now)

    def notice(self, now: float, addresses: Sequence[str]) -> str | None:
        """Return what to say now, or None."""
        if now < self.due:
            return None
        self._said = True
        self.due = _NEVER
        served: dict[str, int] = {}
        for listed in self._listed.values():
            for name, workers in listed.items():
                served[name] = max(workers, served.get(name, 0))
        return explain_no_worker(self._lane, served.items(), addresses)

    def _look(self, now: float) -> None:
        count = self.count
        if count:
            self._said = False
        if count != 0 or self._said:
            self.due = _NEVER
        elif self.due == _NEVER:
            self.due = now + self._patience
