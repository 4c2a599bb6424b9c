"""One run as the driver thread sees it: its engine, its session, what it has sent and what came back.

Rule 1: everything here belongs to the driver thread, except what the docstring of a method says otherwise.
Rule 2: the run decides nothing: events go to `RunEngine`, instructions come out and are carried out here.
Rule 3: nothing that came over the network is unpickled here. It is opened, and handed on as bytes.

Data flow::

    blocks -> AddBlock -> engine -> Submit -> seal -> ServerLink -> job server
    job server -> WorkData / WorkComplete -> OutcomeReader -> OutcomeArrived -> engine -> Deliver -> consumer
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gearmap.core import events as ev
from gearmap.core.engine import RunEngine
from gearmap.core.names import Lane, explain_no_worker
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import ClockSkew, GearmapError, JobRejected, ServerUnavailable, WireError
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.runtime.serverlink import ServerLink
from gearmap.transport.events import (
    Connected,
    ConnectFailed,
    JobRequest,
    Lost,
    Rejected,
    StatusListing,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFailed,
)
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import BlockHeader, BlockKind, JobHeader

__all__ = ["Consumer", "Place", "Run", "RunSettings"]

logger = logging.getLogger(__name__)

# How long an envelope may wait for a worker (seconds of wall time).
EXPIRY_SECONDS = 24 * 3600

# Raised: less traffic; lowered: a changed number of workers is seen sooner.
STATUS_INTERVAL = 1.0

# How long a run with tasks may find no worker before it says so.
NO_WORKER_SECONDS = 2.0

# Progress for whoever shows it. Raised: less work; lowered: smoother.
PROGRESS_INTERVAL = 0.1

# Refusals in a row (queue full) before the run is given up.
MAX_REJECTIONS = 20


class Consumer(Protocol):
    """Whoever wants a run's results. Called in the driver thread, must not block."""

    def claim(self, first: int, stop: int) -> Sequence[int]:
        """The tasks are about to be sent; return those that were cancelled meanwhile."""

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        """Results for the tasks `first .. first + size`."""

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        """The task raised, for good."""

    def lost(self, task: int, losses: int, detail: str, worker: str | None) -> None:
        """The task took too many workers with it."""

    def broken(self, error: GearmapError) -> None:
        """The run cannot go on."""

    def wanted(self, size: int) -> None:
        """Another block of `size` tasks is wanted."""

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        """Counts have changed, or time has passed."""

    def noticed(self, text: str) -> None:
        """Something that a person should know, once."""

    def ended(self, snapshot: ProgressSnapshot) -> None:
        """Nothing will come any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where tasks run on the same machine: the caller's folder and import path; None elsewhere."""

    cwd: str | None = None
    sys_path: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run needs to know beyond its tasks."""

    run_id: str
    lane: Lane
    session_id: bytes
    session_key: bytes = field(repr=False)
    priority: str = "normal"
    feeds: Hashable = None
    lasts: bool = False


@dataclass(slots=True)
class _StoredBlock:
    """A block's bytes, kept until its tasks are settled."""

    kind: BlockKind
    payload: Any
    place: Place


@dataclass(slots=True)
class _Sent:
    """An attempt that was sent."""

    server: int
    reader: OutcomeReader


