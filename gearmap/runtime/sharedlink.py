"""One connection to a job server for several runs: what comes goes to the run that it is for.

Rule 1: everything here belongs to the driver thread, which calls `pump` before it steps the runs.
Rule 2: to a run its share looks like a connection of its own; when it leaves, its jobs become `LeftJobs`.
Rule 3: nothing of this is on the way of runs that have a session of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gearmap.errors import TransportError
from gearmap.runtime.joblink import StopMaker
from gearmap.runtime.leftjobs import LeftJob, LeftJobs
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.runtime.serverlink import ServerLink
from gearmap.runtime.stopping import STOP_TOKEN
from gearmap.transport.events import (
    Accepted,
    Connected,
    ConnectFailed,
    JobRequest,
    Lost,
    Rejected,
    StatusListing,
    UniqueStatus,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFailed,
)

__all__ = ["LinkShare", "SharedLink"]

_OF_THE_LINK = (Connected, ConnectFailed, Lost)
# More than a node's sign of life, less than what would be dear to keep.
_SIGN_BYTES = 4096
_TERMINAL = (WorkComplete, WorkException, WorkFailed, Rejected)


class SharedLink:
    """One job server of several runs; it begins with the first of them."""

    def __init__(self, link: ServerLink) -> None:
        self.link = link
        self._shares: dict[int, LinkShare] = {}
        self._numbers = itertools.count(1)
        self._left = LeftJobs(self)
        self._asks_status = False
        self._asked: dict[str, LinkShare] = {}

    @property
    def is_used(self) -> bool:
        """Whether any run has a share of it."""
        return bool(self._shares)

    @property
    def deadline(self) -> float:
        """When `pump` must be called, if nothing else happens."""
        at = self.link.deadline
        return self._left.due if at is None else min(at, self._left.due)

    def share(self) -> LinkShare:
        """Return a share for one more run; it counts from its `open` on."""
        return LinkShare(self, next(self._numbers))

    def pump(self, now: float) -> None:
        """Take in what has happened, and hand it out."""
        for event in self.link.step(now):
            self._hand_out(event, now)
        self._left.work(now)

    def close(self) -> None:
        """Close the connection: what is left there, the job server drops."""
        self._left.clear()
        self.link.close()

    def _hand_out(self, event: Any, now: float) -> None:
        kind = type(event)
        if kind in _OF_THE_LINK:
            self._asks_status = False
            self._asked.clear()
            self._left.clear()
            self._tell_all(event)
        elif kind is StatusListing:
            self._asks_status = False
            self._tell_all(event)
        elif kind is UniqueStatus:
            asker = self._asked.pop(event.unique, None)
            if asker is not None:
                asker.tell(event)
            self._left.answered(event, now)
        else:
            number, token = event.token
            share = self._shares.get(number)
            if share is not None:
                share.tell(replace(event, token=token))
            else:
                self._left.told(event.token, event)

    def _tell_all(self, event: Any) -> None:
        for share in self._shares.values():
            share.tell(event)

    # ------------------------------------------------------------------------------------------------- for the shares

    def joined(self, number: int, share: LinkShare, now: float) -> None:
        """A run has begun to use its share."""
        if not self._shares and not self.link.is_open:
            self.link.open(now)
        self._shares[number] = share
        if self.link.is_up:
            share.tell(Connected())
        else:
            self.link.hurry(now)

    def left(self, number: int, jobs: Mapping[Hashable, LeftJob]) -> None:
        """A run does not use its share any more; these jobs of it have not ended."""
        del self._shares[number]
        self._asked = {unique: share for unique, share in self._asked.items() if share.id != number}
        self._left.take({(number, token): job for token, job in jobs.items()})

    def ask_status(self) -> None:
        """Ask for the workers' numbers: one answer is for all."""
        if self.link.is_up and not self._asks_status:
            self._asks_status = True
            self.link.request_status()

    def ask_for(self, share: LinkShare, unique: str) -> None:
        """Ask what became of a run's job."""
        if self.link.is_up:
            self._asked[unique] = share
            self.link.query_unique(unique)

    # ----------------------------------------------------------------------------------------------- for what is left

    def query_unique(self, unique: str) -> None:
        """Ask what became of a job."""
        self.link.query_unique(unique)

    def cancel_job(self, handle: str) -> None:
        """Drop a queued job."""
        self.link.cancel_job(handle)

    def forget_job(self, handle: str) -> None:
        """Listen to a cancelled job no more."""
        self.link.forget_job(handle)

    def send_stops(self, requests: list[JobRequest]) -> None:
        """Have nodes stop executions; their answers are nobody's."""
        self.link.submit([replace(request, token=(0, STOP_TOKEN)) for request in requests])


