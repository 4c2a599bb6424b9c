"""A worker's connection to one job server, and gearman3's worker without its loop.

What is mended here: RESET_ABILITIES on live connections (it requeues the running job), str names, an exception
followed by a failure, a job lock and a receive loop that other servers' packets upset, reconnecting without backoff.

Law of the file: a link decides nothing about jobs; it tells its owner what has come, with its own number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gearman.protocol import (
    GEARMAN_COMMAND_CAN_DO,
    GEARMAN_COMMAND_CANT_DO,
    GEARMAN_COMMAND_OPTION_REQ,
    GEARMAN_COMMAND_SET_CLIENT_ID,
    GEARMAN_COMMAND_WORK_COMPLETE,
    GEARMAN_COMMAND_WORK_DATA,
)
from gearman.worker import GearmanWorker
from gearman.worker_handler import GearmanWorkerCommandHandler

from gearmap.errors import ServerUnavailable, TransportError
from gearmap.transport.channel import Channel, ChannelState, Greeting, PassThrough
from gearmap.transport.connection import Connection, TakesAddresses
from gearmap.transport.events import Payload, UniqueStatus, show_address
from gearmap.transport.parsing import unique_status
from gearmap.transport.protocol import encoded

__all__ = ["LinkOwner", "LoopWorker", "ServerLink", "WorkerHandler"]

# A lost server is tried again after 0.2, 0.4, ... 30 s, times a random share: a thousand workers must not come at once.
FIRST_RETRY = 0.2
LAST_RETRY = 30.0

# What makes GRABs wait at the embedded server, and how its version ends. No other server is asked.
_WAITING_GRABS = "waiting_grabs"
_OURS = "+gearmap"


class LinkOwner(Protocol):
    """What a link reports to."""

    def link_came_up(self, number: int) -> None: ...

    def link_went_down(self, number: int, reason: TransportError | None) -> None: ...

    def grabs_wait(self, number: int) -> None: ...

    def noop(self, number: int) -> None: ...

    def no_job(self, number: int) -> None: ...

    def assigned(self, number: int, handle: Payload, task: Payload, unique: Payload, data: Payload) -> None: ...

    def emit(self, event: UniqueStatus) -> None: ...


class ServerLink(Channel):
    """A worker's connection to one job server, which comes back by itself."""

    handler: WorkerHandler

    def __init__(
        self,
        owner: LinkOwner,
        number: int,
        worker: LoopWorker,
        connection: Connection,
        connect_timeout: float,
        jitter: Callable[[], float],
    ) -> None:
        super().__init__(worker, connection, connect_timeout)
        self._owner = owner
        self.number = number
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

    @property
    def backlog_bytes(self) -> int:
        """What was handed over to be sent and is not sent yet."""
        return self._connection.outgoing.n_bytes

    @property
    def grabs_wait(self) -> bool:
        """Whether a GRAB is answered when there is a job, and taken back by PRE_SLEEP."""
        return self.state is ChannelState.READY and self.handler.grabs_wait

    def ask_for_waiting_grabs(self) -> None:
        """Have GRABs wait at the server, if it is one that can; for a worker that has no other to ask meanwhile.

        It refuses where its workers may be on other hosts, and then nothing changes.
        """
        if self.server_version.endswith(_OURS):
            self.handler.send_command(GEARMAN_COMMAND_OPTION_REQ, option_name=_WAITING_GRABS)

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
        self._owner.link_came_up(self.number)

    def _went_down(self, reason: TransportError, was_ready: bool) -> None:
        self._retry_at = None
        self._owner.link_went_down(self.number, None if self._is_known_down else reason)
        self._is_known_down = True


class WorkerHandler(Greeting, GearmanWorkerCommandHandler):  # type: ignore[misc]  # gearman3 has no types
    """One connection's packets, handed to the WorkerLinks with the number of the link."""

    def initial_state(self, abilities: Any = None, client_id: str | None = None) -> None:
        connection = self.connection_manager.handler_to_connection_map[self]
        self.channel: ServerLink = connection.link
        self._owner = self.channel._owner
        self._number = self.channel.number
        self._client_id = client_id
        self.grabs_wait = False
        self.greet(
            (GEARMAN_COMMAND_SET_CLIENT_ID, {"client_id": client_id}),
            *((GEARMAN_COMMAND_CAN_DO, {"task": task}) for task in self.connection_manager.rotated_abilities()),
        )

    def set_abilities(self, connection_abilities_list: Sequence[bytes]) -> None:
        """Tell the server about functions that it does not know yet; never RESET_ABILITIES."""
        for task in connection_abilities_list:
            self.send_command(GEARMAN_COMMAND_CAN_DO, task=task)

    def send_job_complete(self, current_job: Any, data: Any) -> None:
        self._connection.send_with_data(GEARMAN_COMMAND_WORK_COMPLETE, (encoded(current_job.handle),), data)

    def send_job_data(self, current_job: Any, data: Any) -> None:
        self._connection.send_with_data(GEARMAN_COMMAND_WORK_DATA, (encoded(current_job.handle),), data)

    def recv_option_res(self, option_name: Payload) -> None:
        self.grabs_wait = True
        self._owner.grabs_wait(self._number)

    def recv_noop(self) -> None:
        self._owner.noop(self._number)

    def recv_no_job(self) -> None:
        self._owner.no_job(self._number)

    def recv_job_assign_uniq(self, job_handle: Payload, task: Payload, unique: Payload, data: Payload) -> None:
        self._owner.assigned(self._number, job_handle, task, unique, data)

    def recv_job_assign(self, job_handle: Payload, task: Payload, data: Payload) -> None:
        self.recv_job_assign_uniq(job_handle, task, b"", data)

    def recv_job_assign_all(
        self, job_handle: Payload, task: Payload, unique: Payload, reducer: Payload, data: Payload
    ) -> None:
        self.recv_job_assign_uniq(job_handle, task, unique, data)

    def recv_status_res_unique(self, *fields: Payload) -> None:
        self._owner.emit(unique_status(*fields))

    def recv_error(self, error_code: Payload, error_text: Payload) -> None:
        """A job or an option that the server does not know: cancelled, or requeued by a server that restarted."""


class LoopWorker(TakesAddresses, GearmanWorker):  # type: ignore[misc]  # gearman3 has no types
    """gearman3's worker without its loop, its waiting and its job lock."""

    command_handler_class = WorkerHandler
    data_encoder = PassThrough
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