class Run:
    """A run in the driver."""

    def __init__(
        self, settings: RunSettings, engine: RunEngine, consumer: Consumer, links: Sequence[ServerLink]
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.consumer = consumer
        self.links = list(links)
        self.closed = False
        self._functions: dict[Hashable, Any] = {}
        self._blocks: dict[int, _StoredBlock] = {}
        self._sent: dict[int, _Sent] = {}
        self._inbox: deque[ev.Input] = deque()
        self._outbox: dict[int, list[JobRequest]] = {}
        self._workers_on: dict[int, int] = {}
        self._served: dict[int, tuple[tuple[str, int], ...]] = {}
        self._rejections = 0
        self._asked_for = False
        self._noticed = False
        self._began = time.monotonic()
        self._next_status = 0.0
        self._next_progress = 0.0
        self._waiting_since: float | None = None

    # --------------------------------------------------------------------------------------- commands (driver thread)

    def add_block(
        self, block: ev.Block, kind: BlockKind, payload: Any, place: Place, function: tuple[bytes, Any] | None = None
    ) -> None:
        """Take in pickled argument sets; `function` is (digest, payload) where it may be new."""
        if self.closed:
            return
        if function is not None:
            self._functions.setdefault(function[0], function[1])
        self._blocks[block.id] = _StoredBlock(kind, payload, place)
        self._inbox.append(ev.AddBlock(block))
        self._asked_for = False

    def tell(self, event: ev.Input) -> None:
        """Queue an event for the engine."""
        self._inbox.append(event)

    def cancel(self) -> None:
        """End the run now; what is queued on job servers is dropped with the session."""
        self._apply([ev.CancelRun()], time.monotonic())

    def fail(self, error: GearmapError) -> None:
        """End the run with an error of ours."""
        if not self.closed:
            self.consumer.broken(error)
            self.cancel()

    # ---------------------------------------------------------------------------------------------------------- a step

    @property
    def deadline(self) -> float | None:
        """When the run must be stepped again, if nothing else happens."""
        due = [link.deadline for link in self.links if link.deadline is not None]
        if self.engine.deadline is not None:
            due.append(self.engine.deadline)
        if self.engine.wants_workers:
            due += [self._next_status, self._next_progress]
        return min(due, default=None)

    def step(self, now: float) -> None:
        """Take in everything that has happened, plan, send."""
        if self.closed:
            return
        events: list[ev.Input] = []
        for link in self.links:
            for event in link.step(now):
                self._on_server_event(link, event, events, now)
                if self.closed:
                    return
        while self._inbox:
            events.append(self._inbox.popleft())
        if self.engine.deadline is not None and now >= self.engine.deadline:
            events.append(ev.Tick())
        self._apply(events, now)
        if not self.closed:
            self._look_around(now)

    def _apply(self, events: list[ev.Input], now: float) -> None:
        pending = list(self.engine.handle_all(events, now)) if events else []
        while pending:
            again: list[ev.Input] = []
            for instruction in pending:
                self._carry_out(instruction, again)
            pending = list(self.engine.handle_all(again, now)) if again else []
        self._send()
        if self.settings.feeds is not None and not self._asked_for and not self.closed:
            size = self.engine.next_block_size(self.settings.feeds)
            if size:
                self._asked_for = True
                self.consumer.wanted(size)

    def _look_around(self, now: float) -> None:
        """Ask how many workers there are, say if there are none, show progress."""
        if not self.engine.wants_workers:
            self._waiting_since = None
            return
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL
            for link in self.links:
                link.request_status()
            self._notice_missing_workers(now)
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL
            self.consumer.progressed(self.engine.snapshot(now - self._began))

    def _notice_missing_workers(self, now: float) -> None:
        if not self._workers_on or max(self._workers_on.values()) > 0:
            self._waiting_since = None
            return
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since >= NO_WORKER_SECONDS - STATUS_INTERVAL and not self._noticed:
            self._noticed = True
            served = [pair for pairs in self._served.values() for pair in pairs]
            self.consumer.noticed(explain_no_worker(self.settings.lane, served, str(self.links[0].address)))

    # ---------------------------------------------------------------------------------------------------- server events

    def _on_server_event(self, link: ServerLink, event: Any, events: list[ev.Input], now: float) -> None:
        match event:
            case WorkComplete(int(token), data):
                self._on_outcome(token, data, events, final=True)
            case WorkData(int(token), data):
                self._on_outcome(token, data, events, final=False)
            case WorkFailed(int(token)) | WorkException(int(token), _):
                events.append(ev.AttemptLost(token, ev.LossReason.WORKER, "the job server gave the job up"))
                self._sent.pop(token, None)
            case Rejected(int(token), code, text):
                self._on_rejected(link, token, f"{code}: {text}", events)
            case StatusListing(rows):
                self._on_status(link, rows, events)
            case Connected():
                events.append(ev.ServerUp(link.number))
                self._next_status = now
            case Lost(reason, _):
                logger.warning("lost the job server at %s: %s", link.address, reason, extra={"action": "lose_server"})
                events.append(ev.ServerDown(link.number))
                self._workers_on.pop(link.number, None)
                self._forget_server(link.number)
            case ConnectFailed():
                self._on_connect_failed()

    def _on_outcome(self, token: int, data: Any, events: list[ev.Input], *, final: bool) -> None:
        sent = self._sent.get(token)
        if sent is None:
            return
        try:
            opened = sent.reader.read(token, data)
        except WireError as error:
            logger.warning("an outcome was refused: %s", error, extra={"action": "refuse_outcome"})
            opened = []
            if not final:
                events.append(ev.AttemptLost(token, ev.LossReason.UNREADABLE, str(error)))
                self._sent.pop(token, None)
                return
        for event, batches in opened:
            if isinstance(event, ev.OutcomeArrived):
                self._deliver(event, batches)
            else:
                events.append(event)
        if final:
            self._sent.pop(token, None)
            if not (opened and isinstance(opened[-1][0], ev.OutcomeArrived) and opened[-1][0].final):
                events.append(ev.AttemptLost(token, ev.LossReason.UNREADABLE, "the job ended without an outcome"))

    def _deliver(self, event: ev.OutcomeArrived, batches: Sequence[ResultBatch]) -> None:
        """Let the engine place the results of one outcome, while its payloads are at hand."""
        again: list[ev.Input] = []
        self._rejections = 0
        for instruction in self.engine.handle(event, time.monotonic()):
            if isinstance(instruction, ev.Deliver):
                batch = batches[instruction.payload]
                self.consumer.delivered(
                    instruction.first, instruction.size, batch, instruction.offset, instruction.worker
                )
            else:
                self._carry_out(instruction, again)
        self._inbox.extend(again)

    def _on_rejected(self, link: ServerLink, token: int, text: str, events: list[ev.Input]) -> None:
        self._sent.pop(token, None)
        self._rejections += 1
        if self._rejections >= MAX_REJECTIONS:
            self.fail(JobRejected(f"the job server at {link.address} refuses jobs: {text}"))
        else:
            events.append(ev.AttemptLost(token, ev.LossReason.REJECTED, text))

    def _on_status(self, link: ServerLink, rows: Sequence[Any], events: list[ev.Input]) -> None:
        served = tuple((row.function, row.workers) for row in rows)
        self._served[link.number] = served
        self._workers_on[link.number] = dict(served).get(self.settings.lane.name, 0)
        count = max(self._workers_on.values())
        events.append(ev.WorkersSeen(count))
        if count:
            self._waiting_since = None

    def _on_connect_failed(self) -> None:
        """Give up if no server has ever answered; later losses are waited out."""
        if any(link.was_up or not link.failures for link in self.links):
            return
        first = self.links[0]
        names = ", ".join(f"{str(link.address)!r} (from {link.address.origin})" for link in self.links)
        self.fail(
            ServerUnavailable(
                f"no job server answered at {names}: {first.last_reason}; start one: gearmap server"
                + (f" --host {first.address.host}" if not first.address.is_loopback else "")
            )
        )

    def _forget_server(self, number: int) -> None:
        for attempt in [attempt for attempt, sent in self._sent.items() if sent.server == number]:
            del self._sent[attempt]

    # ----------------------------------------------------------------------------------------------------- instructions

    def _carry_out(self, instruction: ev.Instruction, again: list[ev.Input]) -> None:
        match instruction:
            case ev.Submit():
                self._submit(instruction, again)
            case ev.FailTask(task, failure, attempts, worker):
                self.consumer.failed(task, failure, attempts, worker)
            case ev.LoseTask(task, losses, detail, worker):
                self.consumer.lost(task, losses, detail, worker)
            case ev.DropBlock(block):
                self._blocks.pop(block, None)
            case ev.CancelAttempt():
                pass  # the session's end does it; one attempt of a living session is stopped from M2 on
            case ev.BreakRun(_, detail):
                self.consumer.broken(ClockSkew(f"client and worker clocks are too far apart: {detail}"))
            case ev.RunEnded():
                self._close()
            case ev.Deliver():
                raise AssertionError("results are placed where they are opened")

    def _submit(self, instruction: ev.Submit, again: list[ev.Input]) -> None:
        cancelled = [
            task for span in instruction.spans for task in self.consumer.claim(span.first, span.first + span.size)
        ]
        if cancelled:
            again.append(ev.AttemptLost(instruction.attempt, ev.LossReason.UNSENT, "a task was cancelled"))
            again.extend(ev.CancelTask(task) for task in cancelled)
            return
        unique = uuid.uuid4().hex
        settings = self.settings
        function = settings.lane.name
        context = envelope.make_context(function.encode(), unique.encode())
        header, body = self._content(instruction)
        sealed = envelope.seal_message(
            kind=envelope.Kind.JOB,
            key=seal.job_key(settings.session_key, unique.encode()),
            session_id=settings.session_id,
            expiry=int(time.time()) + EXPIRY_SECONDS,
            context=context,
            header=header.encode(),
            body=envelope.frame(body),
        )
        reader = OutcomeReader(settings.session_id, settings.session_key, unique.encode(), context)
        self._sent[instruction.attempt] = _Sent(instruction.server, reader)
        request = JobRequest(
            instruction.attempt,
            function,
            unique,
            sealed,
            priority=settings.priority,  # type: ignore[arg-type]
        )
        self._outbox.setdefault(instruction.server, []).append(request)

    def _content(self, instruction: ev.Submit) -> tuple[JobHeader, list[Any]]:
        """Return the job's header and the payloads of its body."""
        digest = instruction.function
        assert isinstance(digest, bytes)
        body: list[Any] = [self._functions[digest]]
        blocks: list[BlockHeader] = []
        calls = 0
        place = Place()
        for span in instruction.spans:
            stored = self._blocks[span.block.id]
            body.append(stored.payload)
            place = stored.place
            if stored.kind is BlockKind.CALLS:
                calls += 1  # single calls of one chunk are one block to the child
            else:
                blocks.append(BlockHeader(kind=stored.kind, size=span.block.size, run=((span.start, span.stop),)))
        if calls:
            blocks.append(BlockHeader(kind=BlockKind.CALLS, size=calls, run=((0, calls),)))
        header = JobHeader(
            run=self.settings.run_id,
            function_digest=digest.hex(),
            foreground=True,
            avoid=instruction.avoid,
            level=self.settings.lane.level,
            cwd=place.cwd,
            sys_path=place.sys_path,
            blocks=tuple(blocks),
        )
        return header, body

    def _send(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for number, requests in outbox.items():
            self.links[number].submit(requests)

    def _close(self) -> None:
        self.closed = True
        for link in self.links:
            link.close()
        self._blocks.clear()
        self._functions.clear()
        self._sent.clear()
        self._inbox.clear()
        self._outbox.clear()
        self.consumer.ended(self.engine.snapshot(time.monotonic() - self._began))
