"""One run as the driver thread sees it: its engine, its session, what it has sent and what came back.

Rule 1: everything here belongs to the driver thread, except what the docstring of a method says otherwise.
Rule 2: the run decides nothing: events go to `RunEngine`, instructions come out and are carried out here.
Rule 3: nothing that came over the network is unpickled here. It is opened, and handed on as bytes.

Data flow::

    blocks -> AddBlock -> engine -> Submit -> seal -> JobLink -> job server
    job server -> WorkData / WorkComplete -> OutcomeReader -> OutcomeArrived -> engine -> Deliver -> consumer
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gearmap.core import events as ev
from gearmap.core.engine import RunEngine
from gearmap.core.missing import NOTICE_SECONDS, WorkerWatch
from gearmap.core.names import Lane, TaskLane
from gearmap.errors import GearmapError, JobRejected, WireError
from gearmap.rarelog import RareLog
from gearmap.runtime.consumer import Consumer, Feeder
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.givenup import GivenUp, broken_run
from gearmap.runtime.inquiry import Inquiry
from gearmap.runtime.joblink import JobLink
from gearmap.runtime.jobwriter import JobWriter, Place
from gearmap.runtime.landing import Landing
from gearmap.runtime.liveoutput import LiveOutput
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.runtime.sentcall import SentCall
from gearmap.runtime.stopping import STOP_TOKEN, stop_requests
from gearmap.runtime.tenancy import Tenancy
from gearmap.runtime.unreached import no_server
from gearmap.runtime.wording import clock_time
from gearmap.transport.events import (
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
from gearmap.wire.framing import Payload
from gearmap.wire.jobheader import WARNING, BlockKind

__all__ = ["Place", "Run", "RunSettings"]

logger = logging.getLogger(__name__)
refusals = RareLog(logger)

# How long an envelope may wait for a worker (seconds of wall time).
EXPIRY_SECONDS = 24 * 3600

# Raised: less traffic; lowered: a changed number of workers is seen sooner.
STATUS_INTERVAL = 1.0

# Progress for whoever shows it. Raised: less work; lowered: smoother.
PROGRESS_INTERVAL = 0.1

# Refusals in a row (queue full) before the run is given up.
MAX_REJECTIONS = 20

_NEVER = float("inf")
_TICK = ev.Tick()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run needs to know beyond its tasks."""

    run_id: str
    lane: Lane | TaskLane
    depth: int = 0
    session_id: bytes
    session_key: bytes = field(repr=False)
    priority: str = "normal"
    feeds: Hashable = None
    task_timeout: float | None = None
    retry_exceptions: Payload | None = None
    tenancy: Tenancy | None = None
    max_tasks_per_child: int | None = None
    log_level: int | None = WARNING
    patience: float = NOTICE_SECONDS  # how long nobody may serve the lane before that is said
    landing: Landing | None = None  # where children of this machine hand the memory of large results over


