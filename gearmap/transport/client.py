"""One session with one job server: submissions go in, events come out, nothing ever waits.

Inside is a GearmanClient with one connection. What is mended here: `submit_multiple_requests` that blocks, handles
given to the wrong request after an ERROR, KeyErrors for late packets and unknown handles, two requests of one unique,
exceptions that are never terminal, scans over all requests.

Law of the file: one thread; no clock; every request gets exactly one terminal event or is named in `Lost`, but for
those that are listened to after they were cancelled. A request in the background is finished when it is accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from gearman.client import GearmanClient
from gearman.client_handler import GearmanClientCommandHandler
from gearman.constants import (
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NONE,
)
from gearman.protocol import GEARMAN_COMMAND_OPTION_REQ, submit_cmd_for_background_priority

from gearmap.config import Patience
from gearmap.errors import ConfigurationError, ConnectionLost, ProtocolError, TransportError
from gearmap.transport.channel import Channel, ChannelState, Greeting, PassThrough
from gearmap.transport.connection import Connection, TakesAddresses
from gearmap.transport.events import (
    Accepted,
    Address,
    ClientEvent,
    Connected,
    ConnectFailed,
    JobRequest,
    Lost,
    Payload,
    Rejected,
    StatusListing,
    StatusRow,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFailed,
    WorkStatus,
    WorkWarning,
    show_address,
)
from gearmap.transport.parsing import status_row, text, unique_status
from gearmap.transport.protocol import GET_STATUS_UNIQUE, encoded

__all__ = ["ServerSession", "SessionState"]

SessionState = ChannelState

# gearmand keeps 64 bytes with the closing NUL; one byte more corrupts the job's data.
MAX_UNIQUE_BYTES = 63
_PRIORITIES = {"low": PRIORITY_LOW, "normal": PRIORITY_NONE, "high": PRIORITY_HIGH}
_SUBMIT_COMMANDS = {
    (background, name): submit_cmd_for_background_priority(background, priority)
    for background in (False, True)
    for name, priority in _PRIORITIES.items()
}


class ServerSession(Channel):
    """A client's connection to one job server, for a selector loop of one thread.

    Parameters
    ----------
    address
        Host and port.
    connect_timeout
        Seconds until a server that has not answered counts as away.
    send_timeout
        See `Connection`.
    Attributes
    ----------
    state
        CONNECTING, READY or CLOSED. A closed session is finished: make a new one.
    """

    handler: _ClientHandler

    def __init__(
        self,
        address: Address,
        *,
        connect_timeout: float = 2.0,
        send_timeout: float = Patience().send_timeout,
    ) -> None:
        client = _Client([address])
        connection: Connection = client.connection_list[0]
        connection.send_timeout = send_timeout
        super().__init__(client, connection, connect_timeout)
        client.channel = self
        self._client = client
        self._events: list[ClientEvent] = []
        # Submitted before the server answered; sent once it has.
        self._early: list[JobRequest] = []

    def submit(self, requests: Sequence[JobRequest]) -> None:
        """Queue the requests and send what the socket takes. While connecting they are kept.

        Raises
        ------
        ConfigurationError
            If a unique, a name or a body is larger than Gearman allows. Nothing is queued then.
        ConnectionLost
            If the session is closed.
        """
        for request in requests:
            _check(request)
        if self.state is ChannelState.CONNECTING:
            self._early.extend(requests)
            return
        self._check_open()
        self._client.submit_multiple_requests(requests, wait_until_complete=False)

    def request_status(self) -> None:
        """Ask for the server's queue lengths; answered by `StatusListing`."""
        self._check_ready()
        self.handler.ask_status()
        self.flush()

    def query_unique(self, unique: str) -> None:
        """Ask how many clients wait for a unique; answered by `UniqueStatus`."""
        self._check_ready()
        self.handler.send_command(GET_STATUS_UNIQUE, unique=unique)
        self.flush()

    def cancel(self, handle: str, *, listen: bool = False) -> None:
        """Drop a queued job. Its clients get `WorkFailed`; a worker that runs it is not told.

        Where it runs, gearmand sends on what the worker sends. Who wants to `listen` gets that after the `WorkFailed`,
        and must `forget` the job if it does not end otherwise.
        """
        self._check_ready()
        if listen:
            self.handler.listened.add(encoded(handle))
        self.handler.ask_text(f"cancel job {handle}", lambda line: True)
        self.flush()

    def forget(self, handle: str) -> None:
        """Report nothing of a job any more."""
        self.handler.drop(encoded(handle))

    @property
    def deadline(self) -> float | None:
        # Events that wait to be taken must not wait for the network: a connection may fail at once.
        return 0.0 if self._events else self._connect_deadline

    def take_events(self) -> list[ClientEvent]:
        """Return what has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Close the connection, with which the server drops what is queued. No events come any more."""
        self._early.clear()
        self._shut()

    # ---------------------------------------------------------------------------------------------- inside

    def _check_open(self) -> None:
        if self.state is ChannelState.CLOSED:
            raise ConnectionLost(f"the session with the job server at {show_address(self.address)} is closed")

    def _check_ready(self) -> None:
        self._check_open()
        if self.state is not ChannelState.READY:
            raise ConnectionLost(f"the session with the job server at {show_address(self.address)} is not open yet")

    def emit(self, event: ClientEvent) -> None:
        """Report an event; called by the handler."""
        self._events.append(event)

    def _came_up(self) -> None:
        self.emit(Connected())
        early, self._early = self._early, []
        if early:
            self.submit(early)

    def _went_down(self, reason: TransportError, was_ready: bool) -> None:
        self._early.clear()
        tokens = self._client.take_lost_tokens()
        self.emit(Lost(reason, tokens) if was_ready else ConnectFailed(reason))


