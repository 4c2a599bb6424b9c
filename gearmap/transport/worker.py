"""One Gearman worker on all of its job servers: a connection to each, at most one job over all of them.

Inside is a GearmanWorker whose connections are driven by a selector loop. What is mended here: a callback that
runs inside the receive loop, PRE_SLEEP after every job, NOOP storms, the death of the worker when one server goes,
RESET_ABILITIES on live connections (it requeues the running job), str names, an exception followed by a failure.

Law of the file: one thread, clocks and jitter are arguments, nothing waits. CANT_DO is never sent while a job is
held or asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from gearman.job import GearmanJob
from gearman.protocol import (
    GEARMAN_COMMAND_CAN_DO,
    GEARMAN_COMMAND_CANT_DO,
    GEARMAN_COMMAND_GRAB_JOB_UNIQ,
    GEARMAN_COMMAND_PRE_SLEEP,
    GEARMAN_COMMAND_SET_CLIENT_ID,
)
from gearman.worker import GearmanWorker
from gearman.worker_handler import GearmanWorkerCommandHandler

from gearmap.errors import ServerUnavailable, TransportError
from gearmap.transport.channel import Channel, ChannelState, Greeting, PassThrough
from gearmap.transport.client import unique_status
from gearmap.transport.connection import Connection
from gearmap.transport.events import (
    Address,
    AssignedJob,
    Body,
    JobAssigned,
    JobLost,
    Payload,
    ServerDown,
    ServerUp,
    WorkerEvent,
    show_address,
)
from gearmap.transport.grabbing import GrabPolicy, Order, Orders, Phase
from gearmap.transport.protocol import GET_STATUS_UNIQUE

__all__ = ["ServerLink", "WorkerLinks"]

# A lost server is tried again after 0.2, 0.4, ... 30 s, times a random share: a thousand workers must not come at once.
FIRST_RETRY = 0.2
LAST_RETRY = 30.0
# A worker that sleeps asks all the same, in case its wake-up went astray. Larger: work may wait so long; smaller: idle
# workers load the server.
IDLE_GRAB = 5.0
# With several servers, one that does not answer a GRAB for so long is given up for the others' sake.
ANSWER_TIMEOUT = 10.0
_COMMANDS = {Order.GRAB: GEARMAN_COMMAND_GRAB_JOB_UNIQ, Order.SLEEP: GEARMAN_COMMAND_PRE_SLEEP}


class WorkerLinks:
    """One Gearman worker: its connections and the job it holds.

    Parameters
    ----------
    addresses
        The job servers.
    functions
        Function names to serve.
    client_id
        Name shown in the servers' `workers` listing.
    connect_timeout
        Seconds until a server that has not answered counts as away.
    rotate
        Where in `functions` the first registration begins; every further connection begins one later.
        gearmand prefers the function registered last.
    jitter
        A random number between 0 and 1 for each reconnection.
    tls
        An `ssl.SSLContext`, to speak TLS.

    Attributes
    ----------
    links
        One pollable per job server.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        functions: Sequence[str],
        client_id: str,
        *,
        connect_timeout: float = 2.0,
        rotate: int = 0,
        jitter: Callable[[], float] = random.random,
        tls: Any = None,
    ) -> None:
        self._worker = _Worker(list(addresses))
        self._worker.links = self
        self._worker.rotation = rotate
        self._worker.set_client_id(client_id)
        for function in functions:
            self._worker.register_task(function, None)
        self.links: tuple[ServerLink, ...] = tuple(
            ServerLink(self, number, self._worker, connection, connect_timeout, jitter)
            for number, connection in enumerate(self._worker.connection_list)
        )
        for link in self.links:
            link.set_tls(tls)
        self._policy = GrabPolicy(len(self.links))
        self._held: tuple[AssignedJob, GearmanJob] | None = None
        self._events: list[WorkerEvent] = []
        # Functions that are served until the worker is idle for a moment.
        self._leaving: list[str] = []
        self._phase_since = 0.0
        # The change of phase that `_phase_since` belongs to.
        self._timed_change = -1

    # ------------------------------------------------------------------------------------------- lifecycle

    def start(self, now: float) -> None:
        """Begin to connect to every server."""
        self._phase_since = now
        for link in self.links:
            link.start(now)

    def tick(self, now: float) -> None:
        """Let deadlines fire: connecting, reconnecting, the grab of a sleeping worker."""
        for link in self.links:
            link.tick(now)
        if self._policy.changes != self._timed_change:
            self._timed_change, self._phase_since = self._policy.changes, now
            return
        if self._phase_limit is None or now < self._phase_since + self._phase_limit:
            return
        self._phase_since = now
        if self._policy.is_asleep:
            self._obey(self._policy.forget_emptiness())
        elif self._policy.current is not None:
            self.links[self._policy.current].give_up(f"has not answered for {ANSWER_TIMEOUT:g} s")

    @property
    def deadline(self) -> float | None:
        """The latest `now` at which `tick` must be called, or None."""
        deadlines = [link.deadline for link in self.links]
        if self._phase_limit is not None:
            # If the phase has changed since the last tick, the next tick sets its beginning.
            deadlines.append(self._phase_since + self._phase_limit)
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def _phase_limit(self) -> float | None:
        """How long the present phase may last."""
        if self._policy.is_asleep:
            return IDLE_GRAB
        if self._policy.phase is Phase.ASKING and len(self.links) > 1:
            return ANSWER_TIMEOUT
        return None

    def close(self) -> None:
        """Close every connection; a held job goes back to its server."""
        self._held = None
        for link in self.links:
            link.stop()

    def take_events(self) -> list[WorkerEvent]:
        """Return what has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    # ------------------------------------------------------------------------------------------ the held job

    @property
    def job(self) -> AssignedJob | None:
        """The job that is held, or None."""
        return self._held[0] if self._held is not None else None

    def complete(self, job: AssignedJob, body: Body) -> bool:
        """Send the outcome and ask for the next job, to the same server in the same send.

        Returns
        -------
        False, and nothing is sent, if the job is no longer held.
        """
        return self._finish(job, self._worker.send_job_complete, body)

    def fail(self, job: AssignedJob) -> bool:
        """Report a failure without data, and ask for the next job. Returns like `complete`."""
        return self._finish(job, self._worker.send_job_failure)

    def exception(self, job: AssignedJob, data: Body) -> bool:
        """Report a failure with data, and ask for the next job. Returns like `complete`."""
        return self._finish(job, self._worker.send_job_exception, data)

    def send_data(self, job: AssignedJob, data: Body) -> bool:
        """Send data ahead of the outcome. Returns like `complete`."""
        return self._send(job, self._worker.send_job_data, data)

    def send_warning(self, job: AssignedJob, data: Body) -> bool:
        """Send a warning. Returns like `complete`."""
        return self._send(job, self._worker.send_job_warning, data)

    def send_status(self, job: AssignedJob, numerator: int, denominator: int) -> bool:
        """Send progress. Returns like `complete`."""
        return self._send(job, self._worker.send_job_status, numerator, denominator)

    def ask_clients(self, job: AssignedJob) -> bool:
        """Ask the job's own server how many clients wait for it: `UniqueStatus`. Returns like `complete`."""
        if self._held is None or self._held[0] is not job:
            return False
        link = self.links[self._policy.current or 0]
        link.handler.send_command(GET_STATUS_UNIQUE, unique=job.unique)
        link.flush()
        return True

    def _send(self, job: AssignedJob, send: Callable[..., Any], *arguments: Any) -> bool:
        if self._held is None or self._held[0] is not job:
            return False
        send(self._held[1], *arguments)
        self.links[self._policy.current or 0].flush()
        return True

    def _finish(self, job: AssignedJob, send: Callable[..., Any], *arguments: Any) -> bool:
        if self._held is None or self._held[0] is not job:
            return False
        send(self._held[1], *arguments)
        link = self.links[self._policy.current or 0]
        self._held = None
        self._obey(self._policy.finished())
        link.flush()
        return True

    # ------------------------------------------------------------------------------------- what is served

    def pause(self) -> None:
        """Ask for no more jobs. A GRAB that is under way may still bring one."""
        self._policy.pause()

    def resume(self) -> None:
        """Ask for jobs again."""
        self._obey(self._policy.resume())

    def add_function(self, name: str) -> None:
        """Serve one function more, also on open connections; a held job is not disturbed."""
        if name in self._leaving:
            self._leaving.remove(name)
            return
        self._worker.register_task(name, None)
        self._flush()
        self._obey(self._policy.forget_emptiness())

    def remove_function(self, name: str) -> None:
        """Stop serving a function: at once when idle, else before the next job is asked for."""
        if name.encode("utf-8", "surrogateescape") in self._worker.worker_abilities:
            self._leaving.append(name)
            self._obey([])

    # ---------------------------------------------------------------------------------- called by the links

    def link_came_up(self, number: int) -> None:
        self._events.append(ServerUp(self.links[number].address))
        self._obey(self._policy.came_up(number))

    def link_went_down(self, number: int, reason: TransportError | None) -> None:
        """A link is closed; `reason` is None if that has been reported already."""
        if reason is not None:
            self._events.append(ServerDown(self.links[number].address, reason))
        if self._held is not None and self._policy.current == number:
            self._events.append(JobLost(self._held[0]))
            self._held = None
        self._obey(self._policy.went_down(number))

    def noop(self, number: int) -> None:
        self._obey(self._policy.noop(number))

    def no_job(self, number: int) -> None:
        self._obey(self._policy.no_job(number))

    def assigned(self, number: int, job: GearmanJob) -> None:
        self._policy.assigned(number)
        assigned = AssignedJob(
            self.links[number].address, _text(job.handle), _text(job.task), _text(job.unique), job.data
        )
        self._held = (assigned, job)
        self._events.append(JobAssigned(assigned))

    def emit(self, event: WorkerEvent) -> None:
        self._events.append(event)

    def _obey(self, orders: Orders) -> None:
        if self._leaving and (orders or self._policy.phase is Phase.IDLE):
            self._leave()
        for order, number in orders:
            link = self.links[number]
            # A flush in this loop may have found that a server is gone; the policy knows it by then.
            if link.state is ChannelState.READY:
                link.handler.send_command(_COMMANDS[order])
                link.flush()

    def _leave(self) -> None:
        # Orders are given only when no job is held and no GRAB under way, so CANT_DO requeues nothing here.
        leaving, self._leaving = self._leaving, []
        for name in leaving:
            self._worker.unregister_task(name)
        self._flush()

    def _flush(self) -> None:
        for link in self.links:
            link.flush()


