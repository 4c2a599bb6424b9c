"""All `submit`s of a client with the same options: one open-ended run whose results are futures.

Rule 1: `submit` takes a call that was pickled in its thread and returns; the driver takes what was submitted in one go.
Rule 2: a future is claimed just before its task is sent: until then cancelling it is exact.
Rule 3: one call adds one object that lives on, its future, and the bytes of its arguments. What can be said of many
calls at once is said once for a group of them: objects are what the garbage collector's time goes into.
Rule 4: tasks are numbered for the engine when the driver takes them, so that tiny calls of functions that take turns
still travel together. Nothing else overtakes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import ClusterBroken, GearmapError
from gearmap.runtime.driver import Driver
from gearmap.runtime.futures import Future, PendingFailure, ResultBatch, begin, settle
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.run import Place, Run
from gearmap.runtime.wording import failure_note
from gearmap.wire.framing import Payload
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


class _Group:
    """Calls of one function that were submitted one after another, and together are no larger than a block may be."""

    __slots__ = ("calls", "function", "futures", "n_bytes", "place")

    def __init__(self, function: tuple[bytes, Any], place: Place) -> None:
        self.function = function
        self.place = place
        self.futures: list[Future[Any]] = []
        self.calls: list[Any] = []
        self.n_bytes = 0

    def take(self, other: _Group) -> None:
        """Take in the calls of another group of the same function and place."""
        self.futures += other.futures
        self.calls += other.calls
        self.n_bytes += other.n_bytes


class CallRun:
    """The consumer of an open-ended run."""

    def __init__(self, driver: Driver, make_run: Callable[[CallRun], Run]) -> None:
        self._driver = driver
        self._make_run = make_run
        self._run: Run | None = None
        self._lock = threading.Lock()
        # Under the lock: submitted and not yet seen by the driver, the newest group last; the next index; whether the
        # driver will look for more by itself.
        self._groups: list[_Group] = []
        self._newest: _Group | None = None
        self._next = 0
        self._told = False
        self.over = False
        self._cancelled = self._on_cancel  # one bound method for all futures
        # Driver thread only: taken and not settled, by the engine's numbers; the next of these.
        self._futures: dict[int, Future[Any]] = {}
        self._next_number = 0

    def submit(self, function: tuple[bytes, Any], call: bytes | Payload, place: Place) -> Future[Any]:
        """Add one call, pickled already; return its future.

        Raises
        ------
        ClusterBroken
            If the run is over.
        """
        size = len(call) if isinstance(call, bytes) else sum(memoryview(part).nbytes for part in call)
        with self._lock:
            index = self._next
            future: Future[Any] = Future(index, self._cancelled, self._lock)
            group = self._newest
            if (
                group is None
                or (group.function is not function and group.function[0] != function[0])
                or group.place is not place
                or group.n_bytes + size > MAX_BLOCK_BYTES
            ):
                group = self._add_group(function, place)
            group.futures.append(future)
            group.calls.append(call)
            group.n_bytes += size
            self._next = index + 1
            told, self._told = self._told, True
        if not told:
            self._driver.post(self._take)
        return future

    def _add_group(self, function: tuple[bytes, Any], place: Place) -> _Group:
        if self.over:
            raise ClusterBroken("the run is over")
        group = self._newest = _Group(function, place)
        self._groups.append(group)
        return group

    def _taken(self) -> list[_Group]:
        """Take the groups out; the caller holds the lock."""
        groups, self._groups, self._newest = self._groups, [], None
        return groups

    def _on_cancel(self, future: Future[Any]) -> None:
        self._driver.post(lambda: self._drop(future))

    # ------------------------------------------------------------------------------------------------- driver thread

    def _take(self) -> None:
        if self._run is None:
            self._run = self._make_run(self)
            self._run.feeder = self
            self._driver.add(self._run)
        self.feed(saturated=True)

    @property
    def has_more(self) -> bool:
        return bool(self._groups)

    def feed(self, *, saturated: bool) -> bool:
        with self._lock:
            groups = self._taken()
            if not groups:
                self._told = saturated
                return False
        for group in groups if len(groups) == 1 else self._regrouped(groups):
            self._add(group)
        return True

    def _regrouped(self, groups: Sequence[_Group]) -> list[_Group]:
        """Join groups of tiny calls that are apart because others came in between."""
        joined: dict[tuple[bytes, int], _Group] = {}
        result = []
        for group in groups:
            name = (group.function[0], id(group.place))
            known = joined.get(name)
            if known is not None and known.n_bytes + group.n_bytes <= MAX_BLOCK_BYTES:
                known.take(group)
                continue
            result.append(group)
            if self._block_size(group) > 1:
                joined[name] = group
        return result

    def _block_size(self, group: _Group) -> int:
        """Return how many calls a block takes: one, until it is known how little time they take."""
        assert self._run is not None
        seconds = self._run.seconds_of(group.function[0])
        return 1 if seconds is None else max(1, min(MAX_BLOCK_CALLS, int(BLOCK_SECONDS / max(seconds, 1e-6))))

    def _add(self, group: _Group) -> None:
        """Hand a group to the run as blocks."""
        run = self._run
        assert run is not None
        digest, calls, size = group.function[0], group.calls, len(group.calls)
        base = self._next_number
        self._next_number = base + size
        for number, future in enumerate(group.futures, base):
            future.number = number
            self._futures[number] = future
        step = self._block_size(group)
        for start in range(0, size, step):
            part = calls[start : start + step]
            first = base + start
            block = ev.Block(first, first, len(part), digest, group.n_bytes * len(part) // size)
            run.add_block(block, BlockKind.CALLS, part, group.place, group.function)

    def _drop(self, future: Future[Any]) -> None:
        """A future was cancelled while its task waited."""
        if self._groups:
            self._take()
        if self._futures.pop(future.number, None) is not None:
            future.set_running_or_notify_cancel()
        if self._run is not None:
            self._run.tell(ev.CancelTask(future.number))

    def claim(self, first: int, stop: int) -> Sequence[int]:
        get = self._futures.get
        futures = [get(task) for task in range(first, stop)]
        gone = {future.number for future in begin(filter(None, futures), self._lock)}
        if not gone and None not in futures:
            return ()
        for task in gone:
            del self._futures[task]
        return [task for task, future in enumerate(futures, first) if future is None or task in gone]

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        pop = self._futures.pop
        futures = [pop(task, None) for task in range(first, first + size)]
        settle(futures, self._lock, batch, offset, worker)

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            assert isinstance(failure, TaskFailure)
            future.worker, future.attempts = worker, attempts
            note = failure_note(f"task {future.task_index}", failure, attempts=attempts, worker=worker)
            future.set_exception(PendingFailure(failure, (note,)))

    def gave_up(self, task: int, reason: GivenUp) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            future.worker, future.attempts = reason.worker, reason.attempts
            future.set_exception(replace(reason, task=future.task_index).error())

    def broken(self, error: GearmapError) -> None:
        with self._lock:
            self.over = True
            groups = self._taken()
        futures = [*self._futures.values(), *chain.from_iterable(group.futures for group in groups)]
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
