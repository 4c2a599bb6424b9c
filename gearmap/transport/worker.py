"""One Gearman worker on all of its job servers: a connection to each, at most one job over all of them.

The links (`link`) bring packets in, the policy (`grabbing`) says whom to ask, and here is what the node sees. What
is mended here: a callback that runs inside the receive loop, PRE_SLEEP after every job, NOOP storms, the death of the
worker when one of its servers goes.

Law of the file: one thread, clocks and jitter are arguments, nothing waits. CANT_DO is never sent while a job is
held or asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from gearman.protocol import GEARMAN_COMMAND_GRAB_JOB_UNIQ, GEARMAN_COMMAND_PRE_SLEEP

from gearmap.config import Patience
from gearmap.errors import TransportError
from gearmap.transport.channel import ChannelState
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
)
from gearmap.transport.grabbing import GrabPolicy, Order, Orders, Phase
from gearmap.transport.link import LoopWorker, ServerLink, WorkerHandler
from gearmap.transport.parsing import text
from gearmap.transport.protocol import GET_STATUS_UNIQUE

__all__ = ["ServerLink", "WorkerLinks"]

# A worker that sleeps asks all the same, in case its wake-up went astray. Larger: work may wait so long; smaller: idle
# workers load the server.
IDLE_GRAB = 5.0
# With several servers, one that does not answer a GRAB for so long is given up for the others' sake.
ANSWER_TIMEOUT = 10.0

# A name of its own: an enum's member as key of a dict costs a call of a Python function for each packet.
_GRAB = Order.GRAB


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
    send_timeout
        See `Connection`.
    rotate
        Where in `functions` the first registration begins; every further connection begins one later.
        gearmand prefers the function registered last.
    jitter
        A random number between 0 and 1 for each reconnection.
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
        send_timeout: float = Patience().send_timeout,
        rotate: int = 0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._worker = LoopWorker(list(addresses))
        self._worker.rotation = rotate
        self._worker.set_client_id(client_id)
        for function in functions:
            self._worker.register_task(function, None)
        for connection in self._worker.connection_list:
            connection.send_timeout = send_timeout
        self.links: tuple[ServerLink, ...] = tuple(
            ServerLink(self, number, self._worker, connection, connect_timeout, jitter)
            for number, connection in enumerate(self._worker.connection_list)
        )
        self._policy = GrabPolicy(len(self.links))
        self._held: AssignedJob | None = None
        self._events: list[WorkerEvent] = []
        # Functions that are served until the worker is idle for a moment.
        self._leaving: list[str] = []
        self._phase_since = 0.0
        # The change of phase that `_phase_since` belongs to.
        self._timed_change = -1
        # The next tick is due not later than this.
        self._due: float | None = None

    # ------------------------------------------------------------------------------------------- lifecycle

    def start(self, now: float) -> None:
        """Begin to connect to every server."""
        self._phase_since = now
        for link in self.links:
            link.start(now)
        self._find_due(now)

    def tick(self, now: float) -> None:
        """Let deadlines fire: connecting, reconnecting, the grab of a sleeping worker."""
        for link in self.links:
            link.tick(now)
        self._end_phase(now)
        self._find_due(now)

    def _end_phase(self, now: float) -> None:
        """Do what is due if the present phase has lasted too long."""
        if self._policy.changes != self._timed_change:
            self._timed_change, self._phase_since = self._policy.changes, now
            return
        if self._phase_limit is None or now < self._phase_since + self._phase_limit:
            return
        self._phase_since = now
        if self._policy.is_asleep:
            self._obey(self._policy.forget_emptiness())
        elif self._has_waiting_grab:
            self._take_back()
        elif self._policy.current is not None:
            self.links[self._policy.current].give_up(f"has not answered for {ANSWER_TIMEOUT:g} s")

    @property
    def deadline(self) -> float | None:
        """The latest `now` at which `tick` must be called, or None.

        Not worked out for each packet: a tick now and then that finds nothing to do is cheaper.
        """
        # Events must not wait for the network to be taken.
        return 0.0 if self._events else self._due

    def _find_due(self, now: float) -> None:
        """Find out when the next tick must be: at the latest when a phase that begins now may have lasted too long."""
        soonest = None
        if any(link.state is not ChannelState.CLOSED for link in self.links):
            limit = self._phase_limit
            soonest = now + IDLE_GRAB if limit is None else self._phase_since + limit
        for link in self.links:
            due = link.deadline
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        self._due = soonest

    @property
    def _phase_limit(self) -> float | None:
        """How long the present phase may last."""
        if self._policy.is_asleep or self._has_waiting_grab:
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
        return self._held

    @property
    def backlog_bytes(self) -> int:
        """What the server that the held job came from has not taken yet."""
        return 0 if self._held is None else self.links[self._policy.current or 0].backlog_bytes

    def complete(self, job: AssignedJob, body: Body) -> bool:
        """Send the outcome and ask for the next job, to the same server in the same send.

        Returns
        -------
        False, and nothing is sent, if the job is no longer held.
        """
        return self._finish(job, WorkerHandler.send_job_complete, body)

    def fail(self, job: AssignedJob) -> bool:
        """Report a failure without data, and ask for the next job. Returns like `complete`."""
        return self._finish(job, WorkerHandler.send_job_failure)

    def exception(self, job: AssignedJob, data: Body) -> bool:
        """Report a failure with data, and ask for the next job. Returns like `complete`."""
        return self._finish(job, WorkerHandler.send_job_exception, data)

    def send_data(self, job: AssignedJob, data: Body) -> bool:
        """Send data ahead of the outcome. Returns like `complete`."""
        return self._send(job, WorkerHandler.send_job_data, data)

    def send_warning(self, job: AssignedJob, data: Body) -> bool:
        """Send a warning. Returns like `complete`."""
        return self._send(job, WorkerHandler.send_job_warning, data)

    def send_status(self, job: AssignedJob, numerator: int, denominator: int) -> bool:
        """Send progress. Returns like `complete`."""
        return self._send(job, WorkerHandler.send_job_status, numerator, denominator)

    def ask_clients(self, job: AssignedJob) -> bool:
        """Ask the job's own server how many clients wait for it: `UniqueStatus`. Returns like `complete`."""
        if self._held is not job:
            return False
        link = self.links[self._policy.current or 0]
        link.handler.send_command(GET_STATUS_UNIQUE, unique=job.unique)
        link.flush()
        return True

    def _send(self, job: AssignedJob, send: Callable[..., Any], *arguments: Any) -> bool:
        if self._held is not job:
            return False
        link = self.links[self._policy.current or 0]
        send(link.handler, job, *arguments)
        link.flush()
        return True

    def _finish(self, job: AssignedJob, send: Callable[..., Any], *arguments: Any) -> bool:
        if self._held is not job:
            return False
        link = self.links[self._policy.current or 0]
        send(link.handler, job, *arguments)
        self._held = None
        orders = self._policy.finished()
        self._obey(orders)
        if not orders or orders[-1][1] != link.number:
            link.flush()
        return True

    # ------------------------------------------------------------------------------------- what is served

    def pause(self) -> None:
        """Ask for no more jobs. A GRAB that is under way may still bring one."""
        self._policy.pause()
        self._take_back()

    def resume(self) -> None:
        """Ask for jobs again."""
        self._obey(self._policy.resume())

    def come_back(self, names: Sequence[str]) -> None:
        """Serve again after `leave`, whether that was done already or not."""
        for name in names:
            self.add_function(name)
        self.resume()

    def leave(self) -> None:
        """Ask for no more jobs and be woken for none: serve nothing, at once when idle, else once the job is done.

        A worker that is only paused would be woken all the same, and a server that wakes one worker for a job may have
        chosen it.
        """
        self._policy.pause()
        names = [name.decode("utf-8", "surrogateescape") for name in self._worker.worker_abilities]
        self._leaving += [name for name in names if name not in self._leaving]
        self._obey([])
        self._take_back()

    @property
    def has_left(self) -> bool:
        """Whether nothing is served any more, and no job is held or asked for."""
        return not self._worker.worker_abilities and self._policy.phase is Phase.IDLE

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
            self._take_back()

    # ---------------------------------------------------------------------------------- called by the links

    def link_came_up(self, number: int) -> None:
        self._due = 0.0  # at once
        self._events.append(ServerUp(self.links[number].address))
        if len(self.links) == 1:
            self.links[number].ask_for_waiting_grabs()
        self._obey(self._policy.came_up(number))

    def link_went_down(self, number: int, reason: TransportError | None) -> None:
        """A link is closed; `reason` is None if that has been reported already."""
        self._due = 0.0  # at once
        if reason is not None:
            self._events.append(ServerDown(self.links[number].address, reason))
        if self._held is not None and self._policy.current == number:
            self._events.append(JobLost(self._held))
            self._held = None
        self._obey(self._policy.went_down(number))

    def noop(self, number: int) -> None:
        self._obey(self._policy.noop(number))

    def no_job(self, number: int) -> None:
        waited = self.links[number].grabs_wait
        self._obey(self._policy.withdrawn(number) if waited else self._policy.no_job(number))

    def grabs_wait(self, number: int) -> None:
        """From now on a GRAB waits; one may wait already that is not wanted any more."""
        if self._policy.is_paused or self._leaving:
            self._take_back()

    @property
    def _has_waiting_grab(self) -> bool:
        return self._policy.phase is Phase.ASKING and self.links[self._policy.current or 0].grabs_wait

    def _take_back(self) -> None:
        """Take back a GRAB that waits; NO_JOB comes then, unless a job is on its way."""
        if self._has_waiting_grab:
            link = self.links[self._policy.current or 0]
            link.handler.send_bare(GEARMAN_COMMAND_PRE_SLEEP)
            link.flush()

    def assigned(self, number: int, handle: Payload, task: Payload, unique: Payload, data: Payload) -> None:
        self._policy.assigned(number)
        # gearman3's job objects are only looked at for their handle, which this one has.
        self._held = job = AssignedJob(self.links[number].address, text(handle), text(task), text(unique), data)
        self._events.append(JobAssigned(job))

    def emit(self, event: WorkerEvent) -> None:
        self._events.append(event)

    def _obey(self, orders: Orders) -> None:
        if self._leaving and (orders or self._policy.phase is Phase.IDLE):
            self._leave()
        for order, number in orders:
            link = self.links[number]
            # A flush in this loop may have found that a server is gone; the policy knows it by then.
            if link.state is ChannelState.READY:
                link.handler.send_bare(GEARMAN_COMMAND_GRAB_JOB_UNIQ if order is _GRAB else GEARMAN_COMMAND_PRE_SLEEP)
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