class ServerLink(Channel):
    """A worker's connection to one job server, which comes back by itself."""

    handler: _WorkerHandler

    def __init__(
        self,
        owner: WorkerLinks,
        number: int,
        worker: _Worker,
        connection: Connection,
        connect_timeout: float,
        jitter: Callable[[], float],
    ) -> None:
        super().__init__(worker, connection, connect_timeout)
        self._owner = owner
        self._number = number
        self._jitter = jitter
        self._failures = 0
        self._is_known_down = False
        self._retry_at: float | None = None
        self._is_stopped = False
        self._now = 0.0
        connection.link = self

    @property
    def deadline(self) -> float | None:
        if self.state is ChannelState.CLOSED and not self._is_stopped:
            # Just lost: the next tick, which knows the time, sets the time of the next attempt.
            return self._now if self._retry_at is None else self._retry_at
        return super().deadline

    def set_tls(self, tls: Any) -> None:
        self._connection.tls = tls

    def tick(self, now: float) -> None:
        self._now = now
        if self.state is not ChannelState.CLOSED:
            super().tick(now)
        if self.state is not ChannelState.CLOSED or self._is_stopped:
            return
        if self._retry_at is None:
            delay = min(LAST_RETRY, FIRST_RETRY * 2**self._failures)
            self._failures = min(self._failures + 1, 16)
            self._retry_at = now + delay * (0.5 + 0.5 * self._jitter())
        elif now >= self._retry_at:
            self._retry_at = None
            self.start(now)

    def give_up(self, how: str) -> None:
        """Close a connection whose server hangs; it is tried again like a lost one."""
        self._down(ServerUnavailable(f"the job server at {show_address(self.address)} {how}"))

    def stop(self) -> None:
        """Close for good."""
        self._is_stopped = True
        self._shut()

    def _came_up(self) -> None:
        self._failures = 0
        self._is_known_down = False
        self._owner.link_came_up(self._number)

    def _went_down(self, reason: TransportError, was_ready: bool) -> None:
        self._retry_at = None
        self._owner.link_went_down(self._number, None if self._is_known_down else reason)
        self._is_known_down = True


