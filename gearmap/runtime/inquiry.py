"""Asking job servers about jobs that were sent long ago and that no worker has told of.

Most of them wait for their turn. But a worker's host may vanish with a job on its way to it: the job server then
believes for a quarter of an hour that the job runs, no beat ever comes, and nobody would notice.

Law of the file: a question now and then, never on the way of a task. An answer comes on the connection that the outcome
would have come on, and after it: "not known" means that the job is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gearmap.core import events as ev
from gearmap.core.engine import RunEngine
from gearmap.runtime.joblink import JobLink
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.transport.events import UniqueStatus

__all__ = ["Inquiry"]

# Between two rounds of questions (seconds). Raised: less traffic; lowered: losses are known sooner, by that much.
INTERVAL = 1.0


class Inquiry:
    """What one run asks about its jobs.

    Parameters
    ----------
    sent
        The readers of the attempts whose jobs are at job servers; read only.
    """

    def __init__(self, engine: RunEngine, sent: Mapping[int, OutcomeReader], links: Sequence[JobLink]) -> None:
        self._engine = engine
        self._sent = sent
        self._links = links
        self._asked: dict[str, int] = {}
        self._next = 0.0

    def ask(self, now: float) -> None:
        """Ask about all of them, if it is time again."""
        if now < self._next:
            return
        self._next = now + INTERVAL
        self._asked = {}
        for attempt in self._engine.unheard(now):
            reader = self._sent.get(attempt)
            if reader is not None:
                self._asked[reader.unique] = attempt
                self._links[reader.server].query_unique(reader.unique)

    def answered(self, status: UniqueStatus) -> ev.Input | None:
        """Return what the answer means for the engine."""
        attempt = self._asked.pop(status.unique, None)
        if attempt is None:
            return None
        if not status.known:
            return ev.AttemptLost(attempt, ev.LossReason.SERVER, "the job server does not know the job any more")
        return ev.JobSeen(attempt, status.running)
