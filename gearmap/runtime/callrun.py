"""All `submit`s of a client with the same options: one open-ended run whose results are futures.

Rule 1: `submit` pickles in the calling thread and returns; the driver takes what was submitted in one go.
Rule 2: a future is claimed just before its task is sent: until then cancelling it is exact.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import ClusterBroken, GearmapError
from gearmap.runtime.driver import Driver
from gearmap.runtime.futures import Future, PendingFailure, ResultBatch, ResultShare
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.run import Place, Run
from gearmap.runtime.wording import failure_note
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.outcome import TaskFailure

__all__ = ["CallRun"]

logger = logging.getLogger(__name__)

# Calls that together take less than this, as far as was measured, travel as one block. Raised: less work for each call
# in the driver; lowered: calls of uneven length are spread better.
BLOCK_SECONDS = 0.002

# Limits of such a block. Raised: less work for each call; lowered: less is at stake where a measurement misleads.
MAX_BLOCK_CALLS = 64
MAX_BLOCK_BYTES = 256 * 1024

_Submitted = tuple[int, tuple[bytes, Any], Any, int, Place]
"""Index, function, payload of the arguments, its size, place."""


class CallRun:
    """The consumer of an open-ended run."""

    def __init__(self, driver: Driver, make_run: Callable[[CallRun], Run]) -> None:
        self._driver = driver
        self._make_run = make_run
        self._run: Run | None = None
        self._lock = threading.Lock()
        # Under the lock: submitted and not yet seen by the driver; the next index; whether the driver will look for
        # more by itself.
        self._submitted: list[_Submitted] = []
        self._futures: dict[int, Future[Any]] = {}
        self._next = 0
        self._told = False
        self.over = False
        self._claimed: set[int] = set()  # driver thread only

    def submit(self, function: tuple[bytes, Any], call: Any, place: Place) -> Future[Any]:
        """Add one call, pickled already; return its future.

        Raises
        ------
        ClusterBroken
            If the run is over.
        """
        size = len(call[0]) if len(call) == 1 else sum(memoryview(part).nbytes for part in call)
        with self._lock:
            if self.over:
                raise ClusterBroken("the run is over")
            index = self._next
            self._next = index + 1
            future: Future[Any] = Future(index, self._on_cancel)
            self._futures[index] = future
            self._submitted.append((index, function, call, size, place))
            told, self._told = self._told, True
        if not told:
            self._driver.post(self._take)
        return future

    def _on_cancel(self, task: int) -> None:
        self._driver.post(lambda: self._drop(task))

    # ------------------------------------------------------------------------------------------------- driver thread

    def _take(self) -> None:
        if self._run is None:
            self._run = self._make_run(self)
            self._run.feeder = self
            self._driver.add(self._run)
        self.feed(saturated=True)

    @property
    def has_more(self) -> bool:
        return bool(self._submitted)

    def feed(self, *, saturated: bool) -> bool:
        with self._lock:
            submitted = self._submitted
            if not submitted:
                self._told = saturated
                return False
            self._submitted = []
        start = 0
        while start < len(submitted):
            stop = self._block_end(submitted, start)
            self._add_block(submitted[start:stop])
            start = stop
        return True

    def _block_end(self, submitted: Sequence[_Submitted], start: int) -> int:
        """Return where the block that begins at `start` ends: calls of one function that take no time to speak of."""
        _, function, _, room, place = submitted[start]
        assert self._run is not None
        seconds = self._run.seconds_of(function[0])
        if seconds is None:
            return start + 1
        last = min(len(submitted), start + MAX_BLOCK_CALLS, start + int(BLOCK_SECONDS / max(seconds, 1e-6)))
        stop = start + 1
        while stop < last:
            _, other, _, size, elsewhere = submitted[stop]
            room += size
            if other[0] != function[0] or elsewhere is not place or room > MAX_BLOCK_BYTES:
                break
            stop += 1
        return stop

    def _add_block(self, calls: Sequence[_Submitted]) -> None:
        first, function, _, _, place = calls[0]
        size = sum(each[3] for each in calls)
        block = ev.Block(first, first, len(calls), function[0], size)
        assert self._run is not None
        self._run.add_block(block, BlockKind.CALLS, [each[2] for each in calls], place, function)

    def _drop(self, task: int) -> None:
        """A future was cancelled while its task waited."""
        self._pop(task)
        if self._run is not None:
            self._run.tell(ev.CancelTask(task))

    def claim(self, first: int, stop: int) -> Sequence[int]:
        cancelled = []
        for task in range(first, stop):
            if task in self._claimed:
                continue  # sent before; it runs again after a loss
            future = self._futures.get(task)
            if future is None or not future.set_running_or_notify_cancel():
                cancelled.append(task)
        if cancelled:
            self._claimed.update(set(range(first, stop)).difference(cancelled))
        else:
            self._claimed.update(range(first, stop))
        return cancelled

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        pop = self._futures.pop
        self._claimed.difference_update(range(first, first + size))
        for number in range(size):
            future = pop(first + number, None)
            if future is not None:
                future.worker = worker
                future.attempts = future.attempts or 1
                future.set_result(ResultShare(batch, offset + number))

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        future = self._pop(task)
        if future is not None:
            assert isinstance(failure, TaskFailure)
            future.worker, future.attempts = worker, attempts
            note = failure_note(f"task {task}", failure, attempts=attempts, worker=worker)
            future.set_exception(PendingFailure(failure, (note,)))

    def gave_up(self, task: int, reason: GivenUp) -> None:
        future = self._pop(task)
        if future is not None:
            future.worker, future.attempts = reason.worker, reason.attempts
            future.set_exception(reason.error())

    def broken(self, error: GearmapError) -> None:
        with self._lock:
            self.over = True
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(error)

    def wanted(self, size: int) -> None:
        """Nobody feeds this run but the user."""

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        """Single tasks have no display."""

    def noticed(self, text: str) -> None:
        logger.warning("%s", text)

    def ended(self, snapshot: ProgressSnapshot) -> None:
        self.broken(ClusterBroken("the client was closed before the task had ended"))

    def _pop(self, task: int) -> Future[Any] | None:
        self._claimed.discard(task)
        return self._futures.pop(task, None)