class _WorkerHandler(Greeting, GearmanWorkerCommandHandler):  # type: ignore[misc]  # gearman3 has no types
    """One connection's packets, handed to the WorkerLinks with the number of the link."""

    def initial_state(self, abilities: Any = None, client_id: str | None = None) -> None:
        connection = self.connection_manager.handler_to_connection_map[self]
        self.channel: ServerLink = connection.link
        self._owner = self.channel._owner
        self._number = self.channel._number
        self._client_id = client_id
        self.greet(
            (GEARMAN_COMMAND_SET_CLIENT_ID, {"client_id": client_id}),
            *(
                (GEARMAN_COMMAND_CAN_DO, {"task": task})
                for task in self.connection_manager.rotated_abilities()
            ),
        )

    def set_abilities(self, connection_abilities_list: Sequence[bytes]) -> None:
        """Tell the server about functions that it does not know yet; never RESET_ABILITIES."""
        for task in connection_abilities_list:
            self.send_command(GEARMAN_COMMAND_CAN_DO, task=task)

    def recv_noop(self) -> None:
        self._owner.noop(self._number)

    def recv_no_job(self) -> None:
        self._owner.no_job(self._number)

    def recv_job_assign_uniq(
        self, job_handle: Payload, task: Payload, unique: Payload, data: Payload
    ) -> None:
        job = self.connection_manager.create_job(self, bytes(job_handle), bytes(task), bytes(unique), data)
        self._owner.assigned(self._number, job)

    def recv_job_assign(self, job_handle: Payload, task: Payload, data: Payload) -> None:
        self.recv_job_assign_uniq(job_handle, task, b"", data)

    def recv_job_assign_all(
        self, job_handle: Payload, task: Payload, unique: Payload, reducer: Payload, data: Payload
    ) -> None:
        self.recv_job_assign_uniq(job_handle, task, unique, data)

    def recv_status_res_unique(
        self,
        unique: Payload,
        known: Payload,
        running: Payload,
        numerator: Payload,
        denominator: Payload,
        clients: Payload,
    ) -> None:
        self._owner.emit(unique_status(unique, known, running, numerator, denominator, clients))

    def recv_error(self, error_code: Payload, error_text: Payload) -> None:
        """A job that the server no longer knows: it was cancelled, or requeued by a server that restarted."""