def _check(request: JobRequest) -> None:
    unique = request.unique
    n_bytes = len(unique) if unique.isascii() else len(unique.encode("utf-8", "surrogateescape"))
    if n_bytes > MAX_UNIQUE_BYTES:
        raise ConfigurationError(f"a unique has at most {MAX_UNIQUE_BYTES} bytes, got {request.unique!r}")
    if "\0" in request.unique or "\0" in request.function:
        raise ConfigurationError(f"a name must not contain NUL: {request.function!r}, {request.unique!r}")
    if len(request.body) >= 2**32 - 2**16:
        raise ConfigurationError(f"a body of {len(request.body)} bytes is larger than Gearman's limit of 4 GiB")


class _ClientHandler(Greeting, GearmanClientCommandHandler):  # type: ignore[misc]  # gearman3 has no types
    """Matches answers to requests."""

    def __init__(self, connection_manager: Any = None) -> None:
        super().__init__(connection_manager=connection_manager)
        self.requests_awaiting_handles: deque[JobRequest] = deque()
        # Several requests share a handle when they share a unique. gearman3's weak map would forget requests that
        # nobody else holds, and knows one request per handle.
        self.handle_to_request_map: dict[bytes, list[JobRequest]] = {}
        self.listened: set[bytes] = set()  # handles of cancelled jobs, whose WORK_FAIL is not the end
        self._status_rows: list[StatusRow] = []
        self.channel: ServerSession = connection_manager.channel
        self._emit = self.channel.emit

    def initial_state(self, *largs: Any, **kwargs: Any) -> None:
        # Without the option the server turns WORK_EXCEPTION into a WORK_FAIL without the data. Asked for before the
        # first submission, so that an ERROR of a server that does not know it is not taken for another answer.
        self.greet((GEARMAN_COMMAND_OPTION_REQ, {"option_name": "exceptions"}))

    def unfinished(self) -> tuple[Hashable, ...]:
        requests = [request for twins in self.handle_to_request_map.values() for request in twins]
        return tuple(request.token for request in (*requests, *self.requests_awaiting_handles))

    def on_io_error(self) -> None:
        self.connection_manager.lost_tokens = self.unfinished()
        self.requests_awaiting_handles.clear()
        self.handle_to_request_map.clear()
        self.listened.clear()

    def send_job_request(self, current_request: JobRequest) -> None:
        request = current_request
        names = (encoded(request.function), encoded(request.unique))
        self._connection.send_with_data(_SUBMIT_COMMANDS[request.background, request.priority], names, request.body)
        self.requests_awaiting_handles.append(request)

    def ask_status(self) -> None:
        self.ask_text("status", self._recv_status_line)

    # ------------------------------------------------------------------------------- answers to submissions

    def recv_job_created(self, job_handle: Payload) -> None:
        if not self.requests_awaiting_handles:
            raise ProtocolError(f"{show_address(self.channel.address)} sent a handle that nobody asked for")
        request = self.requests_awaiting_handles.popleft()
        handle = bytes(job_handle).rstrip(b"\0")
        if not request.background:
            self.handle_to_request_map.setdefault(handle, []).append(request)
        self._emit(Accepted(request.token, text(handle)))

    def recv_error(self, error_code: Payload, error_text: Payload) -> None:
        # An ERROR names no job: it stands in the place of the JOB_CREATED that does not come.
        if not self.requests_awaiting_handles:
            return
        request = self.requests_awaiting_handles.popleft()
        self._emit(Rejected(request.token, text(error_code), text(error_text)))

    def recv_option_res(self, option_name: Payload) -> None:
        """The server forwards exceptions now."""

    # -------------------------------------------------------------------------------------- answers of work

    def recv_work_data(self, job_handle: Payload, data: Payload) -> None:
        request = self._next_of(job_handle)
        if request is not None:
            self._emit(WorkData(request.token, data))

    def recv_work_warning(self, job_handle: Payload, data: Payload) -> None:
        request = self._next_of(job_handle)
        if request is not None:
            self._emit(WorkWarning(request.token, data))

    def recv_work_status(self, job_handle: Payload, numerator: Payload, denominator: Payload) -> None:
        request = self._next_of(job_handle)
        if request is not None:
            self._emit(WorkStatus(request.token, text(numerator), text(denominator)))

    def recv_work_complete(self, job_handle: Payload, data: Payload) -> None:
        for request in self._finish(job_handle):
            self._emit(WorkComplete(request.token, data))

    def recv_work_fail(self, job_handle: Payload) -> None:
        if self.listened:
            handle = bytes(job_handle).rstrip(b"\0")
            if handle in self.listened:
                for request in self.handle_to_request_map.get(handle, ()):
                    self._emit(WorkFailed(request.token))
                return
        for request in self._finish(job_handle):
            self._emit(WorkFailed(request.token))

    def recv_work_exception(self, job_handle: Payload, data: Payload) -> None:
        # Terminal: the server has removed the job and forwards no WORK_FAIL after it.
        for request in self._finish(job_handle):
            self._emit(WorkException(request.token, data))

    def drop(self, handle: bytes) -> None:
        """Forget a job."""
        self.listened.discard(handle)
        self.handle_to_request_map.pop(handle, None)

    def _next_of(self, job_handle: Payload) -> JobRequest | None:
        """The request that this packet is for; the server repeats it for every request of the same handle."""
        twins = self.handle_to_request_map.get(bytes(job_handle).rstrip(b"\0"))
        if not twins:
            return None
        if len(twins) > 1:
            twins.append(twins.pop(0))
            return twins[-1]
        return twins[0]

    def _finish(self, job_handle: Payload) -> Sequence[JobRequest]:
        # What comes later under this handle finds nothing and is dropped.
        return self.handle_to_request_map.pop(bytes(job_handle).rstrip(b"\0"), ())

    # --------------------------------------------------------------------------------------- other answers

    def recv_status_res_unique(self, *fields: Payload) -> None:
        self._emit(unique_status(*fields))

    def recv_status_res(self, *fields: Payload) -> None:
        """Never asked for; gearman3's own method would fail on a handle that it does not know."""

    def _recv_status_line(self, line: str) -> bool:
        if line == ".":
            self._emit(StatusListing(tuple(self._status_rows)))
            self._status_rows = []
            return True
        self._status_rows.append(status_row(line))
        return False


class _Client(TakesAddresses, GearmanClient):  # type: ignore[misc]  # gearman3 has no types
    """gearman3's client for one connection, with the waiting taken out."""

    command_handler_class = _ClientHandler
    data_encoder = PassThrough
    channel: ServerSession
    lost_tokens: tuple[Hashable, ...] = ()

    def submit_multiple_requests(
        self, job_requests: Sequence[JobRequest], wait_until_complete: bool = False, poll_timeout: float | None = None
    ) -> Sequence[JobRequest]:
        """Queue and flush only: acceptance is an event. Our own requests carry what is needed of gearman3's."""
        send_job_request = self.channel.handler.send_job_request
        for request in job_requests:
            send_job_request(request)
        self.channel.flush()
        return job_requests

    def take_lost_tokens(self) -> tuple[Hashable, ...]:
        tokens, self.lost_tokens = self.lost_tokens, ()
        return tokens
