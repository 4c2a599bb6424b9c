"""The run engine: the only owner of a run's retries.

Rule 1: `handle` is total. Events may come late, twice, out of order or not at all; every task settles exactly once.
Rule 2: a task is in at most one *live* attempt. An attempt that was given up stays known until its job is over: what it
still delivers counts if it is the first to do so.
Rule 3: what a node or a server did wrong is run again, uncharged; only the task that took a worker with it is charged.
Where nobody knows which one did, the chunk is halved until one task is left: no chunk can kill workers for ever.
Rule 4: tasks beyond the window stay here, where cancelling them is exact and free.

Data flow::

    AddBlock -> waiting -> Submit ----------> live attempt --OutcomeArrived--> Deliver / FailTask
                  ^                               |
                  +---- run again (uncharged, or charged to one task) <--- NOT_RUN, AttemptLost, silence
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from gearmap.config import Patience
from gearmap.core import events as ev
from gearmap.core.attempts import Attempt
from gearmap.core.board import CANCELLED, DELAYED, DONE, FAILED, SENT, WAITING, TaskBoard
from gearmap.core.chunking import TARGET_BYTES, TaskStatistics, budget, chunk_size
from gearmap.core.reruns import Reruns
from gearmap.core.retry import History, RetryPolicy
from gearmap.core.snapshot import ProgressSnapshot, WorkerView
from gearmap.core.tally import Tally

__all__ = ["BEAT_TIMEOUT", "RunEngine"]

BEAT_TIMEOUT = Patience().beat_timeout

# After this part of the timeout a job that nobody has told of is asked about. Raised: fewer questions about jobs that
# wait for other clients'; lowered: a job that vanished with its worker is missed sooner.
UNHEARD_PART = 1 / 3

# Jobs at the servers for each worker: one that runs and one that waits. Raised: less idle time between chunks; lowered:
# more tasks stay in the client, where cancelling is exact, and other clients get their turn sooner.
JOBS_PER_WORKER = 2

# Workers that are taken for granted while nobody knows how many there are. Raised: a faster start on large clusters;
# lowered: more tasks stay in the client.
UNKNOWN_WORKERS = 2

# Executions of one attempt that a job server may start by itself before the engine takes the attempt back.
MAX_EXECUTIONS = 5

# How long a job server that refused a job (its queue is full) gets no other. Raised: less traffic that leads nowhere;
# lowered: less idle time once there is room.
REJECTION_PAUSE = 1.0

# Workers that a snapshot names. Raised: more work ten times a second; lowered: fewer of a large cluster's are seen.
SHOWN_WORKERS = 32

# A worker whose chunk is over is taken to have another for so long (seconds): of short chunks nothing else is heard.
# Raised: idle ones look busy for longer; lowered: busy ones look idle between two chunks.
BETWEEN_CHUNKS = 1.0

_NEVER = float("inf")
_FRESH = History()
_UNCHARGED = (ev.LossReason.SERVER, ev.LossReason.REJECTED, ev.LossReason.UNSENT)


class RunEngine:
    """All decisions of one run.

    Parameters
    ----------
    policy
        Limits for failures and losses.
    chunksize
        Tasks in each chunk, or None to measure.
    max_chunksize
        The most tasks in a chunk, whatever else says more, or None: as many as a child may run in all.
    max_workers
        The most jobs of this run in flight, or None.
    fail_fast
        Whether the first task that fails for good ends the run.
    total
        How many tasks there will be, if it is known before the input has ended.
    seed
        Any number; spreads the retries of many tasks, and of many runs, over time.
    beat_timeout
        Seconds of silence after which an execution is taken for lost.

    Attributes
    ----------
    tally
        What happened to its jobs.
    """

    def __init__(
        self,
        *,
        policy: RetryPolicy | None = None,
        chunksize: int | None = None,
        max_chunksize: int | None = None,
        max_workers: int | None = None,
        fail_fast: bool = True,
        total: int | None = None,
        seed: int = 0,
        beat_timeout: float = BEAT_TIMEOUT,
    ) -> None:
        self.tally = Tally()
        self._beat_timeout = beat_timeout
        self._chunksize = chunksize
        self._max_chunksize = max_chunksize
        self._max_workers = max_workers
        self._fail_fast = fail_fast
        self._total = total
        self._board = TaskBoard()
        self._statistics: dict[Hashable, TaskStatistics] = {}
        self._fresh = 0  # the first task that was never sent
        self._reruns = Reruns(self._board, policy or RetryPolicy(), fail_fast=fail_fast, seed=seed)
        self._attempts: dict[int, Attempt] = {}
        self._in_flight: dict[int, int] = {}  # live attempts of each server that is up
        self._paused: dict[int, float] = {}  # when a server that refused a job is asked again
        self._next_attempt = 1
        self._workers: int | None = None
        self._again = 0  # executions that job servers added
        self._earlier = 0
        self._retried = 0
        self._heard: dict[str, float] = {}  # when the first workers ended a chunk last
        self._input_ended = False
        self._stopped = False
        self._ended = False
        self._next_check = _NEVER
        self._handlers: dict[type, Callable[[Any, float, list[ev.Instruction]], None]] = {
            ev.AddBlock: self._on_block,
            ev.InputEnded: self._on_input_ended,
            ev.ServerUp: self._on_server_up,
            ev.ServerDown: self._on_server_down,
            ev.WorkersSeen: self._on_workers,
            ev.Beat: self._on_beat,
            ev.OutcomeArrived: self._on_outcome,
            ev.AttemptLost: self._on_lost,
            ev.JobSeen: self._on_job_seen,
            ev.CancelTask: self._on_cancel_task,
            ev.CancelRun: self._on_cancel_run,
            ev.Tick: self._on_tick,
        }

    # ------------------------------------------------------------------------------------------------------- surface

    def handle(self, event: ev.Input, now: float) -> list[ev.Instruction]:
        """Take in one event; return what to do."""
        return self.handle_all((event,), now)

    def handle_all(self, events: tuple[ev.Input, ...] | list[ev.Input], now: float) -> list[ev.Instruction]:
        """Take in several events and plan once; return what to do.

        At most one of them is an outcome: `Deliver` speaks of its payloads.
        """
        out: list[ev.Instruction] = []
        for event in events:
            if not self._ended:
                self._handlers[type(event)](event, now, out)
                if self._is_over():
                    self._end(out)
            elif isinstance(event, ev.AddBlock):
                out.append(ev.DropBlock(event.block.id))
        if not self._ended:
            self._plan(now, out)
        return out

    @property
    def deadline(self) -> float | None:
        """When a `Tick` is due (monotonic seconds), or None."""
        return None if self._ended or self._next_check == _NEVER else self._next_check

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._ended

    @property
    def wants_workers(self) -> bool:
        """Whether the number of workers matters now: there are tasks that are not settled."""
        return not self._ended and self._board.open > 0

    def unheard(self, now: float) -> list[int]:
        """Return the live attempts that were sent long ago and have no execution: they wait, or vanished."""
        sent_before = now - self._beat_timeout * UNHEARD_PART
        attempts = self._attempts.values()
        return [one.id for one in attempts if one.live and not one.executions and one.last_sign <= sent_before]

    def next_block_size(self, function: Hashable) -> int:
        """Return how many tasks the next block should hold, or 0 while there is enough: one block is kept ahead."""
        if self._ended or self._input_ended or self._board.counts[WAITING]:
            return 0
        return self._size(function, None if self._total is None else self._ahead)

    def snapshot(self, elapsed: float, now: float | None = None) -> ProgressSnapshot:
        """Return the run's progress after `elapsed` seconds; with `now`, also what its workers do."""
        counts, ahead = self._board.counts, self._ahead
        known = self._input_ended or self._total is not None
        return ProgressSnapshot(
            total=self._board.size + ahead if known else None,
            done=counts[DONE],
            failed=counts[FAILED],
            cancelled=counts[CANCELLED] + (ahead if self._ended else 0),
            running=counts[SENT],
            queued=counts[WAITING] + counts[DELAYED] + (0 if self._ended else ahead),
            again=self._again + self._reruns.again,
            elapsed=elapsed,
            workers=self._workers,
            earlier=self._earlier,
            retried=self._retried,
            partial=self._partial(),
            working=() if now is None else self._working(now),
        )

    def _partial(self) -> float:
        """Return the sum of how far the running tasks say that they are."""
        partial = 0.0
        for attempt in self._attempts.values():
            if attempt.progress is not None:
                execution, position, fraction = attempt.progress
                if self.running_task(attempt.id, execution, position) is not None:
                    partial += fraction
        return partial

    def _working(self, now: float) -> tuple[WorkerView, ...]:
        """Return what the first workers do, by name; one that was lost and is back is at work."""
        views: dict[str, WorkerView] = {}
        for attempt in self._attempts.values():
            name = attempt.worker
            if name is None or (name in views and not attempt.live):
                continue
            if len(views) == SHOWN_WORKERS and name not in views:
                break
            task = self._task_of(attempt) if attempt.live else None
            silent = attempt.silence(now, self._beat_timeout)
            views[name] = WorkerView(name, task, max(0.0, now - attempt.heard_at), not attempt.live, silent)
        for name, at in self._heard.items():
            if len(views) < SHOWN_WORKERS and name not in views and now - at < BETWEEN_CHUNKS:
                views[name] = WorkerView(name, None, max(0.0, now - at))
        return tuple(sorted(views.values(), key=lambda view: view.name))

    def _task_of(self, attempt: Attempt) -> int | None:
        """Return the task that an attempt is at: the first open one from where its worker was last known to be."""
        for first, stop, _ in attempt.locate(attempt.suspect or 0, attempt.size):
            task = self._board.first_open(first, stop)
            if task is not None:
                return task
        return None

    @property
    def _ahead(self) -> int:
        """Tasks that are still to come, as far as that is known."""
        return 0 if self._total is None or self._input_ended else max(0, self._total - self._board.size)

    def running_task(self, attempt: int, execution: bytes, position: int) -> int | None:
        """Return the open task at a position of a live attempt, if no newer execution of it is known."""
        known = self._attempts.get(attempt)
        if known is None or not known.live:
            return None
        if execution in known.executions and execution != next(reversed(known.executions)):
            return None
        task = known.task_at(position)
        return task if task is not None and self._board.is_open(task) else None

    # --------------------------------------------------------------------------------------------------------- inputs

    def _on_block(self, event: ev.AddBlock, now: float, out: list[ev.Instruction]) -> None:
        block = event.block
        if block.size < 1:
            out.append(ev.DropBlock(block.id))
            return
        self._board.add(block)
        for start, stop in event.done:
            self._earlier += stop - start
            self._settle(start, stop, DONE, out)
        if block.payload_bytes:
            self._stats(block.function).pickled(block.size, block.payload_bytes)

    def _on_input_ended(self, event: ev.InputEnded, now: float, out: list[ev.Instruction]) -> None:
        self._input_ended = True

    def _on_server_up(self, event: ev.ServerUp, now: float, out: list[ev.Instruction]) -> None:
        self._in_flight.setdefault(event.server, 0)

    def _on_server_down(self, event: ev.ServerDown, now: float, out: list[ev.Instruction]) -> None:
        if self._in_flight.pop(event.server, None) is None:
            return
        self._paused.pop(event.server, None)
        for attempt in [a for a in reversed(self._attempts.values()) if a.server == event.server]:
            self._on_lost(ev.AttemptLost(attempt.id, ev.LossReason.SERVER), now, out)

    def _on_workers(self, event: ev.WorkersSeen, now: float, out: list[ev.Instruction]) -> None:
        self._workers = event.count

    def _on_beat(self, event: ev.Beat, now: float, out: list[ev.Instruction]) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None and attempt.live:
            self._sign(attempt, event.execution, event.worker, event.position, now)
            if event.progress is not None and event.position is not None:
                attempt.progress = (event.execution, event.position, event.progress)
            self._limit_executions(attempt, now, out)

    def _on_outcome(self, event: ev.OutcomeArrived, now: float, out: list[ev.Instruction]) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None:
            return
        if event.count <= attempt.size:
            self._stats(attempt.function).measured(event.count, event.elapsed)
        for number, (start, stop) in enumerate(event.done):
            self._deliver(attempt, event, number, start, stop, out)
        if attempt.live:
            self._sign(attempt, event.execution, event.worker, None, now)
            if event.not_run is not None:
                self.tally.given_back(event.not_run.why or event.not_run.reason.value)
            self.tally.failures += len(event.failed)
            for failed in event.failed:
                self._reruns.task_failed(attempt, failed, event.worker, now, out)
            if event.final:
                if len(self._heard) < SHOWN_WORKERS or event.worker in self._heard:
                    self._heard[event.worker] = now
                self._give_up(attempt)
                self._put_back(attempt, event.not_run, event.worker, now, out)
            else:
                self._limit_executions(attempt, now, out)
        if event.final:
            del self._attempts[attempt.id]

    def _on_lost(self, event: ev.AttemptLost, now: float, out: list[ev.Instruction]) -> None:
        attempt = self._attempts.pop(event.attempt, None)
        if attempt is None or not attempt.live:
            return
        self._give_up(attempt)
        self.tally.lost(event.reason.value)
        if event.reason is ev.LossReason.REJECTED:
            self._paused[attempt.server] = now + REJECTION_PAUSE
            self._next_check = min(self._next_check, now + REJECTION_PAUSE)
        kind = ev.NotRunKind.AGAIN if event.reason in _UNCHARGED else ev.NotRunKind.DIED
        report = ev.NotRunReport(kind, event.detail or event.reason.value, attempt.suspect)
        self._put_back(attempt, report, None, now, out)

    def _on_job_seen(self, event: ev.JobSeen, now: float, out: list[ev.Instruction]) -> None:
        """A job that a worker has taken must be told of soon. Back in the queue it may wait as long as it likes."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None or not attempt.live or attempt.executions:
            return
        if not event.running:
            attempt.taken_at = _NEVER
        elif attempt.taken_at == _NEVER:
            attempt.taken_at = now
            self._next_check = min(self._next_check, now + self._beat_timeout)

    def _on_cancel_task(self, event: ev.CancelTask, now: float, out: list[ev.Instruction]) -> None:
        if self._board.is_waiting(event.task):
            self._settle(event.task, event.task + 1, CANCELLED, out)

    def _on_cancel_run(self, event: ev.CancelRun, now: float, out: list[ev.Instruction]) -> None:
        self._stopped = True

    def _on_tick(self, event: ev.Tick, now: float, out: list[ev.Instruction]) -> None:
        if now < self._next_check:
            return
        self._paused = {server: until for server, until in self._paused.items() if until > now}
        self._reruns.wake(now)
        self._next_check = min(self._reruns.due, *self._paused.values(), _NEVER)
        for attempt in list(self._attempts.values()):
            if not attempt.live:
                continue
            due = (attempt.last_sign if attempt.executions else attempt.taken_at) + self._beat_timeout
            if now >= due:
                self._abandon(attempt, ev.LossReason.SILENT, now, out)
            else:
                self._next_check = min(self._next_check, due)

    # ------------------------------------------------------------------------------------------------------- outcomes

    def _sign(self, attempt: Attempt, execution: bytes, worker: str, position: int | None, now: float) -> None:
        """Take in a sign of life of one execution; a second execution is the job server's doing, and is counted."""
        attempt.last_sign = now
        self._next_check = min(self._next_check, now + self._beat_timeout)
        is_new = execution not in attempt.executions
        if is_new:
            attempt.worker, attempt.heard_at = worker, now
        self.tally.executions += is_new
        if is_new and attempt.executions:
            self._again += attempt.size
        if is_new or position is not None:
            attempt.executions[execution] = position

    def _limit_executions(self, attempt: Attempt, now: float, out: list[ev.Instruction]) -> None:
        if len(attempt.executions) > MAX_EXECUTIONS:
            self._abandon(attempt, ev.LossReason.WORKER, now, out)

    def _deliver(
        self,
        attempt: Attempt,
        event: ev.OutcomeArrived,
        number: int,
        start: int,
        stop: int,
        out: list[ev.Instruction],
    ) -> None:
        for first, last, offset in attempt.locate(start, stop):
            for low, high in self._board.open_ranges(first, last):
                out.append(
                    ev.Deliver(
                        number,
                        offset + low - first,
                        low,
                        high - low,
                        attempt.id,
                        event.worker,
                        attempt.history.attempts,
                    )
                )
                self._settle(low, high, DONE, out)
                if attempt.history.failures:
                    self._retried += high - low

    # ------------------------------------------------------------------------------------------------------ run again

    def _abandon(self, attempt: Attempt, reason: ev.LossReason, now: float, out: list[ev.Instruction]) -> None:
        """Give up waiting for a live attempt, but keep listening to it."""
        out.append(ev.CancelAttempt(attempt.id))
        self._give_up(attempt)
        self.tally.lost(reason.value)
        report = ev.NotRunReport(ev.NotRunKind.DIED, reason.value, attempt.suspect)
        self._put_back(attempt, report, None, now, out)

    def _put_back(
        self,
        attempt: Attempt,
        report: ev.NotRunReport | None,
        worker: str | None,
        now: float,
        out: list[ev.Instruction],
    ) -> None:
        """Let every open task of an attempt that was live go again, or settle it."""
        # A task that raised had its function, too; whose it was does not matter then.
        is_loaded = self.tally.failures > 0 or self._stats(attempt.function).seconds is not None
        if not self._reruns.put_back(attempt, report, worker, out, workers=self._workers, is_loaded=is_loaded, now=now):
            self._stopped = True
        self._next_check = min(self._next_check, self._reruns.due)

    # ------------------------------------------------------------------------------------------------------- planning

    def _plan(self, now: float, out: list[ev.Instruction]) -> None:
        while self._board.counts[WAITING]:
            server = self._roomiest_server(now)
            if server is None:
                return
            ranges, history = self._reruns.take() if self._reruns else self._take_fresh()
            if not ranges:
                continue  # settled while they waited
            spans = tuple(span for start, stop in ranges for span in self._board.spans(start, stop))
            for start, stop in ranges:
                self._board.move(start, stop, WAITING, SENT)
            attempt = Attempt(self._next_attempt, server, spans[0].block.function, ranges, history, last_sign=now)
            self._next_attempt += 1
            self.tally.jobs += 1
            self._attempts[attempt.id] = attempt
            self._in_flight[server] += 1
            limit = budget(self._expected_workers) if self._chunksize is None and attempt.size > 1 else None
            out.append(ev.Submit(attempt.id, server, spans, history.avoid, history.attempts, history.exact, limit))

    def _roomiest_server(self, now: float) -> int | None:
        """Return the server with the fewest jobs of this run, or None if every window is full."""
        if self._max_workers is not None and sum(self._in_flight.values()) >= self._max_workers:
            return None
        servers = [server for server in self._in_flight if self._paused.get(server, now) <= now]
        server = min(servers, key=self._in_flight.__getitem__, default=None)
        return None if server is None or self._in_flight[server] >= self._window() else server

    def _window(self) -> int:
        """Return how many jobs each server may hold."""
        if self._workers is None:
            return JOBS_PER_WORKER * UNKNOWN_WORKERS
        return max(2, -(-JOBS_PER_WORKER * self._workers // max(1, len(self._in_flight))))

    def _take_fresh(self) -> tuple[list[ev.TaskRange], History]:
        """Take whole blocks of one function, as many as a chunk should hold, and one at least."""
        start = self._fresh
        function: Hashable = None
        room = byte_room = 0
        for block in self._board.blocks(start):
            if block.first < start:
                continue
            if self._fresh == start:
                function = block.function
                room = self._size(function, self._ahead + self._board.counts[WAITING])
                byte_room = TARGET_BYTES
            elif block.size > room or block.payload_bytes > byte_room or block.function != function or block.alone:
                break
            room -= block.size
            byte_room -= block.payload_bytes
            self._fresh = block.first + block.size
            if block.alone:
                break
        return self._board.waiting_ranges(start, self._fresh), _FRESH

    def _size(self, function: Hashable, remaining: int | None) -> int:
        """Return how many tasks a chunk should take."""
        workers = self._expected_workers
        size = chunk_size(self._stats(function), workers=workers, remaining=remaining, chunksize=self._chunksize)
        return size if self._max_chunksize is None else min(size, self._max_chunksize)

    @property
    def _expected_workers(self) -> int:
        workers = self._workers or UNKNOWN_WORKERS
        return workers if self._max_workers is None else min(workers, self._max_workers)

    def _stats(self, function: Hashable) -> TaskStatistics:
        statistics = self._statistics.get(function)
        if statistics is None:
            statistics = self._statistics[function] = TaskStatistics()
        return statistics

    # ---------------------------------------------------------------------------------------------------------- books

    def _open_ranges(self, attempt: Attempt) -> list[ev.TaskRange]:
        return [part for start, stop in attempt.ranges for part in self._board.open_ranges(start, stop)]

    def _settle(self, start: int, stop: int, state: int, out: list[ev.Instruction]) -> None:
        out.extend(map(ev.DropBlock, self._board.settle(start, stop, state)))

    def _give_up(self, attempt: Attempt) -> None:
        """Make a live attempt one that is not: its place in the window is free."""
        attempt.live = False
        if attempt.server in self._in_flight:
            self._in_flight[attempt.server] -= 1

    def _is_over(self) -> bool:
        if self._stopped or (self._fail_fast and self._board.counts[FAILED] > 0):
            return True
        return self._input_ended and self._board.open == 0

    def _end(self, out: list[ev.Instruction]) -> None:
        """Settle what is left as cancelled and give up every attempt."""
        self._ended = True
        for attempt in self._attempts.values():
            # One that runs and has delivered everything is about to be over: stopping it would cost a child.
            if attempt.live and (not attempt.executions or self._open_ranges(attempt)):
                out.append(ev.CancelAttempt(attempt.id))
        out.extend(map(ev.DropBlock, self._board.cancel_open()))
        self._reruns.clear()
        self._attempts.clear()
        self._in_flight = dict.fromkeys(self._in_flight, 0)
        out.append(ev.RunEnded())