class _Worker(GearmanWorker):  # type: ignore[misc]  # gearman3 has no types
    """gearman3's worker without its loop, its waiting and its job lock."""

    connection_class = Connection
    command_handler_class = _WorkerHandler
    data_encoder = PassThrough
    links: WorkerLinks
    rotation = 0

    def register_task(self, task: str, callback_function: Any) -> str:
        name = task.encode("utf-8", "surrogateescape")
        if name not in self.worker_abilities:
            self.worker_abilities[name] = callback_function
            for handler in self.handler_to_connection_map:
                handler.set_abilities([name])
        return task

    def unregister_task(self, task: str) -> str:
        name = task.encode("utf-8", "surrogateescape")
        if name in self.worker_abilities:
            del self.worker_abilities[name]
            for handler in self.handler_to_connection_map:
                handler.send_command(GEARMAN_COMMAND_CANT_DO, task=name)
        return task

    def rotated_abilities(self) -> list[bytes]:
        """The functions, beginning one later at every call."""
        names = list(self.worker_abilities)
        start = self.rotation % len(names) if names else 0
        self.rotation += 1
        return names[start:] + names[:start]

    def send_job_exception(
        self, current_job: GearmanJob, data: Any, poll_timeout: float | None = None
    ) -> None:
        """Without the WORK_FAIL after it: the exception has removed the job already."""
        self._get_handler_for_job(current_job).send_job_exception(current_job, data=data)

    def wait_until_updates_sent(self, multiple_gearman_jobs: Any, poll_timeout: float | None = None) -> None:
        """Nothing waits; the caller flushes."""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