class Run:
    """A run in the driver.

    Attributes
    ----------
    due
        When `step` must be called, if nothing else happens.
    waits
        Whether the run has tasks, so that it matters whether the cluster is well.
    is_broken_for_good
        Whether another run with the same settings would break as this one did.
    feeder
        See `Feeder`; None for a run that asks its consumer for blocks.
    """

    def __init__(self, settings: RunSettings, engine: RunEngine, consumer: Consumer, links: Sequence[JobLink]) -> None:
        self.settings = settings
        self.engine = engine
        self.consumer = consumer
        self.links = list(links)
        self.closed = False
        self.is_broken_for_good = False
        self.due = 0.0
        self.waits = False
        self.feeder: Feeder | None = None
        self._writer = JobWriter(
            run_id=settings.run_id,
            lane=settings.lane,
            depth=settings.depth,
            session_id=settings.session_id,
            session_key=settings.session_key,
            task_timeout=settings.task_timeout,
            retry_exceptions=settings.retry_exceptions,
            tenancy=settings.tenancy,
            max_tasks_per_child=settings.max_tasks_per_child,
            log_level=settings.log_level,
            landing=settings.landing,
        )
        if settings.landing is not None:
            settings.landing.begin(settings.session_id)
        self._newest_function: Hashable = None
        self._seconds: dict[Hashable, float] = {}
        self._sent: dict[int, OutcomeReader] = {}
        self._expired = False  # whether any job was refused so
        self._inquiry = Inquiry(engine, self._sent, self.links)
        self._inbox: list[ev.Input] = []
        self._outbox: dict[int, list[JobRequest]] = {}
        self._live = LiveOutput(engine, consumer)
        self._watch = WorkerWatch(settings.lane, settings.patience)
        self._rejections = 0
        self._asked_for = False
        self._began = time.monotonic()
        self._next_status = 0.0
        self._next_progress = 0.0
        self._awaited: set[int] = set()  # servers that are being tried for who waits in `reach`
        self._handlers: dict[type, Callable[[JobLink, Any, list[ev.Input], float], None]] = {
            WorkComplete: self._on_complete,
            WorkData: self._on_data,
            WorkFailed: self._on_failed,
            WorkException: self._on_failed,
            Rejected: self._on_rejected,
            StatusListing: self._on_status,
            UniqueStatus: self._on_unique_status,
            Connected: self._on_connected,
            Lost: self._on_lost,
            ConnectFailed: self._on_connect_failed,
        }
        self._carriers: dict[type, Callable[[Any, list[ev.Input]], None]] = {
            ev.Submit: self._submit,
            ev.FailTask: self._fail_task,
            ev.LoseTask: self._lose_task,
            ev.TimeOutTask: self._time_out_task,
            ev.DropBlock: self._drop_block,
            ev.CancelAttempt: self._cancel_attempt,
            ev.BreakRun: self._break,
            ev.RunEnded: self._end,
        }

    # --------------------------------------------------------------------------------------- commands (driver thread)

    def add_block(
        self,
        block: ev.Block,
        kind: BlockKind,
        payload: Any,
        place: Place,
        function: tuple[bytes, Any] | None = None,
        done: tuple[ev.TaskRange, ...] = (),
    ) -> None:
        """Take in pickled argument sets; `function` is (digest, payload), unless another block of it is here.

        The payload of a block of calls is a list with one for each call, or its stream alone. Tasks that are `done` are
        not run.
        """
        if self.closed:
            return
        if function is not None:
            self._writer.add_function(*function)
        self._newest_function = block.function
        self._writer.add_block(block.id, kind, payload, place, block.function)
        self._inbox.append(ev.AddBlock(block, done))
        self._asked_for = False

    def seconds_of(self, function: Hashable) -> float | None:
        """Return how long one task of the function took on average in the newest outcome, or None before the first."""
        return self._seconds.get(function)

    def tell(self, event: ev.Input) -> None:
        """Queue an event for the engine."""
        self._inbox.append(event)

    def reach(self) -> None:
        """Try every job server now; the feeder is told as soon as one answers, or when all have failed."""
        if any(link.is_up for link in self.links):
            assert self.feeder is not None
            self.feeder.reached()
            return
        now = time.monotonic()
        for link in self.links:
            link.hurry(now)
        self._awaited = {link.number for link in self.links}
        self.due = 0.0

    def cancel(self) -> None:
        """End the run now; what is queued on job servers is dropped."""
        self._apply([ev.CancelRun()], time.monotonic())

    def fail(self, error: GearmapError) -> None:
        """End the run with an error of ours."""
        if not self.closed:
            self.consumer.broken(error)
            self.cancel()

    def abort(self, error: GearmapError) -> None:
        """End the run when something in it has raised: neither its engine nor its consumer is relied on any more."""
        try:
            self.consumer.broken(error)
        except Exception:
            logger.exception("a run could not be told its error", extra={"action": "abort_run"})
        try:
            self._close()
        except Exception:
            logger.exception("a run could not be closed", extra={"action": "abort_run"})

    # ---------------------------------------------------------------------------------------------------------- a step

    def step(self, now: float) -> None:
        """Take in everything that has happened, plan, send."""
        if self.closed:
            return
        arrived = [(link, event) for link in self.links for event in link.step(now)]
        feeder = self.feeder
        if arrived and feeder is not None and feeder.has_more and feeder.feed(saturated=True):
            self._apply(self._taken(), now)  # so that what becomes free is planned with everything that waits
        events: list[ev.Input] = []
        is_news = False
        for link, event in arrived:
            handler = self._handlers.get(type(event))
            if handler is not None:
                is_news = True
                handler(link, event, events, now)
                if self.closed:
                    return
        if self._inbox:
            events += self._taken()
        due = self.engine.deadline
        if due is not None and now >= due:
            events.append(_TICK)
        if events or is_news:
            self._apply(events, now)
        elif now < self.due:
            self._writer.prepare()
            return  # an acknowledgement only: nothing depends on it
        if not self.closed:
            self._look_around(now)
            self._rest(now)

    def _taken(self) -> list[ev.Input]:
        taken, self._inbox = self._inbox, []
        return taken

    def _apply(self, events: list[ev.Input], now: float) -> None:
        while events:
            again: list[ev.Input] = []
            for instruction in self.engine.handle_all(events, now):
                self._carriers[type(instruction)](instruction, again)
            events = again
        if self._outbox:
            self._send()
        digest = self.settings.feeds
        if digest is not None and not self._asked_for and not self.closed:
            size = self.engine.next_block_size(digest)
            if size:
                self._asked_for = True
                self.consumer.wanted(size)

    def _rest(self, now: float) -> None:
        """Nothing is left to do: let the feeder know, and find out when the run must be stepped again."""
        if self.feeder is not None:
            while self.feeder.feed(saturated=self._is_saturated()):
                self._apply(self._taken(), now)
        self.due = self._next_due()

    def _is_saturated(self) -> bool:
        # With one job at most there is room in every window.
        return len(self._sent) > 1 and not self.engine.next_block_size(self._newest_function)

    def _next_due(self) -> float:
        due = _NEVER
        for link in self.links:
            at = link.deadline
            if at is not None and at < due:
                due = at
        at = self.engine.deadline
        if at is not None and at < due:
            due = at
        self.waits = self.engine.wants_workers
        if self.waits:
            due = min(due, self._next_status, self._next_progress, self._watch.due)
        return due

    def _look_around(self, now: float) -> None:
        """Ask how many workers there are, say if there are none, show progress."""
        if not self.engine.wants_workers:
            self._watch.rest()
            return
        self._watch.wake(now)
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL
            for link in self.links:
                link.request_status()
            self._inquiry.ask(now)
        notice = self._watch.notice(now, [str(link.address) for link in self.links]) if now >= self._watch.due else None
        if notice is not None:
            self.consumer.noticed(notice)
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL
            self.consumer.progressed(self.engine.snapshot(now - self._began, now))

    # ---------------------------------------------------------------------------------------------------- server events

    def _on_complete(self, link: JobLink, event: WorkComplete, events: list[ev.Input], now: float) -> None:
        self._on_outcome(event.token, event.data, events, now, final=True)

    def _on_data(self, link: JobLink, event: WorkData, events: list[ev.Input], now: float) -> None:
        self._on_outcome(event.token, event.data, events, now, final=False)

    def _on_failed(self, link: JobLink, event: WorkFailed | WorkException, events: list[ev.Input], now: float) -> None:
        token: Any = event.token
        events.append(ev.AttemptLost(token, ev.LossReason.WORKER, "the job server gave the job up"))
        self._sent.pop(token, None)

    def _on_connected(self, link: JobLink, event: Connected, events: list[ev.Input], now: float) -> None:
        events.append(ev.ServerUp(link.number))
        self._next_status = now
        self._awaited.clear()
        if self.feeder is not None:
            self.feeder.reached()

    def _on_lost(self, link: JobLink, event: Lost, events: list[ev.Input], now: float) -> None:
        logger.warning(
            "lost the job server at %s: %s; trying again", link.address, event.reason, extra={"action": "lose_server"}
        )
        events.append(ev.ServerDown(link.number))
        self._watch.server_gone(link.number, now)
        for attempt in [attempt for attempt, reader in self._sent.items() if reader.server == link.number]:
            del self._sent[attempt]
        self._unreached(link)

    def _unreached(self, link: JobLink) -> None:
        """Tell the feeder if that was the last server; the error is for who waits to hear of all."""
        if self.feeder is None or any(each.is_up for each in self.links):
            return
        is_answer = link.number in self._awaited
        self._awaited.discard(link.number)
        is_last = is_answer and not self._awaited
        self.feeder.unreached(no_server([each.failure() for each in self.links]) if is_last else None)

    def _on_outcome(self, token: Any, data: Any, events: list[ev.Input], now: float, *, final: bool) -> None:
        reader = self._sent.get(token)
        if reader is None:
            return
        try:
            opened = reader.read(token, data)
        except WireError as error:
            refusals.warning("an outcome was refused: %s", error)
            opened = []
            if not final:
                events.append(ev.AttemptLost(token, ev.LossReason.UNREADABLE, str(error)))
                self._sent.pop(token, None)
                return
        self._live.show(token, reader, now)
        for event, batches in opened:
            if isinstance(event, ev.OutcomeArrived):
                if event.not_run is not None and event.not_run.reason is ev.NotRunKind.EXPIRED and not self._expired:
                    self._expired, ours = True, clock_time(time.time())
                    logger.warning(
                        "a clock is wrong: %s, and %s here", event.not_run.detail, ours, extra={"action": "expired"}
                    )
                self._deliver(reader, event, batches, now)
            else:
                events.append(event)
        if final:
            self._sent.pop(token, None)
            if not (opened and isinstance(opened[-1][0], ev.OutcomeArrived) and opened[-1][0].final):
                events.append(ev.AttemptLost(token, ev.LossReason.UNREADABLE, "the job ended without an outcome"))

    def _deliver(
        self, reader: OutcomeReader, event: ev.OutcomeArrived, batches: Sequence[ResultBatch], now: float
    ) -> None:
        """Let the engine place the results of one outcome, while its payloads are at hand."""
        again: list[ev.Input] = []
        self._rejections = 0
        if event.count:
            self._seconds[reader.function] = event.elapsed / event.count
        for instruction in self.engine.handle(event, now):
            kind = type(instruction)
            if kind is ev.Deliver:
                assert isinstance(instruction, ev.Deliver)
                batch = batches[instruction.payload]
                batch.attempts = instruction.attempts
                self.consumer.delivered(
                    instruction.first, instruction.size, batch, instruction.offset, instruction.worker
                )
            else:
                self._carriers[kind](instruction, again)
        self._inbox += again

    def _on_rejected(self, link: JobLink, event: Rejected, events: list[ev.Input], now: float) -> None:
        token: Any = event.token
        if token == STOP_TOKEN:
            return
        text = f"{event.code}: {event.text}"
        self._sent.pop(token, None)
        self._rejections += 1
        if self._rejections >= MAX_REJECTIONS:
            self.fail(JobRejected(f"the job server at {link.address} refuses jobs: {text}"))
        else:
            events.append(ev.AttemptLost(token, ev.LossReason.REJECTED, text))

    def _on_status(self, link: JobLink, event: StatusListing, events: list[ev.Input], now: float) -> None:
        self._watch.listed(link.number, ((row.function, row.workers) for row in event.rows), now)
        count = self._watch.count
        assert count is not None
        events.append(ev.WorkersSeen(count))

    def _on_unique_status(self, link: JobLink, event: UniqueStatus, events: list[ev.Input], now: float) -> None:
        meant = self._inquiry.answered(event)
        if meant is not None:
            events.append(meant)
            if type(meant) is ev.AttemptLost:
                self._sent.pop(meant.attempt, None)

    def _on_connect_failed(self, link: JobLink, event: ConnectFailed, events: list[ev.Input], now: float) -> None:
        """Give up if no server has ever answered; later losses are waited out."""
        if any(each.was_up or not each.failures for each in self.links):
            self._unreached(link)
        else:
            self.fail(no_server([each.failure() for each in self.links]))

    # ----------------------------------------------------------------------------------------------------- instructions

    def _fail_task(self, instruction: ev.FailTask, again: list[ev.Input]) -> None:
        self.consumer.failed(instruction.task, instruction.failure, instruction.attempts, instruction.worker)

    def _lose_task(self, instruction: ev.LoseTask, again: list[ev.Input]) -> None:
        call = self._call_of(instruction.span)
        if call is not None and call.kind is BlockKind.CALLS and not instruction.alone:
            call = None  # among other calls a child does not note where loading ends, and this may have died of it
        self.consumer.gave_up(instruction.task, GivenUp.lost(instruction, call))

    def _time_out_task(self, instruction: ev.TimeOutTask, again: list[ev.Input]) -> None:
        call = self._call_of(instruction.span)
        self.consumer.gave_up(instruction.task, GivenUp.timed_out(instruction, self.settings.task_timeout, call))

    def _call_of(self, span: ev.Span | None) -> SentCall | None:
        return None if span is None else self._writer.call_of(span)

    def _drop_block(self, instruction: ev.DropBlock, again: list[ev.Input]) -> None:
        self._writer.drop_block(instruction.block)

    def _cancel_attempt(self, instruction: ev.CancelAttempt, again: list[ev.Input]) -> None:
        """Stop it where it runs, while the session goes on; its end drops and stops everything by itself."""
        reader = self._sent.get(instruction.attempt)
        if reader is None or not reader.nodes or self.engine.ended:
            return
        self._outbox.setdefault(reader.server, []).extend(self._stops(reader.nodes))

    def _stops(self, nodes: Mapping[bytes, str]) -> list[JobRequest]:
        """Return the requests that stop executions, given the node of each."""
        settings = self.settings
        return stop_requests(
            nodes,
            key_id=settings.lane.key_id,
            session_key=settings.session_key,
            session_id=settings.session_id,
            now=time.time(),
        )

    def _break(self, instruction: ev.BreakRun, again: list[ev.Input]) -> None:
        if instruction.kind is ev.NotRunKind.INITIALIZER_FAILED:
            self.is_broken_for_good = True
        self.consumer.broken(broken_run(instruction, time.time()))

    def _end(self, instruction: ev.RunEnded, again: list[ev.Input]) -> None:
        self._close()

    def _submit(self, instruction: ev.Submit, again: list[ev.Input]) -> None:
        tasks = _task_ranges(instruction)
        cancelled = [task for first, stop in tasks for task in self.consumer.claim(first, stop)]
        if cancelled:
            again.append(ev.AttemptLost(instruction.attempt, ev.LossReason.UNSENT, "a task was cancelled"))
            again.extend(ev.CancelTask(task) for task in cancelled)
            return
        attempt, server = instruction.attempt, instruction.server
        expiry = int(time.time()) + EXPIRY_SECONDS
        unique, sealed, self._sent[attempt] = self._writer.seal(instruction, tasks, expiry=expiry)
        priority: Any = self.settings.priority  # checked where it was given
        request = JobRequest(attempt, self._writer.function_name, unique, sealed, priority)
        self._outbox.setdefault(server, []).append(request)

    def _send(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for number, requests in outbox.items():
            self.links[number].submit(requests)

    def _close(self) -> None:
        self.closed = True
        self.due = _NEVER
        self.waits = False
        for link in self.links:
            link.leave(self._sent, self._stops)
        if self.settings.landing is not None:
            self.settings.landing.end(self.settings.session_id)
        self._writer.clear()
        self._sent.clear()
        self._inbox.clear()
        self._outbox.clear()
        self.consumer.ended(self.engine.snapshot(time.monotonic() - self._began))


def _task_ranges(instruction: ev.Submit) -> list[tuple[int, int]]:
    """Return the tasks of a chunk, neighbouring spans as one range."""
    ranges: list[tuple[int, int]] = []
    for span in instruction.spans:
        base = span.block.first
        first, stop = base + span.start, base + span.stop
        if ranges and ranges[-1][1] == first:
            first = ranges.pop()[0]
        ranges.append((first, stop))
    return ranges
