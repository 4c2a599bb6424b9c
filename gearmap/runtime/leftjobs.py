"""Jobs of runs that have ended, in a session that goes on for other runs.

A session of a run's own is closed, and the job server drops the run's queued jobs and counts nobody for those that run.
Here that is done job by job. The job server is asked first, because what it does about `cancel job` depends: a queued
job is dropped; of one that runs gearmand tells WORK_FAIL, but goes on counting the client, so its node would never find
out that nobody waits (the embedded server does not count it any more). So what runs is stopped through its node, once
that is known: a node tells of every execution that lasts a quarter of a second. Should a worker take a job between the
answer and the `cancel job`, the node's signs still come, behind the WORK_FAIL, and are listened to.

Law of the file: nothing here matters to a result. Everything goes when the connection does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gearmap.core.leaving import LeavingStep, next_step
from gearmap.errors import WireError
from gearmap.runtime.joblink import StopMaker
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.transport.events import Accepted, JobRequest, UniqueStatus, WorkData, WorkFailed, WorkStatus, WorkWarning

__all__ = ["LeftJob", "LeftJobs"]

# Between two rounds of questions about the same jobs (seconds): the first, and the longest, as each round waits half as
# long again. Raised: less traffic; lowered: what was just taken, or did not listen, is stopped sooner.
FIRST_INTERVAL = 0.25
LONGEST_INTERVAL = 10.0

_NEVER = float("inf")


class _Asker(Protocol):
    """What the job server is told through."""

    def query_unique(self, unique: str) -> None: ...

    def cancel_job(self, handle: str) -> None: ...

    def forget_job(self, handle: str) -> None: ...

    def send_stops(self, requests: list[JobRequest]) -> None: ...


@dataclass(slots=True)
class LeftJob:
    """A job that was sent and has not ended.

    `reader` is None if its outcomes cannot be read any more; then it can be dropped, not stopped.
    """

    unique: str
    handle: str | None = None
    reader: OutcomeReader | None = None
    stop: StopMaker | None = None
    left_at: float = field(default=0.0)
    is_cancelled: bool = False

    @property
    def nodes(self) -> Mapping[bytes, str]:
        """The node of each of its executions that was heard of."""
        return {} if self.reader is None else self.reader.nodes or {}

    def listen(self, data: Any) -> None:
        """Learn which node runs it, if that is in what came."""
        if self.reader is not None:
            try:
                self.reader.find_nodes(data)
            except WireError:
                self.reader = None


class LeftJobs:
    """What is left of runs that have ended, on one connection.

    Attributes
    ----------
    due
        When `work` must be called.
    """

    def __init__(self, asker: _Asker) -> None:
        self.due = _NEVER
        self._asker = asker
        self._jobs: dict[Hashable, LeftJob] = {}
        self._tokens: dict[str, Hashable] = {}  # by unique
        self._interval = FIRST_INTERVAL

    def __len__(self) -> int:
        return len(self._jobs)

    def take(self, jobs: Mapping[Hashable, LeftJob]) -> None:
        """Take in jobs, each under the token that its events have."""
        self._jobs.update(jobs)
        self._tokens.update((job.unique, token) for token, job in jobs.items())
        self._interval = FIRST_INTERVAL
        if jobs:
            self.due = 0.0

    def clear(self) -> None:
        """The connection has gone, and all of them with it."""
        self._jobs.clear()
        self._tokens.clear()
        self.due = _NEVER

    def work(self, now: float) -> None:
        """Ask about all of them, if it is time."""
        if now < self.due:
            return
        for job in self._jobs.values():
            if not job.left_at:
                job.left_at = now
            self._asker.query_unique(job.unique)
        self.due = now + self._interval if self._jobs else _NEVER
        self._interval = min(LONGEST_INTERVAL, 1.5 * self._interval)

    def told(self, token: Hashable, event: Any) -> None:
        """Take in what came for a job."""
        job = self._jobs.get(token)
        if job is None:
            return
        kind = type(event)
        if kind is Accepted:
            job.handle = event.handle
        elif kind is WorkData:
            known = len(job.nodes)
            job.listen(event.data)
            if len(job.nodes) > known:
                self.due = 0.0
        elif kind not in (WorkStatus, WorkWarning) and not (kind is WorkFailed and job.is_cancelled):
            self._forget(token, job)

    def answered(self, status: UniqueStatus, now: float) -> None:
        """Act on what the job server says of a job."""
        token = self._tokens.get(status.unique)
        if token is None:
            return
        job = self._jobs[token]
        step = next_step(
            known=status.known,
            running=status.running,
            is_cancelled=job.is_cancelled,
            is_heard=bool(job.nodes),
            elapsed=now - job.left_at,
        )
        if step is LeavingStep.FORGET:
            self._forget(token, job)
        elif step is LeavingStep.CANCEL and job.handle is not None:
            job.is_cancelled = True
            self._asker.cancel_job(job.handle)
        elif step is LeavingStep.STOP and job.stop is not None:
            self._asker.send_stops(list(job.stop(job.nodes)))

    def _forget(self, token: Hashable, job: LeftJob) -> None:
        del self._jobs[token]
        del self._tokens[job.unique]
        if job.is_cancelled and job.handle is not None:
            self._asker.forget_job(job.handle)
        if not self._jobs:
            self.due = _NEVER