class LinkShare:
    """A shared connection as one run has it; see `JobLink`."""

    def __init__(self, shared: SharedLink, number: int) -> None:
        self.id = number
        self.number = shared.link.number
        self.address = shared.link.address
        self.was_up = False
        self.failures = 0
        self._shared = shared
        self._is_open = False
        self._inbox: list[Any] = []
        self._signs: list[WorkData] = []  # of the newest step: what may tell that a node runs a job
        self._jobs: dict[Hashable, LeftJob] = {}

    @property
    def deadline(self) -> float | None:
        """When `step` must be called, if nothing else happens."""
        return 0.0 if self._inbox else self._shared.link.deadline

    @property
    def is_up(self) -> bool:
        """Whether the job server is connected, and this run knows."""
        return self.was_up and self._shared.link.is_up

    def open(self, now: float) -> None:
        """Begin to use it."""
        self._is_open = True
        self._shared.joined(self.id, self, now)

    def hurry(self, now: float) -> None:
        """Try again at once, if the connection only waits to."""
        self._shared.link.hurry(now)

    def tell(self, event: Any) -> None:
        """Take in an event that is for this run, until it is stepped."""
        kind = type(event)
        if kind is Connected:
            self.was_up = True
            self.failures = 0
        elif kind in _OF_THE_LINK:
            self.failures += 1
            self._jobs.clear()
        elif kind is Accepted:
            job = self._jobs.get(event.token)
            if job is not None:
                job.handle = event.handle
        elif kind in _TERMINAL:
            self._jobs.pop(event.token, None)
        self._inbox.append(event)

    def step(self, now: float) -> Sequence[Any]:
        """Return what has happened."""
        inbox = self._inbox
        if inbox:
            self._inbox = []
            self._signs = [event for event in inbox if type(event) is WorkData and len(event.data) <= _SIGN_BYTES]
        return inbox

    def submit(self, requests: Sequence[JobRequest]) -> None:
        """Send jobs; see `ServerLink.submit`."""
        for request in requests:
            if request.token != STOP_TOKEN:
                self._jobs[request.token] = LeftJob(request.unique)
        self._shared.link.submit([replace(request, token=(self.id, request.token)) for request in requests])

    def request_status(self) -> None:
        """Ask for the workers' numbers."""
        self._shared.ask_status()

    def query_unique(self, unique: str) -> None:
        """Ask what became of a job."""
        self._shared.ask_for(self, unique)

    def leave(self, sent: Mapping[int, OutcomeReader], stop: StopMaker) -> None:
        """Have the run's jobs dropped, and stopped where they run, while the connection stays for others."""
        if not self._is_open:
            return
        self._is_open = False
        jobs, self._jobs = self._jobs, {}
        for token, job in jobs.items():
            job.reader = sent.get(token) if isinstance(token, int) else None
            job.stop = stop
        # A run that ends in the middle of a step has not looked at the rest of what it was given.
        for event in (*self._signs, *self._inbox):
            if type(event) is WorkData and event.token in jobs:
                jobs[event.token].listen(event.data)
        self._signs = self._inbox = []
        self._shared.left(self.id, jobs)

    def failure(self) -> TransportError:
        """Return why there is no connection."""
        return self._shared.link.failure()
