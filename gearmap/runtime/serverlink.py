"""A connection to one job server, made anew as often as needed; of one run, or of several (`sharedlink`).

Law of the file: nothing here sleeps; when to try again is a deadline. Retries are spread by `jitter`, so that many
clients of a job server that comes back do not come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gearmap.config import Patience, ServerAddress
from gearmap.errors import TransportError
from gearmap.runtime.joblink import StopMaker
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import Connected, ConnectFailed, JobRequest, Lost
from gearmap.transport.poller import Poller

__all__ = ["ServerLink"]

# First and longest delay before a job server is tried again (seconds).
FIRST_DELAY = 0.2
LONGEST_DELAY = 30.0

_NOTHING: Sequence[Any] = ()


class ServerLink:
    """One job server; to a run that has it for itself, a `JobLink`."""

    def __init__(
        self,
        number: int,
        address: ServerAddress,
        poller: Poller,
        *,
        jitter: Callable[[], float],
        connect_timeout: float = 2.0,
        send_timeout: float = Patience().send_timeout,
    ) -> None:
        self.number = number
        self.address = address
        self.failures = 0
        self.was_up = False
        self.last_reason = TransportError("it was not tried yet")
        self._poller = poller
        self._jitter = jitter
        self._connect_timeout = connect_timeout
        self._send_timeout = send_timeout
        self._session: ServerSession | None = None
        self._retry_at: float | None = None
        self._closed = False

    @property
    def deadline(self) -> float | None:
        """When `step` must be called, if nothing else happens."""
        if self._session is None:
            return self._retry_at
        return self._session.deadline

    @property
    def is_open(self) -> bool:
        """Whether it connects, is connected, or waits to try again."""
        return self._session is not None or self._retry_at is not None

    @property
    def is_up(self) -> bool:
        """Whether the job server is connected and has answered."""
        return self._session is not None and self._session.state is SessionState.READY

    def hurry(self, now: float) -> None:
        """Try again at once, if this only waits to."""
        if self._session is None and self._retry_at is not None:
            self.open(now)

    def open(self, now: float) -> None:
        """Begin to connect."""
        session = ServerSession(
            self.address.endpoint,
            connect_timeout=self._connect_timeout,
            send_timeout=self._send_timeout,
        )
        session.start(now)
        self._session = session
        self._retry_at = None
        self._poller.add(session)

    def step(self, now: float) -> Sequence[Any]:
        """Take in what has happened; return the session's events."""
        if self._closed:
            return []
        session = self._session
        if session is None:
            if self._retry_at is not None and now >= self._retry_at:
                self.open(now)
            return []
        due = session.deadline
        if due is None:
            return _NOTHING
        if now >= due:
            session.tick(now)
        events: list[Any] = session.take_events()
        for event in events:
            kind = type(event)
            if kind is Connected:
                self.was_up = True
                self.failures = 0
            elif kind is Lost or kind is ConnectFailed:
                self._plan_retry(event.reason, now)
        return events

    def submit(self, requests: Sequence[JobRequest]) -> None:
        """Send jobs. While the connection is down they are dropped: their loss is an event already."""
        if self._session is not None and self._session.state is not SessionState.CLOSED:
            self._session.submit(requests)

    def request_status(self) -> None:
        """Ask for the workers' numbers, if the connection is up."""
        if self.is_up:
            assert self._session is not None
            self._session.request_status()

    def query_unique(self, unique: str) -> None:
        """Ask what became of a job, if the connection is up."""
        if self.is_up:
            assert self._session is not None
            self._session.query_unique(unique)

    def cancel_job(self, handle: str) -> None:
        """Drop a queued job, and go on listening to it; see `ServerSession.cancel`."""
        if self.is_up:
            assert self._session is not None
            self._session.cancel(handle, listen=True)

    def forget_job(self, handle: str) -> None:
        """Listen to a job that was cancelled no more."""
        if self.is_up:
            assert self._session is not None
            self._session.forget(handle)

    def leave(self, sent: Mapping[int, OutcomeReader], stop: StopMaker) -> None:
        """The run has ended, and everything goes with the session."""
        self.close()

    def close(self) -> None:
        """Close the session: its queued jobs are dropped by the job server at once."""
        self._closed = True
        self._retry_at = None
        self._drop_session()

    def fileno(self) -> int:
        """The socket's descriptor, or -1."""
        return -1 if self._session is None else self._session.fileno()

    def failure(self) -> TransportError:
        """Return why there is no connection; the transport names the address, only this layer knows its origin."""
        reason = self.last_reason
        name = str(self.address)
        return type(reason)(str(reason).replace(repr(name), f"{name!r} (from {self.address.origin})", 1))

    def _plan_retry(self, reason: TransportError, now: float) -> None:
        self.last_reason = reason
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**self.failures)
        self.failures += 1
        self._retry_at = now + delay * (0.5 + self._jitter())
        self._drop_session()

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._poller.remove(session)
            session.close()
