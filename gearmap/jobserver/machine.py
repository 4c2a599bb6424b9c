"""The protocol state machine: one packet of one peer in, packets for any peers out.

What lives here: what each Gearman command means. What must not: sockets, clocks, threads; queues (see `state`) and the
text protocol (see `admin`).

Rule 1: `handle` raises `ProtocolError` when the connection must be closed, and nothing else on purpose.
Rule 2: only the peer that a job was assigned to may report on it.
Rule 3: after WORK_COMPLETE, WORK_FAIL or WORK_EXCEPTION the job does not exist any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver import protocol as p
from gearmap.jobserver.admin import Listings, answer_line
from gearmap.jobserver.protocol import (
    Data,
    error_reply,
    leading_int,
    reply,
    split_args,
    split_data,
)
from gearmap.jobserver.records import HIGH, LOW, NORMAL, Job, JobState, Peer, ServerOptions
from gearmap.jobserver.state import NO_JOB_PACKET, JobTable

__all__ = ["WAITING_GRABS", "Machine"]

# Of our own: a GRAB_JOB_UNIQ that finds no job waits for one at the server, and PRE_SLEEP takes it back (NO_JOB). A
# worker of one server is spared NOOP and a second GRAB that way, two of the hops between `submit` and the task. Only at
# the server of a local cluster, whose node lives and dies with it: elsewhere a node that was suspended, or a host that
# has vanished, would be handed jobs that nobody begins until a timeout; by a NOOP only the living come to grab.
WAITING_GRABS: Final = b"waiting_grabs"
# As gearmand; ids of clients are cut, uniques refused.
MAX_CLIENT_ID_BYTES: Final = 127
MAX_UNIQUE_BYTES: Final = 63
MAX_PROGRESS_BYTES: Final = 10
# gearmand closes the connection of whoever sends a longer argument.
MAX_NAME_BYTES: Final = 8191

Handler = Callable[[Peer, Data], None]

_NOT_EXPECTED: Final = error_reply(b"INVALID_COMMAND", b"Command not expected")
_WRONG_MAGIC: Final = error_reply(b"INVALID_MAGIC", b"Request magic expected")
_JOB_NOT_FOUND: Final = error_reply(b"JOB_NOT_FOUND", b"Job given in work result not found")
_NO_SUCH_JOB: Final = error_reply(b"JOB_NOT_FOUND", b"Job does not exist on server")
_NO_JOB_RAISED: Final = error_reply(b"JOB_NOT_FOUND", b"An exception was received for a job that does not exist")
_UNIQUE_TOO_LARGE: Final = error_reply(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
_UNKNOWN_OPTION: Final = error_reply(b"UNKNOWN_OPTION", b"Server does not recognize given option")
_QUEUE_FULL: Final = error_reply(b"QUEUE_ERROR", b"Job queue is full")

# What only servers send. A request with such a number is a mistake of the sender, not a broken stream.
_RESPONSES: Final = (
    p.NOOP,
    p.JOB_CREATED,
    p.NO_JOB,
    p.JOB_ASSIGN,
    p.ECHO_RES,
    p.ERROR,
    p.STATUS_RES,
    p.OPTION_RES,
    p.JOB_ASSIGN_UNIQ,
    p.JOB_ASSIGN_ALL,
    p.STATUS_RES_UNIQUE,
)


class Machine:
    """A Gearman job server without its sockets.

    Parameters
    ----------
    options
        What can be chosen.
    pid
        What `getpid` answers.
    clock
        Monotonic seconds, to know how long listings take.

    Examples
    --------
    >>> machine = Machine(ServerOptions())
    >>> peer = Peer()
    >>> machine.connect(peer)
    >>> machine.handle(peer, 16, b"hello")
    >>> [peer.out for peer in machine.take_touched()]
    [[b'\\x00RES\\x00\\x00\\x00\\x11\\x00\\x00\\x00\\x05hello']]
    """

    def __init__(self, options: ServerOptions, *, pid: int = 0, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.table = JobTable(options)
        self._pid = pid
        self._listings = Listings(clock)
        self._handlers = self._make_handlers()
        # Straight through, because every read of the shell asks.
        self.take_touched = self.table.take_touched

    def connect(self, peer: Peer) -> None:
        """Welcome a connection."""
        self.table.add_peer(peer)

    def disconnect(self, peer: Peer) -> None:
        """Note that a connection is gone: its jobs are requeued, what it waited for is dropped."""
        self.table.remove_peer(peer)

    def trim(self) -> None:
        """Let go of what is kept to be quicker."""
        self._listings.trim()

    def handle(self, peer: Peer, command: int, body: Data) -> None:
        """Act on one packet or line of a peer.

        Raises
        ------
        ProtocolError
            If the connection must be closed.
        """
        handler = self._handlers.get(command)
        if handler is None:
            raise ProtocolError(f"command {command} is not supported")
        handler(peer, body)

    def _make_handlers(self) -> dict[int, Handler]:
        handlers: dict[int, Handler] = {
            p.TEXT_LINE: self._line,
            p.RESPONSE_MAGIC: lambda peer, body: self.table.send(peer, _WRONG_MAGIC),
            p.CAN_DO: self._can_do,
            p.CAN_DO_TIMEOUT: self._can_do_timeout,
            p.CANT_DO: lambda peer, body: self.table.remove_ability(peer, _name(body)),
            p.RESET_ABILITIES: lambda peer, body: self.table.remove_abilities(peer),
            p.PRE_SLEEP: lambda peer, body: self.table.sleep(peer),
            # Long out of use; gearmand ignores it.
            p.ALL_YOURS: lambda peer, body: None,
            p.SET_CLIENT_ID: self._set_client_id,
            p.GRAB_JOB: self._grab_job,
            p.GRAB_JOB_UNIQ: self._grab_job_uniq,
            p.GRAB_JOB_ALL: self._grab_job_uniq,
            p.WORK_STATUS: self._work_status,
            p.WORK_COMPLETE: self._work_complete,
            p.WORK_FAIL: self._work_fail,
            p.WORK_EXCEPTION: self._work_exception,
            p.WORK_DATA: lambda peer, body: self._work_data(peer, body, p.WORK_DATA),
            p.WORK_WARNING: lambda peer, body: self._work_data(peer, body, p.WORK_WARNING),
            p.GET_STATUS: self._get_status,
            p.GET_STATUS_UNIQUE: self._get_status_unique,
            p.ECHO_REQ: lambda peer, body: self.table.send_data(peer, p.ECHO_RES, b"", body),
            p.OPTION_REQ: self._option,
        }
        for command, priority, background in (
            (p.SUBMIT_JOB, NORMAL, False),
            (p.SUBMIT_JOB_BG, NORMAL, True),
            (p.SUBMIT_JOB_HIGH, HIGH, False),
            (p.SUBMIT_JOB_HIGH_BG, HIGH, True),
            (p.SUBMIT_JOB_LOW, LOW, False),
            (p.SUBMIT_JOB_LOW_BG, LOW, True),
        ):
            handlers[command] = self._make_submit(priority, background)
        for command in _RESPONSES:
            handlers[command] = lambda peer, body: self.table.send(peer, _NOT_EXPECTED)
        return handlers

    # -- anybody

    def _line(self, peer: Peer, body: Data) -> None:
        self.table.send(peer, answer_line(self.table, bytes(body), pid=self._pid, listings=self._listings))

    def _option(self, peer: Peer, body: Data) -> None:
        if body == b"exceptions":
            peer.wants_exceptions = True
            self.table.send(peer, reply(p.OPTION_RES, b"exceptions"))
        elif body == WAITING_GRABS and self.table.options.wake_one:
            peer.grabs_wait = True
            self.table.send(peer, reply(p.OPTION_RES, WAITING_GRABS))
        else:
            self.table.send(peer, _UNKNOWN_OPTION)

    def _set_client_id(self, peer: Peer, body: Data) -> None:
        peer.client_id = bytes(body)[:MAX_CLIENT_ID_BYTES]

    def _get_status(self, peer: Peer, body: Data) -> None:
        handle = _handle(body)
        self.table.send(peer, reply(p.STATUS_RES, handle + _status_fields(self.table.jobs.get(handle))))

    def _get_status_unique(self, peer: Peer, body: Data) -> None:
        unique = _handle(body)
        job = self.table.find_unique(unique)
        n_clients = len(job.clients) if job is not None else 0
        fields = b"%b%b\0%d" % (unique, _status_fields(job), n_clients)
        self.table.send(peer, reply(p.STATUS_RES_UNIQUE, fields))

    # -- clients

    def _make_submit(self, priority: int, background: bool) -> Handler:
        table = self.table

        def submit(peer: Peer, body: Data) -> None:
            split = split_data(body, 2)
            if split is None:
                raise ProtocolError("a submission without function, unique and data")
            (name, unique), data = split
            if len(unique) > MAX_UNIQUE_BYTES:
                table.send(peer, _UNIQUE_TOO_LARGE)
                return
            job = table.submit(peer, _name(name), unique, data, priority=priority, background=background)
            table.send(peer, _QUEUE_FULL if job is None else reply(p.JOB_CREATED, job.handle))

        return submit

    # -- workers

    def _can_do(self, peer: Peer, body: Data) -> None:
        self.table.add_ability(peer, _name(body))

    def _can_do_timeout(self, peer: Peer, body: Data) -> None:
        args = split_args(body, 2)
        if args is None:
            raise ProtocolError("CAN_DO_TIMEOUT without function and seconds")
        self.table.add_ability(peer, _name(args[0]))

    def _grab_job(self, peer: Peer, body: Data) -> None:
        job = self.table.take(peer)
        if job is None:
            self.table.send(peer, NO_JOB_PACKET)
        else:
            self.table.send_data(peer, p.JOB_ASSIGN, b"%b\0%b\0" % (job.handle, job.function.name), job.data)

    def _grab_job_uniq(self, peer: Peer, body: Data) -> None:
        job = self.table.take(peer)
        if job is not None:
            self.table.assign(peer, job)
        elif peer.grabs_wait:
            self.table.wait(peer)
        else:
            self.table.send(peer, NO_JOB_PACKET)

    def _work_complete(self, peer: Peer, body: Data) -> None:
        split = _split_report(body)
        job = self._own_job(peer, split[0])
        if job is not None:
            self._forward(job, p.WORK_COMPLETE, *split)
            self.table.finish(job)

    def _work_data(self, peer: Peer, body: Data, command: int) -> None:
        split = _split_report(body)
        job = self._own_job(peer, split[0], error=_NO_SUCH_JOB)
        if job is not None:
            self._forward(job, command, *split)

    def _work_status(self, peer: Peer, body: Data) -> None:
        args = split_args(body, 3)
        if args is None:
            raise ProtocolError("WORK_STATUS without handle, numerator and denominator")
        job = self._own_job(peer, args[0])
        if job is None:
            return
        job.numerator, job.denominator = _to_uint32(args[1]), _to_uint32(args[2])
        for client in job.clients:
            self.table.send(client, reply(p.WORK_STATUS, bytes(body)))

    def _work_fail(self, peer: Peer, body: Data) -> None:
        job = self._own_job(peer, _handle(body))
        if job is not None:
            self.table.fail(job)

    def _work_exception(self, peer: Peer, body: Data) -> None:
        handle, data = _split_report(body)
        job = self._own_job(peer, handle, error=_NO_JOB_RAISED)
        if job is None:
            return
        for client in job.clients:
            if client.wants_exceptions:
                self.table.send_data(client, p.WORK_EXCEPTION, handle + b"\0", data)
            else:
                self.table.send(client, reply(p.WORK_FAIL, handle))
        self.table.finish(job)

    def _own_job(self, peer: Peer, handle: bytes, *, error: bytes = _JOB_NOT_FOUND) -> Job | None:
        job = self.table.jobs.get(handle)
        if job is None or job.worker is not peer:
            self.table.send(peer, error)
            return None
        return job

    def _forward(self, job: Job, command: int, handle: bytes, data: Data) -> None:
        for client in job.clients:
            self.table.send_data(client, command, handle + b"\0", data)


def _name(body: Data) -> bytes:
    if len(body) > MAX_NAME_BYTES:
        raise ProtocolError(f"a function name of {len(body)} bytes")
    return bytes(body)


def _handle(body: Data) -> bytes:
    # Some clients send a NUL behind their only argument; gearmand reads handles as C strings.
    return bytes(body).partition(b"\0")[0]


def _split_report(body: Data) -> tuple[bytes, Data]:
    split = split_data(body, 1)
    if split is None:
        raise ProtocolError("a report without handle and data")
    return split[0][0], split[1]


def _status_fields(job: Job | None) -> bytes:
    if job is None:
        return b"\0000\0000\0000\0000"
    return b"\0001\0%d\0%d\0%d" % (job.state is JobState.RUNNING, job.numerator, job.denominator)


def _to_uint32(text: bytes) -> int:
    """Return a progress number as gearmand keeps it: of at most ten characters, in 32 bits."""
    return leading_int(text[:MAX_PROGRESS_BYTES]) & 0xFFFFFFFF
